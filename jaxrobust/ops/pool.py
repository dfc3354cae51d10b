"""Pooling over 2x2 windows with gradients that are fast on the CPU, and XLA's own elsewhere.

On the CPU windows are read through strided slices. A reshape to [B, H/2, 2, W/2, 2, C] would be
shorter, and is silently wrong: behind a convolution XLA on the CPU then returns false gradients.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxrobust.ops.conv import interleave
from jaxrobust.types import Array


def _check_even(images: Array) -> None:
    if images.ndim != 4 or images.shape[1] % 2 or images.shape[2] % 2:
        raise ValueError(
            f"`images` must be [B, H, W, C] with even H and W, got shape {tuple(images.shape)}."
        )


def _corners(images: Array) -> list[Array]:
    """The four positions of every window, each [B, H/2, W/2, C], in reading order."""
    return [images[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]


@jax.custom_vjp
def max_pool(images: Array) -> Array:
    """The largest value of every 2x2 window, stride 2.

    Among equal values the first in reading order receives the gradient, as in PyTorch.

    Args:
      images: [B, H, W, C], H and W even.

    Returns:
      [B, H/2, W/2, C].

    Raises:
      ValueError: An odd H or W.

    Example:
      >>> max_pool(jnp.arange(4.0).reshape(1, 2, 2, 1)).ravel().tolist()
      [3.0]
    """
    _check_even(images)
    return lax.platform_dependent(images, cpu=_max_of_corners, default=_plain_max)


def _max_of_corners(images: Array) -> Array:
    first, second, third, fourth = _corners(images)
    return jnp.maximum(jnp.maximum(first, second), jnp.maximum(third, fourth))


def _plain_max(images: Array) -> Array:
    return lax.reduce_window(images, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def _max_forward(images: Array) -> tuple[Array, tuple[Array, Array]]:
    largest = max_pool(images)
    return largest, (images, largest)


def _max_backward(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array]:
    images, largest = saved

    def plain(images: Array, _: Array, cotangent: Array) -> Array:
        return jax.vjp(_plain_max, images)[1](cotangent)[0]

    return (
        lax.platform_dependent(images, largest, cotangent, cpu=_share_among_corners, default=plain),
    )


def _share_among_corners(images: Array, largest: Array, cotangent: Array) -> Array:
    shares = []
    remaining = cotangent
    zero = jnp.zeros((), cotangent.dtype)
    for corner in _corners(images):
        here = corner == largest
        shares.append(jnp.where(here, remaining, zero))
        remaining = jnp.where(here, zero, remaining)
    return interleave([shares[:2], shares[2:]])


max_pool.defvjp(_max_forward, _max_backward)


@jax.custom_vjp
def average_pool(images: Array) -> Array:
    """The mean of every 2x2 window, stride 2.

    Args:
      images: [B, H, W, C], H and W even.

    Returns:
      [B, H/2, W/2, C].

    Raises:
      ValueError: An odd H or W.

    Example:
      >>> average_pool(jnp.arange(4.0).reshape(1, 2, 2, 1)).ravel().tolist()
      [1.5]
    """
    _check_even(images)
    return lax.platform_dependent(images, cpu=_mean_of_corners, default=_plain_mean)


def _mean_of_corners(images: Array) -> Array:
    first, second, third, fourth = _corners(images)
    return (first + second + third + fourth) / 4


def _plain_mean(images: Array) -> Array:
    return lax.reduce_window(images, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4


def _average_forward(images: Array) -> tuple[Array, None]:
    return average_pool(images), None


def _average_backward(_: None, cotangent: Array) -> tuple[Array]:
    # The same on every platform: each pixel has a quarter of its window's.
    share = cotangent / 4
    return (interleave([[share, share], [share, share]]),)


average_pool.defvjp(_average_forward, _average_backward)
