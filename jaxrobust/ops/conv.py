"""Convolutions that are fast on the CPU, their input gradients above all.

Attacks live on the gradient of a frozen network by its input. XLA's own input gradient of a
convolution runs 4 to 9 times slower inside `lax.scan` than outside it on the CPU, so it is written here
as convolutions of the cotangent, for kernels, strides and paddings of any size. The gradient by the
weights is XLA's, but for 1x1 kernels, where one matrix product is up to ten times faster; a program
that does not use it does not compute it. The convolution itself is XLA's too, but for the smallest
maps: 2x2 pixels of 512 channels took it 440 ms for 64 images on 2 cores, four matrix products 2 ms.

These are forms for the CPU; `jaxrobust.programs` puts them into a network where it runs on one. Layout:
images NHWC, kernels HWIO. They have a reverse-mode rule of their own, so they cannot be differentiated
in forward mode (`jax.jvp`).
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrobust import checks, compilation
from jaxrobust.ops import onednn
from jaxrobust.types import Array

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]
Activation = Literal["relu", "relu6"] | None
ACTIVATIONS = (None, "relu", "relu6")
_ONES, _NO_PADDING = (1, 1), ((0, 0), (0, 0))
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_MOST_PHASES = 16  # of a transposed convolution, each of which is a convolution of its own
_FEW_CHANNELS = 4  # of images: their gradient is one matrix product, and patches that are added up


class Window(NamedTuple):
    """Where a kernel is laid on the images.

    Attributes:
      strides: Of rows and columns.
      padding: ((top, bottom), (left, right)) zeros; negative ones cut rows and columns off.
      dilation: How far apart the kernel's rows and columns are laid.
    """

    strides: Pair = _ONES
    padding: Padding = _NO_PADDING
    dilation: Pair = _ONES


def convolution(
    images: Array,
    kernel: Array,
    window: Window = Window(),  # noqa: B008, a constant
    *,
    bias: Array | None = None,
    residual: Array | None = None,
    activation: Activation = None,
) -> Array:
    """A two-dimensional convolution (cross-correlation, as in every deep learning library).

    The gradient of an activation is computed from the output, so that neither the convolution's own
    value nor the sum's is kept for it.

    Args:
      images: [B, H, W, C_in].
      kernel: [rows, columns, C_in, C_out].
      window: Strides, padding and dilation.
      bias: [C_out] to add, or None.
      residual: [B, H', W', C_out] to add, or None.
      activation: "relu" or "relu6", which the sum goes through, with the derivatives that
        `jax.nn.relu` and `jax.nn.relu6` have; or None.

    Returns:
      [B, H', W', C_out].

    Raises:
      ValueError: Another activation.

    Example:
      >>> image, kernel = jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1))
      >>> window = Window(padding=((1, 1), (1, 1)))
      >>> convolution(image, kernel, window)[0, :2, :2, 0].tolist()
      [[4.0, 6.0], [6.0, 9.0]]
    """
    checks.one_of("activation", activation, ACTIVATIONS)
    return _convolution(images, kernel, bias, residual, window, activation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _convolution(
    images: Array,
    kernel: Array,
    bias: Array | None,
    residual: Array | None,
    window: Window,
    activation: Activation,
) -> Array:
    operands = (images, kernel, bias, residual)
    if compilation.with_onednn() and onednn.takes(*operands, window):
        return onednn.convolve(*operands, window, activation)
    convolve = _convolve_small if _is_small(images, kernel, window) else _convolve
    outputs = convolve(images, kernel, window)
    if bias is not None:
        outputs = outputs + bias.reshape(1, 1, 1, -1)
    return activated(outputs if residual is None else outputs + residual, activation)


def activated(values: Array, activation: Activation) -> Array:
    """What goes on of values, with no derivative of its own at the edges."""
    if activation is None:
        return values
    return jnp.maximum(values, 0) if activation == "relu" else jnp.clip(values, 0, 6)


def behind(outputs: Array | None, activation: Activation, cotangent: Array) -> Array:
    """Of an activation's outputs the cotangent of what went into it."""
    if outputs is None:
        return cotangent
    is_open = outputs > 0 if activation == "relu" else (outputs > 0) & (outputs < 6)
    return jnp.where(is_open, cotangent, jnp.zeros((), cotangent.dtype))


def _forward(
    images: Array,
    kernel: Array,
    bias: Array | None,
    residual: Array | None,
    window: Window,
    activation: Activation,
) -> tuple[Array, Any]:
    outputs = _convolution(images, kernel, bias, residual, window, activation)
    has = (bias is not None, residual is not None)
    return outputs, (images, kernel, has, outputs if activation else None)


