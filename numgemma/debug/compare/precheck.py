"""Before any number is compared: were both dumps made of the same tokens, by the same model, in the same way?

The most common causes of a wrong number are found here, in words: a second <bos>, another chat template, other pixels.
"""

from dataclasses import asdict, dataclass
from itertools import zip_longest

import numpy as np

from numgemma.debug.compare import front_end
from numgemma.debug.measure import metrics, precision
from numgemma.debug.measure.discrete import layer_of, stack_of
from numgemma.dump import made_by

SAME, DIFFERS, UNKNOWN = "same", "differs", "unknown"

# What enters a model beside the tokens, where a dump holds it as a point.
INPUTS = (
    *("pixel_values", "image_position_ids", "pixel_values_videos", "video_position_ids"),
    *("input_features", "input_features_mask"),
)

ANOTHER_INPUT = 1e-2  # relative error above which pixels or mel frames are those of another preprocessing


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.  fatal: with this difference no number would mean anything."""

    what: str
    state: str
    says: str
    fatal: bool = False


@dataclass(frozen=True)
class Precheck:
    """All that was looked at, in the order in which it is told."""

    findings: tuple[Check, ...]

    @property
    def comparable(self) -> bool:
        return not any(f.fatal for f in self.findings)

    @property
    def reason(self) -> str:
        """The first thing that makes a comparison meaningless; "" where nothing does."""
        return next((f.says for f in self.findings if f.fatal), "")

    @property
    def exit_code(self) -> int:
        return 0 if self.comparable else 3

    def to_json(self) -> dict:
        verdict = "comparable" if self.comparable else "not comparable"
        return {
            "schema": "numgemma.precheck/1",
            "verdict": verdict,
            "reason": self.reason,
            "findings": [asdict(f) for f in self.findings],
        }


def precheck(a, b, mapped=False) -> Precheck:
    """Look at what two dumps say of themselves.  mapped: the models are known to have other layers."""
    checks = (
        token_ids,
        positions,
        text,
        config,
        weights,
        inputs,
        image_mask,
        run_precision,
        cache,
        fidelity,
        versions,
        rows,
        last_alone,
    )
    found = [finding for check in checks for finding in check(a, b)]
    if mapped:
        found = [f for f in found if f.what not in ("configuration", "weights") or not f.fatal]
    return Precheck(tuple(found))


def compared(what, x, y, state=DIFFERS):
    """The usual finding on two values that are shown as they are; state: what it is called when they differ."""
    if x is None or y is None:
        sides = " and ".join(side for side, value in (("A", x), ("B", y)) if value is None)
        return Check(what, UNKNOWN, f"{sides} does not say" if len(sides) == 1 else "neither side says")
    if x == y:
        return Check(what, SAME, str(x))
    return Check(what, state, f"{x} in A, {y} in B")


def token_ids(a, b):
    ids_a, ids_b = a.meta.get("ids"), b.meta.get("ids")
    if ids_a is None or ids_b is None:
        sides = [side for side, ids in (("A", ids_a), ("B", ids_b)) if ids is None]
        for side in sides:
            yield Check("token ids", UNKNOWN, f"the dump {side} does not say which token ids were run")
        if len(sides) == 1:
            yield from counted(a, b, ids_b if ids_a is None else ids_a, sides[0])
        return
    for at, (x, y) in enumerate(zip_longest(ids_a, ids_b, fillvalue="no token")):
        if x != y:
            says = f"the token ids first differ at position {at}: {x} in A, {y} in B"
            yield Check("token ids", DIFFERS, says + shifted_ids(ids_a, ids_b), fatal=True)
            return
    yield Check("token ids", SAME, f"{len(ids_a)} tokens")


def shifted_ids(a, b):
    """Says so when one prompt is the other with one more token at an end."""
    for more, less, side in ((b, a, "B"), (a, b, "A")):
        if len(more) == len(less) + 1 and more[1:] == less:
            twice = len(less) and more[0] == less[0]
            return f" ({side} begins with {'a second' if twice else 'one more token,'} {more[0]})"
        if len(more) == len(less) + 1 and more[:-1] == less:
            return f" ({side} ends with one more token, {more[-1]})"
    return ""


def counted(a, b, ids, silent):
    """A dump without ids still shows how many tokens it has."""
    dump = a if silent == "A" else b
    parts = dump.meta.get("parts") or {}
    sizes = {len(dump[n]) for n in dump if dump.axes.get(n, "").startswith("T ") and n not in parts}
    if sizes and len(ids) not in sizes:
        says = f"{silent} has {max(sizes)} tokens, the other side {len(ids)}"
        if abs(max(sizes) - len(ids)) == 1:
            says += f": perhaps {silent} has {'a second' if max(sizes) > len(ids) else 'no'} <bos>"
        yield Check("number of tokens", DIFFERS, says, fatal=True)


def positions(a, b):
    x, y = a.meta.get("positions"), b.meta.get("positions")
    if x is None or y is None or x == y:
        yield Check("positions", UNKNOWN if None in (x, y) else SAME, span(x if x is not None else y))
        return
    fatal = len(x) == len(y)
    offsets = {q - p for p, q in zip(x, y, strict=False)}
    says = f"the tokens' positions differ: {span(x)} in A, {span(y)} in B"
    if len(offsets) == 1 and fatal:
        says += f" (B's are A's {offsets.pop():+d})"
    yield Check("positions", DIFFERS, says, fatal)


def span(positions):
    if not positions:
        return "not said"
    return f"{positions[0]} to {positions[-1]}" if len(positions) > 1 else str(positions[0])


def text(a, b):
    """The prompt's text, template and all: with the same ids a difference is only one of bookkeeping."""
    x, y = a.meta.get("text"), b.meta.get("text")
    if x is None or y is None or x == y:
        yield Check("text", UNKNOWN if None in (x, y) else SAME, "not said by both" if None in (x, y) else "equal")
        return
    at = next((i for i, (p, q) in enumerate(zip(x, y, strict=False)) if p != q), min(len(x), len(y)))
    says = f"the texts first differ at character {at}: {x[at : at + 30]!r} in A, {y[at : at + 30]!r} in B"
    yield Check("text", DIFFERS, says)


