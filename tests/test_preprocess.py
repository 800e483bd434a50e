"""A prompt and its files to the arrays that enter the model, and those through the command line."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_tokenizer
from hypothesis import given
from hypothesis import settings as few
from hypothesis import strategies as st

import numgemma
from numgemma import load, read_dump
from numgemma.cli import main
from numgemma.errors import InputError
from numgemma.families import read_config
from numgemma.plots.overlay import draw_picture, draw_sound
from numgemma.prompt.audio import sound_arrays
from numgemma.prompt.images import image_arrays
from numgemma.prompt.media import NO_MEDIA, is_empty, read_media
from numgemma.prompt.processor import (
    Marks,
    parse_processor,
    placed,
    prepare,
    read_marks,
    read_processor,
    with_budget,
)
from numgemma.prompt.tokenizer import open_tokenizer
from numgemma.prompt.video import video_arrays
from numgemma.surgery.synth import synth
from numgemma.weights.safetensors import open_safetensors

HOSTILE = Path(__file__).parent / "hostile"
PROCESSOR = json.loads((Path(numgemma.__file__).parent / "data/processor/gemma4.json").read_text())
IDS = {token: i for i, token in tiny_tokenizer.MEDIA.items()}
TOKENS = {
    "image_token_id": IDS["<|image|>"],
    "boi_token_id": IDS["<|image>"],
    "eoi_token_id": IDS["<image|>"],
    "audio_token_id": IDS["<|audio|>"],
    "boa_token_id": IDS["<|audio>"],
    "eoa_token_index": IDS["<audio|>"],
    "video_token_id": IDS["<|video|>"],
}
CHAT = (
    "{{ bos_token }}{% for m in messages %}<|turn>{{ m['role'] }}\n{% for item in m['content'] %}"
    "{% if item['type'] == 'text' %}{{ item['text'] }}{% else %}<|{{ item['type'] }}|>{% endif %}{% endfor %}<turn|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)
RGB, GRAY, TONE = (HOSTILE / name for name in ("picture_rgb.png", "picture_gray.png", "sound_16k.wav"))
SMALL = with_budget(read_processor(HOSTILE), 70)
FIVE, MINUTES = HOSTILE / "clip_5_frames.mp4", HOSTILE / "clip_minutes.mp4"


def raw_config(**changes):
    """The E4B-like tiny config with the ids and the vocabulary of the tiny tokenizer."""
    sizes = {"vocab_size": tiny_tokenizer.SIZE, "vocab_size_per_layer_input": tiny_tokenizer.SIZE}
    return tiny.E4B | TOKENS | {"text_config": tiny.E4B["text_config"] | sizes} | changes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A whole checkpoint with both towers, a tokenizer that puts <bos> first, and a chat template."""
    folder = tmp_path_factory.mktemp("whole")
    tiny_tokenizer.write(folder, CHAT, bos=True)
    return tiny.write(folder, raw_config())


@pytest.fixture(scope="module")
def tokenizer(folder):
    return open_tokenizer(folder)


@pytest.fixture(scope="module")
def marks(tokenizer):
    return read_marks(read_config(raw_config(), "the test"), tokenizer)


@pytest.fixture(scope="module")
def make(tokenizer, marks):
    """The arrays of a text and its files, at 70 soft tokens."""

    def call(text, image=(), audio=(), video=(), p=SMALL):
        files = {"image": list(image), "audio": list(audio), "video": list(video)}
        return prepare(text, files, p, marks, tokenizer.encode)

    return call


@pytest.fixture
def run(capsys):
    def call(*words):
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return call


# -- placeholders -----------------------------------------------------------------------------------------------------


def test_the_tokens_of_each_kind_are_those_that_the_config_names(marks):
    assert marks["image"] == Marks("<|image>", "<|image|>", "<image|>", IDS["<|image|>"], 1)
    assert marks["video"] == Marks("<|image>", "<|video|>", "<image|>", IDS["<|video|>"], 2)
    assert marks["audio"] == Marks("<|audio>", "<|audio|>", "<audio|>", IDS["<|audio|>"], 3)


