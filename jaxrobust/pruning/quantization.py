"""Post-training quantisation: kernels as int8 with one scale per output channel.

Symmetric: for each output channel c of a kernel w,

    scale_c = max |w_c| / 127,    values_c = round(w_c / scale_c),    w_c ~ scale_c * values_c

so that no weight is off by more than scale_c / 2, and a zero stays exactly zero: pruned weights stay
pruned. Biases, normalisation and activations stay float32: this makes the file smaller, and computes
in float32.

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
    """Every kernel in int8, one scale per output channel; everything else as it is.

    `models.Classifier(network.apply, quantize(variables), mean, std)` is the network in int8: it
    multiplies the kernels out within the compiled program. Its weights are int8 arguments of compiled
    code, and its gradients by the image are exact: an attack needs no straight-through estimator as
    long as only weights are quantised.

    Args:
      variables: Nested dicts of floating arrays, such as {"params": ..., "batch_stats": ...}.
      kernels: Which weights are kernels: None by their names, a function of (path, array), or kernels
        as `channel_groups` finds them. These say which axis has the channels; otherwise it is the
        last, of a "weight" the first.

    Returns:
      The same with a `QuantizedKernel` for each kernel. A channel of zeros has scale 1.

    Raises:
      TypeError: A kernel that is not floating point.
      ValueError: No kernels (perhaps quantised before), or unknown ones; NaN or infinite weights.

    Example:
      >>> import jax.numpy as jnp
      >>> kernel = quantize({"kernel": jnp.array([[1.27, 0.0], [-0.5, 0.0]])})["kernel"]
      >>> kernel.values.tolist(), [round(float(scale), 3) for scale in kernel.scale]
      ([[127, 0], [-50, 0]], [0.01, 1.0])
    """
    found = kernels_of(variables, kernels)
    if not found:
        raise ValueError(
            "`variables` has no kernels to quantise: leaves of two dimensions or more called 'kernel', "
            "'weight' or 'w'; `kernels` may name others. They may be quantised already."
        )
    quantized = {}
    for path, leaf in found.items():
        outputs = axes_of(kernels, path, jnp.ndim(leaf)).outputs
        quantized[path] = _quantized(path, leaf, outputs[-1] if outputs else jnp.ndim(leaf) - 1)
    return with_leaves(variables, quantized)


def fake_quantize(kernel: Array) -> Array:
    """A kernel as it is after quantising and dequantising, with the gradient of the identity.

    For training through the rounding, or attacking the weights: the rounding's own gradient is 0
    nearly everywhere. (Attacks on images need none of this: `quantize`.) The scale is a
    constant.

    Args:
      kernel: Floating [..., C_out].

    Returns:
      As `kernel`; up to the last bit that of `dequantize(quantize(...))`.

    Raises:
      TypeError: A kernel that is not floating point.

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
        raise ValueError(f"`variables` has NaN or infinite weights at {path}.")
    wide = kernel.astype(jnp.float32)
    scale = _scale(wide, axis)
    # Division may round the largest up to just above 127, never to 127.5.
    return QuantizedKernel(jnp.round(wide / scale).astype(jnp.int8), scale)


def _scale(kernel: Array, axis: int) -> Array:
    """Of each channel along an axis; broadcasts to the kernel."""
    last = kernel.ndim - 1
    others = tuple(other for other in range(kernel.ndim) if other != axis)
    scale = jnp.max(jnp.abs(kernel), axis=others, keepdims=axis != last) / _LARGEST
    # Below the smallest normal number a division overflows, or is one by zero.
    return jnp.where(scale >= jnp.finfo(jnp.float32).tiny, scale, 1.0)


def _check_floating(name: str, kernel: Array) -> None:
    if not jnp.issubdtype(kernel.dtype, jnp.floating):
        raise TypeError(f"`{name}` must be floating point, got {kernel.dtype}.")
