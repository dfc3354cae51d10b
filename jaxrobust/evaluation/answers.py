"""The logits of many images, and checks of the classifier that computes them."""

import zlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import checks, processes, programs
from jaxrobust.programs import company
from jaxrobust.types import LogitsFn


def padded_batches(num_images: int, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yields the indices of batches of one size; the last batch is padded with its last index.

    Equal sizes need only one compilation. Results of padded rows are dropped.

    Args:
      num_images: The number of images.
      batch_size: The size of a batch, at least 1; it is reduced to num_images if it is larger.

    Yields:
      (indices int [batch_size], how many of them are not padding).
    """
    batch_size = min(batch_size, num_images)
    for start in range(0, num_images, max(batch_size, 1)):
        indices = np.arange(start, start + batch_size)
        yield np.minimum(indices, num_images - 1), min(batch_size, num_images - start)


def check_images(images: Any) -> np.ndarray:
    """Checks the type and the values of images, and returns them on the host, not converted.

    Args:
      images: [B, H, W, C], uint8 or floating point in [0, 1].

    Raises:
      TypeError: The images are neither uint8 nor floating point.
      ValueError: Floating-point images are outside [0, 1].
    """
    images = np.asarray(images)
    if images.dtype == np.uint8:
        checks.bytes_range(images)
    elif jnp.issubdtype(images.dtype, jnp.floating):
        checks.value_range(images)
    else:
        raise TypeError(f"`images` must be uint8, or floating point in [0, 1], got {images.dtype}.")
    return images


def as_float(images: Any) -> np.ndarray:
    """Converts images to float32 in [0, 1]. uint8 images are divided by 255.

    Args:
      images: [B, H, W, C], uint8 or floating point in [0, 1].

    Raises:
      TypeError: The images are neither uint8 nor floating point.
      ValueError: Floating-point images are outside [0, 1].
    """
    return _converted(check_images(images))


def _converted(images: np.ndarray) -> np.ndarray:
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    return images.astype(np.float32, copy=False)


def answers(
    logits_fn: LogitsFn, images: np.ndarray, batch_size: int, draw: int = 0, *, start: Any = None
) -> np.ndarray:
    """Computes the logits of images whose values have been checked, in batches of one size.

    The processes of `jax.distributed` share the batches, and all of them get the same logits: what
    calls this must be called in all of them, and waits for those that have not come.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K].
      images: [N, H, W, C], uint8 or floating point in [0, 1].
      batch_size: How many images to evaluate at a time.
      draw: The number of the draw, for a `Stochastic` classifier; other numbers give other samples.
      start: int [N], the images' indices in their data set, from which the keys of a `Stochastic`
        classifier are made; by default 0 .. N - 1.

    Returns:
      float32 [N, K].
    """
    if not len(images):
        return np.zeros((0, 0), np.float32)
    places = np.arange(len(images)) if start is None else start
    shape = (min(batch_size, len(images)), *images.shape[1:])
    function = programs.as_argument(logits_fn, jax.ShapeDtypeStruct(shape, np.float32))
    function = jax.device_put(function)  # arrays of numpy, once for all batches
    batches, sharers = list(padded_batches(len(images), batch_size)), jax.process_count()
    # Every process evaluates the same number of batches: one without a batch repeats the last one.
    mine = [
        np.asarray(
            company.compiled_answer(
                function,
                jnp.asarray(_converted(images[indices])),
                jnp.asarray(places[indices]),
                jnp.int32(draw),
            )
        )
        for number in range(jax.process_index(), jax.process_index() + len(batches), sharers)
        for indices, _ in [batches[min(number, len(batches) - 1)]]
    ]
    parts = processes.gathered(np.stack(mine))
    return np.concatenate(
        [
            parts[number % sharers, number // sharers][:count]
            for number, (_, count) in enumerate(batches)
        ]
    )


def check_processes(logits_fn: LogitsFn, images: np.ndarray) -> None:
    """Raises unless all processes of `jax.distributed` have the same classifier and images.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K].
      images: [N, H, W, C].

    Raises:
      ValueError: They differ; the message says in what.
    """
    if jax.process_count() == 1:
        return
    one = jax.ShapeDtypeStruct((1, *images.shape[1:]), np.float32)
    found: dict[str, Any] = {
        f"the {name} of the classifier": digest
        for name, digest in programs.fingerprint(logits_fn, one).items()
    }
    digest = zlib.crc32(np.ascontiguousarray(images).tobytes())
    unlike = processes.different(found | {"the images": [str(images.dtype), images.shape, digest]})
    if unlike:
        raise ValueError(
            "An evaluation must have the same arguments in all processes; they differ in "
            f"{', '.join(unlike)}."
        )


def check_company(
    logits_fn: LogitsFn, images: np.ndarray, batch_size: int, found: np.ndarray, *, thorough: bool
) -> None:
    """Raises if the classifier's answer to an image depends on the other images of the batch.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K].
      images: [N, H, W, C], uint8 or floating point in [0, 1]. The first batch is checked.
      batch_size: How many images to evaluate at a time.
      found: float32 [N, K], the logits that `answers` returned.
      thorough: Whether to evaluate a few images alone too.

    Raises:
      ValueError: It does; the message says what the likely reason is.
    """
    batch = _converted(images[:batch_size])
    company.check(logits_fn, batch, first=found[:batch_size], thorough=thorough)