def test_a_placeholder_becomes_begin_soft_tokens_end(make, tokenizer):
    found = make("Hello<|image|> you", image=[RGB])
    soft = int((found["image_position_ids"][0, :, 0] >= 0).sum()) // 9
    assert soft == 63  # 7 by 9
    spelled = "Hello<|image>" + "<|image|>" * soft + "<image|> you"
    assert found["input_ids"].tolist() == [tokenizer.encode(spelled)]


def test_arrays_have_the_names_shapes_and_types_of_transformers(make):
    found = make("<|image|><|audio|><|video|><|image|>", [RGB, GRAY], [TONE], [FIVE])
    T = found["input_ids"].shape[1]
    assert {name: (x.dtype.name, x.shape) for name, x in found.items()} == {
        "input_ids": ("int64", (1, T)),
        "attention_mask": ("int64", (1, T)),
        "mm_token_type_ids": ("int64", (1, T)),
        "pixel_values": ("float32", (2, 630, 768)),
        "image_position_ids": ("int64", (2, 630, 2)),
        "pixel_values_videos": ("float32", (5, 630, 768)),
        "video_position_ids": ("int64", (5, 630, 2)),
        "num_frames_per_video": ("int64", (1,)),
        "input_features": ("float32", (1, 31, 128)),
        "input_features_mask": ("bool", (1, 31)),
    }


def test_there_are_as_many_placeholders_as_soft_tokens(make):
    found = make("<|audio|> you <|image|><|video|>", [RGB], [TONE], [FIVE])
    types = np.bincount(found["mm_token_type_ids"][0])
    soft = [(found[name][..., 0] >= 0).sum() // 9 for name in ("image_position_ids", "video_position_ids")]
    assert types[1:].tolist() == [*soft, found["input_features_mask"][0, ::4].sum()]
    for kind, token in ((1, "<|image|>"), (2, "<|video|>"), (3, "<|audio|>")):
        np.testing.assert_array_equal(found["mm_token_type_ids"] == kind, found["input_ids"] == IDS[token])


def test_each_frame_of_a_clip_bears_its_time(make, tokenizer):
    found = make("Hello<|video|>", video=[MINUTES])
    soft = int((found["video_position_ids"][0, :, 0] >= 0).sum()) // 9
    frame = "<|image>" + "<|video|>" * soft + "<image|>"
    wanted = [i * 70 // 32 * 2 for i in range(32)]  # 70 frames, one every two seconds
    spelled = " ".join(f"{t // 60:02d}:{t % 60:02d} {frame}" for t in wanted)
    assert "02:14" in spelled
    assert found["input_ids"].tolist() == [tokenizer.encode("Hello" + spelled)]
    assert found["num_frames_per_video"].tolist() == [32]


def test_files_take_their_places_in_order(make):
    one, two = (make("<|image|><|image|>", image=pair) for pair in ([RGB, GRAY], [GRAY, RGB]))
    np.testing.assert_array_equal(one["pixel_values"], two["pixel_values"][::-1])
    assert (one["pixel_values"][0] != one["pixel_values"][1]).any()


@pytest.mark.parametrize(
    ("text", "images", "told"),
    [
        ("Hello", 1, r"0 <\|image\|> for 1 --image"),
        ("<|image|>", 0, r"1 <\|image\|> for 0 --image"),
        ("<|image|><|image|>", 3, r"2 <\|image\|> for 3 --image"),
        ("<|audio|>", 1, r"0 <\|image\|> for 1 --image"),
    ],
)
def test_another_number_of_files_than_placeholders_is_an_error_that_tells_both(make, text, images, told):
    with pytest.raises(InputError, match=told):
        make(text, image=[RGB] * images)


def test_files_go_before_a_text_without_placeholders(marks):
    files = {"image": [RGB, RGB], "audio": [TONE], "video": [FIVE]}
    assert placed("Hello", files, marks) == "<|image|><|image|><|video|><|audio|>Hello"
    assert placed("Hello", {"image": [RGB]}, marks, "<bos>") == "<|image|>Hello"
    assert placed("<bos>Hello", {"image": [RGB]}, marks, "<bos>") == "<bos><|image|>Hello"
    assert placed("Hello", {}, marks, "<bos>") == "Hello"
    assert placed("you <|audio|>", files, marks) == "you <|audio|>"


def test_a_checkpoint_without_the_tokens_takes_no_files(tokenizer):
    marks = read_marks(read_config(raw_config(image_token_id=None), "the test"), tokenizer)
    with pytest.raises(InputError, match=r"picture_rgb.png: .* name no tokens for image"):
        prepare("Hello", {"image": [RGB]}, read_processor(HOSTILE), marks, tokenizer.encode)


def test_a_tokenizer_that_splits_a_placeholder_is_told_of(marks):
    with pytest.raises(InputError, match=r"does not make one token of <\|image\|>"):
        prepare("<|image|>", {"image": [RGB]}, read_processor(HOSTILE), marks, lambda text: [5, 6, 7])


READERS = {
    "picture": lambda path: image_arrays(path, SMALL.image),
    "sound": lambda path: sound_arrays([path], SMALL.sound),
    "clip": lambda path: video_arrays(path, SMALL.frame, 2),
}


@pytest.mark.parametrize("kind", READERS)
@given(data=st.data())
@few(max_examples=25, deadline=None)
def test_a_file_with_wrong_bytes_is_read_or_refused_in_one_sentence(tmp_path_factory, kind, data):
    path = data.draw(st.sampled_from(sorted(HOSTILE.glob(f"{kind}_*"))))
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, min(len(raw), 300) - 1))] = data.draw(st.integers(0, 255))
    wrong = tmp_path_factory.getbasetemp() / f"wrong{path.suffix}"
    wrong.write_bytes(raw)
    told = "read: fine."
    try:
        READERS[kind](wrong)
    except InputError as error:
        told = str(error).removeprefix(str(wrong.parent) + "/")
    assert re.fullmatch(r"(read|wrong\.\w+): .+\.", told)


