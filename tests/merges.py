"""Children made by known recipes from tiny parents, and whether a lineage tells the recipe: for tests and the score.

Every recipe is a function of (parents, random numbers) -> child tensors and Truth.  What is computed is computed as
merge tools do: in float32 or, by the toss of a coin, in bfloat16, and stored in bfloat16.
"""

from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import numpy as np
import tiny
from safetensors.numpy import save_file

from numgemma.surgery.certain import ABOUT, LIKELY, confidence
from numgemma.surgery.homes import decoder_layer
from numgemma.surgery.lineage import lineage, trace_back
from numgemma.surgery.partners import scope
from numgemma.surgery.sketch import sketch
from numgemma.surgery.summary import summary

BF16 = np.dtype(ml_dtypes.bfloat16)
TELLING = 64  # numbers in a tensor from which on it has to be told
WITHIN = 0.01  # of a mixing weight
OF_DENSITY = 0.03  # of how many differences were kept: those below their rounding cannot be counted


@dataclass
class Truth:
    """What was done to each tensor: name -> (kind, how); and the numbers that hold for all of that kind."""

    tensors: dict
    weights: dict = field(default_factory=dict)  # parent -> weight, or parent -> layer -> weight
    densities: dict = field(default_factory=dict)
    t: float | None = None
    rank: int | None = None
    removed: float | None = None
    experts: dict = field(default_factory=dict)  # layer -> tuple
    layers: list | None = None  # of a child of slices
    faults: bool = False


@dataclass
class Case:
    kind: str
    parents: dict  # name -> tensors
    base: str | None
    child: dict
    truth: Truth


# parents


def model(raw, seed):
    return {name: x.astype(BF16) for name, x in tiny.random_tensors(raw, seed).items()}


def tuned(base, rng, size):
    """A fine-tune: every tensor changed by a share of its spread; norms and scalars, by chance, left alone."""
    leave = rng.random() < 0.3
    out = {}
    for name, x in base.items():
        wide = x.astype(np.float32)
        spread = wide.std() if wide.size > 1 else 0.1 * abs(float(wide.reshape(-1)[0]))
        change = 0 if leave and wide.ndim < 2 else size * spread * rng.standard_normal(wide.shape)
        out[name] = (wide + change).astype(BF16)
    return out


def related(raw, rng, count):
    """(base, fine-tunes of it)"""
    base = model(raw, int(rng.integers(1 << 30)))
    return base, [tuned(base, rng, float(np.exp(rng.uniform(np.log(0.05), np.log(0.5))))) for _ in range(count)]


def computed(rng):
    """In what a merge is computed."""
    return BF16 if rng.random() < 0.5 else np.dtype(np.float32)


def summed(terms, dtype):
    """The sum of weight x tensor, rounded after every step."""
    total = None
    for weight, x in terms:
        part = (x.astype(dtype) * dtype.type(weight)).astype(dtype)
        total = part if total is None else (total + part).astype(dtype)
    return total.astype(BF16)


# recipes


def resaved(raw, rng):
    base = model(raw, int(rng.integers(1 << 30)))
    other = model(raw, int(rng.integers(1 << 30)))
    return Case("copy", {"a": base, "b": other}, None, dict(base), Truth(dict.fromkeys(base, ("copy", ""))))


def scaled(raw, rng):
    base = model(raw, int(rng.integers(1 << 30)))
    factor = float(rng.uniform(0.3, 0.9))
    child = {n: summed([(factor, x)], computed(rng)) if x.ndim > 1 else x for n, x in base.items()}
    truth = Truth({n: ("scaled" if x.ndim > 1 else "copy", "") for n, x in base.items()}, {"a": factor})
    return Case("scaled", {"a": base}, None, child, truth)


