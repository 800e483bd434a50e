"""Runs a checkpoint in Transformers and writes what its modules compute as a dump, under numgemma's names.

A hook on every module takes what it returns.  What no module returns (rotated queries, attention probabilities, the
stream between branches) is caught at three functions of the modelling file.  Needs the extra `hf`.
"""

import re
import sys
from contextlib import ExitStack, contextmanager
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from numgemma.config import typed
from numgemma.debug.capture.arrays import import_hf, modelling_of, to_numpy
from numgemma.debug.capture.canvas import StacksCatcher, masks_for
from numgemma.debug.capture.embedders import Embedders
from numgemma.debug.capture.held import held
from numgemma.debug.capture.streams import StreamsCatcher
from numgemma.debug.capture.towers import Towers
from numgemma.dump import new_meta
from numgemma.errors import InputError
from numgemma.families.gemma4.layout import TOWERS
from numgemma.graph import counted, graph_of
from numgemma.incoming import by_library, read_object
from numgemma.model import Model
from numgemma.opening import fingerprint
from numgemma.prompt.media import NAMES, NO_MEDIA, is_empty
from numgemma.prompt.named import named, taken
from numgemma.trace import EVERYTHING_BUT_MAPS, Recorder, selects

# By Transformers' modelling file: what watches the modules that pictures and sound pass before the decoder.
BEFORE_TEXT = {"modeling_gemma4": Towers, "modeling_embedding_gemma2": Towers, "modeling_gemma4_unified": Embedders}
AT_THE_END = ("norm", "lm_head", "logits")  # which Transformers may compute for the last tokens alone


def capture(
    model: Model, ids, sink, dtype="float32", points=EVERYTHING_BUT_MAPS, media=NO_MEDIA, image_mask="transformers"
):
    """Run `ids` once through Transformers and hand each point to sink.keep(name, x, axes).  ids: T

    Without a cache, and with the logits of all tokens: otherwise Transformers computes the layers that share keys
    for the last tokens only.  image_mask: "intended" hands Transformers that mask, where a model has two; else it
    makes its own.  Which one ran is noted in sink.meta.
    """
    torch, _ = import_hf()
    hf = load_hf(model.checkpoint.folder, getattr(torch, dtype), () if is_empty(media) else TOWERS)
    graph = graph_of(model.checkpoint.config, *counted(media))
    catcher = catcher_of(hf)(model.config, graph, ids, sink, points, media)
    given = hf_inputs(ids, media, model.family.placeholders(model.config))
    inputs = grouped({name: torch.tensor(x) for name, x in given.items()}, media, hf.dtype)
    several = model.has_image_mask(media)
    if several and model.given_by_name:
        inputs["attention_mask"] = masks_for(hf, model, ids, media, image_mask)
    elif image_mask == "intended" and several:
        inputs["attention_mask"] = intended_mask(hf, inputs)
    check_videos(hf, inputs)
    keep_given(model, media, dtype, sink)
    told = sink.meta.setdefault("model", {})  # of a tower that was not built the file's word stands: none of it ran
    told["samples"] = model.checkpoint.samples | held(hf, model.family.shapes(model.config))
    with torch.no_grad(), catcher.listening(hf):
        out = hf(**accepted(hf, inputs | {"use_cache": False, "logits_to_keep": 0}))
    keep_results(catcher, out)
    if several:
        sink.meta["image_mask"] = "transformers" if catcher.looked_ahead else "intended"


def accepted(hf, inputs):
    """Of what a model may be called with, that which this one names; DiffusionGemma does not name pictures."""
    names = signature(hf.forward).parameters
    return {name: x for name, x in inputs.items() if name in names or name in NAMES}


def check_videos(hf, inputs):
    """The first versions of Transformers that had Gemma 4 took videos in another form, an axis each."""
    frames, see = "num_frames_per_video", getattr(hf.base_model, "get_video_features", None)
    if frames in inputs and see is not None and frames not in signature(see).parameters:
        version = import_hf()[1].__version__
        raise InputError(f"Transformers {version} takes videos in another form; install a newer one.")


