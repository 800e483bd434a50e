"""What the speed of numgemma should reach, and how far it is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """For one quantity of one of our engines."""

    what: str
    ours: str
    against: str  # an engine, "read bandwidth", another quantity of the same engine, or "" for the value itself
    target: float
    stretch: float | None = None
    shapes: tuple[str, ...] = ("e2b",)
    most: bool = False  # the value should be at most the target


DENSE = ("e2b", "medium")

TARGETS = (
    Target("decode", "numba-f32", "read bandwidth", 0.75, 0.90),
    Target("decode", "numba-f32", "hf-f32", 3.5, 4.5),
    Target("decode", "numba-f32", "hf-bf16", 1.7, 2.1),
    Target("decode", "numba-f32", "llama-bf16", 0.8, 1.0),
    Target("decode", "numba-f32", "hf-f32", 3, 4, ("moe",)),
    Target("decode", "numba-f32", "llama-bf16", 0.8, 1.0, ("moe",)),
    Target("prefill-512-gen", "numba-f32", "hf-f32", 1.6, 2.0, DENSE),
    Target("prefill-512-all", "numba-f32", "hf-f32", 1.6, 2.0, DENSE),
    Target("prefill-512-all", "numba-f32", "llama-f32", 1.2, 1.5, DENSE),
    Target("prefill-512-gen", "numba-bf16", "hf-bf16", 0.8, 1.1, DENSE),
    Target("prefill-2048-gen", "numba-bf16", "hf-bf16", 1.2, 1.6, DENSE),
    Target("prefill-512-all", "numpy-f32", "hf-f32", 1.0, 1.5, DENSE),
    Target("decode", "numpy-f32", "hf-f32", 0.5, 1.0, DENSE),
    Target("memory-rss", "numba-f32", "", 5.0, 4.7, most=True),
    Target("memory-anonymous", "numba-f32", "", 0.6, 0.3, most=True),
    Target("start-warm", "numba-f32", "", 2.5, 1.5, most=True),
    Target("start-cold", "numba-f32", "", 6.0, 4.5, most=True),
    Target("record", "numba-f32", "", 1.05, shapes=("e2b", "medium", "moe"), most=True),
    Target("prefill-2048-gen", "numba-f32", "prefill-512-gen", 1.15, shapes=DENSE, most=True),
)


def target_of(shape, what, ours, against):
    """The target of a row of the table, or None."""
    key = (what, ours, against)
    return next((t for t in TARGETS if (t.what, t.ours, t.against) == key and shape in t.shapes), None)


def verdict(target, value):
    """ "stretch", "target" or "missed"; empty where there is no target."""
    if target is None:
        return ""
    sign = -1 if target.most else 1
    if target.stretch is not None and sign * value >= sign * target.stretch:
        return "stretch"
    return "target" if sign * value >= sign * target.target else "missed"
