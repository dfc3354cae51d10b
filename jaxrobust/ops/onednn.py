"""Convolutions by the copy of oneDNN inside jaxlib, if `jaxrobust.compilation.with_onednn` says so.

XLA has no public way to ask for oneDNN, so this module makes the call that XLA's own rewriter would
make. A request that oneDNN refuses ends the process, so only plain convolutions of float32 images are
sent to it.
"""

import json
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxrobust.types import Array


def takes(
    images: Array, kernel: Array, bias: Array | None, residual: Array | None, window: Any
) -> bool:
    """Says whether `convolve` accepts a convolution; the arguments are those of `convolve`."""
    operands = [operand for operand in (images, kernel, bias, residual) if operand is not None]
    return (
        all(operand.dtype == jnp.float32 for operand in operands)
        and window.dilation == (1, 1)
        and min(*images.shape, *kernel.shape, *_sides(images, kernel, window)) > 0
        and min(*window.padding[0], *window.padding[1]) >= 0
    )


def _sides(images: Array, kernel: Array, window: Any) -> list[int]:
    return [
        (size + sum(zeros) - taps) // stride + 1
        for size, zeros, taps, stride in zip(
            images.shape[1:3], window.padding, kernel.shape[:2], window.strides, strict=True
        )
    ]


def convolve(
    images: Array,
    kernel: Array,
    bias: Array | None,
    residual: Array | None,
    window: Any,
    activation: Literal["relu", "relu6"] | None = None,
) -> Array:
    """Computes a convolution, adds a bias and a residual, and applies an activation, in one call.

    All arrays are float32.

    Args:
      images: [B, H, W, C_in].
      kernel: [rows, columns, C_in, C_out].
      bias: [C_out], or None.
      residual: [B, H', W', C_out], or None.
      window: Strides and padding of rows and columns; the padding must not be negative.
      activation: The activation, or None.

    Returns:
      [B, H', W', C_out].
    """
    shape = (len(images), *_sides(images, kernel, window), kernel.shape[3])
    operands, steps = [images, kernel], []
    if bias is None and residual is not None:  # oneDNN takes no residual without a bias
        bias = jnp.zeros(kernel.shape[3], kernel.dtype)
    if bias is not None:
        operands.append(bias)
        steps.append("BIAS")
    if residual is not None:
        operands.append(residual)
        steps.append("BINARY_ADD")
    if activation is not None:
        steps.append(activation.upper())
    call = jax.ffi.ffi_call(
        "__onednn$convolution",
        jax.ShapeDtypeStruct(shape, images.dtype),
        vmap_method="sequential",  # only for stacked kernels; attacks pass whole batches
        custom_call_api_version=1,
        legacy_backend_config=_request(window.strides, window.padding, steps),
    )
    return call(*operands)


def _request(strides: tuple, padding: tuple, steps: list[str]) -> str:
    """Writes an xla.cpu.OneDnnConvolutionConfig as JSON, in which 64-bit numbers are strings."""

    def text(numbers: tuple[int, ...]) -> list[str]:
        return [str(number) for number in numbers]

    data = {"data": {"batch_dim": "0", "spatial_dims": text((1, 2)), "feature_dim": "3"}}
    kernel = {"spatial_dims": text((0, 1)), "input_feature_dim": "2", "output_feature_dim": "3"}
    request = {
        "dims": "4",
        "input": data,
        "kernel": {"filter": kernel},
        "output": data,
        "window": {
            "pad_left": text((padding[0][0], padding[1][0])),
            "pad_right": text((padding[0][1], padding[1][1])),
            "strides": text(strides),
            "window_dilations": text((1, 1)),
        },
        "feature_groups": "1",
        "fusions": {"ops": steps},
    }
    return json.dumps({"onednn_conv_config": request})
