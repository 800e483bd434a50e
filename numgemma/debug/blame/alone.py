"""Some layers alone: the steps in question computed once more, while the other layers hand on what they did before."""

from contextlib import contextmanager, nullcontext

from numgemma.cache import append
from numgemma.debug.blame.one_step import TOWERS, Local, Steps, exactly, noisily, parts_swapped, scope_of
from numgemma.debug.measure.discrete import layer_of
from numgemma.graph import unstacked

HEAD = "head"  # beside TOWERS and the numbers of layers: what may run alone
AT_HEAD = ("lm_head", "logits")
IN_TOWERS = ("vision_tower", "audio_tower", "embed_vision", "embed_audio")


@contextmanager
def only(layers, base, family, tokens=lambda: slice(None)):
    """Only these layers of the decoder run, the head if HEAD is among them and the towers if TOWERS is.

    The others hand on what they did in an earlier pass.  tokens: says which of them the pass that runs is of.
    """

    def block(original, x, spec, tap, **given):
        if spec.index in layers:
            return original()
        here = tokens()
        if spec.index in base.kvs and (here.start or spec.index not in given["kvs"]):
            append(given["kvs"], spec.index, *(kept[here].astype(x.dtype) for kept in base.kvs[spec.index]))
        return base.streams[scope_of(tap)][..., here, :].astype(x.dtype)

    def head(original, x):
        return original() if HEAD in layers else x

    def soft_tokens(original, run):
        if TOWERS in layers:
            return original()
        return {kind: rows.astype(run.dtype) for kind, rows in base.streams[TOWERS].items()}

    def forget(original, kvs, rows):
        """Layers that did not run may have nothing to forget."""
        original(rows=[spec for spec in rows if spec.index in kvs])

    with parts_swapped(family, {"block": block, "head": head, "soft tokens": soft_tokens, "forget": forget}):
        yield


def layers_of(steps) -> set:
    """The layers that must run to reach some steps; HEAD and TOWERS where those must."""
    names = [name for step in steps for name in (step.name, *step.between)]
    layers: set = {layer_of(name) for name in names if layer_of(name) is not None}
    layers |= {HEAD for name in names if name in AT_HEAD}
    return layers | {TOWERS for name in names if unstacked(name).startswith(IN_TOWERS)}


def again(subject, base, layers, under=nullcontext, runs=0, wanted=None) -> Local:
    """The steps of some layers once more, in contexts that `under` makes: `lambda: applied(model, "T07")`.

    They are judged by the noise of the earlier pass, or where there are runs by noise that is measured anew.
    wanted: names of the steps that are measured; None: all.
    """
    found = Local(limits={} if runs else base.limits)
    with only(layers, base, subject.model.family):
        exactly(subject, Steps(subject.dump, subject.precision, found, wanted).look, under)
        for seed in range(runs):
            noisily(subject, seed, found, under)
    return found