# -- processor_config.json --------------------------------------------------------------------------------------------


def changed(section, **changes):
    return PROCESSOR | {section: PROCESSOR[section] | changes}


def test_every_number_comes_from_processor_config_json(tmp_path, make):
    raw = changed("image_processor", max_soft_tokens=140, rescale_factor=1 / 128)
    raw["video_processor"] = raw["video_processor"] | {"num_frames": 3, "max_soft_tokens": 140}
    raw["feature_extractor"] = raw["feature_extractor"] | {
        "mel_floor": 0.5,
        "feature_size": 64,
        "max_frequency": 4000.0,
    }
    (tmp_path / "processor_config.json").write_text(json.dumps(raw))
    p = read_processor(tmp_path)
    found = make("<|image|><|audio|><|video|>", [RGB], [HOSTILE / "sound_silence.wav"], [FIVE], p=p)
    assert found["pixel_values"].shape == (1, 1260, 768)
    assert 1.5 < found["pixel_values"].max() < 2
    assert found["pixel_values_videos"].shape == (3, 1260, 768)
    assert found["input_features"].shape[2] == 64
    np.testing.assert_allclose(found["input_features"][0, 0], np.log(0.5), rtol=1e-6)


def test_without_the_file_the_official_numbers_hold(tmp_path):
    (tmp_path / "processor_config.json").write_text(json.dumps(PROCESSOR))
    assert read_processor(tmp_path) == read_processor(HOSTILE)


