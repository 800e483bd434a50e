"""Lint names every fault that is there, and none that is not."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
import tiny
import tiny3n
import tiny_drafter
import tiny_embedding
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from test_stack import LIKE_E4B, PLAIN, written

import numgemma
from numgemma.checkpoint import short_name
from numgemma.cli import main
from numgemma.errors import InputError
from numgemma.opening import DATA
from numgemma.surgery import stack
from numgemma.surgery.findings import ranges, spelled
from numgemma.surgery.lint import lint, structure
from numgemma.surgery.lint_values import examine
from numgemma.surgery.recipe import PRESETS, of_one
from numgemma.surgery.synth import synth

EVERY = {**tiny.VARIANTS, **tiny.MULTIMODAL}


# Under which names Transformers finds which weights: of each kind of model, how many it lacks where all names are the
# short ones behind a prefix.  (test_hf_surgery.py asks Transformers.)
OF_A_KIND = {
    "gemma4_text": lambda folder: tiny.write(folder, tiny.PLE),
    "gemma4": lambda folder: tiny.write(folder, tiny.E4B),
    "gemma4_unified": lambda folder: tiny.write(folder, tiny.UNIFIED),
    "diffusion_gemma": lambda folder: tiny.write(folder, tiny.DIFFUSION),
    "gemma3n_text": lambda folder: tiny3n.write(folder, tiny3n.TEXT),
    "gemma4_assistant": lambda folder: tiny_drafter.write(folder, "clustered"),
    "embedding_gemma2": lambda folder: tiny_embedding.write(folder, tiny_embedding.WHOLE),
    "embedding_gemma2_text": lambda folder: tiny_embedding.write(folder, tiny_embedding.TEXT),
}
DRAWN = {
    "gemma4_text": {"model.language_model.": 129, "language_model.model.": 129},
    "gemma4": {"": 129, "model.": 129, "model.language_model.": 217, "language_model.model.": 346},
    "gemma4_unified": {"": 84, "model.": 84, "model.language_model.": 11, "language_model.model.": 95},
    "diffusion_gemma": {"": 167, "model.": 167, "model.language_model.": 173, "language_model.model.": 173},
    "gemma3n_text": {"language_model.model.": 194},
    "gemma4_assistant": {"model.language_model.": 50, "language_model.model.": 50},
    "embedding_gemma2": {"": 107, "model.": 107, "model.language_model.": 161, "language_model.model.": 268},
    "embedding_gemma2_text": {"model.language_model.": 107, "language_model.model.": 107},
}
OTHER_NAMES = ("", "model.", "model.language_model.", "language_model.model.")


def renamed(folder, prefix):
    """The same checkpoint with the short names of its tensors behind a prefix, but for a head's."""
    tensors = load_file(folder / "model.safetensors")
    short = {name: name if name.startswith("lm_head") else prefix + short_name(name) for name in tensors}
    save_file({short[name]: x for name, x in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def checkpoint(folder, raw=tiny.PLE, change=None, tensors=None):
    """A sound checkpoint of that config, to which `change` (short name -> array, in place) is then done."""
    tensors = dict(tensors if tensors is not None else tiny.random_tensors(raw))
    if change:
        change(tensors)
    return tiny.write(folder, raw, tensors)


def found(path):
    return {(f.severity, f.rule) for f in lint(path)} - {("note", "tokenizer")}


def said(path, rule):
    return " ".join(f.text for f in lint(path) if f.rule == rule)


# what is sound


@pytest.mark.parametrize("name", EVERY)
def test_a_sound_checkpoint_has_nothing_but_notes(tmp_path, name):
    assert found(checkpoint(tmp_path / name, EVERY[name])) == set()


@pytest.mark.parametrize(
    "name", ["gemma-4-E2B-it", "gemma-4-26B-A4B-it", "gemma-4-31B-it", "gemma-4-12B-it", "gemma-3n-E2B-it"]
)
def test_a_synthesised_release_has_nothing_but_notes(tmp_path, name):
    synth(name, target=tmp_path / name, scale="tiny")
    assert {severity for severity, _ in found(tmp_path / name)} <= {"note"}


def test_the_bundled_checkpoint_has_one_note():
    (only,) = lint("tiny")
    assert (only.severity, only.rule) == ("note", "dead")
    assert "padding token" in only.text


def test_leftover_keys_and_a_stack_of_them_are_noted_and_no_more(tmp_path):
    parent = written(tmp_path / "p", LIKE_E4B)
    stack.write(stack.plan(of_one(parent, PRESETS["e6b"])), tmp_path / "e6b")
    for path in (parent, tmp_path / "e6b"):
        faults = {f.rule: f.severity for f in structure(path)}
        assert faults.pop("unread") == "note"
        assert set(faults.values()) <= {"note", "error"}
        assert {rule for rule, severity in faults.items() if severity == "error"} <= {"tokenizer"}  # it is a stand-in


# the naive stack


def test_a_stack_that_left_the_per_layer_table_behind_is_caught(tmp_path):
    parent = written(tmp_path / "p", PLAIN)
    stack.write(stack.plan(of_one(parent, ((0, 3), (2, 7)))), tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    tensors, old = load_file(file), load_file(tmp_path / "p" / "model.safetensors")
    for name in ("embed_tokens_per_layer", "per_layer_model_projection"):
        tensors[f"model.{name}.weight"] = old[f"model.{name}.weight"]
    save_file(tensors, file)
    faults = [f for f in structure(tmp_path / "m") if f.rule == "per-layer width"]
    assert [f.tensors for f in faults] == [
        ("embed_tokens_per_layer.weight",),
        ("per_layer_model_projection.weight",),
    ]
    assert "8 x 10 columns, and 10 layers of per-layer inputs need 10 x 10" in faults[0].text
    with pytest.raises(InputError):
        numgemma.load(tmp_path / "m")


def test_a_stack_that_kept_the_old_config_is_caught_in_every_respect(tmp_path):
    parent = written(tmp_path / "p", PLAIN)
    stack.write(stack.plan(of_one(parent, ((0, 3), (2, 7)))), tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text((tmp_path / "p" / "config.json").read_text())
    assert "tensors of 10 layers, and num_hidden_layers is 8" in said(tmp_path / "m", "count")
    text = said(tmp_path / "m", "kind")  # kinds were s s f s f s s f, and are s s f s f s f s s f
    assert "Layers 6,9: listed as sliding_attention" in text
    assert "Layers 7: listed as full_attention" in text


# one fault at a time: what is done to the config or to the tensors, and what is said of it


SLIDING_BUT_ONE = ["sliding_attention"] * 7 + ["full_attention"]
YARN = {**tiny.PLE["rope_parameters"], "full_attention": {"rope_type": "yarn"}}
WIDER = {"2": {"head_dim": 64, "num_key_value_heads": 3}}

CONFIGS = {
    "layer_types is short": ({"layer_types": tiny.PLE["layer_types"][1:]}, "count", "lists 7"),
    "a layer is forgotten": ({"num_hidden_layers": 7, "layer_types": tiny.PLE["layer_types"][1:]}, "count", "is 7"),
    "an unknown kind": ({"layer_types": ["linear_attention", *tiny.PLE["layer_types"][1:]]}, "kind", "linear"),
    "the last is sliding": ({"layer_types": [*tiny.PLE["layer_types"][:-1], tiny.KINDS["s"]]}, "last", "ends with"),
    "all share": ({"num_kv_shared_layers": 8}, "shared", "at least one"),
    "no donor": ({"num_kv_shared_layers": 6}, "donor", "Layers 2,4,7: share the keys of an earlier full"),
    "no full layer makes keys": ({"num_kv_shared_layers": 4, "layer_types": SLIDING_BUT_ONE}, "donor", "Layers 7"),
    "an unknown key": ({"logit_scale": 2}, "key", "'logit_scale' is unknown"),
    "a missing key": ({"rms_norm_eps": ...}, "key", "'rms_norm_eps' is missing"),
    "a key of another type": ({"sliding_window": "512"}, "key", "sliding_window should be int"),
    "no width": ({"hidden_size": ...}, "config", "not checked"),
    "a negative width": ({"hidden_size": -48}, "size", "no size"),
    "heads that do not divide": ({"num_key_value_heads": 4}, "heads", "6 heads for 4"),
    "another activation": ({"hidden_activation": "silu"}, "activation", "silu"),
    "a bias": ({"attention_bias": True}, "bias", "no biases"),
    "a mask that is none": ({"use_bidirectional_attention": "all"}, "mask", "'all'"),
    "no experts": ({"enable_moe_block": True}, "experts", "no experts"),
    "more experts than there are": (tiny.EXPERTS | {"top_k_experts": 9}, "experts", "chooses 9 of 7"),
    "a short per-layer vocabulary": ({"vocab_size_per_layer_input": 100}, "vocabulary", "up to 198"),
    "no softcap": ({"final_logit_softcapping": None}, "softcap", "at 30"),
    "untied": ({"tie_word_embeddings": False}, "missing", "lm_head.weight is missing"),
    "a rope of another type": ({"rope_parameters": YARN}, "rope", "rope_type"),
    "no window": ({"sliding_window": 0}, "window", "is 0"),
    "eps": ({"rms_norm_eps": 0.0}, "eps", "0.0"),
    "a token outside": ({"bos_token_id": 199}, "token", "names the token 199, and the vocabulary has 199"),
    "another family": ({"model_type": "gemma3_text"}, "family", "gemma3_text"),
    "widths of one layer": ({"per_layer_config": WIDER}, "widths", "different"),
    "widths of no layer": ({"per_layer_config": {"x": {}}}, "widths", "'x'"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_is_wrong_is_told_where(tmp_path, case):
    change, rule, fragment = CONFIGS[case]
    path = checkpoint(tmp_path / "m")
    raw = {key: value for key, value in {**tiny.PLE, **change}.items() if value is not ...}
    (path / "config.json").write_text(json.dumps(raw))
    assert fragment in said(path, rule)


def zero(name, rows=slice(None)):
    def change(tensors):
        tensors[name] = tensors[name].copy()
        tensors[name][rows] = 0

    return change


def put(name, value):
    def change(tensors):
        tensors[name] = tensors[name].copy()
        tensors[name].reshape(-1)[0] = value

    return change


def all_of(part, value):
    def change(tensors):
        for name in tensors:
            if part in name:
                tensors[name] = value(tensors[name]) if callable(value) else np.full_like(tensors[name], value)

    return change


UP = "layers.1.mlp.up_proj.weight"
HEAD, EMBEDDING = "lm_head.weight", "embed_tokens.weight"
Q_NORMS = "layers.{0-7}.self_attn.q_norm.weight"
SCALARS = "layers.{0-7}.layer_scalar"


def drop(*parts):
    def change(tensors):
        for name in [name for name in tensors if any(part in name for part in parts)]:
            tensors.pop(name)

    return change


def set_to(name, value):
    """value: a function of all tensors"""

    def change(tensors):
        tensors[name] = value(tensors)

    return change


def moved(old, new):
    """Tensors whose name holds `old` are there under the new name too."""

    def change(tensors):
        for name in [name for name in tensors if old in name]:
            tensors[name.replace(old, new)] = tensors[name]

    return change


TENSORS = {
    "a missing tensor": (drop(UP), "error", "missing", f"{UP} is missing"),
    "one of every layer": (drop("q_norm.weight"), "error", "missing", f"{Q_NORMS} is missing"),
    "another shape": (set_to(UP, lambda t: t[UP][:-1]), "error", "shape", f"{UP} is [71, 48], and the config makes it"),
    "transposed": (set_to(UP, lambda t: t[UP].T.copy()), "error", "shape", "transposed"),
    "a stray": (set_to("layers.0.gate.bias", lambda t: t[UP][0]), "error", "stray", "read by nobody"),
    "a layer too many": (moved("layers.7.", "layers.8."), "error", "count", "9 layers"),
    "a narrow MLP": (moved("layers.1.mlp", "layers.5.mlp"), "error", "double-wide", "Layers 5: an MLP 72 wide"),
    "no keys": (drop("2.self_attn.k", "2.self_attn.v"), "error", "keys", "Layers 2: no k_proj"),
    "no values": (drop("layers.2.self_attn.v_proj"), "error", "v_proj", "attention_k_eq_v is not set"),
    "NaN": (put(UP, np.nan), "error", "nan", f"{UP}: NaN, in 1 row"),
    "infinity": (put(UP, -np.inf), "error", "nan", "infinities"),
    "a NaN in a norm": (put("norm.weight", np.nan), "error", "nan", "norm.weight: NaN"),
    "all zeros": (zero(UP), "warning", "zeros", f"{UP}: nothing but zeros"),
    "dead rows": (zero(UP, slice(3, 5)), "warning", "dead", "2 of 72 rows are zeros (3-4)"),
    "dead tokens": (zero("embed_tokens.weight", [7, 8, 150]), "warning", "dead", "3 of 199 rows are zeros (7-8,150)"),
    "a dead token": (zero("embed_tokens.weight", 0), "note", "dead", "row 0 is zeros"),
    "scalars of one": (all_of("layer_scalar", 1), "warning", "initial", f"{SCALARS} is 1 everywhere"),
    "a scalar of zero": (zero("layers.4.layer_scalar"), "error", "silent", "layers.4.layer_scalar is 0"),
    "Gemma 3's norms": (all_of("norm", lambda x: x - 1), "warning", "norms", "as where 1 + w is meant"),
    "norms of one": (all_of("norm", 1), "warning", "initial", "norms are all ones"),
    "another head": (set_to(HEAD, lambda t: 2 * t[EMBEDDING]), "warning", "head", "engines differ"),
    "the same head": (set_to(HEAD, lambda t: t[EMBEDDING]), "note", "head", "repeats"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_are_wrong_are_named(tmp_path, case):
    change, severity, rule, fragment = TENSORS[case]
    path = checkpoint(tmp_path / "m", change=change)
    assert fragment in said(path, rule)
    assert (severity, rule) in found(path)


@pytest.mark.parametrize(
    "case", ["a missing tensor", "another shape", "NaN", "dead rows", "scalars of one", "a narrow MLP"]
)
def test_one_fault_is_one_finding(tmp_path, case):
    change, severity, rule, _ = TENSORS[case]
    assert found(checkpoint(tmp_path / "m", change=change)) == {(severity, rule)}


def test_values_where_keys_are_values_are_named(tmp_path):
    stray = {"layers.2.self_attn.v_proj.weight": np.ones((64, 48))}
    path = checkpoint(tmp_path / "m", tiny.DENSE, lambda t: t.update(stray))
    assert "attention_k_eq_v makes raw keys the values" in said(path, "v_proj")
    assert found(path) == {("error", "v_proj")}


def test_pruned_experts_with_the_parents_router_are_one_finding(tmp_path):
    def prune(tensors):
        return {n: x[:5] if ".experts." in n else x for n, x in tensors.items()}

    raw = tiny.MOE | {"num_experts": 5}
    path = tiny.write(tmp_path / "m", raw, prune(tiny.random_tensors(tiny.MOE)))
    (finding,) = [f for f in lint(path) if f.severity == "error"]
    assert finding.rule == "experts"
    assert "Layers 0-5: router and experts are not of one number of experts" in finding.text
    assert "router.proj.weight of 7" in finding.text
    assert len(finding.tensors) == 12


@pytest.mark.parametrize(
    ("leaf", "counts"),
    [
        ("router.proj.weight", "gate_up_proj of 7, experts.down_proj of 7, router.proj.weight of 6, router.per_exp"),
        ("router.per_expert_scale", "router.proj.weight of 7, router.per_expert_scale of 6"),
        ("experts.gate_up_proj", "experts.gate_up_proj of 6, experts.down_proj of 7, router.proj.weight of 7"),
        ("experts.down_proj", "experts.gate_up_proj of 7, experts.down_proj of 6, router.proj.weight of 7"),
    ],
)
def test_each_of_router_rows_scales_and_matrices_that_disagrees_with_the_others_is_an_error(tmp_path, leaf, counts):
    """In one layer, one of the four holds an expert less."""
    name = f"layers.2.{leaf}"
    path = checkpoint(tmp_path / "m", tiny.MOE, lambda tensors: tensors.update({name: tensors[name][:-1]}))
    (finding,) = [f for f in lint(path) if f.severity == "error"]
    assert (finding.rule, finding.tensors) == ("experts", (name,))
    assert finding.text.startswith("Layers 2: router and experts are not of one number")
    assert counts in finding.text


def test_scales_of_experts_that_were_never_trained_are_named(tmp_path):
    path = checkpoint(tmp_path / "m", tiny.MOE, all_of("router.per_expert_scale", 1))
    assert "layers.{0-5}.router.per_expert_scale is 1 everywhere" in said(path, "initial")


# towers


def test_clip_bounds_that_never_bite_are_named(tmp_path):
    path = checkpoint(tmp_path / "open", tiny.E4B, all_of("input_max", np.inf))
    assert found(path) == {("warning", "bounds")}
    assert "of 136 clip bounds are infinite" in said(path, "bounds")
    crossed = checkpoint(tmp_path / "crossed", tiny.E4B, all_of("q_proj.output_min", 9))
    assert ("error", "bounds") in found(crossed)


def test_a_tower_may_be_absent_or_unknown_and_may_not_be_half_there(tmp_path):
    tensors = tiny.random_tensors(tiny.E4B)
    bare = {name: x for name, x in tensors.items() if not name.startswith(("audio_tower", "embed_audio"))}
    path = checkpoint(tmp_path / "deaf", tiny.E4B, tensors=bare)
    assert found(path) == {("warning", "tower")}
    unknown = checkpoint(tmp_path / "unknown", tiny.E4B, tensors=tensors)
    (unknown / "config.json").write_text(json.dumps(tiny.E4B | {"audio_config": None, "audio_token_id": 191}))
    assert found(unknown) == {("note", "tower")}
    half = {name: x for name, x in tensors.items() if "audio_tower.layers.1" not in name}
    half = checkpoint(tmp_path / "half", tiny.E4B, tensors=half)
    assert {rule for _, rule in found(half)} == {"missing"}


@pytest.mark.parametrize(
    ("section", "change", "rule", "fragment"),
    [
        ("vision_config", {"hidden_activation": "silu"}, "tower", "silu"),
        ("vision_config", {"zoom": 2}, "key", "'zoom'"),
        ("audio_config", {"gradient_clipping": 5.0}, "tower", "gradient_clipping"),
        ("audio_config", {"conv_kernel_size": "5"}, "key", "conv_kernel_size should be int"),
        ("text_config", {"zoom": 2}, "key", "text_config: key 'zoom'"),
    ],
)
def test_the_sections_of_a_config_are_read_too(tmp_path, section, change, rule, fragment):
    path = checkpoint(tmp_path / "m", tiny.E4B)
    (path / "config.json").write_text(json.dumps(tiny.E4B | {section: tiny.E4B[section] | change}))
    assert fragment in said(path, rule)


# several at once, and files that cannot be read


def test_no_fault_hides_another(tmp_path):
    def change(tensors):
        put(UP, np.nan)(tensors)
        zero("layers.3.mlp.down_proj.weight", 5)(tensors)
        tensors.pop("layers.0.self_attn.q_norm.weight")
        tensors["stray"] = np.ones(3)
        tensors["embed_tokens_per_layer.weight"] = tensors["embed_tokens_per_layer.weight"][:, :-10]

    path = checkpoint(tmp_path / "m", change=change)
    raw = tiny.PLE | {"hidden_activation": "silu", "zoom": 1, "num_kv_shared_layers": 6, "bos_token_id": -1}
    (path / "config.json").write_text(json.dumps(raw))
    rules = {"nan", "dead", "missing", "stray", "per-layer width", "activation", "key", "donor", "token"}
    assert rules <= {rule for _, rule in found(path)}


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"model_type": 3}', '{"model_type": "gemma4"}', "{}" * 2])
def test_a_broken_config_still_gives_a_table(tmp_path, capsys, text):
    path = checkpoint(tmp_path / "m", change=put(UP, np.nan))
    (path / "config.json").write_text(text)
    assert main(["lint", str(path)]) == 1
    shown = capsys.readouterr().out
    assert f"{UP}: NaN" in shown
    assert "error" in shown


def test_a_config_that_is_not_there_is_an_error(tmp_path):
    path = checkpoint(tmp_path / "m")
    (path / "config.json").unlink()
    assert ("error", "config") in found(path)


def test_shards_are_checked_against_their_index(tmp_path):
    path = checkpoint(tmp_path / "m")
    tensors = load_file(path / "model.safetensors")
    names = sorted(tensors)
    files = {"a.safetensors": names[:20], "b.safetensors": names[20:]}
    for file, some in files.items():
        save_file({name: tensors[name] for name in some}, path / file)
    (path / "model.safetensors").unlink()
    assert "no model.safetensors.index.json" in said(path, "file")
    listed = {name: file for file, some in files.items() for name in some}
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": listed}))
    assert found(path) == set()
    wrong = listed | {names[0]: "b.safetensors", "ghost": "a.safetensors"}
    wrong.pop(names[30])
    index.write_text(json.dumps({"weight_map": wrong}))
    text = said(path, "index")
    for part in (f"lists {names[0]!r}", "lists 'ghost'", f"holds {names[30]!r}"):
        assert part in text
    index.write_text(json.dumps({"weight_map": listed}))
    (path / "b.safetensors").write_bytes((path / "b.safetensors").read_bytes()[:-7])
    assert "cut short" in said(path, "file")
    assert ("error", "missing") in found(path)  # and what could be read was looked at


def test_two_names_for_one_tensor_are_an_error(tmp_path):
    path = checkpoint(tmp_path / "m")
    tensors = load_file(path / "model.safetensors")
    tensors["norm.weight"] = tensors["model.norm.weight"]
    save_file(tensors, path / "model.safetensors")
    assert ("error", "twice") in found(path)


def test_mixed_dtypes_are_named(tmp_path):
    path = checkpoint(tmp_path / "m")
    tensors = load_file(path / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float32)
    save_file(tensors, path / "model.safetensors")
    assert "1 in float32 (norm.weight)" in said(path, "dtype")
    tensors["model.norm.weight"] = np.ones(48, np.int8)
    save_file(tensors, path / "model.safetensors")
    assert ("error", "dtype") in found(path)
    sound = checkpoint(tmp_path / "sound", tiny.PLE | {"dtype": "float16"})
    assert found(sound) == {("warning", "dtype")}


# beside the weights


@pytest.mark.parametrize(
    ("generation", "severity", "fragment"),
    [
        ({"eos_token_id": [1, 300]}, "error", "eos_token_id names the token 300"),
        ({"eos_token_id": 5}, "warning", "config.json stops at token 1, and generation_config.json does not"),
        ({"eos_token_id": [1, 5]}, None, None),
        ({"bos_token_id": 3}, "warning", "bos_token_id is 3 in generation_config.json and 2"),
        ({"suppress_tokens": [-1]}, "error", "suppress_tokens names"),
    ],
)
def test_generation_settings_that_disagree_are_named(tmp_path, generation, severity, fragment):
    path = checkpoint(tmp_path / "m")
    (path / "generation_config.json").write_text(json.dumps(generation))
    faults = [f for f in structure(path) if f.rule in ("generation", "token")]
    assert [f.severity for f in faults] == ([severity] if severity else [])
    assert fragment is None or fragment in faults[0].text


def with_tokenizer(path, vocab, **named):
    tokens = {"model": {"vocab": {f"t{i}": i for i in range(vocab)}}, "added_tokens": [{"content": "<bos>", "id": 2}]}
    (path / "tokenizer.json").write_text(json.dumps(tokens))
    (path / "tokenizer_config.json").write_text(json.dumps(named))
    return [(f.severity, f.text) for f in structure(path) if f.rule == "tokenizer"]


def test_a_tokenizer_that_disagrees_is_named(tmp_path):
    path = checkpoint(tmp_path / "m")
    assert with_tokenizer(path, 199, bos_token="<bos>", pad_token={"content": "t0"}) == []
    assert "up to 200" in with_tokenizer(path, 201)[0][1]
    ((severity, text),) = with_tokenizer(path, 190)
    assert (severity, "190 tokens" in text) == ("note", True)
    assert with_tokenizer(path, 199, bos_token="t7") == [
        ("warning", "bos_token 't7' is token 7, and config.json says 2 (bos_token_id).")
    ]
    assert "has no id" in with_tokenizer(path, 199, eos_token="</s>")[0][1]
    (path / "tokenizer.json").write_text("[]")
    assert [f.severity for f in structure(path) if f.rule == "tokenizer"] == ["error"]


# every loader's refusal is an error


NUMBERS = [key for key, value in tiny.PLE.items() if type(value) is int]


@given(st.sampled_from(sorted(tiny.PLE)), st.one_of(st.none(), st.integers(-2, 9), st.text(max_size=3), st.just({})))
@settings(max_examples=80, deadline=None)
def test_whatever_does_not_load_has_an_error(folders, tmp_path_factory, key, value):
    path = tmp_path_factory.mktemp("m")
    (path / "model.safetensors").symlink_to(folders["ple"] / "model.safetensors")
    (path / "config.json").write_text(json.dumps(tiny.PLE | {key: value}))
    try:
        numgemma.load(path)
    except InputError:
        assert any(f.severity == "error" for f in structure(path))
    else:
        assert {f.rule for f in structure(path) if f.severity == "error"} <= {"token", "vocabulary"}


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_a_damaged_header_never_ends_in_a_traceback(folders, tmp_path_factory, data):
    path = tmp_path_factory.mktemp("m")
    raw = bytearray((folders["ple"] / "model.safetensors").read_bytes())
    (length,) = struct.unpack("<Q", raw[:8])
    for _ in range(3):
        raw[data.draw(st.integers(0, 7 + length))] = data.draw(st.integers(0, 255))
    (path / "model.safetensors").write_bytes(raw)
    (path / "config.json").write_text(json.dumps(tiny.PLE))
    lint(path)


# values, read as integers


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32, np.float64])
def test_zeros_infinities_and_nan_are_counted_in_every_float_format(monkeypatch, dtype):
    monkeypatch.setattr("numgemma.surgery.lint_values.PIECE", 1 << 10)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 17)).astype(dtype)
    x[[5, 250]] = 0
    x[7, 3] = -0.0
    x[[20, 299], 4] = [np.inf, -np.inf]
    facts = examine("x", x)
    assert (facts.rows, facts.broken, facts.nan, facts.dead, facts.zeros) == (300, 2, False, [5, 250], 2)
    x[100, 16] = np.nan
    facts = examine("x", x)
    assert (facts.broken, facts.nan) == (3, True)


# the command


def test_the_verb_prints_a_table_that_fits_the_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    path = checkpoint(tmp_path / "m", change=put(UP, np.nan))
    assert main(["lint", str(path)]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith(f"error    {UP}: NaN")
    assert max(map(len, shown)) <= 60
    assert shown[-1] == "1 error, 1 note"


def test_json_holds_the_same_findings(tmp_path, capsys):
    path = checkpoint(tmp_path / "m", change=put(UP, np.nan))
    assert main(["lint", str(path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["schema"] == "numgemma.lint/1"
    assert report["counts"] == {"error": 1, "warning": 0, "note": 1}
    assert report["findings"][0] == {
        "severity": "error",
        "rule": "nan",
        "text": f"{UP}: NaN, in 1 row.",
        "tensors": [UP],
    }
    assert main(["lint", str(path), "--no-values"]) == 0
    assert "1 note" in capsys.readouterr().out


def test_a_sound_checkpoint_ends_with_zero_and_no_path_with_two(tmp_path, capsys):
    assert main(["lint", "tiny"]) == 0
    assert main(["lint", str(tmp_path / "nowhere")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_names_are_said_in_few_words():
    assert ranges([3, 1, 2, 7, 9, 8]) == "1-3,7-9"
    assert spelled(["layers.0.a", "layers.1.a", "layers.5.a", "norm"]) == "layers.{0-1,5}.a, norm"
    assert spelled([f"t{i}" for i in range(9)]) == "t0, t1, t2, and 6 more kinds"


def test_the_config_of_a_release_has_no_fault():
    """Of all that numgemma runs: the rules are those of the family, not of the tests."""
    from numgemma.surgery.lint_config import config_rules, known

    released = {path.stem: json.loads(path.read_text()) for path in (DATA / "configs").glob("*.json")}
    ruled = {name: raw for name, raw in released.items() if known(raw)}
    assert {raw["model_type"] for raw in ruled.values()} >= {"gemma4", "gemma4_unified", "diffusion_gemma"}
    for name, raw in ruled.items():
        config, faults = config_rules(raw, 0)
        assert faults == [], name
        assert config.vision is not None


def test_names_that_transformers_does_not_look_for_are_told(tmp_path):
    path = tiny.write(tmp_path / "m", tiny.PLE, prefix="model.language_model.")
    assert "looks for 'model.embed_tokens.weight', not for 'model.language_model.embed" in said(path, "names")


@pytest.mark.parametrize("prefix", OTHER_NAMES)
@pytest.mark.parametrize("kind", OF_A_KIND)
def test_how_many_tensors_transformers_would_draw_at_random_is_told_for_every_family(tmp_path, kind, prefix):
    """How many it draws test_hf_surgery.py asks of Transformers itself."""
    path = renamed(OF_A_KIND[kind](tmp_path / "m"), prefix)
    text, drawn = said(path, "names"), DRAWN[kind].get(prefix, 0)
    assert text.startswith(f"Transformers will not find {drawn} of") if drawn else text == ""


# Gemma 3n


def without(name):
    def change(tensors):
        del tensors[name]

    return change


def narrow_table(tensors):
    tensors["embed_tokens_per_layer.weight"] = tensors["embed_tokens_per_layer.weight"][:, :-24]


def unread_norm(tensors):
    tensors["layers.2.altup.old_norm.weight"] = np.ones(48)


def broken_router(tensors):
    tensors["layers.3.altup.modality_router.weight"][0, 0] = np.nan


def untrained(tensors):
    for i in range(8):
        tensors[f"layers.{i}.altup.correct_output_scale"] = np.ones(48)


BROKEN_3N = {
    "nothing": (lambda tensors: None, None, ""),
    "a missing stream": (without("altup_projections.1.weight"), "missing", "altup_projections.1.weight is missing"),
    "keys that shared": (without("layers.4.self_attn.k_proj.weight"), "missing", "layers.4.self_attn.k_proj.weight"),
    "a narrow table": (narrow_table, "shape", "[200, 168], and the config makes it [200, 192]"),
    "an unread norm": (unread_norm, "stray", "layers.2.altup.old_norm.weight is read by nobody"),
    "a broken number": (broken_router, "nan", "layers.3.altup.modality_router.weight"),
    "an untrained scale": (untrained, "initial", "correct_output_scale is 1 everywhere"),
}


@pytest.mark.parametrize("name", BROKEN_3N)
def test_what_is_wrong_with_a_gemma_3n_is_named(tmp_path, name):
    change, rule, text = BROKEN_3N[name]
    tensors = tiny3n.random_tensors(tiny3n.TEXT)
    change(tensors)
    path = tiny3n.write(tmp_path / "m", tiny3n.TEXT, tensors)
    assert {rule for severity, rule in found(path) if severity != "note"} == ({rule} if rule else set())
    assert text in said(path, rule)


def test_all_that_is_wrong_with_the_config_of_a_gemma_3n_is_named_at_once(tmp_path):
    raw = tiny3n.TEXT | {"laurel_rank": 0, "hidden_activation": "silu", "altup_active_idx": 1}
    tensors = tiny3n.random_tensors(tiny3n.TEXT)
    path = tiny3n.write(tmp_path / "m", tiny3n.TEXT, tensors)
    (path / "config.json").write_text(json.dumps(raw))
    for fault in ("a size is not positive", "'silu' is not computed", "altup_active_idx other than 0"):
        assert fault in said(path, "config")


def test_a_config_of_a_billion_layers_takes_no_memory(tmp_path):
    path = tiny3n.write(tmp_path / "m", tiny3n.TEXT)
    raw = tiny3n.TEXT | {"num_hidden_layers": 10**9, "intermediate_size": 72}
    (path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match=r"intermediate_size|num_hidden_layers"):
        numgemma.load(path)