def _backward(
    window: Window, activation: Activation, saved: Any, cotangent: Array
) -> tuple[Array, Array, Array | None, Array | None]:
    images, kernel, (has_bias, has_residual), outputs = saved
    cotangent = behind(outputs, activation, cotangent)
    return (
        _input_gradient(cotangent, kernel, images.shape, window),
        _kernel_gradient(cotangent, images, kernel, window),
        jnp.sum(cotangent, axis=(0, 1, 2)) if has_bias else None,
        cotangent if has_residual else None,
    )


_convolution.defvjp(_forward, _backward)


def _convolve(images: Array, kernel: Array, window: Window) -> Array:
    return lax.conv_general_dilated(
        images,
        kernel,
        window.strides,
        window.padding,
        rhs_dilation=window.dilation,
        dimension_numbers=_DIMENSIONS,
    )


def output_size(images: Array, kernel: Array, window: Window) -> Pair:
    """(H', W') of a convolution."""
    rows, columns = (
        (size + sum(zeros) - (taps - 1) * apart - 1) // stride + 1
        for size, zeros, taps, apart, stride in zip(
            images.shape[1:3],
            window.padding,
            kernel.shape[:2],
            window.dilation,
            window.strides,
            strict=True,
        )
    )
    return rows, columns


def _is_small(images: Array, kernel: Array, window: Window) -> bool:
    size = output_size(images, kernel, window)
    has_window = kernel.shape[0] > 1 or kernel.shape[1] > 1
    dense = window.strides == window.dilation == _ONES
    return has_window and dense and all(0 < side <= 2 for side in size)


def _convolve_small(images: Array, kernel: Array, window: Window) -> Array:
    """Stride 1, few output positions: a matrix product for each, of the pixels that it sees."""
    (top, _), (left, _) = window.padding
    rows, columns, _, outputs = kernel.shape
    batch, height, width, _ = images.shape
    size = output_size(images, kernel, window)
    positions = []
    for row, column in itertools.product(*map(range, size)):
        # Of the window that begins at -top and -left, what lies on the image.
        first, start = max(row - top, 0), max(column - left, 0)
        last = max(first, min(row - top + rows, height))
        end = max(start, min(column - left + columns, width))
        seen = images[:, first:last, start:end]
        down, right_of = top - row, left - column
        weights = kernel[first + down : last + down, start + right_of : end + right_of]
        positions.append(jnp.dot(seen.reshape(batch, -1), weights.reshape(-1, outputs)))
    return jnp.stack(positions, axis=1).reshape(batch, *size, outputs)


def _input_gradient(
    cotangent: Array, kernel: Array, shape: tuple[int, ...], window: Window
) -> Array:
    """The cotangent spread over the images' pixels: a transposed convolution. shape: of the images."""
    rows, columns, inputs, _ = kernel.shape
    if (rows, columns) == _ONES and window.padding == _NO_PADDING and window.strides == _ONES:
        return jnp.dot(cotangent, kernel[0, 0].T)
    if inputs <= _FEW_CHANNELS and window.strides == window.dilation == _ONES:
        return _gradient_by_patches(cotangent, kernel, window.padding)
    if not has_phases(window):
        zeros = jnp.zeros(shape, cotangent.dtype)
        _, pull_back = jax.vjp(lambda images: _convolve(images, kernel, window), zeros)
        return pull_back(cotangent)[0]
    rotated = kernel[::-1, ::-1].swapaxes(2, 3)
    return spread(cotangent, rotated, shape, window, convolution)


def has_phases(window: Window) -> bool:
    """Whether the input gradient is computed as a few convolutions of the cotangent."""
    rows, columns = window.strides
    return rows * columns <= _MOST_PHASES and _ONES in (window.strides, window.dilation)


def spread(
    cotangent: Array,
    rotated: Array,
    shape: tuple[int, ...],
    window: Window,
    convolve: Callable[[Array, Array, Window], Array],
) -> Array:
    """The cotangent spread over images of a shape by the rotated kernel, where it `has_phases`."""
    before = [
        apart * (taps - 1) - zeros[0]
        for taps, zeros, apart in zip(
            rotated.shape[:2], window.padding, window.dilation, strict=True
        )
    ]
    return transposed_convolution(
        cotangent,
        rotated,
        window.strides,
        (before[0], before[1]),
        (shape[1], shape[2]),
        window.dilation,
        convolve=convolve,
    )


