"""From an image file's bytes to RGB pixels.

A picture becomes what a viewer shows: upright as its EXIF orientation says, transparency laid over
white, gray, palette and CMYK as RGB, and of an animation the first frame.

Read are JPEG, PNG, GIF, BMP, WebP, TIFF and PPM. Pillow knows dozens of others, some of which run
programs of their own; files from anywhere should not choose among them.
"""

import io
import os
from pathlib import Path

import numpy as np

from jaxrobust import packages

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")


class DamagedImageError(ValueError):
    """The bytes are no image that can be read; the message is the reason."""


def decode(data: bytes, image_size: int | None = None) -> np.ndarray:
    """Decodes an image, and resizes it with Pillow's bicubic filter.

    Args:
      data: The file's content: JPEG, PNG, GIF, BMP, WebP, TIFF or PPM.
      image_size: Side of the result in pixels; a picture that is not square is squeezed. None
        keeps the picture's own size.

    Returns:
      uint8 [H, W, 3].

    Raises:
      DamagedImageError: Not an image of these formats, cut short, or of more than 8 bits a channel.

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
                raise DamagedImageError("more than 8 bits a channel; convert it to 8 bits")
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
    """Reads an image file as `load` does: the pixels that a trained network expects.

    Args:
      path: Of the file: JPEG, PNG, GIF, BMP, WebP, TIFF or PPM.
      image_size: Side of the result in pixels, resized with the bicubic filter; None keeps the
        picture's own size.

    Returns:
      uint8 [H, W, 3].

    Raises:
      FileNotFoundError: No such file.
      DamagedImageError: A ValueError: not an image of these formats, cut short, or of more than 8
        bits a channel.
    """
    try:
        return decode(Path(path).read_bytes(), image_size)
    except DamagedImageError as error:
        raise DamagedImageError(f"{os.fspath(path)}: {error}") from None