def mixed(raw, rng, count, kin, norms=False, gradient=False):
    """A linear blend of fine-tunes of one base, or of strangers."""
    if kin:
        _, models = related(raw, rng, count)
    else:
        models = [model(raw, int(rng.integers(1 << 30))) for _ in range(count)]
    names = "abc"[:count]
    L, dtype = raw["num_hidden_layers"], computed(rng)
    ends = rng.dirichlet(np.ones(count) * 3, 2)
    child, kinds = {}, {}
    for n in models[0]:
        layer = decoder_layer(scope(n)) or 0
        w = ends[0] + (ends[1] - ends[0]) * layer / (L - 1) if gradient else ends[0]
        of_a = norms and "norm" in n
        child[n] = models[0][n] if of_a else summed(zip(w, (m[n] for m in models), strict=True), dtype)
        kinds[n] = ("copy", "") if of_a else ("blend", "linear")
    weights = {name: {i: float(ends[0][k] + (ends[1][k] - ends[0][k]) * i / (L - 1)) for i in range(L)} if gradient
               else float(ends[0][k]) for k, name in enumerate(names)}  # fmt: skip
    return Case("linear", dict(zip(names, models, strict=True)), None, child, Truth(kinds, weights))


def slerped(raw, rng, rows):
    _, (a, b) = (
        related(raw, rng, 2) if rng.random() < 0.5 else (None, [model(raw, int(s)) for s in rng.integers(9e8, size=2)])
    )
    t = float(rng.uniform(0.15, 0.85))
    child = {n: slerp(t, a[n].astype(np.float32), b[n].astype(np.float32), rows).astype(BF16) for n in a}
    kinds = {n: ("blend", "slerp by rows" if rows and x.ndim > 1 else "slerp") for n, x in a.items()}
    return Case("slerp", {"a": a, "b": b}, None, child, Truth(kinds, t=t))


def slerp(t, a, b, rows):
    """Along the arc from a to b, of the whole or of each row; straight where they point the same way."""
    if rows and a.ndim > 1:
        flat = [
            slerp(t, x, y, False) for x, y in zip(a.reshape(-1, a.shape[-1]), b.reshape(-1, a.shape[-1]), strict=True)
        ]
        return np.stack(flat).reshape(a.shape)
    cosine = float((a * b).sum() / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30))
    if abs(cosine) > 0.9995:
        return (1 - t) * a + t * b
    angle = np.arccos(cosine)
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def task(raw, rng, count):
    """base + sum of weight x (fine-tune - base)"""
    base, models = related(raw, rng, count)
    w, dtype, names = rng.uniform(0.2, 1.2, count), computed(rng), "ab"[:count]
    child = {n: over(x, [(w[i], m[n]) for i, m in enumerate(models)], dtype) for n, x in base.items()}
    parents = dict(zip(names, models, strict=True)) | {"base": base}
    weights = dict(zip(names, map(float, w), strict=True)) | {"base": float(1 - w.sum())}
    return Case("task", parents, "base", child, Truth(dict.fromkeys(base, ("blend", "linear")), weights))


def over(base, terms, dtype):
    b = base.astype(dtype)
    total = sum((dtype.type(w) * (x.astype(dtype) - b)).astype(dtype) for w, x in terms)
    return (b + total.astype(dtype)).astype(BF16)


def sparse(raw, rng, count, method):
    """TIES or DARE of one, two or three fine-tunes."""
    base, models = related(raw, rng, count)
    names = "abc"[:count]
    w, density = rng.uniform(0.4, 1.0, count), rng.uniform(0.3, 0.8, count)
    child = {}
    for n, x in base.items():
        b = x.astype(np.float32)
        d = [m[n].astype(np.float32) - b for m in models]
        child[n] = (b + thin(d, w, density, method, rng)).astype(BF16)
    how = {"dare": "dare", "dare_ties": "dare, elected" if count > 1 else "dare", "ties": "ties"}[method]
    told = w / w.sum() if method == "ties" else w
    if method == "ties" and count == 1:
        told = np.ones(1)
    truth = Truth(dict.fromkeys(base, ("thinned", how)), dict(zip(names, map(float, told), strict=True)))
    truth.densities = dict(zip(names, map(float, density), strict=True))
    return Case(method, dict(zip(names, models, strict=True)) | {"base": base}, "base", child, truth)


