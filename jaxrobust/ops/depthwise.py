"""Convolutions of each channel by itself, in a form that is fast on the CPU.

XLA on the CPU has no good code for as many groups as channels: there a sum of shifted products takes a
hundredth of the time, forwards and backwards.
"""

import functools
import itertools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax import lax

from jaxrobust.ops.conv import Window, output_size
from jaxrobust.types import Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_convolution(images: Array, kernel: Array, window: Window) -> Array:
    """A convolution of each channel by itself.

    Args:
      images: [B, H, W, C].
      kernel: [rows, columns, 1, C].
      window: Strides, padding and dilation.

    Returns:
      [B, H', W', C].

    Example:
      >>> image, kernel = jnp.ones((1, 3, 3, 2)), jnp.ones((3, 3, 1, 2))
      >>> window = Window(padding=((1, 1), (1, 1)))
      >>> depthwise_convolution(image, kernel, window)[0, :, :, 1].tolist()
      [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]
    """
    at = _shifted(images, kernel, window)
    return functools.reduce(
        jnp.add, (at(i, j) * kernel[i, j][None, None] for i, j in _taps(kernel))
    )


def _taps(kernel: Array) -> Iterator[tuple[int, int]]:
    rows, columns = map(range, kernel.shape[:2])
    return itertools.product(rows, columns)


def _shifted(images: Array, kernel: Array, window: Window) -> Callable[[int, int], Array]:
    """What a tap of the kernel sees of the images at every place of the output."""
    edges = [(*zeros, 0) for zeros in window.padding]
    padded = lax.pad(images, jnp.zeros((), images.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
    size = output_size(images, kernel, window)

    def at(*tap: int) -> Array:
        cuts = [
            slice(place * apart, place * apart + stride * (count - 1) + 1, stride)
            for place, apart, stride, count in zip(
                tap, window.dilation, window.strides, size, strict=True
            )
        ]
        return padded[:, cuts[0], cuts[1]]

    return at


def _forward(images: Array, kernel: Array, window: Window) -> tuple[Array, tuple[Array, Array]]:
    return depthwise_convolution(images, kernel, window), (images, kernel)


def _backward(window: Window, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    images, kernel = saved
    at = _shifted(images, kernel, window)
    by_tap = [jnp.sum(at(i, j) * cotangent, axis=(0, 1, 2)) for i, j in _taps(kernel)]
    by_kernel = jnp.stack(by_tap).reshape(kernel.shape)
    return _input_gradient(images.shape, kernel, cotangent, window), by_kernel


def _input_gradient(
    shape: tuple[int, ...], kernel: Array, cotangent: Array, window: Window
) -> Array:
    """Every tap's share goes back to where it was read: products, spread and shifted."""
    taps, size = kernel.shape[:2], cotangent.shape[1:3]
    if window.strides == (1, 1):
        # `depthwise_convolution`, because a gradient may be taken around an attack and so of this.
        reach = [apart * (count - 1) for apart, count in zip(window.dilation, taps, strict=True)]
        (top, bottom), (left, right) = window.padding
        opposite = (
            (reach[0] - top, reach[0] - bottom),
            (reach[1] - left, reach[1] - right),
        )
        rotated = Window(padding=opposite, dilation=window.dilation)
        return depthwise_convolution(cotangent, kernel[::-1, ::-1], rotated)
    zero = jnp.zeros((), cotangent.dtype)
    total = zero
    for tap in _taps(kernel):
        edges = []
        for axis in (0, 1):
            # Output h was read at stride * h + dilation * tap - padding.
            stride, apart = window.strides[axis], window.dilation[axis]
            first = apart * tap[axis] - window.padding[axis][0]
            last = first + stride * (size[axis] - 1)
            edges.append((first, shape[axis + 1] - 1 - last, stride - 1))
        share = cotangent * kernel[tap][None, None]
        total = total + lax.pad(share, zero, ((0, 0, 0), *edges, (0, 0, 0)))
    return total


depthwise_convolution.defvjp(_forward, _backward)