def test_settings_in_a_file_of_older_make_are_not_passed_over(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"preprocessor_config\.json: is of Transformers before 5"):
        read_processor(tmp_path)


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (changed("image_processor", do_resize=False), "image_processor has do_resize False"),
        (changed("image_processor", resample=2), "resample 2"),
        (changed("image_processor", image_mean=[0.5, 0.5, 0.5]), "image_mean"),
        (changed("image_processor", max_soft_tokens=256), "max_soft_tokens should be one of"),
        (changed("image_processor", patch_size=0), "size of a picture is not positive"),
        (changed("image_processor", sharpen=2), "unknown key 'sharpen'"),
        (changed("video_processor", do_normalize=False), "do_normalize False"),
        (changed("video_processor", num_frames=0), "num_frames"),
        (changed("feature_extractor", preemphasis=0.97), "preemphasis 0.97"),
        (changed("feature_extractor", dither=1e-4), "dither"),
        (changed("feature_extractor", per_bin_mean=[1.0]), "per_bin_mean"),
        (changed("feature_extractor", frame_length=400), "frame_length should be 20 ms"),
        (changed("feature_extractor", fft_length=1024), "fft_length"),
        (changed("feature_extractor", max_frequency=9000.0), "no band"),
        (changed("feature_extractor", mel_floor="low"), "mel_floor should be float"),
        (PROCESSOR | {"processor_class": "Gemma3Processor"}, "'Gemma3Processor' is not one of Gemma4Processor"),
        (PROCESSOR | {"processor_class": "Gemma4UnifiedProcessor"}, "unknown keys 'dither'"),
        ({"processor_class": "Gemma4Processor"}, "has no image_processor"),
    ],
)
def test_a_setting_that_is_not_computed_here_is_refused_by_name(raw, told):
    with pytest.raises(InputError, match=re.escape(told)):
        parse_processor(raw, "processor_config.json")


def test_a_budget_that_no_model_knows_is_refused():
    with pytest.raises(InputError, match="256 soft tokens is not one of 70, 140"):
        with_budget(read_processor(HOSTILE), 256)


# -- the command line -------------------------------------------------------------------------------------------------


def test_preprocess_writes_what_inputs_reads(run, folder, tmp_path):
    """The dump of a prompt with a picture is that of the arrays which preprocess wrote for it."""
    words = ("--prompt", "Hello <|image|><|audio|>", "--image", RGB, "--audio", TONE, "--soft-tokens", 70)
    code, out, _ = run("preprocess", folder, *words, "-o", tmp_path / "inputs.safetensors")
    assert code == 0
    assert "of them soft" in out
    assert "pixel_values           float32  [1, 630, 768]" in out
    points = ("--points", "*.out", "inputs_embeds", "logits")
    assert run("dump", folder, *words, "-o", tmp_path / "a.safetensors", *points)[0] == 0
    inputs = ("--inputs", tmp_path / "inputs.safetensors")
    assert run("dump", folder, *inputs, "-o", tmp_path / "b.safetensors", *points)[0] == 0
    a, b = read_dump(tmp_path / "a.safetensors"), read_dump(tmp_path / "b.safetensors")
    assert a.meta["text"] == "Hello <|image|><|audio|>"
    assert {"vision_tower.out", "audio_tower.out", "logits"} <= a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_another_picture_gives_other_logits(run, folder, tmp_path):
    for name, picture in (("a", RGB), ("b", GRAY)):
        words = ("--prompt", "Hello", "--image", picture, "--soft-tokens", 70, "--points", "logits")
        assert run("dump", folder, *words, "-o", tmp_path / f"{name}.safetensors")[0] == 0
    a, b = (read_dump(tmp_path / f"{name}.safetensors")["logits"] for name in "ab")
    assert a.shape == b.shape
    assert (a[-1] != b[-1]).any()


