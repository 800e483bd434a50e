"""config.json: the official files, both spellings, and what is refused."""

import copy
import json
from pathlib import Path

import pytest
import tiny

from numgemma.cli.inspect import describe, layer_table_text
from numgemma.config import passed_over
from numgemma.errors import InputError
from numgemma.families import FOLDERS, read_config
from numgemma.families.gemma4 import layout
from numgemma.families.gemma4.config import layer_table
from numgemma.opening import DATA

OFFICIAL = sorted((DATA / "configs").glob("*.json"))
GOLDEN = Path(__file__).parent / "golden"

# numbers in all parameters and buffers together, as counted in the published files without unused tensors
COUNTS = {"E2B": 5_104_298_467, "E4B": 7_941_101_802, "26B-A4B": 25_805_936_206, "31B": 31_273_088_876}


def official(name):
    return json.loads((DATA / "configs" / f"{name}.json").read_text())


@pytest.mark.parametrize("size", COUNTS)
@pytest.mark.parametrize("ending", ["", "-it"])
def test_an_official_config_counts_to_the_published_size(size, ending):
    config = read_config(official(f"gemma-4-{size}{ending}"), "config.json")
    assert layout.count(layout.tensor_shapes(config)) == COUNTS[size]


@pytest.mark.parametrize("path", OFFICIAL, ids=lambda p: p.stem)
def test_every_other_family_is_refused_by_name(path):
    raw = json.loads(path.read_text())
    if raw["model_type"] in FOLDERS:
        read_config(raw, str(path))
    else:
        with pytest.raises(InputError, match=f"{path.name}.*'{raw['model_type']}' is .*does not run yet"):
            read_config(raw, str(path))


@pytest.mark.parametrize("size", COUNTS)
def test_the_layer_table_is_as_it_was(size):
    table = layer_table_text(describe(f"gemma-4-{size}-it")["layers"])
    assert table + "\n" == (GOLDEN / f"layers-{size}.txt").read_text()


def newer_spelling(raw):
    """As Transformers 5.23 saves it."""
    raw = copy.deepcopy(raw)
    c = raw["text_config"]
    wide = {"head_dim": c.pop("global_head_dim")}
    heads = c.pop("num_global_key_value_heads")
    wide |= {"num_key_value_heads": heads} if heads and c["attention_k_eq_v"] else {}
    kinds = enumerate(c["layer_types"])
    c["per_layer_config"] = {f"{i:02}": wide for i, kind in kinds if kind == "full_attention"}
    raw["vision_config"]["rope_parameters"]["rope_type"] = "axial"
    return raw


@pytest.mark.parametrize("size", COUNTS)
def test_both_spellings_give_the_same_layers(size):
    raw = official(f"gemma-4-{size}-it")
    old, new = read_config(raw, "old"), read_config(newer_spelling(raw), "new")
    assert old.text.layers == new.text.layers


def test_sharing_layers_read_the_last_maker_of_their_kind():
    rows = layer_table(read_config(official("gemma-4-E2B-it"), "config.json").text)
    assert [r.index for r in rows if r.kv_from != r.index] == list(range(15, 35))
    assert {r.kv_from for r in rows[15:] if r.window} == {13}
    assert {r.kv_from for r in rows[15:] if not r.window} == {14}
    assert {r.F for r in rows[:15]} == {6144}
    assert {r.F for r in rows[15:]} == {12288}


def test_full_layers_have_their_own_heads_and_a_quarter_of_their_lanes_turn():
    rows = layer_table(read_config(official("gemma-4-31B-it"), "config.json").text)
    full, sliding = rows[5], rows[0]
    assert (full.K, full.H, full.angles, full.theta, full.k_eq_v) == (4, 512, 64, 1e6, True)
    assert (sliding.K, sliding.H, sliding.angles, sliding.theta, sliding.k_eq_v) == (16, 256, 128, 1e4, False)


def test_kv_heads_of_full_layers_need_k_eq_v_as_in_transformers():
    raw = tiny.TEXT | {"num_global_key_value_heads": 2}
    assert {row.K for row in read_config(raw, "config.json").text.layers} == {3}