def keep_results(catcher, out):
    """What a run ends with: logits, or the vector that sentence-transformers makes of the last state."""
    if getattr(out, "logits", None) is not None:
        catcher.keep("logits", out.logits)
    elif "vector" in catcher.graph:
        torch, _ = import_hf()
        tokens = out.last_hidden_state
        pooled = tokens.sum(1) / torch.tensor(tokens.shape[1], dtype=tokens.dtype, device=tokens.device)
        catcher.keep("pooled", pooled)
        catcher.keep("vector", torch.nn.functional.normalize(pooled, dim=1))


def intended_mask(hf, inputs):
    """The masks that Transformers makes for a static cache, and not in a plain forward pass: kind of layer -> mask."""
    torch, _ = import_hf()
    (tokens,) = inputs["input_ids"].shape[1:]
    like = torch.empty(1, tokens, hf.get_input_embeddings().embedding_dim, dtype=hf.dtype)
    types = inputs["mm_token_type_ids"]
    return hf.create_masks_for_generate(
        hf.config, like, None, None, torch.arange(tokens)[None], mm_token_type_ids=types
    )


def hf_inputs(ids, media, placeholders):
    """What Transformers' forward pass is called with: a batch of one prompt, and its media.  placeholders: kind: id"""
    ids = np.asarray(ids)
    if is_empty(media):
        return by_name(media) | ({"input_ids": ids[None]} if len(ids) else {})
    given = by_name(media) | {name: x for name in NAMES if (x := getattr(media, name)) is not None}
    kinds = {"image": 1, "video": 2, "audio": 3}
    types = sum(kinds[kind] * (ids == i) for kind, i in placeholders.items())
    types = given.get("mm_token_type_ids", types)  # without them Transformers would let no image see itself
    return given | {"input_ids": ids[None], "mm_token_type_ids": types[None]}


def by_name(media) -> dict[str, np.ndarray]:
    """What the run is given by name, with a batch axis; PyTorch makes no tensor of NumPy's bfloat16."""
    arrays = {name: np.asarray(x)[None] for name, x in named(media).items()}
    return {name: x if x.dtype.kind in "fiub" else x.astype(np.float32) for name, x in arrays.items()}


def grouped(inputs, media, dtype):
    """As Transformers takes them: what is given by name in its dtype; `SCOPE.KIND.k` and `.v` as pairs, by kind."""
    found: dict[str, Any] = {}
    for name, x in inputs.items():
        x = x.to(dtype) if name in named(media) and x.is_floating_point() else x
        scope, *within = name.split(".")
        if within:
            found.setdefault(scope, {}).setdefault(within[0], []).append(x)
        else:
            found[name] = x
    return found


def keep_given(model, media, dtype, sink):
    """What the run is given by name, as numgemma's run would keep it."""
    tap = Recorder(sink.keep, np.dtype(dtype))
    for name in named(media):
        taken(name, model.given_by_name[name].axes, media, tap.dtype, tap)


def load_hf(folder: Path, dtype, towers=TOWERS):
    """The checkpoint as Transformers runs it: eager attention and eager experts, whose steps can be watched.

    towers: prefixes of the towers that will run.  Raises InputError where Transformers lacks a tensor that will.
    """
    _, transformers = import_hf()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    raw = read_object(folder / "config.json", "name a folder that has one")
    (name,) = typed(raw.get("architectures"), tuple[str], f"{folder / 'config.json'}: architectures")
    kind = getattr(transformers, name, None)
    version = f"Transformers {transformers.__version__}"
    if kind is None:
        raise InputError(f"{folder}: {version} has no {name:.100}; install a newer one.")
    watched = {"attn_implementation": "eager", "experts_implementation": "eager"}
    with by_library(f"{folder}: {version} does not build it", "try a newer one, or `numgemma lint`"):
        hf, told = kind.from_pretrained(folder, dtype=dtype, output_loading_info=True, **watched)
    check_loaded(folder, told, towers)
    return hf.eval()


def check_loaded(folder, told, towers):
    """Transformers draws at random what it does not find, and says so on a log that nobody reads.

    A head that is tied counts as missing where the table of embeddings is; a head of its own is never alone in that.
    """
    idle = tuple(f"{prefix}{tower}" for prefix in ("model.", "") for tower in TOWERS if tower not in towers)
    missing = sorted(name for name in told["missing_keys"] if not name.startswith(("lm_head", *idle)))
    if missing:
        unread = sorted(told["unexpected_keys"])
        instead = f"; the file has {unread[0]!r:.100}, which it does not read" if unread else ""
        raise InputError(
            f"{folder}: Transformers does not find {len(missing)} tensors, as {missing[0]!r:.100}{instead}; it would "
            "run random weights, so give it the names that `numgemma lint` tells."
        )