def thin(d, w, density, method, rng):
    if method == "ties":
        masks = [np.abs(x) >= np.quantile(np.abs(x), 1 - p) if x.size > 1 else np.ones_like(x, bool)
                 for x, p in zip(d, density, strict=True)]  # fmt: skip
        d = [x * m for x, m in zip(d, masks, strict=True)]
    else:
        masks = [rng.random(x.shape) < p for x, p in zip(d, density, strict=True)]
        d = [x * m / p for x, m, p in zip(d, masks, density, strict=True)]
    if method != "dare":
        sign = np.sign(sum(wi * x for wi, x in zip(w, d, strict=True)))
        masks = [m & (np.sign(x) == sign) for x, m in zip(d, masks, strict=True)]
    total = sum(wi * x * m for wi, x, m in zip(w, d, masks, strict=True))
    if method == "ties":
        share = sum(wi * m for wi, m in zip(w, masks, strict=True))
        total = np.where(share > 0, total / np.where(share > 0, share, 1), 0)
    return total


def adapted(raw, rng):
    """A merged adapter on some linears."""
    base = model(raw, int(rng.integers(1 << 30)))
    rank, size, child, kinds = int(rng.integers(1, 6)), float(rng.uniform(0.03, 0.2)), {}, {}
    for n, x in base.items():
        hit = "self_attn" in n and n.endswith("proj.weight")
        wide = x.astype(np.float32)
        if hit:
            change = rng.standard_normal((x.shape[0], rank)) @ rng.standard_normal((rank, x.shape[1]))
            wide = wide + size * wide.std() * change / np.sqrt(rank)
        child[n], kinds[n] = wide.astype(BF16), ("edited" if hit else "copy", "")
    return Case("adapter", {"a": base}, None, child, Truth(kinds, rank=rank))


def abliterated(raw, rng):
    """One direction of the stream taken out of what is written to it, and of the embeddings."""
    base = model(raw, int(rng.integers(1 << 30)))
    u = rng.standard_normal(raw["hidden_size"])
    u, amount, child, kinds = u / np.linalg.norm(u), float(rng.choice([1.0, rng.uniform(0.4, 0.9)])), {}, {}
    for n, x in base.items():
        wide = x.astype(np.float64)
        if n.endswith(("o_proj.weight", "mlp.down_proj.weight")):
            wide, kinds[n] = wide - amount * np.outer(u, u @ wide), ("edited", "rows")
        elif n == "embed_tokens.weight":
            wide, kinds[n] = wide - amount * np.outer(wide @ u, u), ("edited", "columns")
        else:
            kinds[n] = ("copy", "")
        child[n] = wide.astype(BF16)
    return Case("abliteration", {"a": base}, None, child, Truth(kinds, rank=1, removed=amount))


def reordered(raw, rng, how):
    """Experts kept, permuted or merged; in one way with a router that does not follow."""
    base = model(raw, int(rng.integers(1 << 30)))
    E, child, kinds, chosen = raw["num_experts"], {}, {}, {}
    for i in range(raw["num_hidden_layers"]):
        order = rng.permutation(E)
        while how != "pruned" and (order == np.arange(E)).any():
            order = rng.permutation(E)
        if how == "merged":
            chosen[i] = tuple(tuple(sorted(map(int, part))) for part in np.array_split(order, 4))
        else:
            kept = sorted(order[:-2]) if how == "pruned" else order
            chosen[i] = tuple((int(e),) for e in kept)
    for n, x in base.items():
        kinds[n], child[n] = ("copy", ""), x
        if ".experts." in n or n.endswith(("router.proj.weight", "per_expert_scale")):
            own = chosen[decoder_layer(scope(n))]
            kinds[n] = ("experts", "")
            if how == "astray" and n.endswith(("router.proj.weight", "per_expert_scale")):
                kinds[n] = ("copy", "")  # as a tool leaves it that forgets the router
                continue
            child[n] = np.stack([x[list(e)].astype(np.float32).mean(0) for e in own]).astype(BF16)
    return Case(f"experts {how}", {"a": base}, None, child, Truth(kinds, experts=chosen, faults=how == "astray"))


