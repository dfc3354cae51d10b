"""The layers of the networks."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from jaxrobust.types import Array

# PyTorch's BatchNorm: epsilon 1e-5; its momentum .1 is flax's .9.
_MOMENTUM, _EPSILON = 0.9, 1e-5

# PyTorch's default for convolutions and dense layers is uniform(+-1/sqrt(fan_in)), a variance of
# 1/(3 fan_in); the ReLU networks here start from He's 2/fan_out or 2/fan_in instead.
he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
he_fan_in = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")


class ConvBlock(nn.Module):
    """A convolution, BatchNorm, an optional residual, and ReLU.

    The parameters are `conv/kernel` (`conv/bias`), `bn/scale` and `bn/bias`; the statistics are
    `bn/mean` and `bn/var`.

    Attributes:
      features: The number of output channels.
      kernel_size: The rows and columns of the kernel.
      strides: The strides of rows and columns.
      padding: The number of zeros at each edge. It is explicit, because "SAME" pads convolutions of
        stride 2 on another side than PyTorch.
      use_bias: Whether the convolution has a bias, which that of BatchNorm makes redundant.
      relu: Whether the block ends in a ReLU.
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: int = 1
    use_bias: bool = False
    relu: bool = True

    @nn.compact
    def __call__(self, images: Array, train: bool = False, residual: Array | None = None) -> Array:
        """Applies the block.

        Args:
          images: float32 [B, H, W, C_in].
          train: Whether to normalise by the statistics of the batch and update the running ones.
          residual: [B, H', W', features], added before the ReLU.

        Returns:
          float32 [B, H', W', features].
        """
        outputs = nn.Conv(
            self.features,
            self.kernel_size,
            self.strides,
            self.padding,
            use_bias=self.use_bias,
            kernel_init=he_fan_out,
            name="conv",
        )(images)
        outputs = batch_norm(train, name="bn")(outputs)
        if residual is not None:
            outputs = outputs + residual
        return nn.relu(outputs) if self.relu else outputs


class DepthwiseBlock(nn.Module):
    """A depthwise 3x3 convolution, BatchNorm and ReLU.

    Parameters and statistics have the same names as those of `ConvBlock`; the kernel is [3, 3, 1, C].

    Attributes:
      strides: The strides of rows and columns.
    """

    strides: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """Maps float32 [B, H, W, C] to [B, H / stride, W / stride, C]."""
        channels = images.shape[-1]
        outputs = nn.Conv(
            channels,
            (3, 3),
            self.strides,
            1,
            use_bias=False,
            feature_group_count=channels,
            kernel_init=he_fan_in,  # its fan out is nine times the channels, which is not what it sums
            name="conv",
        )(images)
        return nn.relu(batch_norm(train, name="bn")(outputs))


class NormRelu(nn.Module):
    """BatchNorm and ReLU, for networks that normalise before each convolution."""

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """Maps float32 [B, H, W, C] to [B, H, W, C]."""
        return nn.relu(batch_norm(train, name="bn")(images))


class DenseBlock(nn.Module):
    """A dense layer, BatchNorm and ReLU.

    Attributes:
      features: The width of the output.
    """

    features: int

    @nn.compact
    def __call__(self, inputs: Array, train: bool = False) -> Array:
        """Maps float32 [B, N] to [B, features]."""
        outputs = nn.Dense(self.features, kernel_init=he_fan_in, name="dense")(inputs)
        return nn.relu(batch_norm(train, name="bn")(outputs))


def convolution(features: int, size: int, stride: int, name: str) -> nn.Conv:
    """Returns a convolution without bias or normalisation, padded as in PyTorch.

    Args:
      features: The number of output channels.
      size: The number of rows and columns of the kernel, odd.
      stride: The stride of rows and columns.
      name: The name of the layer.
    """
    half = size // 2
    return nn.Conv(
        features,
        (size, size),
        (stride, stride),
        ((half, half), (half, half)),
        use_bias=False,
        kernel_init=he_fan_out,
        name=name,
    )


def check_count(name: str, sizes: Sequence[int], count: int, of: str) -> None:
    """Raises ValueError unless a field has as many sizes as the network needs.

    Args:
      name: The name of the field, such as "widths".
      sizes: The value of the field.
      count: The required number of sizes.
      of: A description of the sizes for the message.
    """
    if len(sizes) != count:
        raise ValueError(
            f"`{name}` must have {count} entries, {of}, got {len(sizes)}: {tuple(sizes)}."
        )


def batch_norm(train: bool, name: str) -> nn.BatchNorm:
    """Returns BatchNorm with PyTorch's constants.

    Args:
      train: Whether to normalise by the statistics of the batch and update the running ones.
      name: The name of the layer.
    """
    return nn.BatchNorm(
        use_running_average=not train, momentum=_MOMENTUM, epsilon=_EPSILON, name=name
    )


def flatten(images: Array) -> Array:
    """Flattens [B, H, W, C] to [B, H * W * C]; the channel index varies fastest."""
    return images.reshape(images.shape[0], -1)


def global_average(images: Array) -> Array:
    """Averages [B, H, W, C] over positions to [B, C]."""
    return jnp.mean(images, axis=(1, 2))