def config(a, b):
    x, y = (dump.meta.get("model") or {} for dump in (a, b))
    kinds_a, kinds_b = x.get("layer_kinds") or [], y.get("layer_kinds") or []
    if kinds_a and kinds_b and kinds_a != kinds_b:
        if len(kinds_a) != len(kinds_b):
            says = f"the models have {len(kinds_a)} layers in A and {len(kinds_b)} in B; give a --layer-map"
        else:
            at = next(i for i, (p, q) in enumerate(zip(kinds_a, kinds_b, strict=True)) if p != q)
            says = f"layer {at} is {words(kinds_a[at])} in A and {words(kinds_b[at])} in B"
        yield Check("configuration", DIFFERS, says, fatal=True)
    elif x.get("config") != y.get("config") and x.get("config") and y.get("config"):
        yield Check("configuration", DIFFERS, "the models' configurations differ")
    else:
        known = x.get("config") and y.get("config")
        yield Check("configuration", SAME if known else UNKNOWN, "equal" if known else "not said by both")


def words(kind):
    return kind.replace("_", " ")


def weights(a, b):
    """Headers of the shards: other names, shapes or dtypes; and a few numbers of each tensor, where both dumps say.

    What a captured engine says of its tensors it held in memory, whatever file it was given.
    """
    models = [dump.meta.get("model") or {} for dump in (a, b)]
    x, y = (model.get("shards") or {} for model in models)
    both_say = bool(x and y)
    other = sorted(name for name in x if both_say and y.get(name, x[name]) != x[name])
    apart = sorted(x.keys() ^ y.keys()) if both_say else []
    if other:
        yield Check("weights", DIFFERS, f"the weights differ: {other[0]} is not the same file")
    elif apart:
        side = "A" if apart[0] in x else "B"
        yield Check("weights", DIFFERS, f"the weights lie in other files: only {side} has {apart[0]}")
    elif all(model.get("samples") for model in models):
        yield by_numbers(*(model["samples"] for model in models))
    elif both_say:
        yield Check("weights", SAME, f"the headers of {len(x)} file{'s' * (len(x) > 1)} are equal")
    else:
        yield Check("weights", UNKNOWN, "not said by both")


