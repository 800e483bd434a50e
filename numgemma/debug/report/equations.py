"""What a point is, for the card of a bad one: its equation, and the line of source in which it is born."""

import re
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from numgemma.version import __version__

PACKAGE = Path(__file__).parents[2]
AROUND = 2  # lines of source shown on either side

NORM = "x / √(mean(x²) + ε) · w"
LINEAR = "W x"
# By the end of the name; x is what the step reads, w and W its weights as stored (out × in).
EQUATIONS = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "lm_head"), LINEAR),
    **dict.fromkeys(("per_layer_input_gate", "per_layer_model_projection", "router.proj", "input_proj"), LINEAR),
    **dict.fromkeys(("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "norm"), NORM),
    **dict.fromkeys(
        ("post_feedforward_layernorm", "post_feedforward_layernorm_1", "post_feedforward_layernorm_2"), NORM
    ),
    **dict.fromkeys(("pre_feedforward_layernorm_2", "post_per_layer_input_norm", "per_layer_projection_norm"), NORM),
    **dict.fromkeys(("q_norm", "k_norm"), f"{NORM}, over each head's H lanes"),
    "v_norm": "v / √(mean(v²) + ε), over each head's H lanes; no weight. Where V = K, v is the raw k_proj",
    "q_rope": "lane i and lane i + H/2 turned together by position · θ^(-2i/H); full attention turns the first few",
    "scores": "q · k over the H lanes; scale 1, since q_norm and k_norm carry it",
    "probs": "softmax of the scores over the keys that the query may see",
    "context": "Σ probs · v over the keys",
    "after_attention": "x + post_attention_layernorm",
    "down_proj": "W (gelu_tanh(gate) · up)",
    "after_mlp": "after_attention + post_feedforward_layernorm",
    "per_layer_projection": "W (gelu_tanh(gate) · per-layer input of this layer)",
    "out": "layer_scalar · (x + post_per_layer_input_norm); without per-layer inputs layer_scalar · after_mlp",
    "embed_tokens": "√D · the token's row of the table",
    "embed_tokens_per_layer": "√P · the token's row of the per-layer table",
    "per_layer_inputs": "(per_layer_projection_norm + embed_tokens_per_layer) / √2",
    "router.norm": "x / √(mean(x²) + ε) of the raw stream; no weight",
    "router.probs": "softmax over all experts",
    "router.weights": "probs of the J chosen, divided by their sum, times per_expert_scale",
    "router.ids": "the J experts of the largest probs",
    "experts": "Σ weight · W_down (gelu_tanh(gate) · up) over the chosen experts",
    "logits": "cap · tanh(lm_head / cap)",
    "cos": "cos(position · θ^(-2i/H))",
    "sin": "sin(position · θ^(-2i/H))",
}
EQUATIONS["k_rope"] = EQUATIONS["q_rope"]

FILES = (  # where a point is born, by the beginning or the scope of its name; the first file that holds it
    (r"vision_tower\.", ("layers/vision.py", "ops/definitions.py")),
    (r"audio_tower\.", ("layers/conformer.py", "ops/definitions.py")),
    (r"embed_(vision|audio)\.|inputs_embeds", ("families/gemma4/multimodal.py",)),
    (r".*self_attn\.", ("layers/attention.py", "ops/definitions.py")),
    (r".*(mlp|router)\.", ("layers/feedforward.py",)),
    (r".*per_layer", ("layers/per_layer.py", "families/gemma4/gemma4.py")),
    (r"", ("families/gemma4/gemma4.py",)),
)


@dataclass(frozen=True)
class Source:
    """The line in which a point is born, with its neighbours."""

    file: str
    line: int  # counted from 1
    first: int  # number of the first line of the excerpt
    excerpt: tuple[str, ...]
    link: str  # "" where the project has no page of its own


def equation(name) -> str:
    """The equation of a text point; "" for one that has none here."""
    if name.startswith(("vision_tower.", "audio_tower.")):
        return ""
    scope, _, leaf = name.rpartition(".")
    return EQUATIONS.get(f"{scope.rpartition('.')[2]}.{leaf}") or EQUATIONS.get(leaf, "")


@cache
def source(name) -> Source | None:
    """Where numgemma computes a point; None where that cannot be found."""
    leaf = re.escape(name.rpartition(".")[2])
    for prefix, files in FILES:
        if re.match(prefix, name):
            for file in files:
                found = in_file(file, rf'\b(tap|norm)\(\s*"{leaf}"')
                if found:
                    return found
    return None


def in_file(file, pattern) -> Source | None:
    path = PACKAGE / file
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for i, line in enumerate(lines):
        if re.search(pattern, line):
            first = max(0, i - AROUND)
            excerpt = "\n".join(lines[first : i + AROUND + 1]).rstrip().split("\n")
            return Source(file, i + 1, first + 1, tuple(excerpt), page(file, i + 1))
    return None


def page(file, line) -> str:
    """The line on the project's own site, if its metadata names one."""
    try:
        urls = metadata("numgemma").get_all("Project-URL") or []
    except PackageNotFoundError:
        return ""
    known = dict(url.split(", ", 1) for url in urls if ", " in url)
    site = known.get("Source") or known.get("Repository") or ""
    return f"{site.rstrip('/')}/blob/v{__version__}/numgemma/{file}#L{line}" if site.startswith("https://") else ""
