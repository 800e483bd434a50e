"""What the speed of numgemma should reach, and how far it is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """For one quantity of one of our engines."""

    what: str
    ours: str
    against: str  # an engine, one of LIMITS, another quantity of the same engine, or "" for the value itself
    target: float
    stretch: float | None = None
    shapes: tuple[str, ...] = ("e2b",)
    most: bool = False  # the value should be at most the target


DENSE = ("e2b", "medium")
EVERY = (*DENSE, "moe")
LIMITS = ("read bandwidth", "sgemm")  # of this machine, measured in the process that is compared with it

# Shares of the machine, and ratios to the best peer: they mean the same whichever processor it is.
TARGETS = (
    Target("decode", "numba-f32", "read bandwidth", 0.85, 0.92),
    Target("decode", "numba-f32", "read bandwidth", 0.70, 0.85, ("medium",)),
    Target("decode", "numba-f32", "llama-bf16", 0.95, 1.0),
    Target("decode", "numba-f32", "llama-bf16", 0.75, 1.0, ("medium",)),
    Target("decode", "numba-f32", "llama-bf16", 0.85, 1.0, ("moe",)),
    Target("decode", "numba-bf16", "numba-f32", 1.0, None, EVERY),
    Target("prefill-512-gen", "numba-f32", "sgemm", 0.88, 0.93, DENSE),  # of what attention sees, its products too
    Target("prefill-512-all", "numba-f32", "sgemm", 0.88, 0.93, DENSE),
    Target("prefill-512-gen", "numba-f32", "hf-f32", 1.0, 1.15, DENSE),  # the stretch where MKL is not at home
    Target("prefill-512-all", "numba-f32", "hf-f32", 1.0, 1.15, DENSE),
    Target("prefill-512-gen", "numba-bf16", "hf-bf16", 0.9, 1.1, DENSE),  # with the processor's bfloat16 instructions
    Target("decode", "numpy-f32", "hf-f32", 0.5, 1.0, DENSE),
    Target("memory-rss", "numba-f32", "", 5.0, 4.7, most=True),
    Target("memory-anonymous", "numba-f32", "", 0.6, 0.3, most=True),
    Target("start-warm", "numba-f32", "", 2.0, 1.5, most=True),
    Target("start-cold", "numba-f32", "", 4.5, 4.0, most=True),
    Target("record", "numba-f32", "", 1.05, 1.02, EVERY, most=True),
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
