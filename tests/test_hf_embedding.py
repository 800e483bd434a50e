"""EmbeddingGemma 2 live against Transformers: every module output of text and of all media, rows alone and padded."""

import json
from fractions import Fraction
from importlib import import_module
from unittest.mock import MagicMock

import numpy as np
import pytest
import tiny
import tiny_embedding
from closeness import assert_same_run, relative

import numgemma
from numgemma.debug.blame.replay import replay
from numgemma.debug.compare.diff import diff
from numgemma.dump import Dump
from numgemma.prompt.media import NO_MEDIA, read_media
from numgemma.prompt.processors.embedding import each_second
from numgemma.prompt.video import Index
from numgemma.surgery.synth import synth

pytestmark = pytest.mark.hf
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from numgemma.debug.capture import hooks as capture  # noqa: E402

RAW = tiny_embedding.WHOLE
SEED = 1  # of weights with which float32 rounds to less than half of what is allowed


def captured(folder, ids, media, dtype):
    """Every point as Transformers computes it."""
    model = numgemma.load(folder, dtype)
    theirs = Dump(capture.describe(model, ids, dtype, ["*"], media=media))
    capture.capture(model, ids, theirs, dtype, ["*"], media)
    return theirs


def both(folder, ids, media=NO_MEDIA, dtype="float32"):
    """The captured run and ours, every point."""
    return captured(folder, ids, media, dtype), numgemma.load(folder, dtype).record(ids, ["*"], media=media)


def rows(dump):
    """Its points; a vector is one row, whose single numbers are not judged by themselves."""
    return {name: x[None] if x.ndim == 1 else x for name, x in dump.items()}


def modules_with_an_output(folder):
    """Every leaf module that Transformers builds, by the name of our point."""
    hf = capture.load_hf(folder, torch.float32)
    names = [name.removeprefix("language_model.") for name, module in hf.named_modules() if not any(module.children())]
    return {name for name in names if not name.endswith(("act_fn", "act", "rotary_emb", ".linear", "pooler"))}


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
def test_every_point_of_the_text_model_equals_transformers(tmp_path, stored):
    """Well past the radius of 7, on both sides."""
    folder = tiny_embedding.write(tmp_path / "m", tiny_embedding.TEXT, dtype=stored)
    theirs, ours = both(folder, tiny_embedding.prompt(40))
    assert modules_with_an_output(folder) <= set(ours)
    assert_same_run(rows(theirs), rows(ours))
    assert theirs.axes == ours.axes
    assert diff(theirs, ours).verdict == "same"


@pytest.mark.parametrize("case", tiny_embedding.CONTENT)
def test_every_point_equals_transformers(tmp_path, case):
    folder = tiny_embedding.write(tmp_path / "m", RAW, tiny.random_tensors(RAW, SEED))
    ids, arrays = tiny_embedding.multimodal_prompt(tiny_embedding.CONTENT[case])
    theirs, ours = both(folder, ids, read_media(arrays))
    assert sorted(theirs) == sorted(ours)
    assert theirs.axes == ours.axes
    assert_same_run(rows(theirs), rows(ours))
    assert diff(theirs, ours).verdict == "same"


@pytest.mark.parametrize("case", ["text", "a mix"])
def test_a_bfloat16_run_rounds_where_transformers_rounds(tmp_path, case):
    """Up to a few numbers that lie on the edge between two; with these weights none does in a tower."""
    folder = tiny_embedding.write(tmp_path / "m", RAW, tiny.random_tensors(RAW, 5))
    ids, arrays = tiny_embedding.multimodal_prompt(tiny_embedding.CONTENT[case])
    theirs, ours = both(folder, ids, read_media(arrays), "bfloat16")
    assert {name: x.dtype for name, x in theirs.items()} == {name: x.dtype for name, x in ours.items()}
    off = {name: relative(theirs[name], ours[name]) for name in ours}
    assert np.median(list(off.values())) < 1e-4
    assert max(off.values()) < 5e-3
    assert replay(numgemma.load(folder), theirs, media=read_media(arrays)).exit_code == 0


@pytest.mark.parametrize("model_type", ["embedding_gemma2_text", "embedding_gemma2"])
def test_a_checkpoint_that_transformers_has_saved_again_is_the_same(tmp_path, model_type):
    raw = tiny_embedding.TEXT if model_type.endswith("_text") else RAW
    folder, ids = tiny_embedding.write(tmp_path / "m", raw), tiny_embedding.prompt(30)
    capture.load_hf(folder, torch.float32).save_pretrained(tmp_path / "again", max_shard_size="60KB")
    again, before = (numgemma.load(path).record(ids)["vector"] for path in (tmp_path / "again", folder))
    np.testing.assert_array_equal(again, before)


