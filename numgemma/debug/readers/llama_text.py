"""llama.cpp's printed tensors: the output of `llama-eval-callback`, or of `llama-debug --verbose`.

Each tensor is a line with its name, operation and sizes (innermost first), then its first and last three values along
every axis, four decimals each, then its sum.  The operation's weight names the linear layers; other points have the
graph's own names.  A name may come twice: as the product, and reshaped into heads; in layers whose values are the raw
keys it is `Vcur` that names both.  Either tool loses the last lines of its log when it ends, so the logits may lack:
`llama-debug --save-logits` writes them to a file of their own.

llama.cpp's GELU looks float16 values up in a table and its cache holds float16 unless told otherwise (`-ctk f32 -ctv
f32`), so a run is judged as float16 even where the weights are float32.
"""

import io
import math
import re
from dataclasses import dataclass

import numpy as np

from numgemma.debug.readers.common import Haul, encoding_of, make_dump
from numgemma.errors import InputError
from numgemma.incoming import open_regular

# A tensor's line is `NAME = (TYPE) OP(SOURCES) = {a, b, c, d}`.  No pattern here tries a long line from each of its
# places: names are looked for in the last characters before the first " = (", and runs of digits are bounded.
NAME = re.compile(r"\S+(?: \([^)]{0,60}\)){0,4}$")
LONGEST_NAME = 200
HEADER = re.compile(
    r"(\w{1,20})\) {1,9}([\w ]{1,60}?)\((.*)\) = \{(\d{1,18}), (\d{1,18}), (\d{1,18}), (\d{1,18})\}\s*$"
)
SOURCE = re.compile(r"([^{]*)\{[\d, ]+\}")
VALUE = re.compile(r"-?(?:\d{1,60}\.\d{1,60}|nan|inf)")
TOTAL = re.compile(r"\s*sum = (-?(?:\d{1,60}\.\d{1,60}|nan|inf))")
LAYER = re.compile(r"(.+?)-(\d{1,9})((?: \([^)]*\))*)$")

COUNT = re.compile(r"number of input tokens = (\d{1,9})|Token ids \((\d{1,9})\):")
ONE_PER_LINE = re.compile(r"^(?:[\d.]{1,20} \w)?\s{1,20}(\d{1,9})\s{0,20}$")
PIECE_AND_ID = re.compile(r"\((\d{1,9})\) ")

EDGE = 3  # values shown at each end of an axis
LONGEST = 1 << 16  # characters of a line that are looked at
MOST = 1 << 16  # values shown of one tensor: at most (2 * EDGE) ** 4 are

# name of the weight in a product -> our point.  A head's axes are joined here; its reshaped twin has them apart.
LAYER_WEIGHTS = {
    "attn_q": ("self_attn.q_proj", "T NH"),
    "attn_k": ("self_attn.k_proj", "T KH"),
    "attn_v": ("self_attn.v_proj", "T KH"),
    "attn_output": ("self_attn.o_proj", "T D"),
    "ffn_gate": ("mlp.gate_proj", "T F"),
    "ffn_up": ("mlp.up_proj", "T F"),
    "ffn_down": ("mlp.down_proj", "T D"),
    "ffn_gate_inp": ("router.proj", "T E"),
    "inp_gate": ("per_layer_input_gate", "T P"),
    "proj": ("per_layer_projection", "T D"),
}
WEIGHTS = {
    "per_layer_model_proj": ("per_layer_model_projection", "T LP"),
    "token_embd": ("lm_head", "T V"),
    "output": ("lm_head", "T V"),
}
LAYER_NAMES = {
    "attn_norm": ("input_layernorm", "T D"),
    "Qcur_normed": ("self_attn.q_norm", "T N H"),
    "Qcur_pos": ("self_attn.q_rope", "T N H"),
    "Kcur_normed": ("self_attn.k_norm", "T K H"),
    "Kcur_pos": ("self_attn.k_rope", "T K H"),
    "Vcur_normed": ("self_attn.v_norm", "T K H"),
    "kqv_out": ("self_attn.context", "T NH"),
    "attn_post_norm": ("post_attention_layernorm", "T D"),
    "attn_out": ("after_attention", "T D"),
    "ffn_norm": ("pre_feedforward_layernorm", "T D"),
    "ffn_norm_1": ("pre_feedforward_layernorm", "T D"),
    "ffn_mlp": ("post_feedforward_layernorm_1", "T D"),
    "ffn_norm_2": ("pre_feedforward_layernorm_2", "T D"),
    "ffn_moe_probs": ("router.probs", "T E"),
    "ffn_moe_topk": ("router.ids", "T J"),
    "ffn_moe_out": ("experts", "T D"),
    "ffn_moe": ("post_feedforward_layernorm_2", "T D"),
    "ffn_post_norm": ("post_feedforward_layernorm", "T D"),
    "pe_in": ("after_mlp", "T D"),
    "per_layer_embd_out": ("post_per_layer_input_norm", "T D"),
    "l_out": ("out", "T D"),
}
NAMES = {
    "inp_scaled": ("embed_tokens", "T D"),
    "inp_per_layer_selected": ("embed_tokens_per_layer", "T L P"),
    "per_layer_proj": ("per_layer_projection_norm", "T L P"),
    "inp_per_layer": ("per_layer_inputs", "T L P"),
    "h_nextn": ("norm", "T D"),
    "result_norm": ("norm", "T D"),
    "result_output": ("logits", "T V"),
}


