"""Transformers' own processors of 12B, as the tests compare with them.

Its picture processor needs torchvision: where that is not there, TorchPictures does what it does.
"""

import importlib.util
import json
from importlib import resources
from typing import TypedDict

import numpy as np
from hf_processors import TorchFrames


def official():
    return json.loads((resources.files("numgemma.data") / "processor" / "gemma4_unified.json").read_text())


def merged(patches, rows, columns):
    """Squares of 3 x 3 patches of 16 pixels, by Transformers' definition: sorted into squares, then interleaved."""
    order = [
        (3 * r + i) * columns + 3 * c + j
        for r in range(rows // 3)
        for c in range(columns // 3)
        for i in range(3)
        for j in range(3)
    ]
    squares = patches[order].reshape(-1, 3, 3, 16, 16, 3)
    return squares.transpose(0, 1, 3, 2, 4, 5).reshape(len(squares), -1)


class TorchPictures:
    """Gemma4UnifiedImageProcessor spelled out."""

    class valid_kwargs(TypedDict):
        """What the processor passes on."""

        max_soft_tokens: int

    def fetch_images(self, pictures):
        return pictures

    def __call__(self, pictures, max_soft_tokens=280, **unused):
        import torch
        from transformers.models.gemma4 import image_processing_pil_gemma4 as hf

        found = {"pixel_values": [], "image_position_ids": [], "num_soft_tokens_per_image": []}
        flat = [picture for some in pictures for picture in (some if isinstance(some, list) else [some])]
        for picture in flat:
            x = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
            size = hf.get_aspect_ratio_preserving_size(x.shape[2], x.shape[3], 16, max_soft_tokens * 9, 3)
            if size != tuple(x.shape[2:]):
                x = torch.nn.functional.interpolate(x, list(size), mode="bicubic", antialias=True)
            pixels = (x[0] * (1 / 255)).numpy()
            rows, columns = size[0] // 16, size[1] // 16
            patches = merged(hf.convert_image_to_patches(pixels, 16), rows, columns)
            places = np.array([(c, r) for r in range(rows // 3) for c in range(columns // 3)])
            padded = hf.pad_along_first_dim(patches, places, max_soft_tokens)
            found["pixel_values"].append(padded[0])
            found["image_position_ids"].append(padded[1])
            found["num_soft_tokens_per_image"].append(len(patches))
        return {name: np.array(x) if "num" not in name else x for name, x in found.items()}


class TorchSquares(TorchFrames):
    """Gemma4UnifiedVideoProcessor spelled out: TorchFrames, whose patches are then put together."""

    def __call__(self, videos, video_metadata, max_soft_tokens=70, **unused):
        found = super().__call__(videos, video_metadata, max_soft_tokens)
        pixels, places = [], []
        for patches, xy in zip(found["pixel_values_videos"], found["video_position_ids"], strict=True):
            real = xy[:, 0] >= 0
            columns, rows = xy[real].max(axis=0) + 1
            squares = merged(patches[real], rows, columns)
            grid = np.array([(c, r) for r in range(rows // 3) for c in range(columns // 3)])
            missing = ((0, max_soft_tokens - len(squares)), (0, 0))
            pixels.append(np.pad(squares, missing))
            places.append(np.pad(grid, missing, constant_values=-1))
        return found | {"pixel_values_videos": np.array(pixels), "video_position_ids": np.array(places)}


def image_processor():
    if importlib.util.find_spec("torchvision") is None:
        return TorchPictures()
    from transformers import Gemma4UnifiedImageProcessor

    return Gemma4UnifiedImageProcessor(**official()["image_processor"])


def video_processor():
    if importlib.util.find_spec("torchvision") is None:
        return TorchSquares()
    from transformers import Gemma4UnifiedVideoProcessor

    return Gemma4UnifiedVideoProcessor(**official()["video_processor"])


def extractor():
    from transformers import Gemma4UnifiedAudioFeatureExtractor

    return Gemma4UnifiedAudioFeatureExtractor.from_dict(official()["feature_extractor"])


def processor(folder):
    """The whole, with the tokenizer of a folder."""
    from transformers import AutoTokenizer
    from transformers.models.gemma4_unified.processing_gemma4_unified import Gemma4UnifiedProcessor

    class AnyProcessor(Gemma4UnifiedProcessor):
        def check_argument_for_proper_class(self, *args):
            """It would refuse those spelled out."""

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return AnyProcessor(extractor(), image_processor(), tokenizer, video_processor())


def pictures(path, **changes):
    from transformers.image_utils import load_image

    return image_processor()([load_image(str(path))], return_tensors="np", **changes)


def sounds(paths):
    from transformers.audio_utils import load_audio

    return extractor()([load_audio(str(path), backend="soundfile") for path in paths], return_tensors="np")


def video(path, num_frames=32):
    """The arrays of a clip, and when each frame is seen."""
    from hf_processors import frames
    from transformers.video_utils import VideoMetadata

    pixels, metadata = frames(path, num_frames)
    found = video_processor()(
        videos=[pixels], video_metadata=[metadata], do_sample_frames=False, max_soft_tokens=70, return_tensors="pt"
    )
    arrays = {name: np.asarray(found[name]) for name in ("pixel_values_videos", "video_position_ids")}
    return arrays, VideoMetadata(**metadata).timestamps