def vocabulary(raw, rng, how):
    base = model(raw, int(rng.integers(1 << 30)))
    x = base["embed_tokens.weight"]
    new = int(rng.integers(3, 20))
    rows = {
        "cut": lambda: x[: -new * 3],
        "trimmed": lambda: x[np.sort(rng.permutation(len(x))[: len(x) - 4 * new])],
        "mean": lambda: np.concatenate([x, np.tile(x.astype(np.float32).mean(0).astype(BF16), (new, 1))]),
        "new": lambda: np.concatenate([x, (0.02 * rng.standard_normal((new, x.shape[1]))).astype(BF16)]),
    }[how]()
    kinds = dict.fromkeys(base, ("copy", "")) | {"embed_tokens.weight": ("vocabulary", how)}
    return Case(f"vocabulary {how}", {"a": base}, None, base | {"embed_tokens.weight": rows}, Truth(kinds))


def sliced(raw, rng, blended):
    """Layers re-sequenced; blended: each slot a blend of a layer of a and of one of b."""
    L = raw["num_hidden_layers"]
    parents = {"a": model(raw, int(rng.integers(1 << 30))), "b": model(raw, int(rng.integers(1 << 30)))}
    kinds_of = raw["layer_types"]
    order = [int(j) for j in rng.integers(L, size=L + 2)]
    other = [int(rng.choice([k for k in range(L) if kinds_of[k] == kinds_of[j]])) for j in order]
    w = float(rng.uniform(0.3, 0.7))
    child = {n: x for n, x in parents["a"].items() if not n.startswith("layers.")}
    kinds = dict.fromkeys(child, ("copy", ""))
    for slot, (j, k) in enumerate(zip(order, other, strict=True)):
        for n, x in parents["a"].items():
            if n.startswith(f"layers.{j}."):
                name, twin = n.replace(f"layers.{j}.", f"layers.{slot}."), n.replace(f"layers.{j}.", f"layers.{k}.")
                child[name] = summed([(w, x), (1 - w, parents["b"][twin])], np.dtype(np.float32)) if blended else x
                kinds[name] = ("blend", "linear") if blended else ("copy", "")
    truth = Truth(kinds, {"a": w, "b": 1 - w} if blended else {}, layers=order)
    return Case("slices blended" if blended else "slices", parents, None, child, truth)


def trained(raw, rng, blended):
    """A copy or a blend that was trained on: what a fit leaves is no rounding."""
    _, (a, b) = related(raw, rng, 2)
    w = float(rng.uniform(0.3, 0.7)) if blended else 1.0
    size = float(rng.uniform(0.002, 0.02)) if blended else float(rng.uniform(0.01, 0.1))
    child = {}
    for n in a:
        x = w * a[n].astype(np.float32) + (1 - w) * b[n].astype(np.float32)
        child[n] = (x + (size * x.std() * rng.standard_normal(x.shape) if x.ndim > 1 else 0)).astype(BF16)
    kinds = dict.fromkeys(a, ("trained", ""))
    return Case("trained", {"a": a, "b": b}, None, child, Truth(kinds, {"a": w, "b": 1 - w}))


def strangers(raw, rng):
    a, b, child = (model(raw, int(s)) for s in rng.integers(1 << 30, size=3))
    return Case("strangers", {"a": a, "b": b}, None, child, Truth(dict.fromkeys(child, ("fresh", ""))))