def test_a_checkpoint_without_towers_equals_transformers(tmp_path):
    raw = RAW | {"vision_config": None, "audio_config": None}
    theirs, ours = both(tiny_embedding.write(tmp_path / "m", raw), tiny_embedding.prompt(40))
    assert_same_run(rows(theirs), rows(ours))


def test_towers_whose_weights_are_not_wanted_are_ignored_as_in_transformers(tmp_path):
    """Transformers' base class leaves the weights of towers unread where the config has none."""
    raw = RAW | {"vision_config": None, "audio_config": None}
    folder = tiny_embedding.write(tmp_path / "m", raw, tiny.random_tensors(RAW))
    theirs, ours = both(folder, tiny_embedding.prompt(20))
    assert_same_run(rows(theirs), rows(ours))


@pytest.mark.parametrize("side", ["left", "right"])
def test_five_texts_padded_on_either_side_have_the_vectors_that_they_have_alone(tmp_path, side):
    folder = tiny_embedding.write(tmp_path / "m", RAW, tiny.random_tensors(RAW, SEED))
    texts = [tiny_embedding.prompt(n, seed=n) for n in (3, 40, 17, 8, 25)]
    ids, mask = np.zeros((5, 40), int), np.zeros((5, 40), int)
    for row, seen, text in zip(ids, mask, texts, strict=True):
        place = slice(40 - len(text), None) if side == "left" else slice(len(text))
        row[place], seen[place] = text, 1
    hf, mask = capture.load_hf(folder, torch.float32), torch.tensor(mask)
    with torch.no_grad():
        tokens = hf(input_ids=torch.tensor(ids), attention_mask=mask).last_hidden_state
    pooled = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    theirs = torch.nn.functional.normalize(pooled, dim=1).numpy()
    model = numgemma.load(folder)
    ours = np.stack([model.record(text, ["vector"])["vector"] for text in texts])
    assert max(relative(x, y) for x, y in zip(theirs, ours, strict=True)) < 2e-5
    np.testing.assert_allclose((ours * ours).sum(1), 1, 1e-6)


def test_sentence_transformers_makes_the_same_vectors_and_writes_the_files_that_are_read(tmp_path):
    """Text alone, whose processor needs no torchvision; run with 6.2.0."""
    st = pytest.importorskip("sentence_transformers")
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    synth("embeddinggemma-2", tmp_path / "m", scale="tiny")
    text = json.loads((tmp_path / "m" / "config.json").read_text())["text_config"]
    (tmp_path / "text.json").write_text(json.dumps(text | {"architectures": ["EmbeddingGemma2TextModel"]}))
    synth(str(tmp_path / "text.json"), tmp_path / "t", dtype="float32")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "t" / name).write_bytes((tmp_path / "m" / name).read_bytes())
    modules = [Transformer(str(tmp_path / "t")), Pooling(96, pooling_mode="mean"), Normalize()]
    theirs = st.SentenceTransformer(modules=modules, prompts={"mine": "task: mine | query: "})
    theirs.save_pretrained(str(tmp_path / "st"))
    texts = ["What is red?", "a fish in the deep blue sea, and nobody who sees it", "é🦊 日本"]
    ours = numgemma.load(tmp_path / "st")
    assert relative(theirs.encode(texts, prompt_name="mine"), ours.embed(texts, prompt="mine")) < 2e-5
    cut = theirs.encode(texts, prompt_name="mine", truncate_dim=8, normalize_embeddings=True)
    assert relative(cut, ours.embed(texts, prompt="mine", dim=8)) < 2e-5


@pytest.mark.parametrize("rate", [Fraction(24), Fraction(30000, 1001), Fraction(7, 2), Fraction(1, 3)])
@pytest.mark.parametrize("total", [1, 5, 24, 30, 900, 30000])
def test_of_a_clip_those_frames_are_looked_at_that_transformers_looks_at(rate, total, monkeypatch):
    """Its file can be read without torchvision, if what it names of that is something."""
    monkeypatch.setattr("builtins.tvF", MagicMock(), raising=False)
    module = import_module("transformers.models.embedding_gemma2.video_processing_embedding_gemma2")
    from transformers.video_utils import VideoMetadata

    told = VideoMetadata(total_num_frames=total, fps=float(rate), duration=float(total / rate))
    choose = module.EmbeddingGemma2VideoProcessor.sample_frames
    theirs = choose(None, told, fps=1, max_frames=32, overflow_strategy="uniform")
    index = Index(float(rate), float(total / rate), list(range(total)), [])
    assert each_second(index, 32) == theirs.tolist()
