"""Post-training quantisation: kernels as int8 with one scale per output channel.

Symmetric: for each output channel c of a kernel w,

    scale_c = max |w_c| / 127,    values_c = round(w_c / scale_c),    w_c ~ scale_c * values_c

so that no weight changes by more than scale_c / 2, and 0 stays exactly 0: pruned weights stay pruned.
Biases, normalisation and activations stay float32. Quantisation makes the file smaller; the network
still computes in float32.

References:
  Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
  Inference", CVPR 2018, sections 2.1 and 3, https://arxiv.org/abs/1712.05877
  Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference", 2018, section
  3.1.2 (per channel), https://arxiv.org/abs/1806.08342
"""

import jax
import jax.numpy as jnp

from jaxrobust import checks
from jaxrobust.pruning.masks import Kernels, axes_of, kernels_of, with_leaves
from jaxrobust.types import Array, PyTree, QuantizedKernel

_LARGEST = 127  # of int8, and of its negatives: -128 is left out for symmetry


def quantize(variables: PyTree, *, kernels: Kernels = None) -> PyTree:
    """Quantises every kernel to int8, with one scale per output channel.

    `models.Classifier(network.apply, quantize(variables), mean, std)` is the quantised network. It
    converts the int8 kernels to float32 inside the compiled program. Its gradients with respect to the
    image are exact: an attack needs no straight-through estimator, because only weights are quantised.

    Args:
      variables: Nested dicts of floating arrays, such as {"params": ..., "batch_stats": ...}.
      kernels: Which weights are kernels: the kernels that `channel_groups` finds, or a function of
        (path, array). None: the names of the weights decide. The kernels of `channel_groups` know the
        axis of the output channels; otherwise it is the last axis, or the first of a "weight".

    Returns:
      The variables with a `QuantizedKernel` for each kernel. A channel of zeros has scale 1.

    Raises:
      TypeError: A kernel is not floating point.
      ValueError: There are no kernels (they may be quantised already), `kernels` are unknown, or
        weights are NaN or infinite.

    Example:
      >>> import jax.numpy as jnp
      >>> kernel = quantize({"kernel": jnp.array([[1.27, 0.0], [-0.5, 0.0]])})["kernel"]
      >>> kernel.values.tolist(), [round(float(scale), 3) for scale in kernel.scale]
      ([[127, 0], [-50, 0]], [0.01, 1.0])
    """
    found = kernels_of(variables, kernels)
    if not found:
        raise ValueError(
            "`variables` must have kernels to quantise: arrays of two or more dimensions called "
            "'kernel', 'weight' or 'w', or those that `kernels` names. They may be quantised already."
        )
    quantized = {}
    for path, leaf in found.items():
        outputs = axes_of(kernels, path, jnp.ndim(leaf)).outputs
        quantized[path] = _quantized(path, leaf, outputs[-1] if outputs else jnp.ndim(leaf) - 1)
    return with_leaves(variables, quantized)


def fake_quantize(kernel: Array) -> Array:
    """Quantises and dequantises a kernel, with the gradient of the identity.

    Use it to train with quantised weights, or to attack the weights: the true gradient of the rounding
    is 0 almost everywhere. (Attacks on images do not need it; see `quantize`.) The scale is treated as
    a constant.

    Args:
      kernel: The kernel, floating [..., C_out].

    Returns:
      The rounded kernel, of the shape and type of `kernel`, equal to `dequantize(quantize(...))` up to
      the last bit.

    Raises:
      TypeError: The kernel is not floating point.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> kernel = jnp.array([[127.0], [3.2]])
      >>> fake_quantize(kernel).tolist(), jax.grad(lambda k: fake_quantize(k).sum())(kernel).tolist()
      ([[127.0], [3.0]], [[1.0], [1.0]])

    References:
      Bengio, Leonard, Courville, "Estimating or Propagating Gradients Through Stochastic Neurons for
      Conditional Computation", 2013, section 4, https://arxiv.org/abs/1308.3432
      Jacob et al. 2018 (above), section 3.
    """
    kernel = jnp.asarray(kernel)
    _check_floating("kernel", kernel)
    wide = kernel.astype(jnp.float32)
    constant = jax.lax.stop_gradient(wide)
    scale = _scale(constant, kernel.ndim - 1)
    # Adds an exact zero, whose derivative is one.
    return (jnp.round(constant / scale) * scale + (wide - constant)).astype(kernel.dtype)


def _quantized(path: str, kernel: Array, axis: int) -> QuantizedKernel:
    kernel = jnp.asarray(kernel)
    _check_floating(path, kernel)
    if not checks.is_traced(kernel) and not bool(jnp.all(jnp.isfinite(kernel))):
        raise ValueError(f"`variables` must be finite, got NaN or infinite weights at {path}.")
    wide = kernel.astype(jnp.float32)
    scale = _scale(wide, axis)
    # Division may round the largest up to just above 127, never to 127.5.
    return QuantizedKernel(jnp.round(wide / scale).astype(jnp.int8), scale)


def _scale(kernel: Array, axis: int) -> Array:
    """Returns the scale of each channel along an axis, which broadcasts to the kernel."""
    last = kernel.ndim - 1
    others = tuple(other for other in range(kernel.ndim) if other != axis)
    scale = jnp.max(jnp.abs(kernel), axis=others, keepdims=axis != last) / _LARGEST
    # Below the smallest normal number a division overflows, or is one by zero.
    return jnp.where(scale >= jnp.finfo(jnp.float32).tiny, scale, 1.0)


def _check_floating(name: str, kernel: Array) -> None:
    if not jnp.issubdtype(kernel.dtype, jnp.floating):
        raise TypeError(f"`{name}` must be floating point, got {kernel.dtype}.")
