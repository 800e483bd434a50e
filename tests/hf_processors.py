"""Transformers' own processors, as the tests compare with them, and what they make of tests/hostile."""

import importlib.util
import json
from importlib import resources
from typing import TypedDict

import numpy as np
from hostile_expected import STRIDE
from safetensors.numpy import save_file


def assert_same(ours, theirs):
    """The same type, shape and bits."""
    theirs = np.asarray(theirs)
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    np.testing.assert_array_equal(ours, theirs)


def official():
    return json.loads((resources.files("numgemma.data") / "processor" / "gemma4.json").read_text())


def image_processor(**changes):
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    return Gemma4ImageProcessorPil(**(official()["image_processor"] | changes))


def extractor():
    from transformers import Gemma4AudioFeatureExtractor

    return Gemma4AudioFeatureExtractor.from_dict(official()["feature_extractor"])


class TorchFrames:
    """Gemma4VideoProcessor spelled out, for where torchvision is not there: it does what torchvision's resize does."""

    class valid_kwargs(TypedDict):
        """What the processor passes on."""

        max_soft_tokens: int

    def __call__(self, videos, video_metadata, max_soft_tokens=70, **unused):
        import torch
        from transformers.models.gemma4 import image_processing_pil_gemma4 as hf
        from transformers.video_utils import VideoMetadata

        found = {"pixel_values_videos": [], "video_position_ids": [], "num_soft_tokens_per_video": []}
        for video in videos:
            x = torch.from_numpy(video).permute(0, 3, 1, 2)
            size = hf.get_aspect_ratio_preserving_size(x.shape[2], x.shape[3], 16, max_soft_tokens * 9, 3)
            if size != tuple(x.shape[2:]):
                x = torch.nn.functional.interpolate(x, list(size), mode="bicubic", antialias=True)
            x = x.to(torch.float32) / torch.tensor(255.0)
            for frame in x.numpy():
                patches = hf.convert_image_to_patches(frame, 16)
                y, x = np.divmod(np.arange(len(patches)), size[1] // 16)
                padded = hf.pad_along_first_dim(patches, np.stack([x, y], -1), max_soft_tokens * 9)
                found["pixel_values_videos"].append(padded[0])
                found["video_position_ids"].append(padded[1])
            found["num_soft_tokens_per_video"].append(len(patches) // 9)
        found["num_frames_per_video"] = [len(video) for video in videos]
        found["video_metadata"] = [VideoMetadata(**metadata) for metadata in video_metadata]
        return {name: np.array(x) if "num" not in name and name != "video_metadata" else x for name, x in found.items()}


def video_processor():
    if importlib.util.find_spec("torchvision") is None:
        return TorchFrames()
    from transformers import Gemma4VideoProcessor

    return Gemma4VideoProcessor(**official()["video_processor"])


def processor(folder):
    """The whole, with the tokenizer of a folder."""
    from transformers import AutoTokenizer
    from transformers.models.gemma4.processing_gemma4 import Gemma4Processor

    class AnyVideoProcessor(Gemma4Processor):
        def check_argument_for_proper_class(self, *args):
            """It would refuse TorchFrames."""

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return AnyVideoProcessor(extractor(), image_processor(), tokenizer, video_processor())


def images(path, **changes):
    p = image_processor(**changes)
    return p([p.fetch_images(str(path))], return_tensors="np")


def sounds(paths):
    from transformers.audio_utils import load_audio

    return extractor()([load_audio(str(path), backend="soundfile") for path in paths], return_tensors="np")


def frames(path, num_frames=32):
    """Decoded by PyAV: pixels, and what is known of them."""
    from transformers.video_utils import load_video

    pixels, metadata = load_video(str(path), num_frames=num_frames, backend="pyav")
    return pixels, dict(metadata)


def video(path, num_frames=32):
    """The arrays of a clip, and when each frame is seen."""
    from transformers.video_utils import VideoMetadata

    pixels, metadata = frames(path, num_frames)
    found = video_processor()(
        videos=[pixels], video_metadata=[metadata], do_sample_frames=False, max_soft_tokens=70, return_tensors="pt"
    )
    arrays = {name: np.asarray(found[name]) for name in ("pixel_values_videos", "video_position_ids")}
    return arrays, VideoMetadata(**metadata).timestamps


def store_expected(folder):
    """Every 97th number of what Transformers makes of each readable file, beside its shape."""
    assert importlib.util.find_spec("torchvision"), "what is stored should be made by the processor itself"
    arrays = {}
    for path in sorted(folder.glob("picture_*")):
        found = images(path, max_soft_tokens=70)
        steps = np.rint(found["pixel_values"] * 255).astype(np.uint8)
        arrays[f"{path.name}.pixels"] = steps.ravel()[::STRIDE]
        arrays[f"{path.name}.places"] = found["image_position_ids"][0].astype(np.int16)
    for path in sorted(folder.glob("sound_*")):
        found = sounds([path])
        arrays[f"{path.name}.mel"] = found["input_features"].ravel()[::STRIDE]
        arrays[f"{path.name}.mask"] = found["input_features_mask"].astype(np.uint8)
    for path in sorted(folder.glob("clip_*.mp4")):
        found, seconds = video(path, num_frames=5 if "5_frames" in path.name else 32)
        steps = np.rint(found["pixel_values_videos"] * 255).astype(np.uint8)
        arrays[f"{path.name}.pixels"] = steps.ravel()[:: STRIDE * 31]
        arrays[f"{path.name}.places"] = found["video_position_ids"][0].astype(np.int16)
        arrays[f"{path.name}.seconds"] = np.array(seconds)
    arrays = {name: np.ascontiguousarray(x) for name, x in arrays.items()}  # save_file mangles strided ones
    save_file(arrays, folder / "expected.safetensors", {"made by": "transformers 5.23.0"})
