"""A picture in a file -> the patches that the vision tower takes: exactly what Transformers' Pillow processor returns.

Additions to the axis key in attention.py:

    I  patches, padding included        X  numbers of one patch: rows, columns, channels, the channel fastest
"""

import math
import warnings
from dataclasses import dataclass

import numpy as np

from numgemma.errors import InputError
from numgemma.extras import package
from numgemma.incoming import explained, open_regular

BUDGETS = (70, 140, 280, 560, 1120)  # soft tokens that the models were trained with
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 178_956_970  # above it Pillow refuses, and so Transformers; up to it a picture takes about 1 GB to decode


@dataclass(frozen=True)
class ImageSettings:
    """The keys of `image_processor` in processor_config.json on which a number depends, under their own names."""

    patch_size: int  # pixels
    pooling_kernel_size: int  # patches to a side of one soft token
    max_soft_tokens: int
    rescale_factor: float

    @property
    def max_patches(self):
        return self.max_soft_tokens * self.pooling_kernel_size**2

    @property
    def cell(self):
        """Pixels to a side of one soft token; the sides of a resized picture are multiples of it."""
        return self.patch_size * self.pooling_kernel_size


def image_arrays(path, s: ImageSettings):
    """One picture as patches and their places, padded to the budget.  ->  I X float32, I 2 int64

    Equals Gemma4ImageProcessorPil on that file, to the last bit.  Raises InputError where it is no picture.
    """
    pixels = resized(open_image(path), s)
    rows, columns = (n // s.patch_size for n in pixels.shape[:2])
    return pad(to_patches(rescale(pixels, s.rescale_factor), s.patch_size), positions(rows, columns), s.max_patches)


def soft_tokens(places, s: ImageSettings) -> int:
    """How many soft tokens a padded picture becomes.  places: I 2"""
    return int((places[:, 0] >= 0).sum()) // s.pooling_kernel_size**2


def open_image(path):
    """The picture in a file as RGB: turned as its EXIF says, alpha dropped, the first frame of an animation.

    Equals transformers.image_utils.load_image.
    """
    image = package("PIL.Image", "media")
    turn = package("PIL.ImageOps", "media").exif_transpose
    with open_regular(path) as file, explained(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on large pictures and on palettes
        try:
            picture = image.open(file, formats=FORMATS)
        except image.DecompressionBombError:
            raise InputError(f"{path}: has more than {MAX_PIXELS:,} pixels; scale it down.") from None
        except Exception:
            known = ", ".join(FORMATS)
            raise InputError(f"{path}: is no picture in one of the formats {known}; convert it to PNG.") from None
        try:
            picture.load()
            turn(picture, in_place=True)  # a copy of the largest picture takes half a gigabyte
            return picture if picture.mode == "RGB" else picture.convert("RGB")
        except Exception as error:  # a decoder raises what it likes
            raise InputError(f"{path}: is a damaged {picture.format} file ({error}); save it again.") from None


def resized(picture, s: ImageSettings):
    """A Pillow picture at the size that the budget allows.  ->  height width 3, uint8"""
    picture = on_white(picture)
    height, width = target_size(picture.height, picture.width, s)
    if (height, width) != (picture.height, picture.width):
        bicubic = package("PIL.Image", "media").Resampling.BICUBIC
        picture = picture.resize((width, height), bicubic)
    return np.asarray(picture)


def on_white(picture):
    """A picture whose format names one colour as transparent has white in its place; an alpha channel is gone already.

    So Transformers' Pillow processor.  Its default one, which decodes with torchvision, keeps the colour, and so does
    the only one of 12B.
    """
    if picture.info.get("transparency") is None:
        return picture
    image = package("PIL.Image", "media")
    above = picture.convert("RGBA")
    return image.alpha_composite(image.new("RGBA", above.size, (255, 255, 255, 255)), above).convert("RGB")


def target_size(height, width, s: ImageSettings):
    """The largest height and width of about this aspect that are multiples of `cell` and within the budget.

    A picture too thin for one cell becomes one cell thick.  (equals get_aspect_ratio_preserving_size)
    """
    factor = math.sqrt(s.max_patches * s.patch_size**2 / (height * width))
    rows, columns = (math.floor(factor * n / s.cell) for n in (height, width))
    if rows == 0:
        rows, columns = 1, min(width // height, s.max_soft_tokens)
    elif columns == 0:
        rows, columns = min(height // width, s.max_soft_tokens), 1
    return rows * s.cell, columns * s.cell


def rescale(pixels, factor):
    """Pixel values in [0, 1]; the tower itself makes them 2 (x - 1/2).  (float64, then rounded: as Transformers)"""
    return (pixels * np.float64(factor)).astype(np.float32)


def to_patches(pixels, size):
    """Cut into squares, row by row.  height width 3  ->  I X"""
    height, width, channels = pixels.shape
    grid = pixels.reshape(height // size, size, width // size, size, channels)
    return grid.transpose(0, 2, 1, 3, 4).reshape(-1, size * size * channels)


def positions(rows, columns):
    """(x, y) of every patch: the column first, then the row.  ->  I 2"""
    y, x = np.divmod(np.arange(rows * columns), columns)
    return np.stack([x, y], axis=-1)


def pad(patches, places, count):
    """Fill up to `count` patches of zeros that stand at (-1, -1).  I X, I 2  ->  I X, I 2"""
    missing = ((0, count - len(patches)), (0, 0))
    return np.pad(patches, missing), np.pad(places, missing, constant_values=-1)
