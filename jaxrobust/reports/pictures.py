"""Arrays to pictures: PNG data URIs of native size, which the page enlarges pixel by pixel.

Images are uint8 [H, W, C] in 0 .. 255 or floating [H, W, C] in [0, 1], with one channel or three;
maps (saliency, Grad-CAM) are floating [H, W] of any range.
"""

import base64
import binascii
import functools
import io
import math
from typing import Any

import numpy as np

from jaxrobust import packages

# Little endian whatever the machine: the file says so.
_DTYPES: dict[str, np.dtype] = {"uint8": np.dtype("u1"), "float32": np.dtype("<f4")}


def decode_array(value: dict[str, Any]) -> np.ndarray:
    """Decodes an array of a result.json.

    Args:
      value: {"dtype": "uint8" | "float32", "shape": [...], "base64": "..."}, the bytes in
        little endian and C order.

    Returns:
      The array, read-only, of that shape and type.

    Raises:
      ValueError: An unknown dtype, broken base64, or data that do not fill the shape.

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
    """An array for JSON: {"dtype", "shape", "base64"}, little endian, C order."""
    array = np.ascontiguousarray(array)
    little = array.astype(array.dtype.newbyteorder("<"))
    return {
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "base64": base64.b64encode(little.tobytes()).decode(),
    }


def as_bytes(image: np.ndarray) -> np.ndarray:
    """An image, or many, as uint8; NaN is black."""
    if image.dtype == np.uint8:
        return image
    return np.rint(255 * np.clip(np.nan_to_num(image, nan=0.0), 0.0, 1.0)).astype(np.uint8)


def to_rgb(image: np.ndarray) -> np.ndarray:
    """An image as uint8 [H, W, 3]; a grey one is repeated."""
    image = as_bytes(image)
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image


def perturbation(image: np.ndarray, adversarial: np.ndarray) -> tuple[np.ndarray, float | None]:
    """The difference of two images, amplified so that its largest value fills the range.

    Args:
      image: uint8 or floating [H, W, C].
      adversarial: the same shape.

    Returns:
      uint8 [H, W, 3], grey where nothing changed, and the factor; None where nothing changed
      at all.
    """
    difference = np.nan_to_num(_unit(adversarial) - _unit(image))
    largest = float(np.abs(difference).max(initial=0.0))
    if largest == 0.0:
        return to_rgb(np.full(image.shape, 0.5, np.float32)), None
    factor = 0.5 / largest
    return to_rgb(0.5 + factor * difference), factor


def amplified(factor: float | None) -> str:
    """How strongly a perturbation is shown; None is that of two equal images."""
    return "none" if factor is None else f"\N{MULTIPLICATION SIGN} {factor:,.1f}"


def heat(values: np.ndarray) -> np.ndarray:
    """A map [H, W] in colour, uint8 [H, W, 3], stretched from its own minimum to its maximum."""
    return _colours("magma")[np.rint(255 * _stretched(values)).astype(np.uint8)]


def overlay(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A map [H, W] laid over an image [H, W, C], uint8 [H, W, 3]: it covers where it is high.

    The image is drawn in grey, so that every colour belongs to the map.
    """
    strength = _stretched(values)[..., None]
    colour = _colours("viridis")[np.rint(255 * strength[..., 0]).astype(np.uint8)]
    grey = to_rgb(image).astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    opacity = 0.75 * strength
    mixed = (1 - opacity) * grey[..., None] + opacity * colour
    return np.rint(mixed).astype(np.uint8)


def data_uri(image: np.ndarray) -> str:
    """An image, uint8 [H, W, 3], as the data URI of a PNG of its own size."""
    with packages.extra("reports", "A picture of a report"):
        from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _unit(image: np.ndarray) -> np.ndarray:
    scale = 255.0 if image.dtype == np.uint8 else 1.0
    return image.astype(np.float32) / np.float32(scale)


def _stretched(values: np.ndarray) -> np.ndarray:
    """A map on [0, 1]; a flat one is 0 everywhere, because nothing in it stands out."""
    values = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = values.min(initial=np.inf), values.max(initial=-np.inf)
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


@functools.cache
def _colours(name: str) -> np.ndarray:
    with packages.extra("reports", "A picture of a report"):
        import matplotlib

    return np.rint(255 * matplotlib.colormaps[name](np.arange(256))[:, :3]).astype(np.uint8)
