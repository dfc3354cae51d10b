"""Brightness, contrast, saturation and hue of an image, as torchvision and Pillow define them.

Each takes one image, floating [H, W, C] in [0, 1], and returns one like it. Factors are at least 0; a
factor of 1 and a shift of 0 change nothing. With C = 1 the image is gray: it has no saturation and no
hue to change, and with neither 1 nor 3 channels these two raise ValueError.
"""

import jax.numpy as jnp

from jaxrobust.types import Array

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, Pillow's mode "L"


def adjust_brightness(image: Array, factor: Array | float) -> Array:
    """Blends with black: `factor` times the image, cut off at 1.

    Example:
      >>> adjust_brightness(jnp.array([[[0.25, 0.5, 0.75]]]), 1.5)
      Array([[[0.375, 0.75 , 1.   ]]], dtype=float32)
    """
    return jnp.clip(image * factor, 0, 1)


def adjust_contrast(image: Array, factor: Array | float) -> Array:
    """Blends with the image's mean gray, which a factor of 0 leaves alone.

    Example:
      >>> adjust_contrast(jnp.array([[[0.25], [0.75]]]), 0.5)[..., 0]
      Array([[0.375, 0.625]], dtype=float32)
    """
    # One sum over everything, rather than the mean of a gray image: ten times faster on CPU.
    height, width, channels = image.shape
    weights = jnp.array(_LUMA) if channels == 3 else 1 / channels
    mean = jnp.sum(image * weights) / (height * width)
    return _blend(mean, image, factor)


def adjust_saturation(image: Array, factor: Array | float) -> Array:
    """Blends with the gray image, which a factor of 0 leaves.

    Example:
      >>> adjust_saturation(jnp.array([[[1.0, 0.0, 0.0]]]), 0.0)
      Array([[[0.299, 0.299, 0.299]]], dtype=float32)
    """
    if not _is_rgb(image):
        return image
    red, green, blue = (weight * image[..., i] for i, weight in enumerate(_LUMA))
    gray = red + green + blue
    # Stacked, because XLA would otherwise compute the gray once for each channel, and once more
    # for each pixel that a warp reads.
    return jnp.stack([_blend(gray, image[..., i], factor) for i in range(3)], axis=-1)


def adjust_hue(image: Array, shift: Array | float) -> Array:
    """Turns the hue of the HSV colour model, keeping saturation and value.

    The shift is in turns, usually in [-0.5, 0.5]: 1/3 takes red to green.

    Example:
      >>> adjust_hue(jnp.array([[[1.0, 0.0, 0.0]]]), 1 / 3).round(3)
      Array([[[0., 1., 0.]]], dtype=float32)
    """
    if not _is_rgb(image):
        return image
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    divisor = jnp.where(chroma == 0, 1, chroma)  # gray has no hue: any will do
    hue = 6 * shift + jnp.where(  # in sixths of a turn
        value == red,
        (green - blue) / divisor,
        jnp.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )

    def channel(offset: int) -> Array:
        turned = hue + offset
        turned = turned - 6 * jnp.floor(turned / 6)  # jnp.mod is ten times slower on CPU
        return value - chroma * jnp.clip(jnp.minimum(turned, 4 - turned), 0, 1)

    return jnp.stack([channel(5), channel(3), channel(1)], axis=-1).astype(image.dtype)


def _blend(other: Array, image: Array, factor: Array | float) -> Array:
    return jnp.clip(factor * image + (1 - factor) * other, 0, 1)


def _is_rgb(image: Array) -> bool:
    channels = image.shape[-1]
    if channels not in (1, 3):
        raise ValueError(f"Saturation and hue need images of 1 or 3 channels, got {channels}.")
    return channels == 3
