"""Converts arrays to pictures: PNG data URIs of native size, which the page enlarges.

Images are uint8 [H, W, C] in 0 .. 255 or floating point [H, W, C] in [0, 1], with one channel or three.
Maps (saliency, Grad-CAM) are floating point [H, W], of any range.
"""

import base64
import binascii
import functools
import io
import math
from typing import Any

import numpy as np

from jaxrobust import packages

# The arrays in a file are little endian on every machine.
_DTYPES: dict[str, np.dtype] = {"uint8": np.dtype("u1"), "float32": np.dtype("<f4")}


def decode_array(value: dict[str, Any]) -> np.ndarray:
    """Decodes an array of a result.json.

    Args:
      value: {"dtype": "uint8" or "float32", "shape": [...], "base64": "..."}, with the bytes in little
        endian and C order.

    Returns:
      The array, which is read-only.

    Raises:
      ValueError: The dtype is unknown, the base64 is damaged, or the data do not fill the shape.

    Example:
      >>> decode_array({"dtype": "uint8", "shape": [2], "base64": "AQI="})
      array([1, 2], dtype=uint8)
    """
    if value["dtype"] not in _DTYPES:
        raise ValueError(f"`dtype` must be one of {tuple(_DTYPES)}, got {value['dtype']!r}.")
    dtype, shape = _DTYPES[value["dtype"]], tuple(value["shape"])
    try:
        data = base64.b64decode(value["base64"], validate=True)
    except binascii.Error as error:
        raise ValueError(f"`base64` cannot be decoded: {error}.") from error
    needed = math.prod(shape) * dtype.itemsize
    if len(data) != needed or min(shape, default=0) < 0:
        raise ValueError(
            f"`base64` must hold {needed} bytes for {value['dtype']} of shape {shape}, "
            f"got {len(data)}."
        )
    return np.frombuffer(data, dtype).reshape(shape)


def encode_array(array: Any) -> dict[str, Any]:
    """Encodes an array for JSON as {"dtype", "shape", "base64"}, in little endian and C order."""
    array = np.ascontiguousarray(array)
    little = array.astype(array.dtype.newbyteorder("<"))
    return {
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "base64": base64.b64encode(little.tobytes()).decode(),
    }


def as_bytes(image: np.ndarray) -> np.ndarray:
    """Converts one image, or many, to uint8; NaN becomes black."""
    if image.dtype == np.uint8:
        return image
    return np.rint(255 * np.clip(np.nan_to_num(image, nan=0.0), 0.0, 1.0)).astype(np.uint8)


def to_rgb(image: np.ndarray) -> np.ndarray:
    """Converts an image to uint8 [H, W, 3]; a single channel is repeated."""
    image = as_bytes(image)
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image


def perturbation(image: np.ndarray, adversarial: np.ndarray) -> tuple[np.ndarray, float | None]:
    """Draws the difference of two images, amplified so that its largest value fills the range.

    Args:
      image: uint8 or floating point [H, W, C].
      adversarial: uint8 or floating point [H, W, C].

    Returns:
      (uint8 [H, W, 3], which is grey where nothing changed; the factor, or None if the images are
      equal).
    """
    difference = np.nan_to_num(_unit(adversarial) - _unit(image))
    largest = float(np.abs(difference).max(initial=0.0))
    if largest == 0.0:
        return to_rgb(np.full(image.shape, 0.5, np.float32)), None
    factor = 0.5 / largest
    return to_rgb(0.5 + factor * difference), factor


def amplified(factor: float | None) -> str:
    """Writes the factor by which a perturbation is amplified, or "none" for equal images."""
    return "none" if factor is None else f"\N{MULTIPLICATION SIGN} {factor:,.1f}"


def heat(values: np.ndarray) -> np.ndarray:
    """Draws a map [H, W] in colour, stretched from its minimum to its maximum: uint8 [H, W, 3]."""
    return _colours("magma")[np.rint(255 * _stretched(values)).astype(np.uint8)]


def overlay(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Draws a map [H, W] over an image [H, W, C]: uint8 [H, W, 3].

    The map hides the image most where it is high. The image is grey, so that all colours come from the
    map.
    """
    strength = _stretched(values)[..., None]
    colour = _colours("viridis")[np.rint(255 * strength[..., 0]).astype(np.uint8)]
    grey = to_rgb(image).astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    opacity = 0.75 * strength
    mixed = (1 - opacity) * grey[..., None] + opacity * colour
    return np.rint(mixed).astype(np.uint8)


def data_uri(image: np.ndarray) -> str:
    """Converts an image, uint8 [H, W, 3], to the data URI of a PNG of the same size."""
    with packages.extra("reports", "A picture of a report"):
        from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _unit(image: np.ndarray) -> np.ndarray:
    scale = 255.0 if image.dtype == np.uint8 else 1.0
    return image.astype(np.float32) / np.float32(scale)


def _stretched(values: np.ndarray) -> np.ndarray:
    """Stretches a map to [0, 1]; a flat map becomes 0, because nothing in it stands out."""
    values = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = values.min(initial=np.inf), values.max(initial=-np.inf)
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


@functools.cache
def _colours(name: str) -> np.ndarray:
    with packages.extra("reports", "A picture of a report"):
        import matplotlib

    return np.rint(255 * matplotlib.colormaps[name](np.arange(256))[:, :3]).astype(np.uint8)
