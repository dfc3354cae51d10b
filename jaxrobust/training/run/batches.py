"""Data sets on the device, which are shuffled and cut into batches inside compiled code."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrobust import checks
from jaxrobust.types import Array


class DeviceData(NamedTuple):
    """A labelled data set on the device.

    Attributes:
      images: [N, H, W, C], uint8 or float32 in [0, 1].
      labels: int32 [N].
    """

    images: Array
    labels: Array


def on_device(name: str, examples: tuple[Any, Any], image_shape: Any = None) -> DeviceData:
    """Checks a labelled data set and puts it on the device.

    Args:
      name: The name of the set in error messages: "train" or "validation".
      examples: (images [N, H, W, C], uint8 or floating in [0, 1]; integer labels [N]).
      image_shape: The required (H, W, C); None: any.

    Returns:
      The data set on the device.

    Raises:
      TypeError: `examples` is not a pair of arrays, or an array has the wrong type.
      ValueError: The set is empty, has the wrong rank, shape or length, or has pixels outside [0, 1].
    """
    try:
        images, labels = examples
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`{name}` must be a pair (images, labels), got {type(examples).__name__}."
        ) from error
    if not (hasattr(images, "shape") and hasattr(labels, "shape")):
        raise TypeError(
            f"`{name}` must be a pair of arrays (images, labels), got "
            f"{type(images).__name__} and {type(labels).__name__}."
        )
    if len(images.shape) != 4:
        raise ValueError(f"`{name}` images must be [N, H, W, C], got shape {tuple(images.shape)}.")
    if images.shape[0] == 0:
        raise ValueError(f"`{name}` must have at least one image, got none.")
    if tuple(labels.shape) != tuple(images.shape[:1]):
        raise ValueError(
            f"`{name}` labels must have shape {tuple(images.shape[:1])} to match the images, "
            f"got {tuple(labels.shape)}."
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"`{name}` labels must be integers, got {labels.dtype}.")
    if image_shape is not None and tuple(images.shape[1:]) != tuple(image_shape):
        raise ValueError(
            f"`{name}` images must have shape {tuple(image_shape)}, like those of `train`, "
            f"got {tuple(images.shape[1:])}."
        )
    # Bytes stay bytes on the device, where they take a quarter of the memory.
    if images.dtype == jnp.uint8:
        pixels = jnp.asarray(images)
        checks.bytes_range(pixels)
    elif jnp.issubdtype(images.dtype, jnp.floating):
        pixels = jnp.asarray(images, jnp.float32)
        checks.value_range(pixels)
    else:
        raise TypeError(f"`{name}` images must be uint8 or floating, got {images.dtype}.")
    return DeviceData(pixels, jnp.asarray(labels, jnp.int32))


def shuffled(key: Array, epoch: Array, count: int) -> Array:
    """Returns the order of the examples in an epoch: int32 [count]."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), count)


def batch_at(examples: DeviceData, order: Array, index: Array, batch_size: int) -> DeviceData:
    """Returns batch `index` of an epoch: the examples that `order` lists from index * batch_size on."""
    rows = jax.lax.dynamic_slice_in_dim(order, index * batch_size, batch_size)
    return DeviceData(*(jnp.take(array, rows, axis=0, mode="clip") for array in examples))


def padded_batch_at(
    examples: DeviceData, index: Array, batch_size: int
) -> tuple[DeviceData, Array]:
    """Returns batch `index` of the set in its own order, padded with copies of the last example.

    All batches have the same shape, so that one program serves them all.

    Returns:
      (the batch; bool [batch_size], False at the copies).
    """
    rows = index * batch_size + jnp.arange(batch_size)
    batch = DeviceData(*(jnp.take(array, rows, axis=0, mode="clip") for array in examples))
    return batch, rows < examples.labels.shape[0]
