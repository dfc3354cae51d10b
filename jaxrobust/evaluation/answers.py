"""A classifier's answers to many images, and whether figures can be made of them."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import checks, programs
from jaxrobust.programs import company
from jaxrobust.types import LogitsFn


def padded_batches(num_images: int, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Indices of batches of one size: the last is filled up with its last index.

    One size means one compilation; what the filling computes is thrown away.

    Args:
      num_images: How many there are.
      batch_size: At least 1; reduced to num_images where it is larger.

    Yields:
      (indices int [batch_size], how many of them count).
    """
    batch_size = min(batch_size, num_images)
    for start in range(0, num_images, max(batch_size, 1)):
        indices = np.arange(start, start + batch_size)
        yield np.minimum(indices, num_images - 1), min(batch_size, num_images - start)


def check_images(images: Any) -> np.ndarray:
    """The images on the host, once their type and values have been checked; nothing is converted.

    Args:
      images: uint8, or floating in [0, 1], [B, H, W, C].

    Raises:
      TypeError: Another type.
      ValueError: Floats outside [0, 1].
    """
    images = np.asarray(images)
    if images.dtype != np.uint8:
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise TypeError(f"`images` must be uint8 or floating point, got {images.dtype}.")
        checks.value_range(images)
    return images


def as_float(images: Any) -> np.ndarray:
    """Images as float32 in [0, 1]: uint8 are divided by 255, floats must lie there already.

    Args:
      images: uint8 or floating [B, H, W, C].

    Raises:
      TypeError: Another type.
      ValueError: Floats outside [0, 1].
    """
    return _converted(check_images(images))


def _converted(images: np.ndarray) -> np.ndarray:
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    return images.astype(np.float32, copy=False)


def answers(
    logits_fn: LogitsFn, images: np.ndarray, batch_size: int, draw: int = 0, *, start: Any = None
) -> np.ndarray:
    """The logits of images whose values have been checked, in batches of one size.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K].
      images: uint8, or floating in [0, 1], [N, H, W, C].
      batch_size: Images at a time.
      draw: Which answers of a `Stochastic` classifier: other numbers are other draws.
      start: int [N], the images' places in their data set, which its keys depend on; 0 .. N - 1.

    Returns:
      float32 [N, K].
    """
    if not len(images):
        return np.zeros((0, 0), np.float32)
    places = np.arange(len(images)) if start is None else start
    shape = (min(batch_size, len(images)), *images.shape[1:])
    function = programs.as_argument(logits_fn, jax.ShapeDtypeStruct(shape, np.float32))
    rows = [
        np.asarray(
            company.compiled_answer(
                function,
                jnp.asarray(_converted(images[indices])),
                jnp.asarray(places[indices]),
                jnp.int32(draw),
            )
        )[:count]
        for indices, count in padded_batches(len(images), batch_size)
    ]
    return np.concatenate(rows)


def check_company(
    logits_fn: LogitsFn, images: np.ndarray, batch_size: int, found: np.ndarray, *, thorough: bool
) -> None:
    """Refuses a classifier whose answer to an image depends on the images beside it.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K].
      images: uint8, or floating in [0, 1], [N, H, W, C]; the first batch of them is looked at.
      batch_size: Images at a time.
      found: float32 [N, K], what `answers` has found.
      thorough: Whether a few images are shown by themselves too.

    Raises:
      ValueError: The message says what is the likely reason.
    """
    batch = _converted(images[:batch_size])
    company.check(logits_fn, batch, first=found[:batch_size], thorough=thorough)
