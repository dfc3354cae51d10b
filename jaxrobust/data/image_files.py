"""Decodes the bytes of an image file to RGB pixels.

The pixels are what an image viewer shows: rotated by the EXIF orientation, with transparency over
white; gray, palette and CMYK images become RGB, and only the first frame of an animation is read.

The formats are JPEG, PNG, GIF, BMP, WebP, TIFF and PPM. Pillow reads dozens of others, but some of them
run external programs, which untrusted files must not be able to choose.
"""

import io
import os
from pathlib import Path

import numpy as np

from jaxrobust import packages

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")


class DamagedImageError(ValueError):
    """The bytes are not an image that can be read; the message is the reason."""


def decode(data: bytes, image_size: int | None = None) -> np.ndarray:
    """Decodes an image, and resizes it with Pillow's bicubic filter.

    Args:
      data: The content of the file: JPEG, PNG, GIF, BMP, WebP, TIFF or PPM.
      image_size: The side of the result in pixels; an image that is not square is stretched. None: the
        size of the image.

    Returns:
      uint8 [H, W, 3].

    Raises:
      DamagedImageError: The data is not an image of these formats, is cut short, or has more than 8
        bits per channel.

    Example:
      >>> decode(b"GIF89a")
      Traceback (most recent call last):
      ...
      jaxrobust.data.image_files.DamagedImageError: not an image
    """
    with packages.extra("data", "Reading images"):
        from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            if picture.mode == "F" or picture.mode.startswith("I"):
                # Pillow would clip these to 0 .. 255 without a word: an almost white image.
                raise DamagedImageError("more than 8 bits per channel; convert it to 8 bits")
            upright = ImageOps.exif_transpose(picture)
            if upright.has_transparency_data:
                white = Image.new("RGBA", upright.size, "white")
                upright = Image.alpha_composite(white, upright.convert("RGBA"))
            rgb = upright.convert("RGB")
        if image_size is not None:
            rgb = rgb.resize((image_size, image_size), Image.Resampling.BICUBIC)
        return np.asarray(rgb)
    except (DamagedImageError, MemoryError):
        raise
    except UnidentifiedImageError:  # its own message holds the address of a buffer
        raise DamagedImageError("not an image") from None
    except Exception as error:  # Pillow's plugins raise whatever their parsers run into
        raise DamagedImageError(f"{type(error).__name__}: {error}") from error


def read_image(path: str | os.PathLike[str], image_size: int | None = None) -> np.ndarray:
    """Reads an image file with the same decoding and resizing as `load`.

    Args:
      path: The path of a JPEG, PNG, GIF, BMP, WebP, TIFF or PPM file.
      image_size: The side of the result in pixels; the image is resized with the bicubic filter, and
        stretched if it is not square. None: the size of the image.

    Returns:
      uint8 [H, W, 3].

    Raises:
      FileNotFoundError: The file does not exist.
      DamagedImageError: The file is not an image of these formats, is cut short, or has more than 8
        bits per channel. It is a ValueError.
    """
    try:
        return decode(Path(path).read_bytes(), image_size)
    except DamagedImageError as error:
        raise DamagedImageError(f"{os.fspath(path)}: {error}") from None
