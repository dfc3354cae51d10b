"""Pooling whose gradients are fast on the CPU.

Windows are read through strided slices. A reshape to [B, H/2, 2, W/2, 2, C] would be shorter, but it is
silently wrong: after a convolution, XLA on the CPU then returns wrong gradients.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrobust.ops.conv import Padding, Pair, interleave
from jaxrobust.types import Array


class Pool(NamedTuple):
    """The windows of a pooling.

    Attributes:
      size: The numbers of rows and columns of a window.
      strides: The strides of rows and columns.
      padding: ((top, bottom), (left, right)), the numbers of rows and columns to add; they do not
        change a maximum or a sum.
    """

    size: Pair
    strides: Pair
    padding: Padding = ((0, 0), (0, 0))


def _places(images: Array, pool: Pool, edge: float) -> list[Array]:
    """Returns the pixels at each place of the windows, each [B, H', W', C], in reading order."""
    edges = [(*padding, 0) for padding in pool.padding]
    outside = jnp.asarray(edge, images.dtype)
    padded = lax.pad(images, outside, ((0, 0, 0), *edges, (0, 0, 0)))
    rows, columns = _output_size(padded.shape, pool)
    found = []
    for i, j in itertools.product(*map(range, pool.size)):
        rows_seen = slice(i, i + pool.strides[0] * (rows - 1) + 1, pool.strides[0])
        columns_seen = slice(j, j + pool.strides[1] * (columns - 1) + 1, pool.strides[1])
        found.append(padded[:, rows_seen, columns_seen])
    return found


def _output_size(padded: tuple[int, ...], pool: Pool) -> Pair:
    rows, columns = (
        (side - size) // stride + 1
        for side, size, stride in zip(padded[1:3], pool.size, pool.strides, strict=True)
    )
    return rows, columns


def _back(shares: list[Array], shape: tuple[int, ...], pool: Pool) -> Array:
    """Adds each place's share to the pixel that the place has read: the transpose of `_places`."""
    size = shares[0].shape[1:3]
    tiles = tuple(side * stride for side, stride in zip(size, pool.strides, strict=True))
    if pool.size == pool.strides and pool.padding == ((0, 0), (0, 0)) and tiles == shape[1:3]:
        width = pool.size[1]
        return interleave([shares[at : at + width] for at in range(0, len(shares), width)])
    zero = jnp.zeros((), shares[0].dtype)
    total = zero
    for place, share in zip(itertools.product(*map(range, pool.size)), shares, strict=True):
        edges = []
        for axis in (0, 1):
            stride, first = pool.strides[axis], place[axis] - pool.padding[axis][0]
            last = first + stride * (size[axis] - 1)
            edges.append((first, shape[axis + 1] - 1 - last, stride - 1))
        total = total + lax.pad(share, zero, ((0, 0, 0), *edges, (0, 0, 0)))
    return total


def _reduced(function: Callable[[Array, Array], Array], places: list[Array]) -> Array:
    """Combines the places in pairs, neighbours first."""
    while len(places) > 1:
        pairs = list(itertools.zip_longest(places[::2], places[1::2]))
        places = [one if other is None else function(one, other) for one, other in pairs]
    return places[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool(images: Array, pool: Pool) -> Array:
    """Computes the largest value of each window.

    Among equal values, the first in reading order receives the gradient, as in XLA and PyTorch.

    Args:
      images: [B, H, W, C].
      pool: The windows.

    Returns:
      [B, H', W', C].

    Example:
      >>> max_pool(jnp.arange(4.0).reshape(1, 2, 2, 1), Pool((2, 2), (2, 2))).ravel().tolist()
      [3.0]
    """
    return _reduced(jnp.maximum, _places(images, pool, -jnp.inf))


def _max_forward(images: Array, pool: Pool) -> tuple[Array, tuple[Array, Array]]:
    largest = max_pool(images, pool)
    return largest, (images, largest)


def _max_backward(pool: Pool, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array]:
    images, largest = saved
    shares, remaining = [], cotangent
    zero = jnp.zeros((), cotangent.dtype)
    for seen in _places(images, pool, -jnp.inf):
        here = seen == largest
        shares.append(jnp.where(here, remaining, zero))
        remaining = jnp.where(here, zero, remaining)
    return (_back(shares, images.shape, pool),)


max_pool.defvjp(_max_forward, _max_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def sum_pool(images: Array, pool: Pool) -> Array:
    """Computes the sum of each window.

    Args:
      images: [B, H, W, C].
      pool: The windows.

    Returns:
      [B, H', W', C].

    Example:
      >>> sum_pool(jnp.arange(4.0).reshape(1, 2, 2, 1), Pool((2, 2), (2, 2))).ravel().tolist()
      [6.0]
    """
    return _reduced(jnp.add, _places(images, pool, 0))


def _sum_forward(images: Array, pool: Pool) -> tuple[Array, Array]:
    # An empty array, which carries the shape of the images.
    return sum_pool(images, pool), jnp.zeros((*images.shape, 0))


def _sum_backward(pool: Pool, saved: Array, cotangent: Array) -> tuple[Array]:
    shares = [cotangent] * (pool.size[0] * pool.size[1])
    return (_back(shares, saved.shape[:-1], pool),)


sum_pool.defvjp(_sum_forward, _sum_backward)
