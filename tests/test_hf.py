"""Live against Transformers: every module output of every text shape, in every stored dtype, greedy ids, batches."""

import numpy as np
import pytest
import tiny
from closeness import assert_close, assert_same_run, relative

import numgemma
from numgemma.debug.compare.diff import diff
from numgemma.dump import Dump
from numgemma.families.gemma4 import gemma4
from numgemma.masks import causal_mask

pytestmark = pytest.mark.hf
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from numgemma.debug.capture import hooks as capture  # noqa: E402

TOKENS = 40  # the window is 7


def both(folder, ids, dtype="float32"):
    """The captured run and ours, every point."""
    model = numgemma.load(folder, dtype)
    theirs = Dump(capture.describe(model, ids, dtype, ["*"]))
    capture.capture(model, ids, theirs, dtype, ["*"])
    return theirs, model.record(ids, ["*"])


def modules_with_an_output(folder):
    """Every leaf module of the text model that Transformers builds, by the name of our point."""
    hf = capture.load_hf(folder, torch.float32)
    names = [name.removeprefix("model.") for name, module in hf.named_modules() if not any(module.children())]
    return {name for name in names if not name.endswith(("act_fn", "rotary_emb"))}


@pytest.mark.parametrize("variant", tiny.VARIANTS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_every_point_equals_transformers(tmp_path, variant, dtype):
    raw = tiny.VARIANTS[variant]
    folder = tiny.write(tmp_path / "ckpt", raw, tiny.random_tensors(raw, seed=7), dtype)
    theirs, ours = both(folder, tiny.prompt(raw, TOKENS))
    assert modules_with_an_output(folder) <= set(ours)
    assert_same_run(theirs, ours)
    assert diff(theirs, ours).verdict == "same"


def test_every_point_of_the_bundled_checkpoint_equals_transformers():
    """Past its window of 128 tokens."""
    theirs, ours = both(numgemma.opening.DATA / "tiny", tiny.prompt({"vocab_size": 1024}, 300))
    assert_same_run(theirs, ours)


def test_the_text_half_of_a_released_checkpoint_equals_transformers(tmp_path):
    """The names and the nesting of the released files: model.language_model., leftover keys, a text_config."""
    raw = {"model_type": "gemma4", "architectures": ["Gemma4ForConditionalGeneration"], "text_config": tiny.PLE}
    raw |= {"vision_config": None, "audio_config": None, "tie_word_embeddings": True}
    raw |= {"image_token_id": 190, "video_token_id": 191, "audio_token_id": 192}
    tensors = tiny.random_tensors(tiny.PLE) | tiny.leftover_tensors(tiny.PLE)
    folder = tiny.write(tmp_path / "ckpt", raw, tensors, prefix="model.language_model.")
    theirs, ours = both(folder, tiny.prompt(tiny.PLE, 12))
    assert_same_run(theirs, ours)


@pytest.mark.parametrize("tied_by_config", [True, False])
def test_a_head_of_its_own_equals_transformers(tmp_path, tied_by_config):
    raw = tiny.DENSE | {"tie_word_embeddings": tied_by_config}
    tensors = tiny.random_tensors(tiny.DENSE)
    tensors["lm_head.weight"] = 0.2 * np.random.default_rng(1).standard_normal(tensors["embed_tokens.weight"].shape)
    theirs, ours = both(tiny.write(tmp_path / "ckpt", raw, tensors), tiny.prompt(raw, 12))
    assert_same_run(theirs, ours)


@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_a_checkpoint_that_transformers_has_saved_again_is_the_same(tmp_path, folders, variant):
    hf = capture.load_hf(folders[variant], torch.float32)
    hf.save_pretrained(tmp_path / "again", max_shard_size="60KB")
    assert (tmp_path / "again" / "model.safetensors.index.json").exists()
    ids = tiny.prompt(tiny.VARIANTS[variant], 12)
    again, before = (numgemma.load(folder).logits(ids) for folder in (tmp_path / "again", folders[variant]))
    np.testing.assert_array_equal(again, before)


@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_thirty_greedy_ids_equal_those_of_transformers(folders, models, variant):
    ids = tiny.prompt(tiny.VARIANTS[variant], 12)
    hf = capture.load_hf(folders[variant], torch.float32)
    with torch.no_grad():
        out = hf.generate(torch.tensor(ids[None]), max_new_tokens=30, do_sample=False, eos_token_id=None)
    assert models[variant].generate(ids, 30, ignore_eos=True) == out[0, len(ids) :].tolist()


@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_rows_of_a_left_padded_batch_equal_our_unpadded_rows(folders, models, variant):
    rows = [tiny.prompt(tiny.VARIANTS[variant], n, seed=n) for n in (5, 17, 11)]
    ids, mask = np.zeros((3, 17), int), np.zeros((3, 17), int)
    for i, row in enumerate(rows):
        ids[i, 17 - len(row) :], mask[i, 17 - len(row) :] = row, 1
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    hf = capture.load_hf(folders[variant], torch.float32)
    with torch.no_grad():
        out = hf(torch.tensor(ids), attention_mask=torch.tensor(mask), position_ids=torch.tensor(positions)).logits
    for i, row in enumerate(rows):
        assert_close(out[i, 17 - len(row) :].numpy(), models[variant].logits(row), "float32", f"row {i}")


@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_each_layer_fed_bfloat16_input_is_within_two_roundings(tmp_path, variant):
    raw = tiny.VARIANTS[variant]
    folder = tiny.write(tmp_path / "ckpt", raw)
    ids = tiny.prompt(raw, 20)
    theirs, _ = both(folder, ids, "bfloat16")
    model = numgemma.load(folder, "bfloat16")
    kvs, x = {}, theirs["embed_tokens"]
    for spec in model.config.text.layers:
        scope = f"layers.{spec.index}"
        rope = tuple(theirs[f"rotary_emb.{spec.kind}.{part}"] for part in ("cos", "sin"))
        mask = causal_mask(np.arange(20), 0, spec.window)
        ple = theirs["per_layer_inputs"][:, spec.index] if "per_layer_inputs" in theirs else None
        y = gemma4.block(x, ple, model.weights.at(scope), spec, rope, mask, kvs)
        x = theirs[f"{scope}.out"]
        assert relative(x, y) <= 3.5e-3, scope


def test_a_capture_by_the_command_line_is_a_dump_that_diff_calls_same(folders, tmp_path, capsys):
    from numgemma.cli import main

    a, b = str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")
    assert main(["capture", str(folders["moe"]), "--ids", "5,6,7,8", "-o", a]) == 0
    assert main(["dump", str(folders["moe"]), "--ids", "5,6,7,8", "-o", b]) == 0
    assert main(["diff", a, b]) == 0
    assert "SAME (180 points)" in capsys.readouterr().out


def test_transformers_that_would_run_random_weights_is_not_captured(tmp_path):
    from numgemma.errors import InputError

    folder = tiny.write(tmp_path / "m", tiny.TEXT, prefix="model.language_model.")
    model = numgemma.load(folder)
    with pytest.raises(InputError, match=r"does not find 86 tensors, as 'model\.embed_tokens\.weight'.*random weights"):
        capture.capture(model, [5, 6, 7], Dump(capture.describe(model, [5, 6, 7])))


def dumped_by_plain_hooks(hf, ids, path):
    """What a porter does: a hook on every module that keeps its output, saved under Transformers' own names."""
    import torch

    kept = {}

    def keep(name):
        def hook(module, args, out):
            out = out[0] if isinstance(out, tuple) else out
            if isinstance(out, torch.Tensor):
                kept[name] = out.detach().float().numpy().copy()

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in hf.named_modules() if name]
    with torch.no_grad():
        hf(torch.tensor([ids]), use_cache=False, logits_to_keep=0)
    for handle in handles:
        handle.remove()
    np.savez(path, **kept)


