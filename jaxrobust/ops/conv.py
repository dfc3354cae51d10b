"""Convolutions that are fast on the CPU, their input gradients above all.

Attacks live on the gradient of a frozen network by its input. XLA's own input gradient of a
convolution runs 4 to 9 times slower inside `lax.scan` than outside it on the CPU, so each kernel
shape that the models use has a form of its own here, for the CPU. On other platforms, and for every
other shape, the gradient is XLA's. So is the gradient by the weights, but for 1x1 kernels, where one
matrix product is up to ten times faster; a program that does not use it does not compute it. The
convolution itself is XLA's too, but for the smallest maps: 2x2 pixels of 512 channels took it 440 ms
for 64 images on 2 cores, four matrix products 2 ms.

Layout: images NHWC, kernels HWIO. These functions have a custom reverse-mode rule, so they cannot
be differentiated in forward mode (`jax.jvp`).
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrobust import compilation
from jaxrobust.ops import onednn
from jaxrobust.ops.depthwise import depthwise_convolution
from jaxrobust.types import Array

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]
_NO_PADDING = ((0, 0), (0, 0))
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def _convolve(images: Array, kernel: Array, strides: Pair, padding: Padding) -> Array:
    return lax.conv_general_dilated(images, kernel, strides, padding, dimension_numbers=_DIMENSIONS)


def _convolve_small(images: Array, kernel: Array, padding: Padding) -> Array:
    """Stride 1, few output positions: a matrix product for each, of the pixels that it sees."""
    (top, bottom), (left, right) = padding
    rows, columns, _, outputs = kernel.shape
    batch, height, width, _ = images.shape
    size = (height + top + bottom - rows + 1, width + left + right - columns + 1)
    positions = []
    for row, column in itertools.product(*map(range, size)):
        # Of the window that begins at -top and -left, what lies on the image.
        first, last = max(row - top, 0), min(row - top + rows, height)
        start, end = max(column - left, 0), min(column - left + columns, width)
        seen = images[:, first:last, start:end]
        down, right_of = top - row, left - column
        weights = kernel[first + down : last + down, start + right_of : end + right_of]
        positions.append(jnp.dot(seen.reshape(batch, -1), weights.reshape(-1, outputs)))
    return jnp.stack(positions, axis=1).reshape(batch, *size, outputs)


def _is_small(images: Array, kernel: Array, strides: Pair, padding: Padding) -> bool:
    (top, bottom), (left, right) = padding
    rows = images.shape[1] + top + bottom - kernel.shape[0] + 1
    columns = images.shape[2] + left + right - kernel.shape[1] + 1
    has_window = kernel.shape[0] > 1 or kernel.shape[1] > 1
    return has_window and strides == (1, 1) and 0 < rows <= 2 and 0 < columns <= 2


def _convolve_fast(
    images: Array,
    kernel: Array,
    strides: Pair,
    padding: Padding,
    bias: Array | None = None,
    residual: Array | None = None,
    *,
    relu: bool = False,
) -> Array:
    """`_convolve` and what follows it, by the fastest library there is; not to be differentiated."""

    def plain(
        images: Array,
        kernel: Array,
        bias: Array | None,
        residual: Array | None,
        is_small: bool = False,
    ) -> Array:
        if is_small:
            outputs = _convolve_small(images, kernel, padding)
        else:
            outputs = _convolve(images, kernel, strides, padding)
        for addend in (bias, residual):
            outputs = outputs if addend is None else outputs + addend
        return jnp.maximum(outputs, 0) if relu else outputs

    operands = (images, kernel, bias, residual)
    if compilation.with_onednn() and onednn.takes(*operands, strides, padding):
        fast: Any = functools.partial(onednn.convolve, strides=strides, padding=padding, relu=relu)
    elif _is_small(images, kernel, strides, padding):
        fast = functools.partial(plain, is_small=True)
    else:
        return plain(*operands)
    return lax.platform_dependent(*operands, cpu=fast, default=plain)


def _rotated(kernel: Array) -> Array:
    """The kernel turned by 180 degrees with inputs and outputs exchanged."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


def interleave(phases: Sequence[Sequence[Array]]) -> Array:
    """Merges [2][2] images [B, H, W, C] into one [B, 2H, 2W, C].

    phases[i][j] goes to the rows 2h + i and the columns 2w + j.
    """
    rows = [jnp.stack(row, axis=3).reshape(_widened(row[0], 2)) for row in phases]
    batch, height, width, channels = rows[0].shape
    return jnp.stack(rows, axis=2).reshape(batch, 2 * height, width, channels)


def _widened(image: Array, factor: int) -> tuple[int, int, int, int]:
    batch, height, width, channels = image.shape
    return batch, height, factor * width, channels