def test_padding_before_a_prompt_is_taken_off_its_token_types_too(run, folder, tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "inputs.safetensors"
    run("preprocess", folder, "--prompt", "Hello<|image|>", "--image", RGB, "--soft-tokens", 70, "-o", path)
    arrays = {name: np.array(x) for name, x in open_safetensors(path).tensors.items()}
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        arrays[name] = np.pad(arrays[name], ((0, 0), (3, 0)))
    save_file(arrays, tmp_path / "padded.safetensors")
    for name in ("inputs", "padded"):
        words = ("--inputs", tmp_path / f"{name}.safetensors", "--points", "logits")
        assert run("dump", folder, *words, "-o", tmp_path / f"{name}.dump")[0] == 0
    a, b = (read_dump(tmp_path / f"{name}.dump")["logits"] for name in ("inputs", "padded"))
    np.testing.assert_array_equal(a, b)


def test_a_chat_takes_the_files_that_it_names_and_those_given(run, folder, tmp_path):
    content = [{"type": "image", "path": str(RGB)}, {"type": "text", "text": "Hello"}, {"type": "image"}]
    (tmp_path / "prompt.chat.json").write_text(json.dumps([{"role": "user", "content": content}]))
    out = tmp_path / "prompt.chat.safetensors"
    words = ("--chat", tmp_path / "prompt.chat.json", "--image", GRAY, "--soft-tokens", 70)
    assert run("preprocess", folder, *words, "-o", out)[0] == 0
    chat = open_safetensors(out).tensors
    text = "<|turn>user\n<|image|>Hello<|image|><turn|>\n<|turn>model\n"  # the tokenizer puts <bos> before it
    plain = tmp_path / "plain.safetensors"
    words = ("--prompt", text, "--image", RGB, "--image", GRAY, "--soft-tokens", 70)
    assert run("preprocess", folder, *words, "-o", plain)[0] == 0
    for name, x in open_safetensors(plain).tensors.items():
        np.testing.assert_array_equal(chat[name], x, err_msg=name)
    assert chat["input_ids"][0].tolist().count(2) == 1


@pytest.mark.parametrize(
    ("content", "words", "told"),
    [
        ([{"type": "image"}], (), 'names no file; add its "path", or --image'),
        ([{"type": "text", "text": "Hello"}], ("--image", RGB), "has no item for 1 --image"),
        ([{"type": "audio", "path": "https://there/a.wav"}], (), "save it as a file"),
    ],
)
def test_a_chat_with_another_number_of_files_is_told_of(run, folder, tmp_path, content, words, told):
    (tmp_path / "prompt.chat.json").write_text(json.dumps([{"role": "user", "content": content}]))
    code, _, err = run(
        "preprocess", folder, "--chat", tmp_path / "prompt.chat.json", *words, "-o", tmp_path / "x.safetensors"
    )
    assert code == 2
    assert told in err
    assert not (tmp_path / "x.safetensors").exists()


def test_preprocess_needs_no_weights(run, folder, tmp_path):
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(folder / name, tmp_path)
    code, _, _ = run("preprocess", tmp_path, "--prompt", "Hello", "-o", tmp_path / "inputs.safetensors")
    assert code == 0
    assert sorted(open_safetensors(tmp_path / "inputs.safetensors").tensors) == [
        *("attention_mask", "input_ids", "mm_token_type_ids")
    ]


def test_a_long_recording_is_told_of(run, folder, tmp_path):
    words = ("--prompt", "Hello", "--audio", HOSTILE / "sound_35s.flac", "-o", tmp_path / "x.safetensors")
    code, _, err = run("preprocess", folder, *words)
    assert code == 0
    assert "lasts 35 s; the model hears the first 30 s" in err


def test_a_bad_file_leaves_nothing_behind(run, folder, tmp_path):
    words = ("--prompt", "Hello", "--image", HOSTILE / "bad_cut.png", "-o", tmp_path / "x.safetensors")
    code, _, err = run("preprocess", folder, *words)
    assert code == 2
    assert "bad_cut.png: is a damaged PNG file" in err
    assert not list(tmp_path.iterdir())


def test_where_it_cannot_write_preprocess_says_so(run, folder, tmp_path):
    code, _, err = run("preprocess", folder, "--prompt", "Hello", "-o", tmp_path / "none" / "x.safetensors")
    assert code == 2
    assert "cannot be written" in err


def test_files_join_a_text_alone(run, folder, tmp_path):
    words = ("--ids", "2,5", "--image", RGB, "-o", tmp_path / "x.safetensors")
    code, _, err = run("dump", folder, *words)
    assert code == 2
    assert "--image joins a text; give it with --prompt or --chat" in err


def test_a_batch_with_pictures_is_refused(run, folder, tmp_path):
    from safetensors.numpy import save_file

    arrays = {"input_ids": np.full((2, 4), 5), "pixel_values": np.zeros((1, 9, 768), np.float32)}
    save_file(arrays, tmp_path / "two.safetensors")
    code, _, err = run("dump", folder, "--inputs", tmp_path / "two.safetensors", "-o", tmp_path / "x.safetensors")
    assert code == 2
    assert "holds 2 prompts with images or sound" in err


def test_generate_sees_a_picture(run, folder):
    words = ("--prompt", "Hello", "--image", RGB, "--soft-tokens", 70, "--max-new-tokens", 3, "--print-ids")
    code, out, _ = run("generate", folder, *words, "--ignore-eos")
    assert code == 0
    assert out.startswith("<|image|>Hello")
    assert len(out.splitlines()[-1].split(",")) == 3


def test_importing_numgemma_and_its_command_line_needs_no_extra():
    code = (
        "import sys\n"
        "for name in ('PIL', 'soundfile', 'soxr', 'av'): sys.modules[name] = None\n"
        "import numgemma, numgemma.cli, numgemma.prompt.processor\n"
        "print('fine')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "fine"


# -- the same from Python


def by_command(run, folder, tmp_path, *words):
    """ids and media of a prompt as `dump` records them."""
    assert run("preprocess", folder, *words, "-o", tmp_path / "in.safetensors")[0] == 0
    return open_safetensors(tmp_path / "in.safetensors").tensors


def test_prompt_ids_are_those_of_the_command_line(run, folder, tmp_path):
    text = "Hello <|image|> you <|audio|>"
    files = {"image": [RGB], "audio": [TONE]}
    ids, media = load(folder).prompt_ids(text, files, soft_tokens=70)
    told = by_command(run, folder, tmp_path, "--prompt", text, "--image", RGB, "--audio", TONE, "--soft-tokens", 70)
    assert ids == told["input_ids"][0].tolist()
    for name in ("pixel_values", "image_position_ids", "input_features", "input_features_mask"):
        np.testing.assert_array_equal(getattr(media, name), told[name])
    plain, nothing = load(folder).prompt_ids("Hello")
    assert plain == load(folder).tokenizer.encode("Hello")
    assert is_empty(nothing)


def test_chat_ids_are_those_of_the_command_line(run, folder, tmp_path):
    """Files that the messages name, and files beside them for items that name none."""
    named = {"type": "image", "path": str(RGB)}
    chat = [{"role": "user", "content": [named, {"type": "text", "text": "Hello"}, {"type": "audio"}]}]
    (tmp_path / "prompt.chat.json").write_text(json.dumps(chat))
    ids, media = load(folder).chat_ids(chat, {"audio": [TONE]}, soft_tokens=70)
    words = ("--chat", tmp_path / "prompt.chat.json", "--audio", TONE, "--soft-tokens", 70)
    told = by_command(run, folder, tmp_path, *words)
    assert ids == told["input_ids"][0].tolist()
    assert (np.array(ids) == IDS["<|image|>"]).sum() == 63
    np.testing.assert_array_equal(media.pixel_values, told["pixel_values"])
    np.testing.assert_array_equal(media.input_features, told["input_features"])
    assert load(folder).generate(ids, 2, media=media)


def test_chat_ids_refuse_items_and_files_that_do_not_meet(folder):
    model = load(folder)
    image = [{"role": "user", "content": [{"type": "image"}]}]
    with pytest.raises(InputError, match="an item of type image names no file"):
        model.chat_ids(image)
    with pytest.raises(InputError, match="has no item for 1 --image"):
        model.chat_ids(image, {"image": [RGB, GRAY]})
    for give in (model.chat_ids, model.prompt_ids):
        with pytest.raises(InputError, match="'images' is no kind of file; name them as image, audio, video"):
            give(image if give == model.chat_ids else "Hello", {"images": [RGB]})


def test_one_file_may_be_given_by_its_name_alone(folder):
    model = load(folder)
    expected, _ = model.prompt_ids("Hello <|image|>", {"image": [RGB]}, soft_tokens=70)
    assert model.prompt_ids("Hello <|image|>", {"image": str(RGB)}, soft_tokens=70)[0] == expected


def test_a_dump_says_where_each_picture_frame_and_recording_stands(folder):
    """Two images, a clip of five frames and a recording, in another order than that of their kinds."""
    model = load(folder)
    text = "<|audio|> Hello <|video|><|image|> you <|image|>"
    ids, media = model.prompt_ids(text, {"image": [RGB, GRAY], "audio": [TONE], "video": [FIVE]}, soft_tokens=70)
    said = model.record(ids, ["logits"], media=media).meta["media"]
    assert [(s["kind"], s["file"]) for s in said] == [("image", 0), ("image", 1), *[("video", 0)] * 5, ("audio", 0)]
    soft = {kind: IDS[f"<|{kind}|>"] for kind in ("image", "video", "audio")}
    covered = [i for s in said for i in range(s["first"], s["first"] + s["count"])]
    assert sorted(covered) == [i for i, token in enumerate(ids) if token in soft.values()]
    assert all(ids[s["first"]] == soft[s["kind"]] for s in said)
    assert all(ids[s["first"] - 1] != soft[s["kind"]] != ids[s["first"] + s["count"]] for s in said)


def test_placeholders_that_do_not_stand_side_by_side_have_no_place(folder):
    model = load(folder)
    ids, media = model.prompt_ids("Hello <|image|> you", {"image": [RGB]}, soft_tokens=70)
    at = ids.index(IDS["<|image|>"])
    apart = [*ids[: at + 5], 5, *ids[at + 5 :]]
    (said,) = model.describe(apart, media=replace(media, mm_token_type_ids=None))["media"]
    assert said == {"kind": "image", "file": 0, "first": None, "count": 63}
    assert model.describe([2, 5, 9], media=NO_MEDIA)["media"] == []
    assert "media" not in model.describe([2, 5, 9])


# -- Gemma 3n ---------------------------------------------------------------------------------------------------------

SQUARES = json.loads((Path(numgemma.__file__).parent / "data/processor/gemma3n.json").read_text())


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """A tiny random Gemma 3n: its tokenizer names the released special tokens, its processor is the released one."""
    folder = tmp_path_factory.mktemp("squares") / "m"
    synth("gemma-3n-E4B-it", target=folder, scale="tiny")
    template = Path(__file__).parent / "templates" / "gemma3n.jinja"
    (folder / "chat_template.jinja").write_text(template.read_text())
    return folder


def test_every_picture_and_every_recording_of_gemma_3n_becomes_as_many_soft_tokens_between_blank_lines(squares):
    model = load(squares)
    ids, media = model.prompt_ids("Hello", {"image": [RGB, GRAY], "audio": [TONE]})
    text = "".join(model.tokenizer.pieces(ids))
    picture = "\n\n<start_of_image>" + "<image_soft_token>" * 256 + "<end_of_image>\n\n"
    sound = "\n\n<start_of_audio>" + "<audio_soft_token>" * 188 + "<end_of_audio>\n\n"
    assert text == "<bos>" + picture * 2 + sound + "Hello"
    assert media.pixel_values.shape == (2, 3, 768, 768)
    assert media.image_position_ids is None


def test_a_gemma_3n_answers_a_chat_about_a_picture_and_a_recording(run, squares, tmp_path):
    content = [{"type": "image", "path": str(RGB)}, {"type": "audio", "path": str(TONE)}, {"type": "text", "text": "?"}]
    chat = tmp_path / "chat.json"
    chat.write_text(json.dumps([{"role": "user", "content": content}]))
    code, out, _ = run("preprocess", squares, "--chat", chat, "-o", tmp_path / "inputs.safetensors")
    assert code == 0
    assert "444 of them soft" in out
    code, out, _ = run("generate", squares, "--chat", chat, "--max-new-tokens", 4, "--print-ids")
    assert code == 0
    model, arrays = load(squares), open_safetensors(tmp_path / "inputs.safetensors")[0]
    new = model.generate(arrays["input_ids"][0].tolist(), 4, media=read_media(arrays))
    assert out.splitlines()[-1] == ",".join(map(str, new))


def test_what_a_gemma_3n_sees_and_hears_is_drawn(run, squares, tmp_path):
    points = ("--points", "inputs_embeds", "layers.*.self_attn.probs")
    words = ("--prompt", "Hello", "--image", RGB, "--audio", TONE, "-o", tmp_path / "d.safetensors", *points)
    assert run("dump", squares, *words)[0] == 0
    dump, p = read_dump(tmp_path / "d.safetensors"), read_processor(squares)
    picture, sound = draw_picture(RGB, dump, p), draw_sound(TONE, dump, p)
    assert "16 x 16 soft tokens" in picture.axes[0].get_title(loc="left")
    first = dump.meta["ids"].index(load(squares).config.image_token_id)
    expected = np.sqrt((dump["inputs_embeds"][first : first + 256].astype(float) ** 2).mean(-1)).reshape(16, 16)
    np.testing.assert_allclose(np.asarray(picture.axes[1].images[-1].get_array()), expected, rtol=1e-6)
    assert "188 soft tokens" in sound.axes[0].get_title(loc="left")
    for kind, path in (("image", RGB), ("audio", TONE)):
        words = ("show", tmp_path / "d.safetensors", f"--{kind}", path, "--ckpt", squares, "-o", tmp_path / "x.png")
        assert run(*words)[0] == 0


def test_a_gemma_3n_takes_no_clips_and_no_budget(squares):
    model = load(squares)
    with pytest.raises(InputError, match=r"name no tokens for video|takes no video"):
        model.prompt_ids("Hello", {"video": [FIVE]})
    with pytest.raises(InputError, match="leave out --soft-tokens"):
        model.prompt_ids("Hello", {"image": [RGB]}, soft_tokens=70)


@pytest.mark.parametrize(
    ("section", "changes", "told"),
    [
        ("image_processor", {"size": {"height": 768, "width": 512}}, "size should be a square"),
        ("image_processor", {"size": {"height": 100_000, "width": 100_000}}, "size should be a square"),
        ("image_processor", {"size": {"shortest_edge": 768}}, "size should be a square"),
        ("image_processor", {"do_normalize": True}, "do_normalize True"),
        ("image_processor", {"resample": 3}, "resample 3"),
        ("image_processor", {"do_center_crop": True}, "unknown key 'do_center_crop'"),
        ("feature_extractor", {"frame_length": 320}, "frame_length should be 32 ms"),
        ("feature_extractor", {"fft_length": 512}, "the next power of two, doubled"),
        ("feature_extractor", {"preemphasis": 1.5}, "preemphasis is not from 0 to 1"),
        ("feature_extractor", {"dither": 1e-4}, "dither"),
        (None, {"image_seq_length": 200}, "image_seq_length should be the square"),
        (None, {"audio_seq_length": 0}, "audio_seq_length is not positive"),
        (None, {"audio_seq_length": "many"}, "audio_seq_length should be int"),
    ],
)
def test_a_setting_of_gemma_3n_that_is_not_computed_here_is_refused_by_name(section, changes, told):
    raw = SQUARES | changes if section is None else SQUARES | {section: SQUARES[section] | changes}
    with pytest.raises(InputError, match=re.escape(told)):
        parse_processor(raw, "processor_config.json")
