"""Transformers' own processor of Gemma 3n, as the tests compare with it."""

import json

from numgemma.prompt.processor import join, processor_of, released

# The two objects without sections in which Transformers 4 wrote the settings.
BESIDE = {"audio_seq_length": 188, "image_seq_length": 256, "processor_class": "Gemma3nProcessor"}
OLDER = BESIDE | {
    "chunk_length_s": None,
    "crop_size": None,
    "data_format": None,
    "default_to_square": False,
    "device": None,
    "dither": 0.0,
    "do_center_crop": None,
    "do_convert_rgb": None,
    "do_normalize": False,
    "do_rescale": True,
    "do_resize": True,
    "feature_extractor_type": "Gemma3nAudioFeatureExtractor",
    "feature_size": 128,
    "fft_length": 1024,
    "fft_overdrive": True,
    "frame_length": 512,
    "hop_length": 160,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "SiglipImageProcessorFast",
    "image_std": [0.5, 0.5, 0.5],
    "input_data_format": None,
    "input_scale_factor": 1.0,
    "max_frequency": 7600.0,
    "mel_floor": 1e-5,
    "min_frequency": 125.0,
    "padding_side": "right",
    "padding_value": 0.0,
    "per_bin_mean": None,
    "per_bin_stddev": None,
    "preemphasis": 0.97,
    "preemphasis_htk_flavor": True,
    "resample": 2,
    "rescale_factor": 1 / 255,
    "return_attention_mask": False,
    "return_tensors": None,
    "sampling_rate": 16000,
    "size": {"height": 768, "width": 768},
}


def official():
    return json.loads(released("gemma3n").read_text())


def image_processor():
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    return SiglipImageProcessorPil(**official()["image_processor"])


def processor(folder):
    """The whole, with the tokenizer and the template of a folder."""
    from transformers import AutoTokenizer, Gemma3nAudioFeatureExtractor
    from transformers.models.gemma3n.processing_gemma3n import Gemma3nProcessor

    tokenizer = AutoTokenizer.from_pretrained(folder)
    extractor = Gemma3nAudioFeatureExtractor.from_dict(official()["feature_extractor"])
    return Gemma3nProcessor(extractor, image_processor(), tokenizer, chat_template=tokenizer.chat_template)


def opened(files):
    """Pictures and samples, as a processor takes them."""
    from transformers.audio_utils import load_audio
    from transformers.image_utils import load_image

    pictures = [load_image(str(path)) for path in files.get("image", ())]
    sounds = [load_audio(str(path), backend="soundfile") for path in files.get("audio", ())]
    return {"images": [pictures] if pictures else None, "audio": sounds or None}


def theirs(folder, text, files):
    return processor(folder)(text=text, **opened(files), return_tensors="np")


def chat(of_theirs, messages, files):
    """The ids of a chat, by the template and the processor."""
    text = of_theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    found = of_theirs(text=text, **opened(files), add_special_tokens=False, return_tensors="np")
    return found["input_ids"][0].tolist()


def ours(model, text, files):
    return join(text, files, processor_of(model.checkpoint), model.config, model.tokenizer, model.tokenizer.encode)
