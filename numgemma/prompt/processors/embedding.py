"""EmbeddingGemma 2's processor: Gemma 4's, but for clips, of which it looks at a frame a second and tells no times.

So it does as released; with `add_timestamps` each frame stands behind the second in which it is seen.
"""

from dataclasses import replace

import numpy as np

from numgemma.config import build, demand
from numgemma.prompt import audio, images, video
from numgemma.prompt.processors import gemma4
from numgemma.prompt.processors.record import Marks, Processor, ProcessorClass, mel_rules, numbers, settings

FRAME = gemma4.CUBIC | {"do_sample_frames": True, "fps": 1, "overflow_strategy": "uniform"}
IDLE = {"return_metadata", "do_normalize", "num_frames", "add_timestamps", "load_audio_from_video"}


def parse(raw, where) -> Processor:
    """A processor_config.json of EmbeddingGemma2Processor; `where` names the file in errors."""
    idle = {"image_seq_length", "do_normalize"}
    image = settings(images.ImageSettings, raw, "image_processor", gemma4.CUBIC, idle, where)
    told = numbers(raw, "video_processor", FRAME, IDLE, where)
    most = told.pop("max_frames", 32)
    frame = build(images.ImageSettings, told, f"{where}, video_processor")
    sound = settings(audio.SoundSettings, raw, "feature_extractor", gemma4.HEARD, {"preemphasis_htk_flavor"}, where)
    demand([*gemma4.picture_rules(image, frame, most), *mel_rules(sound, 0.02)], where)
    timed = bool(raw["video_processor"].get("add_timestamps", False))
    return Processor(CLASS, image, sound, frame, most, timed)


def read_videos(paths, p: Processor, m: Marks):
    """Each frame is spelled as an image, with the video's placeholder; behind its time where that is told."""
    clips = [video.some_frames(path, p.frame, lambda index: each_second(index, p.num_frames)) for path in paths]
    spelled = []
    for clip in clips:
        frame = m.begin + m.soft * images.soft_tokens(clip.places[0], p.frame) + m.end
        times = [f"{round(t) // 60:02d}:{round(t) % 60:02d}" for t in clip.seconds]
        spelled.append(" ".join(f"{t} {frame}" for t in times) if p.timed else frame * len(times))
    return gemma4.of_clips(clips), spelled


def each_second(index: video.Index, most: int) -> list[int]:
    """A frame for each whole second, of which at most so many.  (equals EmbeddingGemma2VideoProcessor.sample_frames)"""
    total = len(index.times)
    found = [min(total - 1, int(i * index.fps)) for i in range(max(1, int(index.seconds)))]
    if len(found) <= most:
        return found
    return [found[i] for i in np.linspace(0, len(found) - 1, most, dtype=int)]


CLASS: ProcessorClass = replace(
    gemma4.CLASS,
    name="EmbeddingGemma2Processor",
    parse=parse,
    around=("<bos>", "<eos>"),
    read={**gemma4.CLASS.read, "video": read_videos},
)
