"""Faults of attention: its norms, its values, rope, masks.

Left out, since one prompt without padding cannot show them: a row that attends to nothing because of left padding
(T22), a padding mask that replaces the causal one (T23).
"""

from dataclasses import replace

import numpy as np

from numgemma import ops
from numgemma.debug.faults.fault import Rewired, fault, row_fault, swapped

ATTENTION = "layers.*.self_attn"


def makes_keys(spec, model):
    return spec.kv_from == spec.index


def shares_keys(spec, model):
    return spec.kv_from != spec.index


def slides(spec, model):
    return spec.window is not None


def counts_tokens(spec, model):
    """A drafter does not: it is told the position of its one token, and D03 and D20 are about that."""
    return "draft" not in model.family.parts


def turns_partly(spec, model):
    return spec.angles < spec.H // 2


# -- norms, scale and values


@fault(
    "T03",
    "V is not normalised",
    "put V through an RMSNorm without a weight, per key/value head",
    shows=f"{ATTENTION}.v_norm",
    swaps="ops.rms_norm",
    within="layers.attention.attention",
)
def no_value_norm(original, x, w):
    return x if w is None else original()


@fault(
    "T24-order",
    "q_norm and k_norm come after rope",
    "normalise each head first, then rotate it",
    shows=f"{ATTENTION}.q_norm",
    swaps="layers.attention.attention",
)
def norm_after_rope(original, w, spec, rope, tap):
    def late(a):
        return lambda y, seen: ops.rms_norm(ops.rope(seen[f"{a}_proj"], *rope), w[f"{a}_norm.weight"], spec.eps)

    equations = {"q_norm": late("q"), "k_norm": late("k")}
    equations |= {"q_rope": lambda y, seen: seen["q_norm"], "k_rope": lambda y, seen: seen["k_norm"]}
    return original(tap=Rewired(tap, equations))


@fault(
    "T24-joint",
    "q_norm and k_norm normalise all heads together",
    "take the mean square over one head's lanes, not over the whole projection",
    shows=f"{ATTENTION}.q_norm",
    swaps="ops.rms_norm",
    within="layers.attention.attention",
)
def joint_norm(original, x, w):
    joined = x.reshape(len(x), -1)
    return original() if w is None else original(x=joined, w=np.tile(w, x.shape[1])).reshape(x.shape)


@fault(
    "T04",
    "scores are divided by sqrt(head_dim)",
    "use scale 1: q_norm and k_norm carry it",
    shows=f"{ATTENTION}.scores",
    swaps="ops.attend",
)
def scaled_scores(original, q):
    return original(q=ops.scale(q, q.shape[-1] ** -0.5))


def values_from(point):
    """keys_and_values whose V is made from that point of K."""

    def change(original, spec, tap):
        equation = {"v_norm": lambda y, seen: ops.rms_norm(seen[point], None, spec.eps)}
        return original(tap=Rewired(tap, equation))

    return change


def keys_are_values(spec, model):
    return spec.k_eq_v and makes_keys(spec, model)


for form, point, when in (("T05-norm", "k_norm", "k_norm"), ("T05-rope", "k_rope", "k_norm and rope")):
    fault(
        form,
        f"V is copied from K after {when}",
        "take the raw output of k_proj for V, and normalise it without a weight",
        shows=f"{ATTENTION}.v_norm",
        swaps="layers.attention.keys_and_values",
        at=keys_are_values,
    )(values_from(point))


@fault(
    "T06",
    "K and V are one buffer: V is K after its norm and rope",
    "cache K and V separately: V has a norm without weight and no rope",
    shows=f"{ATTENTION}.v_norm",
    swaps="layers.attention.keys_and_values",
    at=keys_are_values,
)
def one_buffer(original, tap):
    return original(tap=Rewired(tap, {"v_norm": lambda y, seen: seen["k_rope"]}))


# -- rope


@fault(
    "T07",
    "proportional rope rotated as a prefix, paired within it",
    "pair lane i with i + H/2",
    shows=f"{ATTENTION}.q_rope",
    swaps="layers.attention.attention",
    at=turns_partly,
)
def prefix_rope(original, spec, rope, tap):
    n = spec.angles
    tables = [np.concatenate([table[:, :n], table[:, :n]], -1) for table in rope]

    def turned(name):
        def equation(y, seen):
            return np.concatenate([ops.rope(seen[name][..., : 2 * n], *tables), seen[name][..., 2 * n :]], -1)

        return equation

    equations = {"q_rope": turned("q_norm"), "k_rope": turned("k_norm")}
    return original(tap=Rewired(tap, equations))


@fault(
    "T07-interleaved",
    "rope pairs neighbouring lanes (2i, 2i + 1)",
    "pair lane i with i + H/2",
    shows=f"{ATTENTION}.q_rope",
    swaps="ops.rope",
    within="layers.attention.attention",
)
def interleaved_rope(original, x):
    halves = np.stack(np.split(np.arange(x.shape[-1]), 2), -1).reshape(-1)  # 0, H/2, 1, H/2 + 1, ...
    turned = np.empty_like(x)
    turned[..., :] = original(x=x[..., np.argsort(halves)])[..., halves]
    return turned


