"""What every attribution function does with its arguments before it compiles."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxrobust import checks, programs
from jaxrobust.types import Array, LogitsFn


def checked(
    logits_fn: LogitsFn, images: Array, labels: Array | None
) -> tuple[LogitsFn, Array, Array | None]:
    """The arguments in the form that compiled code takes.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K]. Any function.
      images: Floating [B, H, W, C] in [0, 1].
      labels: int [B] or None.

    Returns:
      (logits_fn, images float32, labels as an array or None), for `programs.call`.

    Raises:
      TypeError: Integer images, fractional labels.
      ValueError: Shapes that do not fit, images outside [0, 1], labels outside 0 .. K - 1.
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
    """A constant or an image that takes the place of pixels, for every image.

    Args:
      name: The argument's name, for messages.
      value: A number or an array that broadcasts to [B, H, W, C], in [0, 1]: a colour [C], an image
        [H, W, C], or one for each.
      images: [B, H, W, C], of which only the shape matters.

    Returns:
      float32 [B, H, W, C].

    Raises:
      TypeError: Neither a number nor an array.
      ValueError: A shape that does not broadcast, values outside [0, 1].
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
    """Maps as float32.

    They are floating [B, H, W], of this shape if one is given; `name` is for messages.

    Raises:
      TypeError: No floating array.
      ValueError: Another rank or shape.
    """
    if not hasattr(maps, "shape") or not jnp.issubdtype(maps.dtype, jnp.floating):
        kind = maps.dtype if hasattr(maps, "dtype") else type(maps).__name__
        raise TypeError(f"`{name}` must be a floating array [B, H, W], got {kind}.")
    if maps.ndim != 3:
        raise ValueError(f"`{name}` must be [B, H, W], got shape {tuple(maps.shape)}.")
    if shape is not None and tuple(maps.shape) != tuple(shape):
        raise ValueError(f"`{name}` must have shape {tuple(shape)}, got {tuple(maps.shape)}.")
    return jnp.asarray(maps, jnp.float32)


def predicted_if_none(logits_fn: LogitsFn, images: Array, labels: Array | None) -> Array:
    """The labels, or the predicted classes where there are none: int [B]."""
    return jnp.argmax(programs.fast(logits_fn)(images), axis=-1) if labels is None else labels
