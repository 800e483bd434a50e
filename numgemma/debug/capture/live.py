"""A model of Transformers as it stands in memory, edited, patched or wrapped, recorded while its user runs it.

What runs is left as it is: its mode, its dtype, its attention, its device.  Only the hooks of hooks.py are added, and
taken away again.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from numgemma.debug.capture.arrays import import_hf
from numgemma.debug.capture.held import held
from numgemma.debug.capture.hooks import accepted, catcher_of, hf_inputs, keep_results
from numgemma.dump import Dump, hashes, new_meta
from numgemma.errors import InputError
from numgemma.families import find
from numgemma.graph import counted, graph_of
from numgemma.model import Ids
from numgemma.prompt.media import NO_MEDIA, Media, is_empty
from numgemma.trace import EVERYTHING_BUT_MAPS

WHERE = "the model's config"
BESIDE = ("pixel_values", "pixel_values_videos", "input_features")  # that a pass may be given


@contextmanager
def capture(
    torch_model: Any, ids: Ids, points: Sequence[str] = EVERYTHING_BUT_MAPS, media: Media = NO_MEDIA
) -> Iterator[Dump]:
    """Record what a live Transformers model computes inside the `with` block.  ids: T  ->  a Dump, full at its end

        with numgemma.capture(model, ids) as dump:
            model(torch.tensor([ids]))
        dump.save("theirs.safetensors")

    Run the model inside as you run it: at once, through a cache, by `generate`; tokens after `ids` are not recorded.
    Where the block runs nothing, `ids` are run once at its end.  A model that is wrapped (by PEFT, or by hand) is found
    inside its wrapper, and run through it.  media: what stands at the placeholders.  However the block ends, no hook
    stays behind.  Raises InputError where the model is of no family that numgemma runs, or ran other tokens.
    """
    import_hf()
    hf = inner_model(torch_model)
    raw = json.loads(hf.config.to_json_string())
    family = find(raw, WHERE)
    config = family.read_config(raw, WHERE)
    if family.inputs(config):
        raise InputError(
            f"{family.name} runs on arrays beside the ids; save them, and use `numgemma capture --inputs`."
        )
    ids = np.asarray(ids)
    dump = Dump(described(torch_model, hf, raw, family.outline(config), ids, points, media))
    passes = Passes(dump, len(ids), media)
    catcher = catcher_of(hf)(config, graph_of(raw, *counted(media)), ids, passes, points, media)
    with ExitStack() as stack:
        stack.enter_context(catcher.listening(hf))

        def begun(module, args, kwargs):
            if "samples" not in dump.meta["model"]:  # now, since the user may have changed weights in the block
                dump.meta["model"]["samples"] = held(hf, family.shapes(config))
            catcher.begin(passes.begin(ids, args, kwargs))

        begin = hf.base_model.register_forward_pre_hook(begun, with_kwargs=True)
        stack.callback(begin.remove)
        stack.callback(hf.register_forward_hook(lambda m, args, out: keep_results(catcher, out)).remove)
        yield dump
        if not passes.reached:
            run_once(torch_model, hf, ids, media, family.placeholders(config))
    passes.finish(ids)
    if len(family.image_masks) > 1 and not is_empty(media) and catcher.looked_ahead is not None:
        dump.meta["image_mask"] = "transformers" if catcher.looked_ahead else "intended"


def inner_model(torch_model):
    """The model of Transformers in a model, which may be wrapped."""
    _, transformers = import_hf()
    if type(torch_model).__name__ == "OptimizedModule":
        raise InputError("A compiled model calls no hooks; give capture the model before torch.compile, or ._orig_mod.")
    for module in torch_model.modules():
        if isinstance(module, transformers.PreTrainedModel):
            return module
    raise InputError(f"{type(torch_model).__name__}: holds no model of Transformers; capture records those alone.")


def described(torch_model, hf, raw, outline, ids, points, media):
    """What the dump says of itself; of no file, since the weights that are held may have been changed since."""
    _, transformers = import_hf()
    name = str(hf.config.name_or_path or type(hf).__name__).rstrip("/").rpartition("/")[2]
    model = {"name": name, "layer_kinds": outline.layer_kinds, "config_json": raw}
    precision = str(hf.dtype).removeprefix("torch.")
    meta = new_meta("transformers", transformers.__version__, model, ids, precision, points)
    meta["engine"] |= {
        "mode": "train" if hf.training else "eval",
        "device": str(hf.device),
        "attention": hf.config._attn_implementation,
        "class": type(torch_model).__name__,
    }
    return meta | ({"inputs": hashes(media)} if not is_empty(media) else {})


def run_once(torch_model, hf, ids, media, placeholders):
    """Without a cache, and with the logits of all tokens."""
    torch, _ = import_hf()
    given = {name: torch.tensor(x, device=hf.device) for name, x in hf_inputs(ids, media, placeholders).items()}
    with torch.no_grad():
        torch_model(**accepted(hf, given | {"use_cache": False}))


class Passes:
    """A sink for one or more passes over the tokens: what they keep goes to its place in the dump."""

    def __init__(self, dump, total, media):
        self.dump, self.total, self.media = dump, total, media
        self.end, self.reached, self.first = 0, 0, 0  # of this pass, of all so far, of the one from token 0
        self.rows: dict[str, set[int]] = {}  # of each point, the tokens that were computed

    def begin(self, ids, args, kwargs):
        """Which tokens come now: checked.  -> how many"""
        given = args[0] if args else kwargs.get("input_ids")
        x = given if given is not None else kwargs["inputs_embeds"]
        cache, mask = kwargs.get("cache", kwargs.get("past_key_values")), kwargs.get("attention_mask")
        start = 0 if cache is None else int(cache.get_seq_length())
        check_alone(x, mask)
        if start == 0 and any(kwargs.get(name) is not None for name in BESIDE):
            self.check_media()
        self.end = start + x.shape[1]
        if given is not None and self.end <= self.total:
            check_ids(ids[start : self.end], given[0].tolist(), start)
        if start < self.total < self.end:
            raise InputError(
                f"The model was run on {self.end} tokens, and the ids are {self.total}; give capture them all."
            )
        self.reached = max(self.reached, min(self.end, self.total))
        self.first = x.shape[1] if start == 0 else self.first
        return x.shape[1]

    def check_media(self):
        if is_empty(self.media):
            raise InputError("The model was run with pictures or sound; give capture them too, as media=....")
        if self.reached:
            raise InputError(
                "With pictures or sound the model can be run once in a block; capture each run in its own."
            )

    def keep(self, name, x, axes):
        """Take one point of this pass; of some, Transformers computes the last tokens alone."""
        letters = axes.split()
        if self.end > self.total:
            return
        if "T" in letters:
            self.dump.start = self.end - x.shape[letters.index("T")]
            self.rows.setdefault(name, set()).update(range(self.dump.start, self.end))
        self.dump.keep(name, x, axes)

    def finish(self, ids):
        """Say what was run, and of which points only some tokens."""
        if self.reached < len(ids):
            raise InputError(
                f"The model was run on the first {self.reached} of {len(ids)} tokens; run it on all of them."
            )
        if not self.dump.arrays:
            raise InputError(f"--points {' '.join(self.dump.meta['coverage'])[:60]}: selects no point of this model.")
        self.dump.meta["cache"] = "none" if self.first == len(ids) else f"after {self.first} tokens"
        parts = {}
        for name, rows in self.rows.items():
            axis, shape = self.dump.axes[name].split().index("T"), list(self.dump[name].shape)
            if len(rows) < len(ids):
                kept = sorted(rows)
                self.dump.arrays[name] = self.dump[name].take(kept, axis)
                parts[name] = {"shape": shape, "at": [kept if i == axis else None for i in range(len(shape))]}
        if parts:
            self.dump.meta |= {"parts": {n: part | {"slack": None} for n, part in parts.items()}, "fidelity": "sampled"}


def check_alone(x, mask):
    if len(x) != 1 or (mask is not None and hasattr(mask, "dim") and mask.dim() == 2 and not mask.all()):
        raise InputError("The model was run on a batch, or with padding; inside capture run one sequence, unpadded.")


def check_ids(due, given, start):
    for at, (a, b) in enumerate(zip(due.tolist(), given, strict=True), start):
        if a != b:
            raise InputError(
                f"At position {at} the model was run on token {b}, and the ids have {a}; give capture those."
            )