@fault(
    "T07-backwards",
    "rope turns the other way: sin has the wrong sign",
    "rotate_half negates the second half of a head",
    shows=f"{ATTENTION}.q_rope",
    swaps="ops.rope",
    within="layers.attention.attention",
)
def backward_rope(original, sin):
    return original(sin=-sin)


row_fault(
    "T08",
    "the rope exponent is divided by the rotary width",
    "divide by head_dim, also where only a part of it turns",
    shows="rotary_emb.*.cos",
    at=turns_partly,
    by_kind=True,
)(lambda spec, model: replace(spec, theta=spec.theta ** (spec.H / (2 * spec.angles))))

row_fault(
    "T09-sliding",
    "sliding layers rotate with the full layers' theta, 1e6",
    "use rope_theta 1e4 on sliding layers",
    shows="rotary_emb.*.cos",
    at=lambda spec, model: slides(spec, model) and spec.theta != 1e6,
    by_kind=True,
)(lambda spec, model: replace(spec, theta=1e6))

row_fault(
    "T09-full",
    "full layers rotate with the sliding layers' theta, 1e4",
    "use rope_theta 1e6 on full layers",
    shows="rotary_emb.*.cos",
    at=lambda spec, model: not slides(spec, model) and spec.theta != 1e4,
    by_kind=True,
)(lambda spec, model: replace(spec, theta=1e4))


@fault(
    "T10",
    "rope frequencies are stored as float16",
    "compute frequencies, cos and sin in float32, and round at the end",
    shows="rotary_emb.*.cos",
    swaps="ops.rope_table",
    within="rope table",
    by_kind=True,
)
def half_frequencies(original, positions, H, theta, angles, factor, dtype):
    frequencies = np.zeros(H // 2, np.float32)
    frequencies[:angles] = (theta ** (-np.arange(0, 2 * angles, 2) / H) / factor).astype(np.float16)
    turn = np.tile(positions[:, None] * frequencies, 2)
    return np.cos(turn).astype(dtype), np.sin(turn).astype(dtype)


def farther(steps):
    """Attention whose queries are turned further than their positions say.  steps: tokens of the pass -> by how many

    Two turns one after the other are one turn by their sum.
    """

    def change(original, x, spec, rope, tap):
        positions = np.full(len(x), steps(len(x)))
        tables = ops.rope_table(positions, spec.H, spec.theta, spec.angles, spec.rope_factor, rope[0].dtype)
        return original(tap=Rewired(tap, {"q_rope": lambda y, seen: ops.rope(y, *tables)}))

    return change


for form, says, steps in (
    ("T27-prompt", "queries are rotated as if their own pass had gone before", lambda tokens: tokens),
    ("T27-one", "queries are rotated for the position after theirs", lambda tokens: 1),
):
    fault(
        form,
        says,
        "read how long the cache is before this pass has put its keys into it",
        shows=f"{ATTENTION}.q_rope",
        swaps="layers.attention.attention",
        at=counts_tokens,
    )(farther(steps))


@fault(
    "T27-zero",
    "queries are not rotated, as if each stood first",
    "rotate queries for their own positions, counted from the start of the sequence",
    shows=f"{ATTENTION}.q_rope",
    swaps="layers.attention.attention",
    at=counts_tokens,
)
def not_rotated(original, tap):
    return original(tap=Rewired(tap, {"q_rope": lambda y, seen: seen["q_norm"]}))


# -- masks


def with_mask(change):
    """Attention under another mask: change(mask: T S) -> T S."""
    return lambda original, mask: original(mask=change(np.asarray(mask)))


def one_key_more(mask):
    wider = mask.copy()
    wider[:, :-1] |= mask[:, 1:]
    return wider


def all_before(mask):
    return np.logical_or.accumulate(mask[:, ::-1], 1)[:, ::-1]


fault(
    "T18",
    "the window has one key too many",
    "let a query see `window` keys, its own included: q - k < window",
    shows=f"{ATTENTION}.scores",
    swaps="layers.attention.attention",
    at=slides,
    past_window=True,
)(with_mask(one_key_more))

fault(
    "T20",
    "sliding layers attend to everything before",
    "mask the window in every path, also without a cache",
    shows=f"{ATTENTION}.scores",
    swaps="layers.attention.attention",
    at=slides,
    past_window=True,
)(with_mask(all_before))


row_fault(
    "T21",
    "full layers see only the window, as if they were sliding",
    "take layer_types from the config, not from a fixed pattern",
    shows=f"{ATTENTION}.scores",
    at=lambda spec, model: not slides(spec, model),
    past_window=True,
    by_kind=True,
)(lambda spec, model: replace(spec, window=model.outline.window))


def trimmed(original, spec):
    """Attention to the last `window` keys; a query that sees none of them reads their mean."""

    def attend(plain, q, mask):
        mask = np.asarray(mask)
        kept = mask & (np.arange(mask.shape[1]) >= mask.shape[1] - spec.window)
        lost = ~kept.any(1)
        kept[lost, -spec.window :] = True
        return plain(q=np.where(lost[:, None, None], q.dtype.type(0), q), mask=kept)

    with swapped("ops.attend", attend):
        return original()


fault(
    "T19",
    "a long prefill sees only the last window of keys",
    "keep all keys until the whole prompt is computed",
    shows=f"{ATTENTION}.scores",
    swaps="layers.attention.attention",
    at=slides,
    past_window=True,
)(trimmed)