@dataclass
class Printed:
    """One tensor of the log."""

    name: str
    kind: str
    op: str
    source: str  # the name of its first operand
    shape: tuple[int, ...]  # outermost first, always four
    values: list[float]
    total: float | None = None


def read_llama_text(path):
    """A Dump from a log.  Raises InputError where it holds no printed tensor, or the prompt in parts."""
    with open_regular(path) as raw, io.TextIOWrapper(raw, encoding_of(raw), "replace") as file:
        lines = LogLines(file)
        tensors = list(printed(lines))
    if not tensors:
        raise InputError(f"{path}: no tensor is printed in it; run llama-eval-callback, or llama-debug with --verbose.")
    ids = lines.token_ids()
    run = chosen_run(runs_of(tensors), ids, path)
    haul = points(run, len(ids) if ids else tokens_of(run))
    return make_dump(path, "llama.cpp", haul, ids=ids, precision="float16", rounded="rounded:4dp")


class LogLines:
    """The lines of a log, one by one; on the way it picks up the token ids, which are printed in one of two ways."""

    def __init__(self, file):
        self.file, self.found, self.expected, self.pattern = file, [], 0, ONE_PER_LINE

    def __iter__(self):
        while line := self.file.readline(LONGEST):
            if match := COUNT.search(line):
                self.found, self.expected = [], int(match[1] or match[2])
                self.pattern = ONE_PER_LINE if match[1] else PIECE_AND_ID
            elif len(self.found) < self.expected:
                self.found += [int(i) for i in self.pattern.findall(line)]
            yield line

    def token_ids(self):
        return self.found if self.expected and len(self.found) == self.expected else None


def printed(lines):
    """The tensors of a log, in its order."""
    tensor = None
    for line in lines:
        if found := header(line):
            if tensor:
                yield tensor
            name, kind, op, sources, *sizes = found
            first = SOURCE.match(sources)
            shape = tuple(int(n) for n in reversed(sizes))
            tensor = Printed(name, kind, op, first[1] if first else "", shape, [])
        elif tensor and (match := TOTAL.match(line)):
            tensor.total = float(match[1])
        elif tensor and line[:1].isspace() and "[" in line and len(tensor.values) < MOST:
            tensor.values += [float(v) for v in VALUE.findall(line)]
    if tensor:
        yield tensor


def header(line):
    """Name, type, operation, sources and four sizes of a line that begins a tensor; None for any other."""
    before, sign, rest = line.partition(" = (")
    name = NAME.search(before, max(0, len(before) - LONGEST_NAME)) if sign else None
    found = HEADER.match(rest) if name else None
    return (name[0], *found.groups()) if name and found else None


def runs_of(tensors):
    """The log cut where the graph begins anew: where a tensor of ours comes that the run already has."""
    runs: list[list[Printed]] = [[]]
    seen: set[str] = set()
    known: dict[str, tuple[str, str] | None] = {}
    for tensor in tensors:
        known[tensor.name] = point_of(tensor, known)
        if known[tensor.name] and tensor.op != "RESHAPE":
            if tensor.name in seen:
                runs, seen = [*runs, []], set()
            seen.add(tensor.name)
        runs[-1].append(tensor)
    return runs


