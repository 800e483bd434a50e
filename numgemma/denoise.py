"""DiffusionGemma's sampler: a canvas of random tokens becomes a block of text in steps, and is read before the next.

In each step the model guesses the whole canvas anew.  The places that it is surest of take a token drawn from its
guess, the surest first, for as long as the entropies of those before sum to at most a bound; all others take a random
token again.  No place is fixed: the next step sees the new canvas, and what the model thought of the old one.  The text
is the likeliest token of each place in the last step.

What chance decides comes from outside, by name: `{block}.first_canvas`, `{block}.{step}.sampled` and
`{block}.{step}.random`, T tokens each, counted from 0.  So a run of another engine can be followed step for step.

Equals DiffusionGemmaForBlockDiffusion.generate.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace

import numpy as np

from numgemma import ops
from numgemma.config import build, demand
from numgemma.errors import InputError, NonFiniteError
from numgemma.generate import Memory, at_speed, prefill, whole
from numgemma.ops.definitions import wide
from numgemma.prompt.media import NO_MEDIA

Draw = Callable[[str, Callable[[np.random.Generator], np.ndarray]], np.ndarray]  # name, how to draw it -> tokens: T

ROWS = 16  # of logits that are looked at together: 16 MB at the released vocabulary


@dataclass(frozen=True)
class Denoising:
    """How a canvas becomes text, under the names of generation_config.json; the defaults are Transformers'."""

    max_new_tokens: int = 256  # rounded up to whole canvases
    max_denoising_steps: int = 48
    entropy_bound: float = 0.1  # nats
    t_min: float = 0.4
    t_max: float = 0.8
    stability_threshold: int = 1  # a block is done when the best tokens are those of so many steps before,
    confidence_threshold: float = 0.005  # and the mean entropy is below this
    eos_token_id: tuple[int, ...] = ()
    pad_token_id: int | None = None

    def __post_init__(self):
        rules = [
            (self.max_new_tokens > 0, "max_new_tokens is not positive"),
            (self.max_denoising_steps > 0, "max_denoising_steps is not positive"),
            (self.entropy_bound > 0, "entropy_bound is not positive"),
            (0 <= self.t_min < self.t_max, "t_min and t_max are not in this order, from 0 up"),
            (self.stability_threshold >= 0, "stability_threshold is negative"),
            (self.confidence_threshold > 0, "confidence_threshold is not positive"),
        ]
        demand(rules, "the sampler's settings")


def settings(raw: Mapping, where: str, base: Denoising = Denoising()) -> Denoising:
    """Settings of a parsed JSON object over others.  Raises InputError at a key that is not known, or of another type.

    sampler_config is an object that holds entropy_bound, as in generation_config.json.
    """
    inner = raw.get("sampler_config") or {}
    if not isinstance(inner, dict):
        raise InputError(f"{where}: sampler_config should be an object with entropy_bound.")
    flat = {key.removeprefix("sampler_config."): value for key, value in {**raw, **inner}.items()}
    given = {key: value for key, value in flat.items() if key not in NOT_OURS and value is not None}
    if isinstance(given.get("eos_token_id"), int):
        given["eos_token_id"] = (given["eos_token_id"],)
    found = build(Denoising, given, where)
    return replace(base, **{key: getattr(found, key) for key in given.keys() & {f.name for f in fields(Denoising)}})


def checkpoint_settings(model) -> Denoising:
    """What the checkpoint's generation_config.json says of these settings; of tokens, what else config.json."""
    where, raw = str(model.checkpoint.folder / "generation_config.json"), model.checkpoint.generation_config or {}
    known = {f.name for f in fields(Denoising)} | {"sampler_config"}
    tokens = {"eos_token_id": sorted(model.stop_ids), "pad_token_id": model.config.text.pad_token_id}
    return settings(tokens | {key: value for key, value in raw.items() if key in known and value is not None}, where)


# Keys of generation_config.json that the sampler has no use for.
NOT_OURS = {"sampler_config", "_cls_name", "bos_token_id", "cache_implementation", "cache_config", "disable_compile"}


def seeded_draws(seed: int) -> Draw:
    """Draws of our own."""
    rng = np.random.default_rng(seed)
    return lambda name, make: make(rng)


def recorded_draws(arrays: Mapping[str, np.ndarray], T: int, V: int, where: str) -> Draw:
    """Draws that were recorded.  Raises InputError where one is not T tokens of a vocabulary of V, or is missing."""
    for name, x in arrays.items():
        if x.shape != (T,) or x.dtype.kind not in "iu" or x.min() < 0 or x.max() >= V:
            raise InputError(f"{where}: {name:.100} should be {T} token ids below {V}, is {x.dtype} {list(x.shape)}.")

    def draw(name, make):
        if name not in arrays:
            raise InputError(f"{where}: has no {name}, which the run comes to; record all draws, or leave --draws out.")
        return arrays[name]

    return draw


@dataclass(frozen=True, eq=False)
class DenoisingStep:
    """One pass over a canvas, and what became of it.  Arrays are T, a number for each place."""

    block: int
    number: int  # of the step in its block, from 0
    temperature: float
    canvas: np.ndarray  # the tokens that went in
    best: np.ndarray  # the likeliest token of each place
    entropy: np.ndarray  # of the tempered guess, nats
    sampled: np.ndarray  # drawn from that guess
    accepted: np.ndarray  # bool
    next_canvas: np.ndarray
    ids: np.ndarray | None = None  # in the last step of a block, what it has become

    @property
    def mean_entropy(self) -> float:
        return float(self.entropy.mean())


