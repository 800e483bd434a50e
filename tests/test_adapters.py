"""LoRA adapters: a run beside the base is PEFT's own unmerged run, and a merge is judged by both."""

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from numgemma import load, ops
from numgemma.checkpoint import open_checkpoint
from numgemma.errors import InputError
from numgemma.surgery.audit import FAITHFUL
from numgemma.surgery.audit_files import audit_files
from numgemma.weights.adapters import Adapted, adapted

ADAPTERS = Path(__file__).parent / "fixtures/adapters"
CASES = sorted(path.name for path in ADAPTERS.iterdir())


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {name: tiny.write(folder / name, tiny.VARIANTS[name]) for name in ("ple", "dense", "moe")}


def base_of(bases, case):
    return bases[case.partition("-")[0]]


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("case", CASES)
def test_a_run_with_an_adapter_has_the_logits_of_pefts_unmerged_run(bases, case, backend):
    stored = load_file(ADAPTERS / case / "logits.safetensors")
    with ops.using(backend):
        plain = load(base_of(bases, case)).logits(stored["ids"])
        found = load(base_of(bases, case), adapters=[ADAPTERS / case]).logits(stored["ids"])
    size = np.sqrt((stored["logits"] ** 2).mean())
    assert np.sqrt(((found - stored["logits"]) ** 2).mean()) / size < 2e-5
    assert np.sqrt(((plain - stored["logits"]) ** 2).mean()) / size > 1e-3  # the adapter does something