def chosen_run(runs, ids, path):
    """The run of these ids: a warm-up of two tokens may have gone before it; a long prompt may have been cut up."""
    if ids is None or len(runs) == 1:
        return runs[-1]
    fitting = [run for run in runs if tokens_of(run) == len(ids)] or [run for run in runs[-1:] if tokens_of(run) == 1]
    if not fitting:
        raise InputError(f"{path}: the {len(ids)} tokens were run in {len(runs)} parts; run with larger -b and -ub.")
    return fitting[-1]


def tokens_of(run):
    """How many tokens the run's tensors are over; those that only the output needs are over fewer."""
    return max((t.shape[-2] for t in run if (point := point_of(t, {})) and len(point[1].split()) == 2), default=None)


def points(run, T) -> Haul:
    """What one run over T tokens holds."""
    haul = Haul({}, {})
    # name of a tensor -> its point, for those that are only reshaped later
    known: dict[str, tuple[str, str] | None] = {}
    for tensor in run:
        point = known[tensor.name] = point_of(tensor, known)
        if point is None:
            haul.unused[tensor.name] = f"{tensor.op} of {tensor.source}"
            continue
        name, letters = point
        try:
            x, part = block(tensor, len(letters.split()), T)
        except ValueError as error:
            haul.unused[tensor.name] = str(error)
            continue
        if name.endswith("router.ids") and part["at"][-1] is not None:
            haul.unused[tensor.name] = "some of the experts are not printed, so their sets cannot be compared"
            continue
        kept = haul.arrays.get(name)
        if kept is None or x.ndim > kept.ndim or part["shape"][0] == T != len(kept):
            haul.arrays[name], haul.axes[name], haul.parts[name] = x, letters, part
    return haul


def point_of(tensor, known):
    """Our name and axes of a printed tensor, or None."""
    weight = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", tensor.source)
    if tensor.op == "MUL_MAT" and weight:
        layer, leaf = weight.groups()
        return WEIGHTS.get(leaf) if layer is None else in_layer(layer, LAYER_WEIGHTS.get(leaf))
    if tensor.op == "RESHAPE":
        point = known.get(tensor.source)
        heads = {"T NH": "T N H", "T KH": "T K H"}
        return (point[0], heads[point[1]]) if point and point[1] in heads else None
    if tensor.op == "ADD" and (match := re.fullmatch(r"ffn_post_norm-(\d+)", tensor.source)):
        return in_layer(match[1], LAYER_NAMES["pe_in"])
    match = LAYER.fullmatch(tensor.name)
    if match is None:
        return NAMES.get(tensor.name)
    return None if match[3] else in_layer(match[2], LAYER_NAMES.get(match[1]))


def in_layer(layer, point):
    return point and (f"layers.{int(layer)}.{point[0]}", point[1])


def block(tensor, axes, T):
    """The printed values as an array, and how it lies in the whole tensor.  Raises ValueError where they do not fit."""
    extra, shape = tensor.shape[:-axes], list(tensor.shape[-axes:])
    if any(n != 1 for n in extra):
        raise ValueError(f"has the sizes {list(tensor.shape)}")
    if not tensor.values:
        raise ValueError("has no values: it is quantized, or the log ends before them")
    at = [None if n <= 2 * EDGE else [*range(EDGE), *range(n - EDGE, n)] for n in shape]
    sizes = [n if i is None else len(i) for n, i in zip(shape, at, strict=True)]
    if math.prod(sizes) != len(tensor.values):
        raise ValueError(f"{len(tensor.values)} values are printed where {math.prod(sizes)} are due")
    x = np.array(tensor.values, np.float64).reshape(sizes)
    part = {"shape": shape, "at": at, "slack": {"abs": 5e-5}, "sum": tensor.total}
    if T and shape[0] == 1 < T:  # only the last token goes on to the output
        part |= {"shape": [T, *shape[1:]], "at": [[T - 1], *at[1:]], "sum": None}
    return x.astype(np.int32) if tensor.kind.startswith("i") else x, part