WRONG = {
    "an unknown key": ({"attn_sink": 1}, "unknown key 'attn_sink' could change the numbers"),
    "a missing key": ({"head_dim": ...}, "key 'head_dim' is missing"),
    "a wrong type": ({"hidden_size": "48"}, "hidden_size should be int, it is '48'"),
    "a flag for a number": ({"num_attention_heads": True}, "num_attention_heads should be int"),
    "another activation": ({"hidden_activation": "silu"}, "hidden_activation 'silu'"),
    "a bias": ({"attention_bias": True}, "attention_bias true"),
    "too few kinds": ({"layer_types": tiny.TEXT["layer_types"][1:]}, "layer_types and num_hidden_layers disagree"),
    "an unknown kind": ({"layer_types": ["chunked_attention"] * 6}, "a kind Gemma 4 lacks"),
    "a last layer that slides": ({"layer_types": ["sliding_attention"] * 6}, "last of layer_types"),
    "no layer that makes keys": ({"num_kv_shared_layers": 6}, "no layer that makes keys"),
    "sharers without a maker": ({"num_kv_shared_layers": 4}, "full_attention layers share keys"),
    "heads that do not divide": ({"num_key_value_heads": 4}, "should be a multiple"),
    "an odd head": ({"head_dim": 15}, "even"),
    "yarn": (
        {"rope_parameters": tiny.TEXT["rope_parameters"] | {"full_attention": {"rope_type": "yarn"}}},
        "full_attention need rope_type 'default' or 'proportional'",
    ),
    "rope of one kind only": (
        {"rope_parameters": {"full_attention": tiny.TEXT["rope_parameters"]["full_attention"]}},
        "rope_parameters of sliding_attention",
    ),
    "an unknown rope key": (
        {
            "rope_parameters": tiny.TEXT["rope_parameters"]
            | {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4, "mscale": 2}}
        },
        "unknown key 'mscale'",
    ),
    "experts without a number": ({"enable_moe_block": True}, "needs num_experts"),
    "more chosen than there are": (tiny.EXPERTS | {"top_k_experts": 8}, "top_k_experts exceeds"),
    "bidirectional text": ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention"),
    "a width of zero": ({"intermediate_size": 0}, "a size is not positive"),
    "a layer of its own width": (
        {"per_layer_config": {"2": {"head_dim": 32}, "5": {"head_dim": 64}}},
        "different head widths",
    ),
    "more in a layer than widths": ({"per_layer_config": {"2": {"sliding_window": 3}}}, "per_layer_config '2'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_config_is_refused_with_the_reason(case):
    change, words = WRONG[case]
    raw = {k: v for k, v in (tiny.TEXT | change).items() if v is not ...}
    with pytest.raises(InputError) as error:
        read_config(raw, "somewhere/config.json")
    assert words in str(error.value)
    assert "somewhere/config.json" in str(error.value)


@pytest.mark.parametrize("raw", [{}, {"model_type": "llama"}, {"model_type": "gemma4", "text_config": 3}])
def test_what_is_no_gemma_is_refused(raw):
    with pytest.raises(InputError, match=r"config\.json"):
        read_config(raw, "config.json")


def test_keys_of_training_and_bookkeeping_change_nothing_and_are_told():
    raw = tiny.VARIANTS["ple"] | {"unsloth_fixed": True, "hidden_dropout": 0.1, "temperature": 0.7}
    assert read_config(raw, "f") == read_config(tiny.VARIANTS["ple"], "f")
    assert passed_over(raw) == ["hidden_dropout", "temperature", "unsloth_fixed"]
    nested = {"vision_config": {"embed_dim": 96, "hidden_size": 4}, "quantization_config": {"temperature": 1}}
    assert passed_over(nested) == ["vision_config.embed_dim"]


def test_all_unknown_keys_are_named_at_once():
    raw = tiny.VARIANTS["ple"] | {f"strange_{i}": i for i in range(7)}
    with pytest.raises(InputError, match=r"'strange_0', .*'strange_4' and 2 more could change"):
        read_config(raw, "f")


def test_a_base_whose_inverse_overflows_is_no_base():
    ropes = copy.deepcopy(tiny.VARIANTS["ple"]["rope_parameters"])
    ropes["sliding_attention"]["rope_theta"] = 1e-320
    with pytest.raises(InputError, match="positive rope_theta"):
        read_config(tiny.VARIANTS["ple"] | {"rope_parameters": ropes}, "f")