def _input_gradient_plain(
    cotangent: Array, kernel: Array, shape: tuple[int, ...], strides: Pair, padding: Padding
) -> Array:
    """XLA's own input gradient. shape: of the input, [B, H, W, C_in]."""
    zeros = jnp.zeros(shape, cotangent.dtype)
    _, pull_back = jax.vjp(lambda x: _convolve(x, kernel, strides, padding), zeros)
    return pull_back(cotangent)[0]


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


def _gradient_by_phases(cotangent: Array, kernel: Array) -> Array:
    """Stride 2, 3x3, padding 1, even size: y[i] = sum_k w[k] x[2i + k - 1] read backwards.

    dx[2m] = w[1] dy[m] and dx[2m + 1] = w[2] dy[m] + w[0] dy[m + 1], in rows and in columns: four
    small dense convolutions instead of one over a gradient that is three quarters zeros.
    """
    weights = kernel.swapaxes(2, 3)
    after = jnp.pad(cotangent, ((0, 0), (0, 1), (0, 1), (0, 0)))
    taps = {0: (slice(1, 2), slice(0, -1)), 1: (slice(None, None, -2), slice(None))}
    phases = []
    for row_taps, rows in taps.values():
        phases.append(
            [
                convolution(
                    after[:, rows, columns], weights[row_taps, column_taps], (1, 1), _NO_PADDING
                )
                for column_taps, columns in taps.values()
            ]
        )
    return interleave(phases)


def _gradient_pointwise(cotangent: Array, kernel: Array, strides: Pair) -> Array:
    """1x1 kernel: a matrix product, spread over the positions that the stride visited."""
    gradient = jnp.dot(cotangent, kernel[0, 0].T)
    if strides == (2, 2):
        zeros = jnp.zeros_like(gradient)
        gradient = interleave([[gradient, zeros], [zeros, zeros]])
    return gradient


def _input_gradient_fast(
    cotangent: Array, kernel: Array, shape: tuple[int, ...], strides: Pair, padding: Padding
) -> Array | None:
    """The CPU form for this shape, or None where there is none."""
    rows, columns, inputs, _ = kernel.shape
    even = shape[1] % 2 == 0 and shape[2] % 2 == 0
    if (rows, columns) == (1, 1) and padding == _NO_PADDING:
        if strides == (1, 1) or (strides == (2, 2) and even):
            return _gradient_pointwise(cotangent, kernel, strides)
        return None
    if strides == (1, 1):
        if inputs <= 4:
            return _gradient_by_patches(cotangent, kernel, padding)
        (top, bottom), (left, right) = padding
        opposite = (
            (rows - 1 - top, rows - 1 - bottom),
            (columns - 1 - left, columns - 1 - right),
        )
        # `convolution`, because a gradient may be taken around an attack and so of this one.
        return convolution(cotangent, _rotated(kernel), (1, 1), opposite)
    if (rows, columns, strides) == (3, 3, (2, 2)) and padding == ((1, 1), (1, 1)) and even:
        return _gradient_by_phases(cotangent, kernel)
    return None


def _input_gradient(
    cotangent: Array, kernel: Array, shape: tuple[int, ...], strides: Pair, padding: Padding
) -> Array:
    plain = functools.partial(_input_gradient_plain, shape=shape, strides=strides, padding=padding)

    def fast(cotangent: Array, kernel: Array) -> Array:
        gradient = _input_gradient_fast(cotangent, kernel, shape, strides, padding)
        return plain(cotangent, kernel) if gradient is None else gradient

    return lax.platform_dependent(cotangent, kernel, cpu=fast, default=plain)


def _kernel_gradient(
    cotangent: Array, images: Array, kernel: Array, strides: Pair, padding: Padding
) -> Array:
    def plain(cotangent: Array, images: Array, kernel: Array) -> Array:
        _, pull_back = jax.vjp(lambda w: _convolve(images, w, strides, padding), kernel)
        return pull_back(cotangent)[0]

    def pointwise(cotangent: Array, images: Array, kernel: Array) -> Array:
        rows, columns = strides
        seen = images[:, ::rows, ::columns].reshape(-1, kernel.shape[2])
        return jnp.dot(seen.T, cotangent.reshape(-1, kernel.shape[3])).reshape(kernel.shape)

    operands = (cotangent, images, kernel)
    if kernel.shape[:2] != (1, 1) or padding != _NO_PADDING:
        return plain(*operands)
    return lax.platform_dependent(*operands, cpu=pointwise, default=plain)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolution(images: Array, kernel: Array, strides: Pair, padding: Padding) -> Array:
    """A two-dimensional convolution (cross-correlation, as in every deep learning library).

    Args:
      images: [B, H, W, C_in].
      kernel: [rows, columns, C_in, C_out].
      strides: Of rows and columns.
      padding: ((top, bottom), (left, right)) zeros.

    Returns:
      [B, H', W', C_out].

    Example:
      >>> image, kernel = jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1))
      >>> convolution(image, kernel, (1, 1), ((1, 1), (1, 1)))[0, :2, :2, 0].tolist()
      [[4.0, 6.0], [6.0, 9.0]]
    """
    return _convolve_fast(images, kernel, strides, padding)