def twins(raw, rng):
    """A blend of parents that differ by less than their rounding: nobody can tell how much of each."""
    a = model(raw, int(rng.integers(1 << 30)))
    b = {n: (x.astype(np.float32) * (1 + 1e-3 * rng.standard_normal(x.shape))).astype(BF16) for n, x in a.items()}
    w = float(rng.uniform(0.3, 0.7))
    child = {n: summed([(w, a[n]), (1 - w, b[n])], np.dtype(np.float32)) for n in a}
    return Case("twins", {"a": a, "b": b}, None, child, Truth(dict.fromkeys(a, ("untellable", ""))))


DENSE, MOE, PLE = tiny.DENSE, tiny.MOE, tiny.PLE | {"use_double_wide_mlp": False}
RECIPES = {
    "copy": lambda rng: resaved(PLE, rng),
    "scaled": lambda rng: scaled(DENSE, rng),
    "linear, two of a family": lambda rng: mixed(PLE, rng, 2, True),
    "linear, two strangers": lambda rng: mixed(MOE, rng, 2, False),
    "linear, three": lambda rng: mixed(DENSE, rng, 3, True),
    "linear, norms of one": lambda rng: mixed(DENSE, rng, 2, True, norms=True),
    "linear, by layer": lambda rng: mixed(DENSE, rng, 2, True, gradient=True),
    "slerp": lambda rng: slerped(DENSE, rng, False),
    "slerp by rows": lambda rng: slerped(DENSE, rng, True),
    "task vector of one": lambda rng: task(DENSE, rng, 1),
    "task vectors of two": lambda rng: task(PLE, rng, 2),
    "dare of one": lambda rng: sparse(DENSE, rng, 1, "dare"),
    "dare of two": lambda rng: sparse(DENSE, rng, 2, "dare"),
    "dare with elected signs": lambda rng: sparse(DENSE, rng, 2, "dare_ties"),
    "ties of one": lambda rng: sparse(DENSE, rng, 1, "ties"),
    "ties of two": lambda rng: sparse(DENSE, rng, 2, "ties"),
    "dare of three": lambda rng: sparse(DENSE, rng, 3, "dare"),
    "dare of three with elected signs": lambda rng: sparse(DENSE, rng, 3, "dare_ties"),
    "ties of three": lambda rng: sparse(DENSE, rng, 3, "ties"),
    "adapter": lambda rng: adapted(DENSE, rng),
    "abliteration": lambda rng: abliterated(DENSE, rng),
    "experts pruned": lambda rng: reordered(MOE, rng, "pruned"),
    "experts permuted": lambda rng: reordered(MOE, rng, "permuted"),
    "experts merged": lambda rng: reordered(MOE, rng, "merged"),
    "experts, router astray": lambda rng: reordered(MOE, rng, "astray"),
    "vocabulary cut": lambda rng: vocabulary(DENSE, rng, "cut"),
    "vocabulary trimmed": lambda rng: vocabulary(DENSE, rng, "trimmed"),
    "vocabulary extended by the mean": lambda rng: vocabulary(DENSE, rng, "mean"),
    "vocabulary extended": lambda rng: vocabulary(DENSE, rng, "new"),
    "slices": lambda rng: sliced(DENSE, rng, False),
    "slices blended": lambda rng: sliced(DENSE, rng, True),
    "trained on": lambda rng: trained(DENSE, rng, False),
    "blended, then trained on": lambda rng: trained(DENSE, rng, True),
    "strangers": lambda rng: strangers(DENSE, rng),
    "twins": lambda rng: twins(DENSE, rng),
}


def traced(case, folder):
    """The lineage of a case, through files."""
    folder = Path(folder)
    paths = {}
    for name, tensors in {**case.parents, "child": case.child}.items():
        (folder / name).mkdir(parents=True)
        save_file({n: np.asarray(x) for n, x in tensors.items()}, folder / name / "model.safetensors")
        paths[name] = str(folder / name)
    parents = [paths[name] for name in case.parents if name != case.base]
    found = lineage(paths["child"], parents, base=case.base and paths[case.base])
    return found, {path: name for name, path in paths.items()}


