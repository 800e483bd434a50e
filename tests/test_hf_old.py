"""Whatever Transformers from 5.5 on is installed: what it has is captured and equal, what it lacks is one sentence.

`make test-hf-old` runs this with older versions; `make test-hf` with the newest.
"""

import numpy as np
import pytest
import tiny
import tiny_drafter
import tiny_embedding
from safetensors.numpy import save_file

import numgemma
from numgemma.cli import main
from numgemma.debug.compare.diff import diff
from numgemma.dump import Dump
from numgemma.errors import InputError
from numgemma.prompt.media import NO_MEDIA, read_media

pytestmark = pytest.mark.hf
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from numgemma.debug.capture import hooks  # noqa: E402

VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])
# the first minor version of Transformers 5 that builds and runs each; those of the first line are in all from 5.5 on
SINCE = {"ple": 5, "dense": 5, "moe": 5}


def folder_of(kind, where):
    if kind in tiny.VARIANTS:
        return tiny.write(where, tiny.VARIANTS[kind]), {}
    if kind == "12B":
        return tiny.write(where, tiny.UNIFIED), {}
    if kind == "embedding":
        return tiny_embedding.write(where, tiny_embedding.TEXT), {}
    return tiny_drafter.write(where, kind), tiny_drafter.step(tiny_drafter.drafter(kind))


def captured(model, ids, media):
    """Transformers' run, or the sentence that says why there is none."""
    theirs = Dump(hooks.describe(model, ids, "float32", ["*"], media=media))
    try:
        hooks.capture(model, ids, theirs, "float32", ["*"], media)
    except InputError as problem:
        return str(problem)
    return theirs


@pytest.mark.parametrize("kind", ["ple", "dense", "moe", "12B", "clustered", "unified", "embedding"])
def test_what_this_version_has_is_equal_and_what_it_lacks_is_a_sentence(tmp_path, kind):
    folder, given = folder_of(kind, tmp_path / "ckpt")
    model = numgemma.load(folder)
    ids, media = model.named_ids(given) if given else (tiny.prompt(tiny.TEXT, 20).tolist(), NO_MEDIA)
    theirs = captured(model, ids, media)
    if isinstance(theirs, str):
        print(f"\n{kind}: {theirs}")
        assert f"Transformers {transformers.__version__}" in theirs
        assert (5, SINCE.get(kind, 24)) > VERSION
    else:
        print(f"\n{kind}: {len(theirs)} points in Transformers {transformers.__version__}")
        assert len(theirs) > 20
        assert diff(theirs, model.record(ids, ["*"], media=media)).verdict == "same"


CONTENT = {"pictures": {"images": [(6, 3), (3, 3)]}, "a video": {"videos": [[(6, 3), (6, 3)]]}}


@pytest.mark.parametrize("what", CONTENT)
def test_pictures_are_captured_and_a_video_is_where_its_form_is_known(tmp_path, what):
    """In a model whose tokens see none that comes later; in others the older versions let pictures see too much."""
    ids, arrays = tiny.multimodal_prompt("e4b", CONTENT[what])
    media = read_media(arrays)
    model = numgemma.load(tiny.write(tmp_path / "ckpt", tiny.MULTIMODAL["e4b"]))
    theirs = captured(model, ids, media)
    if isinstance(theirs, str):
        assert "takes videos in another form" in theirs
        assert what == "a video"
    else:
        # with AVX-512 one small product of the last layer comes to a little more than the table of tolerances has
        assert diff(theirs, model.record(ids, ["*"], media=media), tolerance=1e-4).verdict == "same"


def test_a_model_is_captured_while_it_generates_through_its_cache(tmp_path):
    """Whatever the keyword is called by which the cache is handed on."""
    folder = tiny.write(tmp_path / "ckpt", tiny.PLE)
    hf = hooks.load_hf(folder, torch.float32)
    ids = tiny.prompt(tiny.PLE, 12).tolist()
    with numgemma.capture(hf, ids) as dump:
        cut = torch.tensor([ids[:8]])
        out = hf(cut, use_cache=True)
        cache = out.cache if "cache" in out else out.past_key_values
        keyword = "cache" if VERSION >= (5, 24) else "past_key_values"
        hf(torch.tensor([ids[8:]]), **{keyword: cache}, use_cache=True)
    ours = numgemma.load(folder).record(ids)
    for name in ("layers.2.out", "norm"):
        np.testing.assert_allclose(dump[name][-4:], ours[name][-4:], 1e-3, 1e-4)


def test_the_verb_ends_well_or_in_a_sentence(tmp_path, capsys):
    folder = tiny_drafter.write(tmp_path / "d", "clustered")
    save_file(tiny_drafter.step(tiny_drafter.drafter("clustered")), tmp_path / "in.safetensors")
    given, out = (str(tmp_path / f"{name}.safetensors") for name in ("in", "out"))
    code = main(["capture", str(folder), "--inputs", given, "-o", out])
    assert code in (0, 2)
    assert "Traceback" not in capsys.readouterr().err
