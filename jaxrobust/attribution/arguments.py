"""Checks and conversions of the arguments that all attribution functions share."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxrobust import checks, programs
from jaxrobust.types import Array, LogitsFn


def checked(
    logits_fn: LogitsFn, images: Array, labels: Array | None
) -> tuple[LogitsFn, Array, Array | None]:
    """Checks the arguments and converts them for compiled code.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K]. Any function.
      images: floating point [B, H, W, C] in [0, 1].
      labels: int [B] or None.

    Returns:
      (logits_fn, images float32, labels as an array or None), for `programs.call`.

    Raises:
      TypeError: The images are integers, or the labels are not.
      ValueError: Shapes do not fit, images are outside [0, 1], or labels are outside 0 .. K - 1.
    """
    images = jnp.asarray(images)
    if labels is not None:
        labels = jnp.asarray(labels)
    checks.images_and_labels(images, jnp.zeros(images.shape[:1], int) if labels is None else labels)
    images = images.astype(jnp.float32)
    num_classes = programs.logits_shape(logits_fn, images)[1]
    if not checks.is_traced(images, labels):
        checks.value_range(images)
        if labels is not None:
            checks.label_range("labels", labels, num_classes)
    return logits_fn, images, labels


def pixels_like(name: str, value: Any, images: Array) -> Array:
    """Broadcasts a number, a colour or an image that replaces pixels to the shape of the images.

    Args:
      name: The argument's name, for messages.
      value: A number or an array in [0, 1] that broadcasts to [B, H, W, C]: a colour [C], an image
        [H, W, C], or one image for each.
      images: [B, H, W, C]; only the shape matters.

    Returns:
      float32 [B, H, W, C].

    Raises:
      TypeError: `value` is neither a number nor an array.
      ValueError: `value` does not broadcast, or is outside [0, 1].
    """
    if isinstance(value, bool | str | bytes | dict) or value is None or callable(value):
        raise TypeError(f"`{name}` must be a number or an array, got {value!r}.")
    pixels = jnp.asarray(value, jnp.float32)
    try:
        fits = jnp.broadcast_shapes(pixels.shape, images.shape) == images.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"`{name}` must be a number or broadcast to the shape of `images`, {images.shape}, "
            f"got shape {pixels.shape}."
        )
    if pixels.size and not checks.is_traced(pixels):
        low, high = jax.device_get((jnp.min(pixels), jnp.max(pixels)))
        if not (low >= 0.0 and high <= 1.0):
            raise ValueError(f"`{name}` must lie in [0, 1], got values in [{low:g}, {high:g}].")
    return jnp.broadcast_to(pixels, images.shape)


def checked_maps(name: str, maps: Any, shape: tuple[int, ...] | None = None) -> Array:
    """Checks maps and converts them to float32.

    Args:
      name: The argument's name, for messages.
      maps: floating point [B, H, W].
      shape: The shape that the maps must have; None allows any.

    Raises:
      TypeError: The maps are not an array of floating point.
      ValueError: The maps do not have three axes, or have another shape.
    """
    if not hasattr(maps, "shape") or not jnp.issubdtype(maps.dtype, jnp.floating):
        kind = maps.dtype if hasattr(maps, "dtype") else type(maps).__name__
        raise TypeError(f"`{name}` must be a floating-point array [B, H, W], got {kind}.")
    if maps.ndim != 3:
        raise ValueError(f"`{name}` must be [B, H, W], got shape {tuple(maps.shape)}.")
    if shape is not None and tuple(maps.shape) != tuple(shape):
        raise ValueError(f"`{name}` must have shape {tuple(shape)}, got {tuple(maps.shape)}.")
    return jnp.asarray(maps, jnp.float32)


def predicted_if_none(logits_fn: LogitsFn, images: Array, labels: Array | None) -> Array:
    """Returns the labels, int [B], or the predicted classes if `labels` is None."""
    return jnp.argmax(programs.fast(logits_fn)(images), axis=-1) if labels is None else labels
