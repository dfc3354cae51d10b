"""Convolutions by the copy of oneDNN inside jaxlib.

XLA has no public way to ask for oneDNN, so this module makes the call that XLA's own rewriter would
make. A request that oneDNN refuses ends the process, so only plain convolutions in one of the types of
`jaxrobust.compilation.onednn_types` are sent to it.
"""

import json
from typing import Any

import jax
import jax.numpy as jnp

from jaxrobust import compilation
from jaxrobust.types import Array


def takes(
    images: Array, kernel: Array, bias: Array | None, residual: Array | None, window: Any
) -> bool:
    """Says whether to use `convolve` for a convolution; the arguments are those of `convolve`."""
    operands = [operand for operand in (images, kernel, bias, residual) if operand is not None]
    return (
        images.dtype.name in compilation.onednn_types()
        and all(operand.dtype == images.dtype for operand in operands)
        and fits(images.shape, kernel.shape, window)
        and (bias is None or bias.shape == kernel.shape[3:])
        and (residual is None or residual.shape == window.output_shape(images.shape, kernel.shape))
    )


def fits(images: tuple[int, ...], kernel: tuple[int, ...], window: Any) -> bool:
    """Says whether oneDNN can be trusted with a convolution of arrays of these shapes.

    Of random convolutions it computed some wrongly that had images of one channel, and it ended the
    process at some whose padding was as large as the kernel. Kernels that are larger than the images
    were among both.
    """
    return (
        all(isinstance(length, int) and length > 0 for length in (*images, *kernel))
        and images[3] == kernel[2] > 1
        and window.dilation == (1, 1)
        and all(
            taps <= size and min(zeros) >= 0 and max(zeros) < taps
            for taps, size, zeros in zip(kernel[:2], images[1:3], window.padding, strict=True)
        )
    )


def convolve(
    images: Array,
    kernel: Array,
    bias: Array | None,
    residual: Array | None,
    window: Any,
) -> Array:
    """Computes a convolution and adds a bias and a residual, in one call.

    oneDNN could apply a ReLU too, but its ReLU turns NaN into 0. All arrays must have the same type,
    float32 or bfloat16.

    Args:
      images: [B, H, W, C_in].
      kernel: [rows, columns, C_in, C_out].
      bias: [C_out], or None.
      residual: [B, H', W', C_out], or None.
      window: Strides and padding of rows and columns; the padding must not be negative.

    Returns:
      [B, H', W', C_out].
    """
    shape = window.output_shape(images.shape, kernel.shape)
    operands, steps = [images, kernel], []
    if bias is None and residual is not None:  # oneDNN takes no residual without a bias
        bias = jnp.zeros(kernel.shape[3], kernel.dtype)
    if bias is not None:
        operands.append(bias)
        steps.append("BIAS")
    if residual is not None:
        operands.append(residual)
        steps.append("BINARY_ADD")
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
