"""Storage formats: what a tool wrote is decoded to the bits that the tool itself decodes it to."""

import json
import random
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from numgemma.errors import InputError
from numgemma.incoming import NAME, pattern_of
from numgemma.weights.packed import Packed
from numgemma.weights.quantised import unpacked

FIXTURE = Path(__file__).parent / "fixtures/quantised.safetensors"
with safe_open(FIXTURE, "np") as file:
    SETTINGS = json.loads(file.metadata()["settings"])


def case(name):
    from numgemma.weights.safetensors import open_safetensors

    tensors = open_safetensors(FIXTURE).tensors
    return {key.partition("/")[2]: x for key, x in tensors.items() if key.startswith(f"{name}/")}


def read(name):
    """A module `m` with the leaves of a case.  -> its weight, and what the tool decodes it to"""
    leaves = case(name)
    decoded = leaves.pop("decoded")
    tensors = {f"m.{leaf}": x for leaf, x in leaves.items()}
    return unpacked("f", tensors, {"quantization_config": SETTINGS[name]})["m.weight"], decoded


@pytest.mark.parametrize("name", [name for name in SETTINGS if not name.startswith("gguf")])
def test_a_matrix_decodes_to_the_bits_of_its_own_tool(name):
    w, decoded = read(name)
    assert w.shape == decoded.shape
    np.testing.assert_array_equal(w[:], decoded)


# GPTQ and AWQ, packed here by plain loops as their papers' codes lay them out


