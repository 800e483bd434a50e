"""What a point is, for the card of a bad one: its equation, and the line of source in which it is born."""

from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from numgemma.graph import PACKAGE, Graph, lines_in_words
from numgemma.version import __version__

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


@dataclass(frozen=True)
class Source:
    """The line in which a point is born, with its neighbours; of several points the lines of all."""

    file: str
    line: int  # counted from 1; of several the last
    first: int  # number of the first line of the excerpt
    excerpt: tuple[str, ...]
    link: str  # "" where the project has no page of its own
    lines: tuple[int, ...] = ()  # all that matter, in order

    @property
    def where(self) -> str:
        """In words: "line 12", "lines 30 to 42"."""
        return lines_in_words(self.lines)


def equation(name) -> str:
    """The equation of a text point; "" for one that has none here."""
    if "_tower" in name.partition(".")[0]:
        return ""
    scope, _, leaf = name.rpartition(".")
    return EQUATIONS.get(f"{scope.rpartition('.')[2]}.{leaf}") or EQUATIONS.get(leaf, "")


def source(name, graph: Graph, between=()) -> Source | None:
    """Where numgemma computes a point, and those of `between` in the same function; None where that is not known."""
    file, marked = graph.lines(name, between)
    if not file:
        return None
    lines = lines_of(PACKAGE / file)
    first = max(0, marked[0] - 1 - AROUND)
    excerpt = "\n".join(lines[first : marked[-1] + AROUND]).rstrip().split("\n")
    return Source(file, marked[-1], first + 1, tuple(excerpt), page(file, marked[0]), tuple(marked))


@cache
def lines_of(path):
    return path.read_text(encoding="utf-8").splitlines()


def page(file, line) -> str:
    """The line on the project's own site, if its metadata names one and the file is the project's."""
    try:
        urls = metadata("numgemma").get_all("Project-URL") or []
    except PackageNotFoundError:
        return ""
    known = dict(url.split(", ", 1) for url in urls if ", " in url)
    site = known.get("Source") or known.get("Repository") or ""
    ours = site.startswith("https://") and not Path(file).is_absolute()
    return f"{site.rstrip('/')}/blob/v{__version__}/numgemma/{file}#L{line}" if ours else ""
