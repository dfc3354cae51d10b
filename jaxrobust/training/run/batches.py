"""The data set on the device: checked once, shuffled, and cut into batches inside compiled code."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrobust import checks
from jaxrobust.types import Array


class DeviceData(NamedTuple):
    """A labelled set on the device.

    Attributes:
      images: [N, H, W, C], uint8 or float32 in [0, 1].
      labels: int32 [N].
    """

    images: Array
    labels: Array


def on_device(name: str, examples: tuple[Any, Any], image_shape: Any = None) -> DeviceData:
    """Checks a labelled set and puts it on the device.

    Args:
      name: For the messages: "train" or "validation".
      examples: (images [N, H, W, C], uint8 or floating in [0, 1]; integer labels [N]).
      image_shape: What [H, W, C] must be; None: anything.

    Returns:
      The set.

    Raises:
      TypeError: Not a pair of arrays, or of the wrong types.
      ValueError: Empty, of the wrong rank, shape or length, or pixels outside [0, 1].
    """
    try:
        images, labels = examples
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{name}` must be a pair (images, labels).") from error
    if not (hasattr(images, "shape") and hasattr(labels, "shape")):
        raise TypeError(f"`{name}` must be a pair of arrays (images, labels).")
    if len(images.shape) != 4:
        raise ValueError(f"`{name}` images must be [N, H, W, C], got shape {tuple(images.shape)}.")
    if images.shape[0] == 0:
        raise ValueError(f"`{name}` is empty.")
    if tuple(labels.shape) != tuple(images.shape[:1]):
        raise ValueError(
            f"`{name}` labels must have shape {tuple(images.shape[:1])} to match the images, "
            f"got {tuple(labels.shape)}."
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"`{name}` labels must be integers, got {labels.dtype}.")
    if image_shape is not None and tuple(images.shape[1:]) != tuple(image_shape):
        raise ValueError(
            f"`{name}` images must be {tuple(image_shape)} as in `train`, "
            f"got {tuple(images.shape[1:])}."
        )
    # Bytes stay bytes on the device, where they take a quarter of the memory.
    if images.dtype == jnp.uint8:
        pixels = jnp.asarray(images)
    elif jnp.issubdtype(images.dtype, jnp.floating):
        pixels = jnp.asarray(images, jnp.float32)
        checks.value_range(pixels)
    else:
        raise TypeError(f"`{name}` images must be uint8 or floating, got {images.dtype}.")
    return DeviceData(pixels, jnp.asarray(labels, jnp.int32))


def shuffled(key: Array, epoch: Array, count: int) -> Array:
    """The order of the examples in an epoch: int32 [count]."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), count)


def batch_at(examples: DeviceData, order: Array, index: Array, batch_size: int) -> DeviceData:
    """Batch `index` of an epoch: rows index * batch_size and on of `order`."""
    rows = jax.lax.dynamic_slice_in_dim(order, index * batch_size, batch_size)
    return DeviceData(*(jnp.take(array, rows, axis=0, mode="clip") for array in examples))


def padded_batch_at(
    examples: DeviceData, index: Array, batch_size: int
) -> tuple[DeviceData, Array]:
    """Batch `index` in the order of the set; the last is filled with copies of the last example.

    All batches have one shape, so one program serves them.

    Returns:
      (The batch, bool [batch_size]: False at the copies.)
    """
    rows = index * batch_size + jnp.arange(batch_size)
    batch = DeviceData(*(jnp.take(array, rows, axis=0, mode="clip") for array in examples))
    return batch, rows < examples.labels.shape[0]
