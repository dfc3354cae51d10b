"""The layers that the networks are made of."""

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
    """Convolution, BatchNorm, an optional residual, ReLU.

    The parameters are `conv/kernel` (`conv/bias`), `bn/scale`, `bn/bias`; the statistics `bn/mean`,
    `bn/var`.

    Attributes:
      features: C_out.
      kernel_size: Rows and columns.
      strides: Of rows and columns.
      padding: Zeros at each edge. An explicit number, because "SAME" pads stride-2 convolutions on
        the other side than PyTorch does.
      use_bias: Whether the convolution has a bias (BatchNorm's makes it redundant).
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
          train: Normalise by the batch's statistics and update the running ones.
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
    """A 3x3 convolution of each channel by itself, BatchNorm, ReLU.

    Parameters and statistics have the names of those of `ConvBlock`; the kernel is [3, 3, 1, C].

    Attributes:
      strides: Of rows and columns.
    """

    strides: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """float32 [B, H, W, C] -> float32 [B, H / stride, W / stride, C]."""
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
    """BatchNorm and ReLU, as networks have them that normalise before they convolve."""

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """float32 [B, H, W, C] -> float32 [B, H, W, C]."""
        return nn.relu(batch_norm(train, name="bn")(images))


class DenseBlock(nn.Module):
    """Dense, BatchNorm, ReLU.

    Attributes:
      features: Width of the output.
    """

    features: int

    @nn.compact
    def __call__(self, inputs: Array, train: bool = False) -> Array:
        """Applies the block to float32 [B, N]; returns float32 [B, features]."""
        outputs = nn.Dense(self.features, kernel_init=he_fan_in, name="dense")(inputs)
        return nn.relu(batch_norm(train, name="bn")(outputs))


def convolution(features: int, size: int, stride: int, name: str) -> nn.Conv:
    """A convolution without bias, padded as in PyTorch, with what follows it elsewhere.

    Its kernel has an odd size; rows and columns have one size and one stride.
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
    """Raises ValueError unless there are as many sizes as a network has places for them.

    `of` says in words what the sizes of the field `name` are of.
    """
    if len(sizes) != count:
        raise ValueError(
            f"`{name}` must have {count} entries, {of}, got {len(sizes)}: {tuple(sizes)}."
        )


def batch_norm(train: bool, name: str) -> nn.BatchNorm:
    """BatchNorm with PyTorch's constants."""
    return nn.BatchNorm(
        use_running_average=not train, momentum=_MOMENTUM, epsilon=_EPSILON, name=name
    )


def flatten(images: Array) -> Array:
    """[B, H, W, C] -> [B, H * W * C], channels fastest."""
    return images.reshape(images.shape[0], -1)


def global_average(images: Array) -> Array:
    """[B, H, W, C] -> [B, C], the mean over positions."""
    return jnp.mean(images, axis=(1, 2))
