"""Gemma 4's processor: pictures and frames of clips as patches, at a budget of soft tokens; sound as log-mel frames."""

import numpy as np

from numgemma.config import MOST, build, demand
from numgemma.prompt import audio, images, video
from numgemma.prompt.processors.record import (
    MEL,
    PICTURE,
    SOUND,
    Marks,
    Processor,
    ProcessorClass,
    mel_rules,
    numbers,
    settings,
)

CUBIC = PICTURE | {"resample": 3, "image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0]}
FRAME = CUBIC | {"do_normalize": True, "do_sample_frames": True}
HEARD = SOUND | MEL | {"return_attention_mask": True, "fft_overdrive": False, "preemphasis": 0.0}


PIXELS = 1 << 24  # of a picture that has all its soft tokens: six times the most of a release

SPECIAL = {
    0: "<pad>",
    1: "<eos>",
    2: "<bos>",
    3: "<unk>",
    4: "<mask>",
    46: "<|tool>",
    47: "<tool|>",
    48: "<|tool_call>",
    49: "<tool_call|>",
    50: "<|tool_response>",
    51: "<tool_response|>",
    52: '<|"|>',
    98: "<|think|>",
    100: "<|channel>",
    101: "<channel|>",
    105: "<|turn>",
    106: "<turn|>",
}
NAMED = {
    "boi_token_id": "<|image>",
    "boa_token_id": "<|audio>",
    "image_token_id": "<|image|>",
    "audio_token_id": "<|audio|>",
    "eoi_token_id": "<image|>",
    "eoa_token_id": "<audio|>",
    "video_token_id": "<|video|>",
}


def parse(raw, where) -> Processor:
    """A processor_config.json of Gemma4Processor; `where` names the file in errors."""
    image = settings(images.ImageSettings, raw, "image_processor", CUBIC, {"image_seq_length", "do_normalize"}, where)
    frame, num_frames = read_frame(raw, where)
    sound = settings(audio.SoundSettings, raw, "feature_extractor", HEARD, {"preemphasis_htk_flavor"}, where)
    demand([*picture_rules(image, frame, num_frames), *mel_rules(sound, 0.02)], where)
    return Processor(CLASS, image, sound, frame, num_frames)


def read_frame(raw, where) -> tuple[images.ImageSettings, int]:
    """The settings of each frame of a clip, and how many frames are looked at."""
    found = numbers(raw, "video_processor", FRAME, {"return_metadata"}, where)
    num_frames = found.pop("num_frames", 0)
    return build(images.ImageSettings, found, f"{where}, video_processor"), num_frames


def picture_rules(image: images.ImageSettings, frame: images.ImageSettings, num_frames):
    """Numbers that have no meaning, or that Transformers would not follow."""
    return [
        (image.max_soft_tokens in images.BUDGETS, f"max_soft_tokens should be one of {images.BUDGETS}"),
        (frame.max_soft_tokens in images.BUDGETS, f"max_soft_tokens of a video should be one of {images.BUDGETS}"),
        (
            type(num_frames) is int and 0 < num_frames <= MOST["num_frames"],
            f"num_frames should be 1 to {MOST['num_frames']:,}",
        ),
        (min(vars(image).values()) > 0 and min(vars(frame).values()) > 0, "a size of a picture is not positive"),
        (
            max(s.max_soft_tokens * s.cell**2 for s in (image, frame)) <= PIXELS,
            "soft tokens of too many pixels",
        ),
    ]


def read_images(paths, p: Processor, m: Marks):
    """-> arrays by name, and begin, soft tokens and end for each picture"""
    return patches([images.image_arrays(path, p.image) for path in paths], p, m)


def patches(pairs, p: Processor, m: Marks):
    """Pictures as `read_images`.  pairs: of each I X, I 2"""
    pixels, places = map(np.stack, zip(*pairs, strict=True))
    spelled = [m.begin + m.soft * images.soft_tokens(xy, p.image) + m.end for xy in places]
    return {"pixel_values": pixels, "image_position_ids": places}, spelled


def read_sounds(paths, p: Processor, m: Marks):
    """-> arrays by name, and begin, soft tokens and end for each recording"""
    features, mask = audio.sound_arrays(paths, p.sound)
    spelled = [m.begin + m.soft * audio.soft_tokens(one) + m.end for one in mask]
    return {"input_features": features, "input_features_mask": mask}, spelled


def read_videos(paths, p: Processor, m: Marks):
    """Each frame is spelled as when it is seen, and an image's tokens with the video's placeholder."""
    clips = [video.video_arrays(path, p.frame, p.num_frames) for path in paths]
    spelled = []
    for clip in clips:
        frame = m.begin + m.soft * images.soft_tokens(clip.places[0], p.frame) + m.end
        spelled.append(" ".join(f"{time} {frame}" for time in video.timestamps(clip.seconds)))
    return of_clips(clips), spelled


def of_clips(clips: list[video.Clip]):
    """The arrays of all clips together."""
    return {
        "pixel_values_videos": np.concatenate([clip.patches for clip in clips]),
        "video_position_ids": np.concatenate([clip.places for clip in clips]),
        "num_frames_per_video": np.array([len(clip.patches) for clip in clips]),
    }


def seen(path, s: images.ImageSettings):
    """A picture as the tower sees it.  ->  height width 3, uint8"""
    return images.resized(images.open_image(path), s)


def grid(height, width, s: images.ImageSettings):
    """Rows and columns of soft tokens."""
    return tuple(n // s.cell for n in images.target_size(height, width, s))


def heard(path, p: Processor):
    """Log-mel frames of one recording, and its soft tokens.  ->  U M, number"""
    features, mask = (x[0] for x in audio.sound_arrays([path], p.sound))
    return features[mask], audio.soft_tokens(mask)


CLASS = ProcessorClass(
    name="Gemma4Processor",
    parse=parse,
    read={"image": read_images, "video": read_videos, "audio": read_sounds},
    budgets=images.BUDGETS,
    seen=seen,
    grid=grid,
    heard=heard,
    special=SPECIAL,
    named=NAMED,
)
