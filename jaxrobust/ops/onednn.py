"""Convolutions by the copy of oneDNN inside jaxlib; `jaxrobust.compilation.with_onednn` says when.

XLA offers no way to ask for it, so this is the call that its own rewriter would make. A request that
oneDNN refuses ends the process: what is asked for here is limited to what the tests cover.
"""

import json

import jax
import jax.numpy as jnp

from jaxrobust.types import Array

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]
_TYPES = (jnp.float32, jnp.bfloat16)


def takes(images: Array, kernel: Array, padding: Padding) -> bool:
    """Whether a convolution of these is one that `convolve` makes."""
    return (
        images.dtype in _TYPES
        and images.dtype == kernel.dtype
        and min(*images.shape, *kernel.shape) > 0
        and min(*padding[0], *padding[1]) >= 0
    )


def convolve(
    images: Array,
    kernel: Array,
    bias: Array | None,
    residual: Array | None,
    strides: Pair,
    padding: Padding,
    *,
    relu: bool,
) -> Array:
    """Convolution, plus bias, plus residual, ReLU: in one call.

    Args:
      images: float32 or bfloat16 [B, H, W, C_in], like the kernel.
      kernel: [rows, columns, C_in, C_out].
      bias: [C_out], or None.
      residual: [B, H', W', C_out], or None; not without a bias.
      strides: Of rows and columns.
      padding: ((top, bottom), (left, right)) zeros, not negative.
      relu: Whether the sum's negative values become zero.

    Returns:
      [B, H', W', C_out].
    """
    sides = [
        (size + sum(zeros) - taps) // stride + 1
        for size, zeros, taps, stride in zip(
            images.shape[1:3], padding, kernel.shape[:2], strides, strict=True
        )
    ]
    shape = (images.shape[0], *sides, kernel.shape[3])
    operands, steps = [images, kernel], []
    if bias is not None:
        operands.append(bias)
        steps.append("BIAS")
    if residual is not None:
        operands.append(residual)
        steps.append("BINARY_ADD")
    if relu:
        steps.append("RELU")
    call = jax.ffi.ffi_call(
        "__onednn$convolution",
        jax.ShapeDtypeStruct(shape, images.dtype),
        vmap_method="sequential",
        custom_call_api_version=1,
        legacy_backend_config=_request(strides, padding, steps),
    )
    return call(*(operand.astype(images.dtype) for operand in operands))


def _request(strides: Pair, padding: Padding, steps: list[str]) -> str:
    """xla.cpu.OneDnnConvolutionConfig as JSON, in which 64-bit numbers are strings."""

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
