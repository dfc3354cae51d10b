"""Convolutions that are fast on the CPU, above all their gradients with respect to the input.

Attacks need the gradient of a frozen network with respect to its input. On the CPU, XLA's own input
gradient of a convolution runs 4 to 9 times slower inside `lax.scan` than outside it, so this module
computes it as convolutions of the cotangent, for kernels, strides and paddings of any size. The
gradient with respect to the weights is XLA's, except for 1x1 kernels, where one matrix product is up to
ten times faster; a program that does not use this gradient does not compute it. The convolution itself
is XLA's too, except on the smallest maps: for 64 images of 2x2 pixels and 512 channels XLA took 440 ms
on 2 cores, and four matrix products took 2 ms.

`jaxrobust.programs` puts these operations into networks that run on the CPU. Images are NHWC and
kernels are HWIO. The operations define their own reverse-mode derivatives, so they cannot be
differentiated in forward mode (`jax.jvp`).
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrobust import checks
from jaxrobust.ops import onednn
from jaxrobust.types import Array

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]
Activation = Literal["relu", "relu6"] | None
ACTIVATIONS = (None, "relu", "relu6")
_ONES, _NO_PADDING = (1, 1), ((0, 0), (0, 0))
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_MOST_PHASES = 16  # a transposed convolution computes each of its phases as one convolution
_FEW_CHANNELS = 4  # with at most so many, input gradients are made by patches or by blocks


class Window(NamedTuple):
    """The positions of the images at which a kernel is applied.

    Attributes:
      strides: The strides of rows and columns.
      padding: ((top, bottom), (left, right)), the numbers of zeros to add; a negative number cuts off
        rows or columns.
      dilation: The distances between neighbouring rows and columns of the kernel.
    """

    strides: Pair = _ONES
    padding: Padding = _NO_PADDING
    dilation: Pair = _ONES

    def output_shape(self, images: Sequence[int], kernel: Sequence[int]) -> tuple[int, ...]:
        """Returns the shape of a convolution's output from those of its images and kernel."""
        rows, columns = (
            (size + sum(zeros) - (taps - 1) * apart - 1) // stride + 1
            for size, zeros, taps, apart, stride in zip(
                images[1:3], self.padding, kernel[:2], self.dilation, self.strides, strict=True
            )
        )
        return images[0], rows, columns, kernel[3]


def convolution(
    images: Array,
    kernel: Array,
    window: Window = Window(),  # noqa: B008, a constant
    *,
    bias: Array | None = None,
    residual: Array | None = None,
    activation: Activation = None,
) -> Array:
    """Computes a two-dimensional convolution (cross-correlation, as in every deep learning library).

    The gradient of the activation is computed from the output, so that no intermediate value has to be
    kept for it.

    Args:
      images: [B, H, W, C_in].
      kernel: [rows, columns, C_in, C_out].
      window: Strides, padding and dilation.
      bias: [C_out], which is added to the result, or None.
      residual: [B, H', W', C_out], which is added to the result, or None.
      activation: "relu" or "relu6", applied to the sum, with the derivatives of `jax.nn.relu` and
        `jax.nn.relu6`; or None.

    Returns:
      [B, H', W', C_out].

    Raises:
      ValueError: `activation` is unknown.

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
    if onednn.takes(*operands, window):
        return activated(onednn.convolve(*operands, window), activation)
    convolve = _convolve_small if _is_small(images, kernel, window) else _convolve
    outputs = convolve(images, kernel, window)
    if bias is not None:
        outputs = outputs + bias.reshape(1, 1, 1, -1)
    return activated(outputs if residual is None else outputs + residual, activation)


def activated(values: Array, activation: Activation) -> Array:
    """Applies an activation without its derivative rule; `behind` computes the gradient."""
    if activation is None:
        return values
    return jnp.maximum(values, 0) if activation == "relu" else jnp.clip(values, 0, 6)


def behind(outputs: Array | None, activation: Activation, cotangent: Array) -> Array:
    """Computes the cotangent of an activation's input from its outputs and their cotangent."""
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


def _is_small(images: Array, kernel: Array, window: Window) -> bool:
    size = window.output_shape(images.shape, kernel.shape)[1:3]
    has_window = kernel.shape[0] > 1 or kernel.shape[1] > 1
    dense = window.strides == window.dilation == _ONES
    return has_window and dense and all(0 < side <= 2 for side in size)


def _convolve_small(images: Array, kernel: Array, window: Window) -> Array:
    """Computes each of a few output positions as one matrix product of the pixels under the kernel."""
    (top, _), (left, _) = window.padding
    rows, columns, _, outputs = kernel.shape
    batch, height, width, _ = images.shape
    size = window.output_shape(images.shape, kernel.shape)[1:3]
    positions = []
    for row, column in itertools.product(*map(range, size)):
        # The part of the window that lies on the image, and not on the padding.
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
    """Computes the images' gradient, a transposed convolution; `shape` is that of the images."""
    rows, columns, inputs, _ = kernel.shape
    if (rows, columns) == _ONES and window.padding == _NO_PADDING and window.strides == _ONES:
        return jnp.dot(cotangent, kernel[0, 0].T)
    is_strided = window.strides != _ONES and window.dilation == _ONES
    if window == Window(strides=(rows, columns)) or (is_strided and inputs <= _FEW_CHANNELS):
        return _gradient_by_blocks(cotangent, kernel, shape, window)
    if inputs <= _FEW_CHANNELS and window.strides == window.dilation == _ONES:
        return _gradient_by_patches(cotangent, kernel, window.padding)
    if not has_phases(window):
        zeros = jnp.zeros(shape, cotangent.dtype)
        _, pull_back = jax.vjp(lambda images: _convolve(images, kernel, window), zeros)
        return pull_back(cotangent)[0]
    rotated = kernel[::-1, ::-1].swapaxes(2, 3)
    return spread(cotangent, rotated, shape, window, convolution)