# whether it is told


@dataclass
class Verdict:
    recovered: bool
    wrong: list  # (tensor, what was said confidently, and is not so)
    off: float  # the largest error of a weight or of t, as told for all tensors of a kind
    thin: float  # the largest error of a density


def judge(case, found, names):
    """A recipe is recovered where at least 97 % of its numbers are told right, and the weights to within 0.01."""
    right = total = 0
    wrong = []
    for name, r in found.tensors.items():
        ok = agrees(case, name, r, names)
        size = case.child[name].size
        if size >= TELLING:
            total, right = total + size, right + size * ok
        if not ok and contradicts(case, name, r):
            wrong.append((name, case.truth.tensors[name], r))
    off, thin_off = weights_off(case, found, names)
    faults = bool(found.faults) == case.truth.faults
    told = off <= WITHIN and thin_off <= OF_DENSITY
    return Verdict(right >= 0.97 * total and told and faults, wrong, off, thin_off)


def agrees(case, name, r, names):
    """Whether the relation of a tensor says what was done to it."""
    kind, how = case.truth.tensors[name]
    if same_for_all(case, name):
        return r.kind in ("copy", kind)
    if kind in ("copy", "fresh"):
        return r.kind == kind and (kind != "copy" or source_right(case, name, r, names))
    if kind == "scaled":
        return r.kind == "scaled" and abs(r.scale - case.truth.weights["a"]) <= WITHIN
    if kind == "experts":
        return r.kind == "experts" and r.experts == case.truth.experts[decoder_layer(scope(name))]
    if kind == "vocabulary":
        return vocabulary_right(how, r, case)
    if kind == "edited":
        told = r.kind == "edited" and r.rank == case.truth.rank and r.how == (how or r.how)
        return told and (case.truth.removed is None or abs((r.removed or 0) - case.truth.removed) <= WITHIN)
    if kind == "trained":
        told = r.kind == "blend" and r.how == "linear" and close_enough(case, name, r, names)
        return told or (r.kind in ("copy", "scaled", "fresh") and r.error > 1.5 * r.floor) or small(case, name)
    if kind == "untellable":
        return r.kind == "copy"
    return mixture_right(case, name, r, names)


def same_for_all(case, name):
    """Parents that do not differ in a tensor leave nothing to tell."""
    held = [p[name].tobytes() for p in case.parents.values() if name in p]
    return len(held) > 1 and len(set(held)) == 1


def source_right(case, name, r, names):
    if case.truth.layers is None or decoder_layer(scope(name)) is None:
        return names[r.parent] == "a"
    layer = case.truth.layers[decoder_layer(scope(name))]
    return r.source == f"layers.{layer}.{name.split('.', 2)[2]}"


def vocabulary_right(how, r, case):
    x, y = case.parents["a"]["embed_tokens.weight"], case.child["embed_tokens.weight"]
    held = sum(span.stop - span.start for span in r.spans)
    if how in ("cut", "trimmed"):
        return r.kind == "rows" and held == len(y) and r.new == 0
    kind = "resized" if how == "mean" else "rows"
    return r.kind == kind and r.new == len(y) - len(x) and held == len(x)


def mixture_right(case, name, r, names):
    kind, how = case.truth.tensors[name]
    if r.kind != kind:
        return False
    if kind == "thinned":
        return r.how == how and close_enough(case, name, r, names)
    if how.startswith("slerp"):
        return (r.how.startswith("slerp") or r.how == "linear") and t_right(case, name, r)  # rows of one angle are one
    return r.how == "linear" and close_enough(case, name, r, names)


def t_right(case, name, r):
    """A slerp's t; of tensors too alike for an angle, the weight of the second."""
    t = (
        r.t
        if r.t is not None
        else next((s.weight for s in r.shares if s.source == r.source and s is r.shares[-1]), None)
    )
    return t is not None and abs(t - case.truth.t) <= WITHIN + 4 * max(s.give for s in r.shares)


