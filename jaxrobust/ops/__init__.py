"""Operations of image classifiers in forms that are fast on the CPU."""

from jaxrobust.ops.conv import Activation, Window, convolution, transposed_convolution
from jaxrobust.ops.depthwise import depthwise_convolution
from jaxrobust.ops.pool import Pool, max_pool, sum_pool

__all__ = [
    "Activation",
    "Pool",
    "Window",
    "convolution",
    "depthwise_convolution",
    "max_pool",
    "sum_pool",
    "transposed_convolution",
]
