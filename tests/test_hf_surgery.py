"""Live against Transformers: what synth, stack and transplant write is what Transformers loads and computes alike."""

import json

import numpy as np
import pytest
import tiny
from closeness import assert_close, worst_token
from test_lint import DRAWN, OF_A_KIND, OTHER_NAMES, renamed

import numgemma
from numgemma.checkpoint import open_checkpoint
from numgemma.debug.capture import hooks as capture
from numgemma.dump import Dump
from numgemma.opening import DATA
from numgemma.surgery import stack, transplant
from numgemma.surgery.recipe import of_one
from numgemma.surgery.synth import synth

pytestmark = pytest.mark.hf
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

OFFICIAL = ["gemma-4-E2B-it", "gemma-4-E4B-it", "gemma-4-26B-A4B-it", "gemma-4-31B-it"]
IDS = np.random.default_rng(0).integers(5, 400, 40)  # the window of a tiny model is 16


def assert_same_as_transformers(folder, ids=IDS):
    """Every point of the text model, within what rounding does to it: over 36 random layers it grows a lot.

    That is measured, by our own float32 run against our float64 run; a wrong donor or column would show as 1.
    """
    model = numgemma.load(folder)
    theirs = Dump(capture.describe(model, ids, "float32", ["*"]))
    capture.capture(model, ids, theirs, "float32", ["*"])
    ours, exact = model.record(ids, ["*"]), numgemma.load(folder, "float64").record(ids, ["*"])
    assert sorted(theirs) == sorted(ours)
    for name in theirs:
        if theirs[name].dtype.kind == "i":
            np.testing.assert_array_equal(theirs[name], ours[name], err_msg=name)
        else:
            floor = max(1e-6, worst_token(exact[name], ours[name]))
            assert worst_token(exact[name], theirs[name]) < min(10 * floor, 0.01), (name, floor)


def loading(folder):
    """What Transformers says of a checkpoint while it loads it."""
    name = open_checkpoint(folder).config["architectures"][0]
    cls = getattr(transformers, name)
    _, info = cls.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    return {key: sorted(map(str, found)) for key, found in info.items() if found}


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    """A tiny checkpoint of each official shape."""
    base = tmp_path_factory.mktemp("parents")
    for name in OFFICIAL:
        synth(name, target=base / name, scale="tiny", shard=1_000_000)
    return base


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_random_checkpoint_loads_without_a_word_and_every_point_is_the_same(parents, name):
    assert loading(parents / name) == {}
    assert_same_as_transformers(parents / name)


@pytest.mark.parametrize("name", OFFICIAL[:1])
def test_the_byte_tokenizer_is_the_same_in_transformers(parents, name):
    theirs, ours = transformers.AutoTokenizer.from_pretrained(parents / name), numgemma.load(parents / name).tokenizer
    for text in ("Hello, wörld\n", "<|turn>user\nHi<turn|>"):
        assert theirs(text)["input_ids"] == ours.encode(text)
    assert theirs.image_token_id == open_checkpoint(parents / name).config["image_token_id"]


SPANS = {
    "gemma-4-E4B-it": ((0, 9), (6, 13), (10, 17), (14, 23)),  # as e6b: two slots make keys that their layers shared
    "gemma-4-E2B-it": ((0, 9), (5, 9), (10, 14), (10, 19)),  # double width
    "gemma-4-26B-A4B-it": ((3, 5), (2, 5)),
}


@pytest.mark.parametrize("name", SPANS)
def test_a_stack_loads_without_a_word_and_every_point_is_the_same(tmp_path, parents, name):
    stack.write(stack.plan(of_one(str(parents / name), SPANS[name])), tmp_path / "m")
    assert loading(tmp_path / "m") == {}
    assert_same_as_transformers(tmp_path / "m")


def test_a_stack_of_a_checkpoint_that_transformers_saved_takes_the_donors_keys(tmp_path):
    """In its new spelling, without the keys that nobody reads."""
    raw = tiny.PLE | {"use_double_wide_mlp": False}
    hf = capture.load_hf(tiny.write(tmp_path / "p", raw), torch.float32)
    hf.save_pretrained(tmp_path / "saved")
    assert "per_layer_config" in json.loads((tmp_path / "saved" / "config.json").read_text())
    recipe = of_one(str(tmp_path / "saved"), ((0, 5), (3, 7)))
    stack.write(stack.plan(recipe, kv_from_donor=True), tmp_path / "m")
    assert loading(tmp_path / "m") == {}
    assert_same_as_transformers(tmp_path / "m", tiny.prompt(raw, 30))


GEMMA3 = json.loads((DATA / "configs" / "gemma-3-1b-it.json").read_text()) | {
    "hidden_size": 72,
    "intermediate_size": 80,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 16,
    "query_pre_attn_scalar": 20,
    "vocab_size": 512,
    "sliding_window": 16,
    "sliding_window_pattern": 3,
    "rope_theta": 90000,
    "rope_local_base_freq": 800,
}


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory):
    base = tmp_path_factory.mktemp("gemma3")
    (base / "config.json").write_text(json.dumps(GEMMA3))
    synth(str(base / "config.json"), target=base / "m", dtype="float32")
    return base / "m"


def test_a_transplant_loads_without_a_word_and_every_point_is_the_same(tmp_path, gemma3, parents):
    choices = transplant.Choices(layers=6, window=16)
    transplant.write(transplant.plan(gemma3, parents / "gemma-4-E2B-it", choices), tmp_path / "m")
    assert loading(tmp_path / "m") == {}
    assert_same_as_transformers(tmp_path / "m")


def test_a_transplant_attends_in_its_first_layer_as_gemma_3_itself_does(tmp_path, gemma3, parents):
    """Norms, scale, rotary base and window all arrive: only afterwards does Gemma 4 norm its values."""
    assert loading(gemma3) == {}
    choices = transplant.Choices(layers=6, window=16)
    transplant.write(transplant.plan(gemma3, parents / "gemma-4-E2B-it", choices), tmp_path / "m")
    cls = transformers.Gemma3ForCausalLM
    hf = cls.from_pretrained(gemma3, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        theirs = hf(input_ids=torch.tensor([IDS.tolist()]), output_attentions=True).attentions[0][0].numpy()
    ours = numgemma.load(tmp_path / "m").record(IDS, ["layers.0.self_attn.probs"])["layers.0.self_attn.probs"]
    assert theirs.max() > 0.3  # the heads do look somewhere
    assert_close(theirs, ours)


@pytest.mark.parametrize("prefix", OTHER_NAMES)
@pytest.mark.parametrize("kind", OF_A_KIND)
def test_transformers_draws_at_random_what_lint_says_it_will_not_find(tmp_path, kind, prefix):
    """How many: test_lint.py holds lint to the same table.  DiffusionGemma counts a weight in each of its stacks."""
    info = loading(renamed(OF_A_KIND[kind](tmp_path / "m"), prefix))
    missing = [name for name in info.get("missing_keys", ()) if not name.startswith("lm_head")]
    drawn = DRAWN[kind].get(prefix, 0)
    assert bool(missing) == bool(drawn)
    assert len(missing) == drawn or kind == "diffusion_gemma"