def by_numbers(x, y):
    """A few numbers of every weight that both sides have; None: an engine held it in a form that cannot be compared."""
    both = [name for name in x if name in y]
    hidden = [name for name in both if x[name] is None or y[name] is None]
    other = [name for name in both if x[name] != y[name] and name not in hidden]
    if other:
        says = f"the weights differ: {len(other)} of {len(both)} hold other numbers, as {other[0]}"
        return Check("weights", DIFFERS, says)
    if not both:
        return Check("weights", UNKNOWN, "the dumps name no weight in common")
    if hidden:
        same = f"{len(both) - len(hidden)} of {len(both)} weights hold the same numbers"
        form = f"{len(hidden)} cannot be compared, as {hidden[0]} (quantised, wrapped, or in float16)"
        return Check("weights", UNKNOWN, f"{same}; {form}")
    return Check("weights", SAME, f"{len(both)} weights hold the same numbers, by a few of each")


def inputs(a, b):
    """Pixels and mel frames, where the dumps hold them or their hashes."""
    hashes = [dump.meta.get("inputs") for dump in (a, b)]
    names = sorted({name for side in hashes for name in side or ()})
    for name in names:
        if None in hashes:
            yield Check(name, UNKNOWN, f"{'A' if hashes[0] is None else 'B'} does not say")
            continue
        x, y = (side.get(name) for side in hashes)
        if x != y:
            fatal = x is None or y is None
            says = f"only {'B' if x is None else 'A'} has {name}" if fatal else f"{name} is not the same array"
            yield Check(name, DIFFERS, says, fatal)
        else:
            yield Check(name, SAME, "equal")
    for name in INPUTS:
        if (name in a) != (name in b):
            yield Check(name, UNKNOWN, f"only {'A' if name in a else 'B'} has recorded {name}")
        elif name in a:
            yield input_array(name, a[name], b[name], a.axes.get(name, ""))


def input_array(name, x, y, axes):
    if x.shape != y.shape:
        says = f"{name} has the shape {list(x.shape)} in A and {list(y.shape)} in B"
        return Check(name, DIFFERS, because(says, front_end.looks(name, x, y)), fatal=True)
    if x.dtype.kind in "iub" or y.dtype.kind in "iub":
        equal = np.array_equal(x, y)
        return Check(name, SAME if equal else DIFFERS, "equal" if equal else f"{name} differs", not equal)
    rel = metrics.measure(x, y, axes).rel
    if rel is None or rel > ANOTHER_INPUT:
        size = "not finite" if rel is None else f"off by {100 * rel:.3g} %"
        says = f"{name} is {size}: the preprocessing differs"
        return Check(name, DIFFERS, because(says, front_end.looks(name, x, y)), fatal=True)
    return Check(name, SAME if rel == 0 else DIFFERS, f"relative error {rel:.1e}")


def because(says, why) -> str:
    return f"{says} ({why})" if why else says


def image_mask(a, b):
    """Of 12B: which image tokens see each other, where a dump says so."""
    x, y = a.meta.get("image_mask"), b.meta.get("image_mask")
    if x is None or y is None or x == y:
        if x is not None or y is not None:
            yield compared("image mask", x, y)
        return
    side = "A" if x == "transformers" else "B"
    says = (
        f"in {side} image tokens see each other on full layers and past the window too, as Transformers computes 12B: "
        "make the other dump with --image-mask transformers to compare the two"
    )
    yield Check("image mask", DIFFERS, says, fatal=True)


def run_precision(a, b):
    """What each run computed in, by its own word and by the bits of its values."""
    names = [precision.declared(dump) for dump in (a, b)]
    for side, dump, name in zip("AB", (a, b), names, strict=True):
        shown = precision.of_run(dump)
        if shown != name:
            says = f"{side} says {name}, but its values are rounded to {shown}"
            yield Check(f"precision of {side}", DIFFERS, says)
    yield compared("precision", names[0], names[1])