def merged(base, case, folder, change=lambda name, w: w):
    """base + delta in float32, stored in bfloat16; change(name, tensor) spoils it."""
    checkpoint = open_checkpoint(base)
    tensors = adapted(checkpoint.weights.tensors, ADAPTERS / case)
    whole = {name: np.asarray(w[:] if isinstance(w, Adapted) and w.ndim == 2 else w) for name, w in tensors.items()}
    for name, w in tensors.items():
        if isinstance(w, Adapted) and w.ndim == 3:
            whole[name] = np.stack([w[e][:] for e in range(len(w))])
    shutil.copytree(base, folder)
    raw = json.loads((base / "config.json").read_text())
    names = {name: tiny.stored_name(name, "model.", raw) for name in whole}
    stored = {names[name]: np.asarray(change(name, w)).astype(ml_dtypes.bfloat16) for name, w in whole.items()}
    save_file(stored, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("case", ["ple-lora", "ple-rslora", "ple-dora", "ple-patterns", "moe-experts"])
def test_a_merge_in_bfloat16_is_faithful_to_base_and_adapter(bases, case, tmp_path):
    found = audit_files(merged(base_of(bases, case), case, tmp_path / "m"), base_of(bases, case), [ADAPTERS / case])
    assert [(v.name, v.state) for v in found.tensors if v.state != FAITHFUL] == []


def test_a_merge_that_left_a_module_out_is_wrong_there_and_nowhere_else(bases, tmp_path):
    base, name = bases["ple"], "layers.1.self_attn.q_proj.weight"
    plain = open_checkpoint(base).weights
    broken = merged(base, "ple-lora", tmp_path / "m", lambda n, w: plain[n] if n == name else w)
    found = audit_files(broken, base, [ADAPTERS / "ple-lora"])
    assert [v.name for v in found.tensors if v.state != FAITHFUL] == [name]
    assert "rank 4" in found.tensors[[v.name for v in found.tensors].index(name)].causes[0]


def spoiled(case, folder, change=None, config=None):
    shutil.copytree(ADAPTERS / case, folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(change(tensors) if change else tensors, folder / "adapter_model.safetensors")
    raw = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(raw | (config or {})))
    return folder


def renamed(a, b):
    return lambda tensors: {name.replace(a, b): x for name, x in tensors.items()}


@pytest.mark.parametrize(
    "spelling",
    [
        renamed("base_model.model.model.layers", "base_model.model.model.language_model.layers"),
        renamed("base_model.model.model.layers", "base_model.model.layers"),
        renamed(".weight", ".default.weight"),
    ],
)
def test_the_spellings_that_are_about_are_read_alike(bases, spelling, tmp_path):
    stored = load_file(ADAPTERS / "ple-lora/logits.safetensors")
    folder = spoiled("ple-lora", tmp_path / "a", spelling)
    usual = load(bases["ple"], adapters=[ADAPTERS / "ple-lora"]).logits(stored["ids"])
    np.testing.assert_array_equal(load(bases["ple"], adapters=[folder]).logits(stored["ids"]), usual)


def test_mlx_adapters_are_transposed_and_have_a_scale_of_their_own(bases, tmp_path):
    folder = tmp_path / "mlx"
    folder.mkdir()
    tensors = load_file(ADAPTERS / "ple-lora/adapter_model.safetensors")
    turned = {
        name.replace("base_model.model.", "")
        .replace(".lora_A.weight", ".lora_a")
        .replace(".lora_B.weight", ".lora_b"): np.ascontiguousarray(x.T)
        for name, x in tensors.items()
    }
    save_file(turned, folder / "adapters.safetensors")
    settings = {"fine_tune_type": "lora", "lora_parameters": {"rank": 4, "scale": 3.0}}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    stored = load_file(ADAPTERS / "ple-lora/logits.safetensors")
    found = load(bases["ple"], adapters=[folder]).logits(stored["ids"])
    np.testing.assert_allclose(found, stored["logits"], rtol=2e-3, atol=2e-4)


def test_a_file_that_llama_cpp_made_of_an_adapter_is_that_adapter(bases):
    """adapter.gguf: by convert_lora_to_gguf.py of llama.cpp 0.5.0-dev, float32."""
    folder, ids = ADAPTERS / "ple-lora", [5, 6, 7, 8]
    found = load(bases["ple"], adapters=[folder / "adapter.gguf"])
    right = load(bases["ple"], adapters=[folder])
    np.testing.assert_array_equal(found.logits(ids), right.logits(ids))
    assert found.describe(ids) != right.describe(ids)  # its own fingerprint


def gguf_adapter(path, tensors, alpha=8.0, kind="adapter"):
    import gguf

    writer = gguf.GGUFWriter(path, "gemma4")
    writer.add_type(kind)
    writer.add_string("adapter.type", "lora")
    if alpha is not None:
        writer.add_float32("adapter.lora.alpha", alpha)
    for name, x in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(x, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_in_gguf_an_embedding_experts_and_a_norm_are_adapted_too(bases, tmp_path):
    rng = np.random.default_rng(0)
    E, O, I = open_checkpoint(bases["moe"]).weights["layers.0.experts.down_proj"].shape
    V, D = open_checkpoint(bases["moe"]).weights["embed_tokens.weight"].shape
    A, B = rng.normal(size=(E, 2, I)), rng.normal(size=(E, O, 2))
    a, b, norm = rng.normal(size=(V, 2)), rng.normal(size=(D, 2)), rng.normal(size=D)
    given = {"blk.0.ffn_down_exps.weight.lora_a": A, "blk.0.ffn_down_exps.weight.lora_b": B}
    given |= {"token_embd.weight.lora_a": a, "token_embd.weight.lora_b": b, "output_norm.weight": norm}
    tensors = open_checkpoint(bases["moe"]).weights.tensors
    found = adapted(tensors, gguf_adapter(tmp_path / "a.gguf", given))
    for e in range(E):
        merged = np.asarray(tensors["layers.0.experts.down_proj"][e], np.float32) + 4 * B[e] @ A[e]
        np.testing.assert_allclose(found["layers.0.experts.down_proj"][e][:], merged, rtol=1e-5, atol=1e-5)
    table = np.asarray(tensors["embed_tokens.weight"], np.float32) + 4 * a @ b.T
    np.testing.assert_allclose(found["embed_tokens.weight"][:], table, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["norm.weight"], norm, rtol=1e-6)


def test_a_gguf_that_is_no_adapter_of_this_base_is_one_sentence(bases, tmp_path):
    x = np.ones((2, 3))
    pair = {"blk.0.attn_q.weight.lora_a": x, "blk.0.attn_q.weight.lora_b": x.T}
    for says, given, more in (
        ("no LoRA adapter", pair, {"kind": "model"}),
        ("adapter.lora.alpha", pair, {"alpha": None}),
        ("of another base", pair, {}),
        ("lacks one of", {"blk.0.attn_q.weight.lora_a": x}, {}),
        ("has no place", {"blk.0.nothing.weight.lora_a": x}, {}),
    ):
        with pytest.raises(InputError, match=says):
            load(bases["ple"], adapters=[gguf_adapter(tmp_path / "a.gguf", given, **more)])


def test_two_adapters_lie_one_over_the_other(bases):
    both = load(bases["ple"], adapters=[ADAPTERS / "ple-lora", ADAPTERS / "ple-rslora"])
    w = both.weights["layers.0.self_attn.q_proj.weight"]
    deltas = []
    for case in ("ple-lora", "ple-rslora"):
        one = load(bases["ple"], adapters=[ADAPTERS / case]).weights["layers.0.self_attn.q_proj.weight"]
        deltas.append(one[:] - np.asarray(one.base, np.float32))
    np.testing.assert_allclose(w[:], np.asarray(w.base.base, np.float32) + sum(deltas), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "config", "says"),
    [
        (renamed("layers.0.", "layers.70."), {}, "the base does not have"),
        (lambda t: {n: x for n, x in t.items() if "layers.0.mlp.down_proj.lora_B" not in n}, {}, "lacks one of"),
        (lambda t: {n: x[:, :-1].copy() if "lora_A" in n else x for n, x in t.items()}, {}, "of another base"),
        (None, {"r": 8}, "says 8"),
        (None, {"peft_type": "LOHA"}, "LOHA"),
        (None, {"fan_in_fan_out": True}, "fan_in_fan_out"),
        (None, {"lora_alpha": 10**400}, "should be float"),
        (None, {"lora_alpha": True}, "should be float"),
        (None, {"lora_alpha": [4]}, "should be float"),
        (None, {"alpha_pattern": {"(.*)*x": 4}}, "repeats a group"),
        (lambda t: {n: x.reshape(-1) for n, x in t.items()}, {}, "no two matrices"),
        (lambda t: {n: x[:0] if "lora_A" in n else x[:, :0] for n, x in t.items()}, {}, "no two matrices"),
    ],
)
def test_an_adapter_that_does_not_fit_is_one_sentence(bases, change, config, says, tmp_path):
    with pytest.raises(InputError, match=says) as told:
        load(bases["ple"], adapters=[spoiled("ple-lora", tmp_path / "a", change, config)])
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("scale", ["x", [1], True, 10**400, None, {}])
def test_a_scale_of_mlx_that_is_no_number_is_one_sentence(bases, scale, tmp_path):
    tensors = load_file(ADAPTERS / "ple-lora/adapter_model.safetensors")
    short = {n: n.replace("lora_A.weight", "lora_a").replace("lora_B.weight", "lora_b") for n in tensors}
    half = {short[n]: x.T.copy() for n, x in tensors.items()}
    (tmp_path / "a").mkdir()
    save_file(half, tmp_path / "a/adapters.safetensors")
    (tmp_path / "a/adapter_config.json").write_text(json.dumps({"lora_parameters": {"scale": scale}}))
    with pytest.raises(InputError, match="scale"):
        load(bases["ple"], adapters=[tmp_path / "a"])


def test_an_adapter_named_as_a_checkpoint_is_one_sentence():
    with pytest.raises(InputError, match="LoRA adapter"):
        load(ADAPTERS / "ple-lora")


def factors(base, folder):
    found = adapted(open_checkpoint(base).weights.tensors, folder)
    return {name: w.factor for name, w in found.items() if isinstance(w, Adapted)}


def test_of_two_patterns_that_mean_a_module_the_first_counts_as_in_peft(bases, tmp_path):
    alphas = {"layers.1.self_attn.q_proj": 20, "q_proj": 12}
    first = factors(bases["ple"], spoiled("ple-lora", tmp_path / "a", config={"alpha_pattern": alphas}))
    turned = dict(reversed(alphas.items()))
    second = factors(bases["ple"], spoiled("ple-lora", tmp_path / "b", config={"alpha_pattern": turned}))
    name = "layers.1.self_attn.q_proj.weight"
    assert (first[name], second[name]) == (20 / 4, 12 / 4)
    assert first["layers.0.self_attn.q_proj.weight"] == 12 / 4


@pytest.mark.parametrize("pattern", ["^model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.q_proj"])
def test_a_pattern_may_name_a_module_by_its_whole_path_in_the_model_that_was_trained(bases, pattern, tmp_path):
    found = factors(bases["ple"], spoiled("ple-lora", tmp_path / "a", config={"alpha_pattern": {pattern: 20}}))
    assert found["layers.1.self_attn.q_proj.weight"] == 20 / 4
    assert found["layers.0.self_attn.q_proj.weight"] != 20 / 4


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"init_lora_weights": "pissa_niter_16"}, "changed the base"),
        ({"init_lora_weights": "olora"}, "changed the base"),
        ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens"),
        ({"arrow_config": {"top_k": 2}}, "arrow_config"),
        ({"use_dora": True}, "no magnitudes"),
    ],
)
def test_an_adapter_that_is_more_than_a_product_of_two_matrices_is_refused(bases, config, says, tmp_path):
    folder = spoiled("ple-lora", tmp_path / "a", config=config)
    with pytest.raises(InputError, match=rf"{folder}: .*{says}"):
        factors(bases["ple"], folder)
