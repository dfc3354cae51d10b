"""Depthwise convolutions (each channel by itself), in a form that is fast on the CPU.

On the CPU, XLA is slow if there are as many groups as channels. A sum of shifted products takes a
hundredth of the time, forwards and backwards.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrobust import checks
from jaxrobust.ops.conv import (
    ACTIVATIONS,
    Activation,
    Window,
    activated,
    behind,
    has_phases,
    spread,
)
from jaxrobust.types import Array

_LARGE = 2**19  # so many numbers of float32 are 2 MiB, about what a core has close by


def depthwise_convolution(
    images: Array,
    kernel: Array,
    window: Window,
    *,
    bias: Array | None = None,
    activation: Activation = None,
) -> Array:
    """Convolves each channel by itself.

    Args:
      images: [B, H, W, C].
      kernel: [rows, columns, 1, C].
      window: Strides, padding and dilation.
      bias: [C], which is added to the result, or None.
      activation: "relu" or "relu6", as in `convolution`, or None.

    Returns:
      [B, H', W', C].

    Raises:
      ValueError: `activation` is unknown, or `kernel` has another shape.

    Example:
      >>> image, kernel = jnp.ones((1, 3, 3, 2)), jnp.ones((3, 3, 1, 2))
      >>> window = Window(padding=((1, 1), (1, 1)))
      >>> depthwise_convolution(image, kernel, window)[0, :, :, 1].tolist()
      [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]
    """
    checks.one_of("activation", activation, ACTIVATIONS)
    if kernel.ndim != 4 or kernel.shape[2:] != (1, images.shape[3]):
        raise ValueError(
            f"`kernel` must be [rows, columns, 1, C] with C = {images.shape[3]}, got shape "
            f"{kernel.shape}."
        )
    return _depthwise(images, kernel, bias, window, activation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _depthwise(
    images: Array, kernel: Array, bias: Array | None, window: Window, activation: Activation
) -> Array:
    outputs = _products(images, kernel, window)
    outputs = outputs if bias is None else outputs + bias.reshape(1, 1, 1, -1)
    return _once(activated(outputs, activation))


def _once(values: Array) -> Array:
    """Returns the same values, but keeps XLA on the CPU from computing them again for each use.

    XLA repeats cheap operations wherever their result is used: here nine products for each tap of the
    gradient. It does not repeat a division, and it cannot tell that this one divides by 1. An
    optimisation barrier does not help: XLA has removed it by then.
    """
    one = jnp.ones((), values.dtype)
    return values / lax.clamp(one, values, one)


def _products(images: Array, kernel: Array, window: Window) -> Array:
    """Adds up the products of all taps and rounds the sum once."""
    kind = jnp.result_type(images, kernel)
    at, kernel = _shifted(_wide(images), kernel, window), _wide(kernel)
    products = (at(i, j) * kernel[i, j][None, None] for i, j in _taps(kernel))
    return functools.reduce(jnp.add, products).astype(kind)


def _wide(array: Array) -> Array:
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _taps(kernel: Array) -> Iterator[tuple[int, int]]:
    rows, columns = map(range, kernel.shape[:2])
    return itertools.product(rows, columns)


def _padded(images: Array, window: Window) -> Array:
    edges = [(*zeros, 0) for zeros in window.padding]
    return lax.pad(images, jnp.zeros((), images.dtype), ((0, 0, 0), *edges, (0, 0, 0)))


def _shifted(images: Array, kernel: Array, window: Window) -> Callable[[int, int], Array]:
    """Returns a function from a tap of the kernel to the pixels that it meets, [B, H', W', C]."""
    padded = _padded(images, window)
    size = window.output_shape(images.shape, kernel.shape)[1:3]

    def at(*tap: int) -> Array:
        cuts = [
            slice(place * apart, place * apart + stride * (count - 1) + 1, stride)
            for place, apart, stride, count in zip(
                tap, window.dilation, window.strides, size, strict=True
            )
        ]
        return padded[:, cuts[0], cuts[1]]

    return at


def _forward(
    images: Array, kernel: Array, bias: Array | None, window: Window, activation: Activation
) -> tuple[Array, Any]:
    outputs = _depthwise(images, kernel, bias, window, activation)
    return outputs, (images, kernel, bias is not None, outputs if activation else None)


def _backward(
    window: Window, activation: Activation, saved: Any, cotangent: Array
) -> tuple[Array, Array, Array | None]:
    images, kernel, has_bias, outputs = saved
    cotangent = behind(outputs, activation, cotangent)
    gradient = _kernel_gradient(_wide(images), kernel, _wide(cotangent), window)
    return (
        _input_gradient(images.shape, kernel, cotangent, window),
        gradient.reshape(kernel.shape).astype(kernel.dtype),
        jnp.sum(cotangent, axis=(0, 1, 2)) if has_bias else None,
    )


_depthwise.defvjp(_forward, _backward)


def _kernel_gradient(images: Array, kernel: Array, cotangent: Array, window: Window) -> Array:
    """Computes the kernel's gradient: for each tap the sum of what it has met times the cotangent."""

    def sums(images: Array, cotangent: Array, window: Window, axes: tuple[int, ...]) -> Array:
        at = _shifted(images, kernel, window)
        return jnp.stack([jnp.sum(at(i, j) * cotangent, axis=axes) for i, j in _taps(kernel)])

    rows, columns = cotangent.shape[1:3]
    if cotangent.size < _LARGE or columns < 4:  # sums of so few numbers would not pay
        return sums(images, cotangent, window, (0, 1, 2))
    # XLA writes the products of each tap to memory; those of one row stay in the processor's cache.
    # Images, which devices may share, are added up once, at the end.
    padded = _padded(images, window)
    height = (kernel.shape[0] - 1) * window.dilation[0] + 1
    without = window._replace(padding=((0, 0), (0, 0)))

    def of_row(row: Array | int) -> Array:
        met = lax.dynamic_slice_in_dim(padded, row * window.strides[0], height, 1)
        return sums(met, lax.dynamic_slice_in_dim(cotangent, row, 1, 1), without, (1, 2))

    return lax.fori_loop(1, rows, lambda row, total: total + of_row(row), of_row(0)).sum(1)


def _input_gradient(
    shape: tuple[int, ...], kernel: Array, cotangent: Array, window: Window
) -> Array:
    """Computes the images' gradient: each tap's share is added where the tap has read."""
    if has_phases(window):
        return spread(cotangent, kernel[::-1, ::-1], shape, window, depthwise_convolution)
    zeros = jnp.zeros(shape, cotangent.dtype)
    _, pull_back = jax.vjp(lambda images: _products(images, kernel, window), zeros)
    return pull_back(cotangent)[0]