def hoisted(copy: Array) -> Array:
    """Marks a copy of a kernel that a loop over steps shall make once.

    XLA makes a transposed, reversed or sliced copy anew in every round of a loop, but moves a copy that
    is behind a barrier out of it. These copies took 6 % of the time of PGD on a ResNet-50, for 4 images
    of 224x224.
    """
    return lax.optimization_barrier(copy)


def has_phases(window: Window) -> bool:
    """Says whether the input gradient is computed as a few convolutions of the cotangent."""
    rows, columns = window.strides
    return rows * columns <= _MOST_PHASES and _ONES in (window.strides, window.dilation)


def spread(
    cotangent: Array,
    rotated: Array,
    shape: tuple[int, ...],
    window: Window,
    convolve: Callable[[Array, Array, Window], Array],
) -> Array:
    """Computes the images' gradient with the rotated kernel, for a window that `has_phases`."""
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
    """Convolves images with zeros between their pixels, without multiplying by these zeros.

    With a factor of s, the rows s a + r of the output depend only on every s-th row of the kernel, for
    each r. So the rows need s convolutions of the images as they are, instead of one convolution of
    images that are mostly zeros. The same holds for the columns. Each of these convolutions has its own
    gradient.

    Args:
      images: [B, H, W, C_in].
      kernel: [rows, columns, C_in, C_out].
      factors: The distances between neighbouring pixels of the images, for rows and for columns; jax
        calls them `lhs_dilation`.
      before: The numbers of zeros at the top and on the left.
      size: (H', W'), the size of the output; zeros are added at the bottom and on the right as needed.
      dilation: The dilation of the kernel's rows and columns; 1 where the factor is above 1.
      convolve: The function that computes each of the convolutions.

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
            # The first row of the kernel that meets pixels. So does each factor-th row after it; all
            # other rows meet the zeros between the pixels.
            first = (zeros - offset) % factor
            length = len(range(first, kernel.shape[axis], factor))
            start = (offset + first - zeros) // factor  # the image's row that the first tap meets
            taps.append(slice(first, None, factor))
            # Negative if the image has rows that no tap of this phase meets: they are cut off.
            last = start + count - 1 + apart * (length - 1)
            padding.append((-start, last - (images.shape[axis + 1] - 1)))
        part = hoisted(kernel[tuple(taps)])
        if 0 in part.shape[:2]:  # the stride is longer than the kernel
            shape = (len(images), height, width, kernel.shape[3])
            return jnp.zeros(shape, jnp.result_type(images, kernel))
        window = Window(padding=(padding[0], padding[1]), dilation=dilation)
        return convolve(images, part, window)

    # All phases are as long as the longest one, so that they can be merged; then the rest is cut off.
    phases = [[phase((row, column)) for column in range(factors[1])] for row in range(factors[0])]
    return interleave(phases)[:, : size[0], : size[1]]


def interleave(phases: Sequence[Sequence[Array]]) -> Array:
    """Merges S x T batches of images, each [B, H, W, C], into one batch [B, S * H, T * W, C].

    phases[i][j] becomes the rows S h + i and the columns T w + j.
    """
    batch, height, width, channels = phases[0][0].shape
    if len(phases) == len(phases[0]) == 1:
        return phases[0][0]
    wide = width * len(phases[0])
    rows = [jnp.stack(row, axis=3).reshape(batch, height, wide, channels) for row in phases]
    return jnp.stack(rows, axis=2).reshape(batch, height * len(rows), wide, channels)


def _gradient_by_blocks(
    cotangent: Array, kernel: Array, shape: tuple[int, ...], window: Window
) -> Array:
    """Computes the images' gradient for a strided window without a convolution for each phase.

    With blocks of as many pixels as the strides say, whose pixels are channels, the window moves by one
    block. This suits windows that lie side by side, as those of a vision transformer, which are one
    block each, and images of few channels, such as photographs: their phases would be convolutions with
    so few output channels that most of the processor idles.
    """
    rows, columns, inputs, outputs = kernel.shape
    (down, right), ((top, _), (left, _)) = window.strides, window.padding
    tall, wide = -(-rows // down), -(-columns // right)  # the window in blocks
    filled = ((0, tall * down - rows), (0, wide * right - columns), (0, 0), (0, 0))
    blocks = jnp.pad(kernel, filled).reshape(tall, down, wide, right, inputs, outputs)
    blocks = blocks.swapaxes(1, 2).reshape(tall, wide, -1, outputs)
    batch, height, width = (
        cotangent.shape[0],
        cotangent.shape[1] + tall - 1,
        cotangent.shape[2] + wide - 1,
    )
    of_blocks = (batch, height, width, blocks.shape[2])
    gradient = _input_gradient(cotangent, blocks, of_blocks, Window())
    gradient = gradient.reshape(batch, height, width, down, right, inputs).swapaxes(2, 3)
    gradient = gradient.reshape(batch, height * down, width * right, inputs)
    # Padding is cut off; pixels that no window meets are added.
    below, beside = shape[1] + top - height * down, shape[2] + left - width * right
    zero, whole = jnp.zeros((), gradient.dtype), (0, 0, 0)
    return lax.pad(gradient, zero, (whole, (-top, below, 0), (-left, beside, 0), whole))


def _gradient_by_patches(cotangent: Array, kernel: Array, padding: Padding) -> Array:
    """Computes the images' gradient by one matrix product, whose patches are added up (col2im)."""
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
            # This tap carried input (h + i - top, w + j - left) to output (h, w).
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