def close_enough(case, name, r, names):
    """Whether the weights are those of the recipe; parents that have the same are counted together."""
    told, slack = {}, WITHIN + 4 * max(share.give for share in r.shares)
    for share in r.shares:
        parent = names[share.parent]
        key = case.parents[parent][name].tobytes() if name in case.parents[parent] else parent
        told[key] = told.get(key, 0) + share.weight
    by_key = {case.parents[p][name].tobytes() if name in case.parents[p] else p: p for p in case.parents}
    return all(abs(w - weight_of(case, name, by_key[key])) <= slack for key, w in told.items())


def weight_of(case, name, parent):
    """The weight of a parent, and of all that have the same there."""
    total = 0.0
    for other in case.parents:
        if (
            name not in case.parents[other]
            or case.parents[other][name].tobytes() == case.parents[parent][name].tobytes()
        ):
            true = case.truth.weights.get(other, 0.0) if name in case.parents[other] or other == parent else 0.0
            total += true[decoder_layer(scope(name)) or 0] if isinstance(true, dict) else true
    return total


def contradicts(case, name, r):
    """Whether what was said is said with confidence, and is more than silence."""
    sure = confidence(r) != ABOUT
    if r.kind == "fresh":
        return case.child[name].size >= TELLING and case.truth.tensors[name][0] not in ("vocabulary", "trained")
    if case.truth.tensors[name][0] == "trained" and r.kind in ("copy", "scaled"):
        return r.error <= 1.5 * r.floor and not small(case, name)
    if case.truth.tensors[name][0] == "vocabulary":
        return sure
    return sure and not near_anyway(case, name, r)


def small(case, name):
    return case.child[name].ndim < 2


def near_anyway(case, name, r):
    """A copy within rounding is a right answer for a small tensor, whatever made it so."""
    return r.kind == "copy" and (confidence(r) == LIKELY or r.error <= 1.5 * r.floor or case.child[name].size < 8)


def weights_off(case, found, names):
    """The largest errors of weights or t, and of densities, among the lines of the recipe that tell them."""
    off, thin_off, truth = [0.0], [0.0], case.truth
    by_layer = any(isinstance(w, dict) for w in truth.weights.values())
    for line in summary(found, names) if {kind for kind, _ in truth.tensors.values()} & {"blend", "thinned"} else []:
        if line.confidence == ABOUT or line.numbers < 500:
            continue
        if line.t is not None and truth.t is not None:
            off.append(abs(line.t - truth.t))
        if truth.t is None and not by_layer:
            off += [abs(w - weight_of(case, line.tensors[0], names[p])) for p, w in line.weights.items()]
            thin_off += [abs(d - truth.densities.get(names[p], 1)) for p, d in line.densities.items()]
    return max(off), max(thin_off)


# where a parent or the base is not there


def told_without(case, gone):
    """What is said of a case when one of its parents is not given: through sketches, with no files."""
    held = {p: sketches(tensors) for p, tensors in case.parents.items() if p != gone}
    return trace_back("child", sketches(case.child), held, case.base if case.base in held else None)


def sketches(tensors):
    return {name: sketch(name, np.asarray(x)) for name, x in tensors.items()}


def misled(case, found, gone):
    """Tensors of which something is said with confidence, although what they need for it is not there.

    Where another parent has the very same, nothing is missing; that a single value says nothing is no claim; and a
    copy to within rounding, or one said to be likely with its error beside it, is as right as it can be.
    """
    return [(name, r) for name, r in found.tensors.items() if lacks(case, name, gone) and claims(case, name, r)]


def lacks(case, name, gone):
    missing = case.parents[gone][name].tobytes()
    return all(case.parents[p][name].tobytes() != missing for p in case.parents if p != gone)


def claims(case, name, r):
    return r.constant is None and confidence(r) != ABOUT and not near_anyway(case, name, r)