def cache(a, b):
    """Which tokens came one by one, after a cache was there."""
    x, y = (None if dump.meta.get("cache") is None else cache_words(dump.meta["cache"]) for dump in (a, b))
    yield compared("cache", x, y)


def cache_words(told):
    return "no cache" if told == "none" else f"a cache {told}"


def fidelity(a, b):
    for side, dump in (("A", a), ("B", b)):
        how = dump.meta.get("fidelity", "exact")
        if how != "exact":
            yield Check(f"fidelity of {side}", DIFFERS, f"the values of {side} are not exact ({how})")


def versions(a, b):
    # another engine is no objection: to compare engines is what one came for
    yield compared("engine", made_by(a.meta) or None, made_by(b.meta) or None, state=SAME)


def rows(a, b):
    """Layers that were recorded for the last tokens only, as Transformers does with logits_to_keep."""
    for side, dump in (("A", a), ("B", b)):
        tokens, parts = len(dump.meta.get("ids") or ()), dump.meta.get("parts") or {}
        short = [
            name
            for name in dump
            if dump.axes.get(name, "").startswith("T ")
            and len(dump[name]) != tokens
            and name not in parts
            and stack_of(name) != "decoder."  # which has tokens of its own
        ]
        layers = sorted({layer for name in short if (layer := layer_of(name)) is not None})
        if tokens and layers:
            where = f"layers {layers[0]} to {layers[-1]}" if len(layers) > 1 else f"layer {layers[0]}"
            says = f"{side} has recorded {len(dump[short[0]])} of {tokens} tokens in {where}; Transformers does so"
            yield Check(f"tokens of {side}", DIFFERS, f"{says} unless logits_to_keep is 0")


def last_alone(a, b):
    """A dump of one row a point, which stands for the last token: nothing else is compared."""
    for side, dump in (("A", a), ("B", b)):
        parts = dump.meta.get("parts") or {}
        known = [parts.get(name) or {} for name in dump if dump.axes.get(name, "").startswith("T ")]
        if known and all(part.get("shape", [0])[0] > 1 and at_the_end(part) for part in known):
            tokens = known[0]["shape"][0]
            says = f"{side} has one row a point, taken for the last of {tokens} tokens: the others are not compared"
            yield Check(f"tokens of {side}", DIFFERS, says)


def at_the_end(part):
    """Whether a point is known in its last row alone."""
    return (part.get("at") or [None])[0] == [part["shape"][0] - 1]


IDENTITY = ("token ids", "configuration", "weights")


def differences(found: Precheck, counts, untold) -> str:
    """What differs, by name where it is little."""
    if not counts[DIFFERS]:
        return "nothing differs" + (f" of what both tell; not told: {', '.join(untold)}" if untold else "")
    names = [f.what for f in found.findings if f.state == DIFFERS]
    some = f" ({', '.join(names)})" if len(names) < 4 else ""
    return f"{counts[DIFFERS]} of {len(found.findings)} things differ{some}"


def render(found: Precheck) -> str:
    """The findings as text: what matters first."""
    head = "COMPARABLE" if found.comparable else f"NOT COMPARABLE: {found.reason}"
    counts = {state: sum(f.state == state for f in found.findings) for state in (SAME, DIFFERS, UNKNOWN)}
    untold = list(dict.fromkeys(f.what for f in found.findings if f.state == UNKNOWN and f.what in IDENTITY))
    if found.comparable and len(untold) == len(IDENTITY):
        head = "UNKNOWN, for want of token ids, configuration and weights"
    if found.comparable and head == "COMPARABLE" and counts[DIFFERS]:
        head += f", but {differences(found, counts, untold)}"
    elif found.comparable:
        head += f": {differences(found, counts, untold)}"
    width = max(len(f.what) for f in found.findings)
    order = sorted(found.findings, key=lambda f: (not f.fatal, f.state != DIFFERS, f.state == UNKNOWN))
    marks = {SAME: " ", DIFFERS: "x", UNKNOWN: "?"}
    return "\n".join([f"{head}.", "", *(f"{marks[f.state]} {f.what:<{width}}  {f.says}" for f in order)])
