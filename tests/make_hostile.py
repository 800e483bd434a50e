"""Writes tests/hostile: small pictures, recordings and clips of every kind that people have, and of those that attack.

    python tests/make_hostile.py             the files (needs the extra `media`)
    python tests/make_hostile.py expected    what Transformers makes of them (needs `hf` and torchvision too)

Files are committed, for an encoder of another version writes other bytes.  Run it again only to add one.
"""

import struct
import sys
import zlib
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "hostile"
GOOD = ("picture", "sound", "clip")  # how the names of readable files begin; all others should be refused


# pictures


def scene(height=47, width=61, channels=3):
    """Smooth, with an edge, and not symmetric in any way."""
    y, x = np.mgrid[:height, :width]
    waves = [127 + 100 * np.sin(x / (5 + 3 * c) + y / (9 - 2 * c) + c) for c in range(channels)]
    waves[0][y > x] /= 3
    return np.stack(waves, axis=-1).astype(np.uint8)


def pictures():
    from PIL import Image

    rgb, rgba = Image.fromarray(scene()), Image.fromarray(scene(channels=4))
    gray = rgb.convert("L")
    palette = rgb.convert("P", palette=Image.Palette.ADAPTIVE, colors=31)
    wide = Image.fromarray((np.asarray(gray).astype(np.uint16) * 251) + 7)
    cmyk = rgb.convert("CMYK")
    frames = [Image.fromarray(np.roll(scene(), 9 * i, axis=1)) for i in range(3)]

    rgb.save(FOLDER / "picture_rgb.png")
    gray.save(FOLDER / "picture_gray.png")
    wide.save(FOLDER / "picture_gray16.png")
    rgb.convert("1").save(FOLDER / "picture_1bit.png")
    rgba.save(FOLDER / "picture_rgba.png")
    rgba.convert("LA").save(FOLDER / "picture_gray_alpha.png")
    palette.save(FOLDER / "picture_palette.png")
    palette.save(FOLDER / "picture_palette_alpha.png", transparency=bytes(range(0, 248, 8)))
    rgb.save(FOLDER / "picture_color_key.png", transparency=(127, 127, 127))
    cmyk.save(FOLDER / "picture_cmyk.jpg", quality=95)
    gray.save(FOLDER / "picture_gray.jpg", quality=95)
    rgb.save(FOLDER / "picture_progressive.jpg", quality=90, progressive=True)
    rgb.save(FOLDER / "picture_lossy.webp", quality=90)
    rgba.save(FOLDER / "picture_alpha.webp", lossless=True)
    frames[0].save(FOLDER / "picture_animated.gif", save_all=True, append_images=frames[1:])
    rgb.save(FOLDER / "picture_rgb.bmp")
    cmyk.save(FOLDER / "picture_cmyk.tiff", compression="tiff_lzw")
    for turn in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        rgb.save(FOLDER / f"picture_turned{turn}.png", exif=exif)
    rgb.save(FOLDER / "picture_turned6.jpg", quality=95, exif=exif_of(Image, 6))
    rgb.save(FOLDER / "picture_exif_nonsense.jpg", quality=95, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff nonsense")
    Image.fromarray(scene(1, 5000)).save(FOLDER / "picture_1x5000.png")
    Image.fromarray(scene(5000, 1)).save(FOLDER / "picture_5000x1.png")
    Image.fromarray(scene(1, 1)).save(FOLDER / "picture_1x1.png")
    Image.fromarray(scene(480, 336)).quantize(8).save(FOLDER / "picture_fits_70.png")  # 10 x 7 soft tokens as it is


def exif_of(Image, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    return exif


def bad_pictures():
    png, jpg = ((FOLDER / f"picture_{name}").read_bytes() for name in ("rgb.png", "progressive.jpg"))
    (FOLDER / "bad_cut.png").write_bytes(png[: len(png) // 2])
    (FOLDER / "bad_cut.jpg").write_bytes(jpg[: len(jpg) // 2])
    (FOLDER / "bad_bomb.png").write_bytes(png_of(60000, 60000))
    (FOLDER / "bad_bomb_row.png").write_bytes(png_of(2**31 - 1, 1))
    (FOLDER / "bad_no_width.png").write_bytes(png_of(0, 7))
    (FOLDER / "bad_flipped_bits.png").write_bytes(png[:60] + bytes(255 - b for b in png[60:90]) + png[90:])
    (FOLDER / "bad_empty.png").write_bytes(b"")
    (FOLDER / "bad_text.png").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (FOLDER / "bad_script.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")


def png_of(width, height):
    """A PNG whose header says one size, and whose data end at once."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(99)))]
    chunks.append((b"IEND", b""))
    parts = [struct.pack(">I", len(x)) + kind + x + struct.pack(">I", zlib.crc32(kind + x)) for kind, x in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# sound


def tones(seconds, rate, channels=1):
    """A rising tone with a pause, different in every channel."""
    t = np.arange(int(seconds * rate)) / rate
    x = np.stack([0.4 * np.sin(2 * np.pi * (200 + 60 * c + 900 * t) * t) for c in range(channels)], axis=-1)
    x[len(x) // 3 : len(x) // 2] = 0
    return x


def sounds():
    import soundfile

    def write(name, x, rate, **how):
        soundfile.write(FOLDER / name, x, rate, **how)

    write("sound_16k.wav", tones(0.31, 16000), 16000, subtype="PCM_16")
    write("sound_8k_8bit.wav", tones(0.3, 8000), 8000, subtype="PCM_U8")
    write("sound_44k_stereo.wav", tones(0.1, 44100, 2), 44100, subtype="PCM_16")
    write("sound_48k_24bit.wav", tones(0.07, 48000), 48000, subtype="PCM_24")
    write("sound_22k_float.wav", 3 * tones(0.12, 22050), 22050, subtype="FLOAT")
    write("sound_11k_ulaw.wav", tones(0.3, 11025), 11025, subtype="ULAW")
    write("sound_96k_6channels.flac", tones(0.05, 96000, 6), 96000, subtype="PCM_16")
    write("sound_16k.flac", tones(0.4, 16000), 16000)
    write("sound_32k_stereo.ogg", tones(0.3, 32000, 2), 32000, format="OGG", subtype="VORBIS")
    write("sound_48k_opus.ogg", tones(0.2, 48000), 48000, format="OGG", subtype="OPUS")
    write("sound_44k.mp3", tones(0.3, 44100), 44100)
    write("sound_silence.wav", np.zeros(4000), 16000, subtype="PCM_16")
    write("sound_161_samples.wav", tones(1, 161), 16000, subtype="PCM_16")
    write("sound_35s.flac", np.zeros(35 * 8000), 8000, subtype="PCM_16")
    wav = (FOLDER / "sound_16k.wav").read_bytes()
    (FOLDER / "sound_cut.wav").write_bytes(wav[: len(wav) // 2])  # what is there is heard, as in Transformers
    lie = struct.pack("<I", 3 * 3600 * 32000)
    (FOLDER / "sound_says_3_hours.wav").write_bytes(wav[:40] + lie + wav[44:])
    write("bad_160_samples.wav", tones(1, 160), 16000, subtype="PCM_16")
    write("bad_no_samples.wav", np.zeros(0), 16000, subtype="PCM_16")
    write("bad_nan.wav", np.array([0.1, np.nan] * 400), 16000, subtype="FLOAT")
    write("bad_infinite.wav", np.array([0.1, np.inf] * 400), 44100, subtype="FLOAT")
    write("bad_loud.wav", np.array([0.1, 1e38] * 400), 16000, subtype="FLOAT")
    (FOLDER / "bad_rate.wav").write_bytes(wav[:24] + struct.pack("<I", 2**31 - 1) + wav[28:])
    flac = (FOLDER / "sound_16k.flac").read_bytes()
    (FOLDER / "bad_cut_header.flac").write_bytes(flac[:30])
    (FOLDER / "bad_empty.wav").write_bytes(b"")
    (FOLDER / "bad_text.wav").write_text("Listen to this.")


# clips


def clip(name, frames, codec, rate=10, size=(61, 47), options=None, pixel_format="yuv420p", **how):
    """A scene that moves."""
    import av

    width, height = size[0] // 2 * 2, size[1] // 2 * 2
    with av.open(str(FOLDER / name), "w", **how) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        for i in range(frames):
            pixels = np.roll(scene(height, width), 3 * i, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def clips():
    from fractions import Fraction

    clip("clip_h264.mp4", 75, "libx264", options={"g": "12", "bf": "2", "crf": "30"})
    clip("clip_one_key.mp4", 50, "libx264", rate=Fraction(30000, 1001), options={"g": "999", "crf": "35"})
    clip("clip_mpeg4.avi", 45, "mpeg4", rate=25, options={"g": "10", "bf": "2", "qscale": "15"})
    clip("clip_vp9.webm", 40, "libvpx-vp9", rate=24, options={"g": "8", "crf": "50", "b": "0"})
    clip("bad_mpeg2.ts", 40, "mpeg2video", rate=25, options={"g": "9", "bf": "2", "qscale": "20"})
    clip("clip_gif.gif", 34, "gif", rate=5, pixel_format="rgb8", size=(32, 24))
    clip("clip_5_frames.mp4", 5, "libx264", rate=1, options={"crf": "30"})
    clip("clip_minutes.mp4", 70, "libx264", rate=Fraction(1, 2), options={"g": "20", "crf": "40"}, size=(48, 32))
    mp4 = (FOLDER / "clip_h264.mp4").read_bytes()
    (FOLDER / "bad_cut.mp4").write_bytes(mp4[: len(mp4) // 2])
    (FOLDER / "bad_empty.mp4").write_bytes(b"")
    (FOLDER / "bad_text.mp4").write_text("Look at this.")
    (FOLDER / "bad_playlist.mp4").write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nclip_h264.mp4\n#EXT-X-ENDLIST\n"
    )
    (FOLDER / "bad_concat.mp4").write_text("ffconcat version 1.0\nfile clip_h264.mp4\n")
    sound_only()


def sound_only():
    import av

    with av.open(str(FOLDER / "bad_sound_only.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    if sys.argv[1:] == ["expected"]:
        from hf_processors import store_expected

        store_expected(FOLDER)
    else:
        pictures()
        bad_pictures()
        sounds()
        clips()