def describe(model: Model, ids, dtype="float32", points=EVERYTHING_BUT_MAPS, text=None, media=None):
    """What the captured dump says of itself."""
    _, transformers = import_hf()
    which = fingerprint(model.checkpoint, model.outline)
    meta = new_meta("transformers", transformers.__version__, which, ids, dtype, points, text)
    return meta if media is None else meta | model.describe_media(ids, media)


def catcher_of(hf):
    """What listens to a model of Transformers: one for each way in which it writes a decoder down."""
    if "diffusion_gemma" in modelling_of(hf).__name__:
        return partial(StacksCatcher, Catcher)
    return StreamsCatcher if "gemma3n" in modelling_of(hf).__name__ else Catcher


def looks_ahead(mask):
    """Whether a token sees a later one.  mask: 1 1 T S, what is hidden below 0; the last token is the last key"""
    tokens, keys = mask.shape[-2:]
    return bool((mask >= 0).triu(1 + keys - tokens).any())


def homes(hf, name):
    """The modelling files that a model and its modules are of, if they have a function of that name."""
    files = [modelling_of(hf), *(sys.modules[type(module).__module__] for module in hf.modules())]
    return [file for file in dict.fromkeys(files) if hasattr(file, name)]


class Catcher:
    """Gives what flows through a Transformers model the names of our points, and passes it on to a sink."""

    def __init__(self, config, graph, ids, sink, points, media):
        self.config, self.graph, self.sink, self.points, self.media = config.text, graph, sink, points, media
        self.whole: Any = config
        self.towers: Any = None  # what watches pictures and sound, once it is known which model runs
        self.looked_ahead: bool | None = None  # whether some token of a full layer saw a later one, where maps are seen
        self.sizes = {"T": len(ids) or 1, "L": self.config.num_hidden_layers}
        self.attention, self.to_rotate = None, []  # of the decoder layer that is running; of none in a tower
        self.full, self.after_attention = False, None  # of the layer that is running
        self.heads_first = False  # whether queries and keys have the axis of heads before that of tokens

    def begin(self, tokens):
        """A pass over so many tokens."""
        self.sizes["T"] = tokens

    def keep(self, name, x):
        """Without the batch axis, joined axes split."""
        if name in self.graph and selects(self.points, name):
            axes = self.graph.axes(name)
            *front, _ = axes.split()
            if self.heads_first and front in (["T", "N"], ["T", "K"]) and x.ndim == 4:
                x = x.transpose(1, 2)
            sizes = self.sizes | ({"T": x.shape[1]} if name in AT_THE_END else {})
            self.sink.keep(name, to_numpy(x).reshape([*(sizes[a] for a in front), -1]), axes)

    def keep_piece(self, name, x, axes):
        """What a tower made of one picture or clip: it has no batch axis."""
        if name in self.graph and selects(self.points, name):
            self.sink.keep(name, to_numpy(x), axes)

    @contextmanager
    def listening(self, hf):
        """Hooks on every module and three functions of the modelling file replaced, for as long as this lasts."""
        text = hf.get_decoder()
        modelling = modelling_of(text)
        self.heads_first = "k" in signature(modelling.apply_rotary_pos_emb).parameters
        with ExitStack() as stack:
            for name, module in hf.named_modules():
                short = name.removeprefix("model.").removeprefix("language_model.")
                for handle in () if short.startswith(TOWERS) else self.hook(module, short):
                    stack.callback(handle.remove)
            if not is_empty(self.media):
                before = BEFORE_TEXT[modelling.__name__.rpartition(".")[2]]
                self.towers = before(self.whole, self.graph, self.media, self.keep_piece)
                stack.enter_context(self.towers.listening(hf))
                stack.callback(text.register_forward_pre_hook(self.merged, with_kwargs=True).remove)
            stack.enter_context(patch.object(modelling, "apply_rotary_pos_emb", self.rotary(modelling)))
            for home in homes(hf, "eager_attention_forward"):
                stack.enter_context(patch.object(home, "eager_attention_forward", self.eager(home)))
            if "per_layer_inputs" in self.graph:
                stack.enter_context(patch.object(text, "project_per_layer_inputs", self.per_layer(text)))
            yield

    def hook(self, module, name):
        """Register what this module calls for; its parts have hooks of their own."""
        leaf = name.rpartition(".")[2]
        special = {"rotary_emb": self.table, "router": self.routing}
        if re.fullmatch(r"layers\.\d+", name):
            yield module.register_forward_pre_hook(lambda m, x: self.begin_layer(name, x[0]))
            yield module.register_forward_hook(lambda m, x, out: self.end_layer(name, out))
        elif leaf in special:
            yield module.register_forward_hook(lambda m, args, out: special[leaf](name, args, out))
        elif name in self.graph:
            yield module.register_forward_hook(lambda m, args, out: self.keep(name, out))
        elif leaf == "ple_block":
            yield module.register_forward_hook(lambda m, args, out: self.keep(f"{name}.out", out))
        yield from self.hook_between(module, name, leaf)

    def hook_between(self, module, name, leaf):
        """What no module returns, but one takes as its input."""
        layer = name.rpartition(".")[0]
        if leaf == "o_proj":
            yield module.register_forward_pre_hook(lambda m, x: self.keep(f"{layer}.context", x[0]))
        if leaf == "pre_feedforward_layernorm":
            yield module.register_forward_pre_hook(lambda m, x: self.between_branches(layer, x[0]))
        if leaf == "post_feedforward_layernorm":
            yield module.register_forward_hook(
                lambda m, x, out: self.keep(f"{layer}.after_mlp", self.after_attention + out)
            )

    def merged(self, text, args, kwargs):
        self.keep("inputs_embeds", kwargs["inputs_embeds"])

    def begin_layer(self, layer, x):
        spec = self.config.layers[int(layer.rpartition(".")[2])]
        self.sizes |= {"T": x.shape[1], "N": spec.N, "K": spec.K}
        self.full = spec.window is None
        self.attention, self.to_rotate = f"{layer}.self_attn", ["q_rope", "k_rope"]  # in the order of the calls

    def end_layer(self, layer, out):
        self.attention = None
        self.keep(f"{layer}.out", out)

    def between_branches(self, layer, x):
        self.after_attention = x
        self.keep(f"{layer}.after_attention", x)

    def table(self, name, args, out):
        kind = args[2]
        self.keep(f"{name}.{kind}.cos", out[0])
        self.keep(f"{name}.{kind}.sin", out[1])

    def routing(self, name, args, out):
        for point, x in zip(("probs", "weights", "ids"), out, strict=True):
            self.keep(f"{name}.{point}", x)

    def rotary(self, modelling):
        original = modelling.apply_rotary_pos_emb

        def apply_rotary_pos_emb(x, *args, **kwargs):
            y = original(x, *args, **kwargs)
            if self.attention is not None and self.to_rotate:
                for turned in y if isinstance(y, tuple) else (y,):  # queries and keys in one call, or in two
                    self.keep(f"{self.attention}.{self.to_rotate.pop(0)}", turned)
            return y

        return apply_rotary_pos_emb

    def eager(self, modelling):
        original = modelling.eager_attention_forward

        def eager_attention_forward(module, query, key, value, attention_mask, **kwargs):
            y, probs = original(module, query, key, value, attention_mask, **kwargs)
            scores = query @ modelling.repeat_kv(key, module.num_key_value_groups).transpose(2, 3)
            if attention_mask is not None:
                self.looked_ahead = bool(self.looked_ahead) or (self.full and looks_ahead(attention_mask))
                scores = scores.masked_fill(attention_mask < 0, 0)  # as our point: what the mask hides reads as 0
            if self.attention is not None:
                self.keep(f"{self.attention}.scores", scores * module.scaling)
                self.keep(f"{self.attention}.probs", probs)
            elif self.towers is not None:
                self.towers.patch_maps(scores * module.scaling, probs)
            return y, probs

        return eager_attention_forward

    def per_layer(self, text):
        original = text.project_per_layer_inputs

        def project_per_layer_inputs(*args, **kwargs):
            y = original(*args, **kwargs)
            self.keep("per_layer_inputs", y)
            return y

        return project_per_layer_inputs