def test_one_command_names_the_line_that_was_broken_in_transformers(tmp_path, monkeypatch, capsys):
    """The bundled checkpoint, whose MLP has the wrong activation from here on; a dump by plain hooks."""
    import torch

    from numgemma.cli import main

    monkeypatch.setenv("NUMGEMMA_CACHE", str(tmp_path / "floors"))
    hf = capture.load_hf(numgemma.load("tiny").checkpoint.folder, torch.float32)
    ids = [2, 105, 9, 300, 41, 77, 512, 8]
    dumped_by_plain_hooks(hf, ids, tmp_path / "right.npz")
    for layer in hf.model.layers:
        layer.mlp.act_fn = torch.nn.SiLU()  # the broken line
    dumped_by_plain_hooks(hf, ids, tmp_path / "port.npz")
    words = ["--ids", ",".join(map(str, ids)), "--html", str(tmp_path / "r.html")]
    assert main(["doctor", "tiny", str(tmp_path / "right.npz"), *words]) == 0
    assert main(["doctor", "tiny", str(tmp_path / "port.npz"), *words]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "The engine computes layers.0.mlp.down_proj wrongly" in said
    assert "numgemma/layers/feedforward.py, line" in said
    assert "Cause: T15-silu" in said
    assert "T15-silu" in (tmp_path / "r.html").read_text().partition("</header>")[0]


def test_against_hf_captures_transformers_on_the_spot(tmp_path, monkeypatch, capsys):
    from numgemma.cli import main

    monkeypatch.setenv("NUMGEMMA_CACHE", str(tmp_path / "floors"))
    assert main(["doctor", "tiny", "--against", "hf", "--ids", "2,105,9,300"]) == 0
    assert "agree at" in capsys.readouterr().out