def _convolution_forward(
    images: Array, kernel: Array, strides: Pair, padding: Padding
) -> tuple[Array, Any]:
    return convolution(images, kernel, strides, padding), (images, kernel)


def _convolution_backward(
    strides: Pair, padding: Padding, saved: Any, cotangent: Array
) -> tuple[Array, Array]:
    images, kernel = saved
    return (
        _input_gradient(cotangent, kernel, images.shape, strides, padding),
        _kernel_gradient(cotangent, images, kernel, strides, padding),
    )


convolution.defvjp(_convolution_forward, _convolution_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def convolution_bias_relu(
    images: Array,
    kernel: Array,
    bias: Array,
    residual: Array | None,
    strides: Pair,
    padding: Padding,
) -> Array:
    """relu(convolution + bias + residual) as one operation.

    Its gradient needs the output alone to know where the ReLU was open, so neither the convolution's
    nor the sum's value is kept.

    Args:
      images: [B, H, W, C_in].
      kernel: [rows, columns, C_in, C_out].
      bias: [C_out].
      residual: [B, H', W', C_out] to add before the ReLU, or None.
      strides: Of rows and columns.
      padding: ((top, bottom), (left, right)) zeros.

    Returns:
      [B, H', W', C_out], not negative.
    """
    return _convolve_fast(images, kernel, strides, padding, bias, residual, relu=True)


def _fused_forward(
    images: Array,
    kernel: Array,
    bias: Array,
    residual: Array | None,
    strides: Pair,
    padding: Padding,
) -> tuple[Array, Any]:
    outputs = convolution_bias_relu(images, kernel, bias, residual, strides, padding)
    return outputs, (images, kernel, residual is not None, outputs)


def _fused_backward(
    strides: Pair, padding: Padding, saved: Any, cotangent: Array
) -> tuple[Array, Array, Array, Array | None]:
    images, kernel, has_residual, outputs = saved
    cotangent = jnp.where(outputs > 0, cotangent, jnp.zeros((), cotangent.dtype))
    return (
        _input_gradient(cotangent, kernel, images.shape, strides, padding),
        _kernel_gradient(cotangent, images, kernel, strides, padding),
        jnp.sum(cotangent, axis=(0, 1, 2)),
        cotangent if has_residual else None,
    )


convolution_bias_relu.defvjp(_fused_forward, _fused_backward)


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: Any,
    **options: Any,
) -> Array:
    """`convolution` under the signature of `jax.lax.conv_general_dilated`, for `flax.linen.Conv`.

    Args:
      lhs: Images [B, H, W, C_in].
      rhs: Kernel [rows, columns, C_in / groups, C_out].
      window_strides: Of rows and columns.
      padding: Pairs of zeros, or "SAME" or "VALID".
      **options: The rest of the signature. A 3x3 convolution of each channel by itself goes to
        `depthwise_convolution`; with other groups, dilation, another layout or precision, the call
        goes to `jax.lax.conv_general_dilated` as it is.

    Returns:
      [B, H', W', C_out].
    """
    changed = {
        name: value
        for name, value in options.items()
        if value is not None and _PLAIN_OPTIONS.get(name) != _plain(value)
    }
    is_depthwise = changed == {"feature_group_count": lhs.shape[-1]} and rhs.shape[:3] == (3, 3, 1)
    if lhs.ndim != 4 or (changed and not is_depthwise):
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
    (top, bottom), (left, right) = padding
    rows, columns = window_strides
    if changed:
        ones = top == bottom == left == right == 1
        if rhs.shape[3] == lhs.shape[3] and ones and (rows, columns) in ((1, 1), (2, 2)):
            return depthwise_convolution(lhs, rhs, (rows, columns))
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
    return convolution(lhs, rhs, (rows, columns), ((top, bottom), (left, right)))


# What `flax.linen.Conv` passes for an ordinary two-dimensional convolution.
_PLAIN_OPTIONS = {
    "lhs_dilation": (1, 1),
    "rhs_dilation": (1, 1),
    "dimension_numbers": _DIMENSIONS,
    "feature_group_count": 1,
    "batch_group_count": 1,
}


def _plain(value: Any) -> Any:
    if isinstance(value, lax.ConvDimensionNumbers):
        spec = lax.conv_dimension_numbers((1, 1, 1, 1), (1, 1, 1, 1), _DIMENSIONS)
        return _DIMENSIONS if value == spec else value
    return tuple(value) if isinstance(value, list | tuple) else value
