"""Operations with forms that are fast on the CPU, exact everywhere."""

from jaxrobust.ops.conv import (
    conv_general_dilated,
    convolution,
    convolution_bias_relu,
)
from jaxrobust.ops.depthwise import depthwise_convolution
from jaxrobust.ops.pool import average_pool, max_pool

__all__ = [
    "average_pool",
    "conv_general_dilated",
    "convolution",
    "convolution_bias_relu",
    "depthwise_convolution",
    "max_pool",
]