def packed_rows(codes, bits):
    """Codes [n, k] as little-endian streams of bits along k, in words.  -> n words, int32"""
    rows = []
    for row in codes:
        whole = sum(int(code) << (i * bits) for i, code in enumerate(row))
        count = -(-len(row) * bits // 32)
        rows.append([(whole >> 32 * i) & 0xFFFFFFFF for i in range(count)])
    return np.array(rows, np.uint32).view(np.int32)


def gptq(bits, group, stored_off, order):
    rng = np.random.default_rng(bits)
    O, I = 32, 96
    q, z = rng.integers(0, 2**bits, (O, I)), rng.integers(1, 2**bits, (O, I // group))
    s = rng.uniform(0.01, 0.1, (O, I // group)).astype(np.float16)
    index = (rng.permutation(I) if order else np.arange(I)) // group
    w = [[(int(q[o, i]) - int(z[o, index[i]])) * np.float32(s[o, index[i]]) for i in range(I)] for o in range(O)]
    leaves = {
        "m.qweight": np.ascontiguousarray(packed_rows(q, bits).T),
        "m.qzeros": packed_rows(z.T - stored_off, bits),
        "m.scales": np.ascontiguousarray(s.T),
        "m.g_idx": index.astype(np.int32),
    }
    return leaves, np.array(w, np.float32)


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("version", "off"), [("gptq", 1), ("gptq_v2", 0)])
def test_gptq_in_both_versions_with_and_without_an_order_of_groups(bits, version, off, order):
    leaves, w = gptq(bits, 32, off, order)
    settings = {"bits": bits, "sym": False, "checkpoint_format": version}
    np.testing.assert_array_equal(unpacked("f", leaves, {"quantization_config": settings})["m.weight"][:], w)


def test_a_symmetric_gptq_file_that_lies_about_its_version_is_read_as_what_it_is():
    leaves, _ = gptq(4, 32, 0, False)
    leaves["m.qzeros"] = packed_rows(np.full((3, 32), 8), 4)
    honest = unpacked("f", leaves, {"quantization_config": {"bits": 4, "sym": True, "checkpoint_format": "gptq_v2"}})
    lying = unpacked("f", leaves, {"quantization_config": {"bits": 4, "sym": True}})
    np.testing.assert_array_equal(honest["m.weight"][:], lying["m.weight"][:])


def awq():
    rng = np.random.default_rng(0)
    O, I, group = 32, 64, 32
    q, z = rng.integers(0, 16, (O, I)), rng.integers(0, 16, (O, I // group))
    s = rng.uniform(0.01, 0.1, (O, I // group)).astype(np.float16)
    order = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble k of a word holds column 8 j + order[k]

    def words(codes):  # rows of O codes
        wide = [[sum(int(row[8 * j + order[k]]) << 4 * k for k in range(8)) for j in range(O // 8)] for row in codes]
        return np.array(wide, np.uint32).view(np.int32)

    leaves = {"m.qweight": words(q.T), "m.qzeros": words(z.T), "m.scales": np.ascontiguousarray(s.T)}
    w = [[(int(q[o, i]) - int(z[o, i // group])) * np.float32(s[o, i // group]) for i in range(I)] for o in range(O)]
    return leaves, np.array(w, np.float32)


def test_awq_with_its_own_order_of_nibbles():
    leaves, w = awq()
    np.testing.assert_array_equal(unpacked("f", leaves, {})["m.weight"][:], w)


def mobile(bits):
    """Leaves of a module and settings that tell of how many bits it is; and the matrix."""
    rng = np.random.default_rng(bits)
    scale = rng.uniform(0.01, 0.1, (6, 1)).astype(np.float32)
    half, per = 2 ** (bits - 1), 8 // bits
    codes = rng.integers(0, 2**bits, (6, 16))
    raw = [[sum(int(row[i + j]) << bits * j for j in range(per)) for i in range(0, 16, per)] for row in codes]
    leaves = {"m.weight": np.array(raw, np.uint8), "m.weight_scale": scale, "m.input_activation_scale": scale[0]}
    settings = {"num_bits": 8, "module_quant_configs": {"^m$": {"num_bits": bits}}}
    return leaves, settings, (codes - half).astype(np.float32) * scale


# what holds for every format


@pytest.mark.parametrize("name", [name for name in SETTINGS if not name.startswith("gguf")])
def test_rows_by_slice_by_index_and_one_by_one_are_the_same(name):
    w, decoded = read(name)
    np.testing.assert_array_equal(w[5:11], decoded[5:11])
    np.testing.assert_array_equal(w[np.array([[7, 0], [23, 7]])], decoded[[[7, 0], [23, 7]]])
    np.testing.assert_array_equal(w[-1], decoded[-1])
    np.testing.assert_array_equal(w[:, 32:64][3:5], decoded[3:5, 32:64])
    assert (len(w), w.ndim, w.size) == (*decoded.shape[:1], 2, decoded.size)
    with pytest.raises(IndexError):
        w[np.array([len(w)])]


@pytest.mark.parametrize("name", [name for name in SETTINGS if not name.startswith("gguf")])
def test_neighbouring_values_lie_a_step_apart(name):
    w, decoded = read(name)
    steps = w.steps(slice(None))
    if steps is None:
        assert name == "mlx-mxfp8"
        return
    steps = np.broadcast_to(steps, decoded.shape)
    for row, step in zip(decoded, steps, strict=True):
        for one in np.unique(step):
            values = np.unique(row[step == one])
            gaps = np.diff(values)
            assert (gaps <= one * 1.001).any() or len(values) < 8  # neighbours are met, unless there are few values


@pytest.mark.parametrize("symmetric", [True, False])
def test_experts_whose_codes_lie_in_one_tensor_are_those_that_lie_one_by_one(symmetric):
    rng, names = np.random.default_rng(0), {"packed": (3, 32, 8), "scale": (3, 32, 2)}
    leaves = {"packed": rng.integers(-(2**31), 2**31, names["packed"]).astype(np.int32)}
    leaves["scale"] = rng.normal(size=names["scale"]).astype(np.float32)
    if not symmetric:
        leaves["zero_point"] = rng.integers(-(2**31), 2**31, (3, 4, 2)).astype(np.int32)
    given = {f"layers.0.experts.down_proj_{leaf}": x for leaf, x in leaves.items()}
    w = unpacked("f", given, {})["layers.0.experts.down_proj"]
    assert w.shape == (3, 32, 64)
    for e in range(3):
        apart = {f"m.weight_{leaf}": x[e] for leaf, x in leaves.items()} | {"m.weight_shape": np.array([32, 64])}
        np.testing.assert_array_equal(w[e][:], unpacked("f", apart, {})["m.weight"][:])
    with pytest.raises(InputError, match="codes need scales"):
        unpacked("f", {"layers.0.experts.down_proj_packed": leaves["packed"]}, {})
    with pytest.raises(InputError, match="three axes"):
        unpacked("f", given | {"layers.0.experts.down_proj_packed": leaves["packed"][0]}, {})


def test_convolutions_that_lie_channels_last_are_turned_and_others_are_not():
    rng = np.random.default_rng(0)
    shapes = {"a.conv.weight": (8, 4, 3, 3), "b.conv.weight": (8, 3, 3, 3), "c.conv.weight": (8, 4, 1, 1)}
    shapes |= {"d.depthwise_conv1d.weight": (8, 1, 5), "e.proj.weight": (8, 3)}
    first = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    last = {name: np.moveaxis(x, 1, -1) if "conv" in name else x for name, x in first.items()}
    for given in (first, last):
        found = unpacked("f", given, {})
        for name, x in first.items():
            np.testing.assert_array_equal(found[name], x)
    alone = {"b.conv.weight": first["b.conv.weight"]}  # nothing tells: as Transformers stores it
    np.testing.assert_array_equal(unpacked("f", alone, {})["b.conv.weight"], first["b.conv.weight"])


def test_experts_that_lie_one_by_one_are_read_as_one_stack():
    rng = np.random.default_rng(0)
    parts = {
        (e, x): rng.normal(size=(6, 4) if x != "down" else (4, 6)).astype(np.float32)
        for e in range(3)
        for x in ("gate", "up", "down")
    }
    found = unpacked("f", {f"layers.0.experts.{e}.{x}_proj.weight": w for (e, x), w in parts.items()}, {})
    assert {name: w.shape for name, w in found.items()} == {
        "layers.0.experts.gate_up_proj": (3, 12, 4),
        "layers.0.experts.down_proj": (3, 4, 6),
    }
    for e in range(3):
        both = np.concatenate([parts[e, "gate"], parts[e, "up"]])
        np.testing.assert_array_equal(found["layers.0.experts.gate_up_proj"][e][:], both)
        np.testing.assert_array_equal(found["layers.0.experts.down_proj"][e][2:], parts[e, "down"][2:])


# leaves that do not fit each other

MADE = {"gptq": gptq(4, 32, 0, True)[0], "gptq by groups": gptq(3, 32, 1, False)[0]}
MADE |= {"awq": awq()[0], "mobile": mobile(4)[0]}
NAMES = [name for name in SETTINGS if "gguf" not in name]
SOUND = {name: {f"m.{leaf}": x for leaf, x in case(name).items() if leaf != "decoded"} for name in NAMES}


def spoiled(leaves, rng):
    """One leaf is left out, cut, doubled, flattened, turned, of another dtype, or of any bytes."""
    name = rng.choice(sorted(leaves))
    x = np.asarray(leaves[name])
    changes = [
        None,
        x.reshape(-1)[: x.size // 2],
        x[: len(x) // 2] if x.ndim else x,
        np.concatenate([x, x]) if x.ndim else np.stack([x, x]),
        x.reshape(-1),
        np.ascontiguousarray(x.T),
        x[..., :-1] if x.ndim else x,
        x[None],
        x.view(np.uint8).astype(rng.choice(["float32", "int64", "uint8", "uint32"])) if x.ndim else x,
        np.frombuffer(rng.randbytes(x.nbytes), np.uint8).view(x.dtype).reshape(x.shape),
    ]
    return {key: leaf for key, leaf in (leaves | {name: rng.choice(changes)}).items() if leaf is not None}


@pytest.mark.parametrize("name", [*SOUND, *MADE])
def test_leaves_that_do_not_fit_each_other_are_refused_before_a_row_is_asked_for(name):
    """What is not refused decodes as a whole, each row by itself too."""
    sound, refused, usual = (SOUND | MADE)[name], [], {"num_bits": 4, "sym": False}
    for seed in range(250):
        rng = random.Random(f"{name} {seed}")
        leaves = spoiled(sound, rng)
        if seed % 3 == 0 and leaves:
            leaves = spoiled(leaves, rng)
        try:
            with np.errstate(all="ignore"):
                found = unpacked("f", leaves, {"quantization_config": SETTINGS.get(name, usual)})
        except InputError as error:
            refused.append(str(error))
            continue
        for w in (w for w in found.values() if isinstance(w, Packed)):
            with np.errstate(all="ignore"):
                assert np.asarray(w).shape == w.shape
                assert w[-1].shape == w.shape[1:]
                w.steps(slice(None))
    assert len(refused) > 30
    assert max(map(len, refused)) < 300


PATTERNS = ["(a+)+$", "(.*)*x", "(a|a)*b", "((a*)){9}", "a*a*a*a*a*b", "(", "[", "a{99999999999}", "*"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_of_a_file_that_would_be_tried_for_ever_is_refused(pattern):
    with pytest.raises(InputError, match=r"the pattern .*(repeats|no regular)"):
        pattern_of(pattern, "f: the pattern")
    leaves, settings, _ = mobile(4)
    told = {"quantization_config": settings | {"module_quant_configs": {pattern: {"num_bits": 4}}}}
    with pytest.raises(InputError):
        unpacked("f", leaves, told)


def test_patterns_that_people_write_are_none_of_these():
    begun = time.process_time()
    for pattern in (r"^model\.layers\.\d+\.self_attn\.(q|k|v|o)_proj$", r".*\.(gate|up)_proj", r"layers\.(0|1)\."):
        pattern_of(pattern, "f: the pattern").search("a" * NAME)
    pattern_of("a*a*a*b", "f: the pattern").search("a" * NAME)
    assert time.process_time() - begun < 2


CODES = np.ones((8, 32), np.int8)


@pytest.mark.parametrize(
    ("leaves", "says"),
    [
        ({"weight": CODES}, "int8 without scales"),
        ({"weight": np.ones((8, 32), np.uint32)}, "without scales"),
        ({"weight._data": CODES}, "quanto"),
        ({"weight_packed": CODES.view(np.int32), "weight_scale": np.ones((8, 1))}, "no weight_shape"),
        (
            {"weight_packed": np.ones((8, 11), np.int32), "weight_scale": np.ones((8, 1)), "weight_shape": [8, 32]},
            "fit no",
        ),
        ({"weight_packed": CODES.view(np.uint8), "weight_scale": np.ones((8, 2), "f4")}, "without their global scale"),
        ({"weight": CODES, "weight_scale": np.ones((3, 1), "f4")}, "scales \\[3, 1\\]"),
        ({"weight": CODES.view(np.uint32), "scales": np.ones((8, 3)), "biases": np.ones((8, 3))}, "fit no code"),
        ({"weight": CODES.view(np.uint8), "weight.absmax": np.ones(4)}, "no readable quantisation state"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_codes_without_what_decodes_them_are_one_sentence(leaves, says):

    with pytest.raises(InputError, match=says) as told:
        unpacked("f", {f"m.{leaf}": np.asarray(x) for leaf, x in leaves.items()}, {})
    assert "\n" not in str(told.value)


def test_the_mobile_files_codes_by_a_plain_loop():
    rng = np.random.default_rng(2)
    scale = rng.uniform(0.01, 0.1, (6, 1)).astype(np.float32)
    for bits in (2, 4):
        leaves, settings, w = mobile(bits)
        np.testing.assert_array_equal(unpacked("f", leaves, {"quantization_config": settings})["m.weight"][:], w)
    table = {"e.embedding_quantized": rng.integers(-127, 127, (5, 8)).astype(np.int8), "e.embedding_scale": scale[:5]}
    w = unpacked("f", table, {})["e.weight"]
    np.testing.assert_array_equal(w[:], table["e.embedding_quantized"].astype(np.float32) * scale[:5])