def denoised(
    model, ids, how: Denoising | None = None, draw: Draw | None = None, media=NO_MEDIA, memory: Memory | None = None
) -> Iterator[DenoisingStep]:
    """Every step of every block that continues a text.  ids: T

        for step in denoised(model, ids):
            print(model.tokenizer.decode(step.best))

    how: those of the checkpoint, where none are given.  draw: of seed 0.  A stop token ends the text with the block it
    stands in; what comes after one is padding.  Raises InputError where the model writes no canvas.
    """
    model.check_part("guess", "writes no canvas")
    how, draw, memory = how or checkpoint_settings(model), draw or seeded_draws(0), memory or Memory()
    ids, w = model.checked(ids, media), model.weights
    family = replace(model.family, parts={**model.family.parts, "enter": model.family.parts["enter encoder"]})
    T, encoder = model.config.canvas_length, family.part("encoder weights")(w, model.config)
    run = model.run(family.kvs(model.config, memory.cache_dtype or model.dtype))
    with at_speed(run.dtype):
        prefill(ids, media, encoder, family, run, memory.chunk)
    for block in range(-(-how.max_new_tokens // T)):
        run = replace(run, start=len(ids) + block * T)
        for step in steps_of(block, w, family, run, how, draw):
            yield step
            new = step.best if step.ids is None else step.ids
        if np.isin(new, how.eos_token_id).any():
            return
        with at_speed(run.dtype):
            whole(new, encoder, family, run)


def steps_of(block, w, family, run, how: Denoising, draw: Draw) -> Iterator[DenoisingStep]:
    """The steps of one block; the last has its ids."""
    T, V = run.config.canvas_length, run.config.text.vocab_size
    canvas, before, bests = draw(f"{block}.first_canvas", lambda rng: rng.integers(0, V, T)), None, []
    for number in range(how.max_denoising_steps):
        with at_speed(run.dtype):
            logits = family.part("guess")(canvas, before, w, run)
        if not np.isfinite(logits).all():
            raise NonFiniteError("The logits are not finite; `numgemma dump --inputs` names the point of a pass.")
        step = taken_step(block, number, canvas, tempered(logits, number, how), how, draw)
        bests.append(step.best)
        if is_done(bests, step.mean_entropy, how) or number == how.max_denoising_steps - 1:
            yield replace(step, ids=outcome(step, how))
            return
        yield step
        canvas, before = step.next_canvas, fed_back(logits, number, how, run.dtype)


def temperature(number, how: Denoising) -> np.float32:
    """It falls from t_max towards t_min, which no step reaches; in float32 as Transformers computes it."""
    real = np.float32
    left = real(how.max_denoising_steps - number) / real(how.max_denoising_steps)
    return real(how.t_min) + real(how.t_max - how.t_min) * left


def tempered(logits, number, how: Denoising):
    """Logits over the temperature of a step.  T V  ->  T V"""
    return logits / wide(logits.dtype).type(temperature(number, how))


def fed_back(logits, number, how: Denoising, dtype):
    """What the next step is told of this one: its logits as they were sampled from, in the precision of the run."""
    return ops.narrow(tempered(logits, number, how), dtype)


def taken_step(block, number, canvas, z, how: Denoising, draw: Draw) -> DenoisingStep:
    """What a step makes of a canvas.  z: tempered logits, T V"""
    T, V = z.shape
    entropy = np.concatenate([entropies(z[i : i + ROWS]) for i in range(0, T, ROWS)])
    sampled = draw(f"{block}.{number}.sampled", lambda rng: sampled_tokens(z, rng))
    random = draw(f"{block}.{number}.random", lambda rng: rng.integers(0, V, T))
    accepted = accepted_places(entropy, how.entropy_bound)
    given = {"best": z.argmax(-1), "entropy": entropy, "sampled": sampled, "accepted": accepted}
    following = np.where(accepted, sampled, random)
    return DenoisingStep(block, number, float(temperature(number, how)), canvas, next_canvas=following, **given)


def entropies(z):
    """Of softmax(z), in nats.  z: T V  ->  T"""
    z = z - z.max(-1, keepdims=True)
    total = np.exp(z).sum(-1, keepdims=True)
    z = z - np.log(total)
    return -(z * np.exp(z)).sum(-1)


def sampled_tokens(z, rng):
    """A token for each place, drawn from softmax(z).  z: T V  ->  T"""

    def token(row):
        before = np.cumsum(np.exp(row.astype(np.float64) - row.max()))
        return min(int(np.searchsorted(before, rng.random() * before[-1], "right")), len(row) - 1)

    return np.array([token(row) for row in z])


def accepted_places(entropy, bound):
    """The surest places, for as long as the entropies of those surer still sum to at most `bound`.  T  ->  T, bool

    The surest is always among them.
    """
    order = np.argsort(entropy, kind="stable")
    ascending = entropy[order]
    accepted = np.zeros(len(entropy), bool)
    accepted[order] = np.cumsum(ascending) - ascending <= bound
    return accepted


def is_done(bests, mean_entropy, how: Denoising) -> bool:
    """Whether a block needs no more steps.  bests: the likeliest tokens of all its steps so far, T each"""
    n = how.stability_threshold
    stable = len(bests) > n and all(np.array_equal(bests[-1], earlier) for earlier in bests[-1 - n : -1])
    return stable and mean_entropy < how.confidence_threshold


def outcome(step: DenoisingStep, how: Denoising):
    """What a block has become in its last step: the likeliest tokens, none that were drawn.  -> T"""
    return finished(step.best, how)


def finished(ids, how: Denoising):
    """A block's tokens, with padding behind the first stop token.  T  ->  T"""
    stops = np.isin(ids, how.eos_token_id)
    behind = np.cumsum(stops) - stops > 0
    return ids if how.pad_token_id is None else np.where(behind, how.pad_token_id, ids)