def transposed_convolution(
    images: Array,
    kernel: Array,
    factors: Pair,
    before: Pair,
    size: Pair,
    dilation: Pair = _ONES,
    *,
    convolve: Callable[[Array, Array, Window], Array] = convolution,
) -> Array:
    """A convolution of images between whose pixels zeros are laid, without multiplying by them.

    With a factor of s the output's rows s a + r, for one r, see every s-th row of the kernel alone: s
    convolutions of the images as they are, for rows and columns, instead of one over an image that is
    mostly zeros. Each of them has its own gradient.

    Args:
      images: [B, H, W, C_in].
      kernel: [rows, columns, C_in, C_out].
      factors: Of rows and columns: a pixel's distance to the next, `lhs_dilation` of jax.
      before: Zeros at the top and at the left.
      size: (H', W') of the output; what is missing below and on the right is zeros.
      dilation: Of the kernel; 1 where a factor is not.
      convolve: With which each of them is made.

    Returns:
      [B, H', W', C_out].

    Example:
      >>> twice = transposed_convolution(
      ...     jnp.ones((1, 1, 2, 1)), jnp.ones((1, 1, 1, 1)), (1, 2), (0, 0), (1, 4)
      ... )
      >>> twice.ravel().tolist()
      [1.0, 0.0, 1.0, 0.0]
    """
    height, width = (-(-side // factor) for side, factor in zip(size, factors, strict=True))

    def phase(offsets: Pair) -> Array:
        taps, padding = [], []
        for axis, (offset, count) in enumerate(zip(offsets, (height, width), strict=True)):
            factor, zeros, apart = factors[axis], before[axis], dilation[axis]
            # The first row of the kernel that is laid on pixels, as is each factor-th after it; all
            # others are laid on the zeros between them.
            first = (zeros - offset) % factor
            length = len(range(first, kernel.shape[axis], factor))
            start = (
                offset + first - zeros
            ) // factor  # the image's row that the first tap is laid on
            taps.append(slice(first, None, factor))
            # Negative where the image has rows that no tap of this phase sees: then it is cut.
            last = start + count - 1 + apart * (length - 1)
            padding.append((-start, last - (images.shape[axis + 1] - 1)))
        part = kernel[tuple(taps)]
        if 0 in part.shape[:2]:  # a stride that is longer than the kernel
            shape = (len(images), height, width, kernel.shape[3])
            return jnp.zeros(shape, jnp.result_type(images, kernel))
        window = Window(padding=(padding[0], padding[1]), dilation=dilation)
        return convolve(images, part, window)

    # All phases are as long as the longest, so that they can be merged; the rest is cut off after.
    phases = [[phase((row, column)) for column in range(factors[1])] for row in range(factors[0])]
    return interleave(phases)[:, : size[0], : size[1]]


def interleave(phases: Sequence[Sequence[Array]]) -> Array:
    """Merges [S][T] images [B, H, W, C] into one [B, S * H, T * W, C].

    phases[i][j] goes to the rows S h + i and the columns T w + j.
    """
    batch, height, width, channels = phases[0][0].shape
    if len(phases) == len(phases[0]) == 1:
        return phases[0][0]
    wide = width * len(phases[0])
    rows = [jnp.stack(row, axis=3).reshape(batch, height, wide, channels) for row in phases]
    return jnp.stack(rows, axis=2).reshape(batch, height * len(rows), wide, channels)


def _gradient_by_patches(cotangent: Array, kernel: Array, padding: Padding) -> Array:
    """Stride 1, few input channels: one matrix product, then the patches are added up (col2im)."""
    rows, columns, inputs, outputs = kernel.shape
    (top, bottom), (left, right) = padding
    batch, height, width, _ = cotangent.shape
    weights = kernel.transpose(3, 0, 1, 2).reshape(outputs, rows * columns * inputs)
    patches = jnp.dot(cotangent.reshape(-1, outputs), weights)
    patches = patches.reshape(batch, height, width, rows * columns * inputs)
    total = jnp.zeros((), cotangent.dtype)
    for i in range(rows):
        for j in range(columns):
            position = (i * columns + j) * inputs
            patch = patches[..., position : position + inputs]
            # Output (h, w) came from input (h + i - top, w + j - left).
            total = total + lax.pad(
                patch,
                jnp.zeros((), patch.dtype),
                (
                    (0, 0, 0),
                    (i - top, rows - 1 - i - bottom, 0),
                    (j - left, columns - 1 - j - right, 0),
                    (0, 0, 0),
                ),
            )
    return total


def _kernel_gradient(cotangent: Array, images: Array, kernel: Array, window: Window) -> Array:
    if kernel.shape[:2] == _ONES and window.padding == _NO_PADDING:
        rows, columns = window.strides
        seen = images[:, ::rows, ::columns].reshape(-1, kernel.shape[2])
        return jnp.dot(seen.T, cotangent.reshape(-1, kernel.shape[3])).reshape(kernel.shape)
    _, pull_back = jax.vjp(lambda kernel: _convolve(images, kernel, window), kernel)
    return pull_back(cotangent)[0]
