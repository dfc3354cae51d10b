"""MobileNets for small images: fewer strides than the networks for images of 224 pixels.

References:
  Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications",
  2017, https://arxiv.org/abs/1704.04861 (table 1)
  Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018,
  https://arxiv.org/abs/1801.04381 (table 2)
"""

from collections.abc import Sequence

import flax.linen as nn

from jaxrobust.models.layers import ConvBlock, DepthwiseBlock, check_count, global_average
from jaxrobust.types import Array

_V1_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
V2_BLOCKS = (1, 2, 3, 4, 3, 3, 1)  # of each stage
_V2_EXPANSION = (1, 6, 6, 6, 6, 6, 6)


class MobileNetV1(nn.Module):
    """A network of alternating depthwise and pointwise convolutions.

    Attributes:
      num_classes: The number of classes K.
      widths: The channels of the stem and of the 13 pointwise convolutions. A depthwise convolution has
        as many channels as its input.
    """

    num_classes: int = 10
    widths: Sequence[int] = (32, 64, 128, 128, 256, 256, *(512,) * 6, 1024, 1024)

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """Returns logits [B, K] for normalised images [B, H, W, C]."""
        check_count("widths", self.widths, 14, "the stem and 13 blocks")
        stem, *widths = self.widths
        features = ConvBlock(stem, name="stem")(images, train)
        for index, (width, stride) in enumerate(zip(widths, _V1_STRIDES, strict=True)):
            depthwise = DepthwiseBlock((stride, stride), name=f"block_{index}_depthwise")
            features = depthwise(features, train)
            pointwise = ConvBlock(width, (1, 1), padding=0, name=f"block_{index}_pointwise")
            features = pointwise(features, train)
        return nn.Dense(self.num_classes, name="head")(global_average(features))


class InvertedResidual(nn.Module):
    """A 1x1 convolution that expands, a depthwise one, and a 1x1 one without ReLU that projects.

    With stride 1 there is a shortcut.

    Attributes:
      features: The number of output channels.
      inner: The channels of the depthwise convolution.
      stride: The stride of the depthwise convolution.
      projected: Whether the shortcut is a 1x1 convolution; it must be if the channels change.
    """

    features: int
    inner: int
    stride: int = 1
    projected: bool = False

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """Maps float32 [B, H, W, C_in] to [B, H / stride, W / stride, features]."""
        features = ConvBlock(self.inner, (1, 1), padding=0, name="expand")(images, train)
        features = DepthwiseBlock((self.stride,) * 2, name="depthwise")(features, train)
        shortcut = None
        if self.stride == 1:
            shortcut = images
            if self.projected:
                shortcut = _linear(self.features, "shortcut")(images, train)
        return _linear(self.features, "project")(features, train, residual=shortcut)


def _linear(features: int, name: str) -> ConvBlock:
    return ConvBlock(features, (1, 1), padding=0, relu=False, name=name)


class MobileNetV2(nn.Module):
    """Inverted residual blocks, with ReLU instead of ReLU6 and a shortcut in every block of stride 1.

    The shortcut of the first block of a stage is a convolution. Both are as in the common PyTorch
    network for CIFAR-10, whose weights can be imported.

    Attributes:
      num_classes: The number of classes K.
      widths: The channels of the stem, of the outputs of the 7 stages, and of the last convolution.
      inner_widths: The channels of the depthwise convolutions of the 17 blocks; None: 6 times the input
        channels, in the first stage as many as the input channels.
      strides: The strides of the stem and of each stage's first block. For images of 224 pixels the
        paper has 2 in the stem and in the second stage too.
    """

    num_classes: int = 10
    widths: Sequence[int] = (32, 16, 24, 32, 64, 96, 160, 320, 1280)
    inner_widths: Sequence[int] | None = None
    strides: Sequence[int] = (1, 1, 1, 2, 2, 1, 2, 1)

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """Returns logits [B, K] for normalised images [B, H, W, C]."""
        check_count("widths", self.widths, 9, "the stem, 7 stages and the last convolution")
        check_count("strides", self.strides, 8, "the stem and 7 stages")
        stem, *stages, last = self.widths
        inner_widths = self.inner_widths
        if inner_widths is None:
            # A stage's first block takes what the stage before it puts out, the others its own.
            inner_widths = [
                factor * (before if block == 0 else width)
                for before, width, factor, size in zip(
                    (stem, *stages[:-1]), stages, _V2_EXPANSION, V2_BLOCKS, strict=True
                )
                for block in range(size)
            ]
        check_count("inner_widths", inner_widths, sum(V2_BLOCKS), "one for each block")
        features = ConvBlock(stem, strides=(self.strides[0],) * 2, name="stem")(images, train)
        left = iter(inner_widths)
        for stage, (width, size) in enumerate(zip(stages, V2_BLOCKS, strict=True)):
            for block in range(size):
                stride = self.strides[1 + stage] if block == 0 else 1
                name = f"stage_{stage}_block_{block}"
                inverted = InvertedResidual(width, next(left), stride, block == 0, name=name)
                features = inverted(features, train)
        features = ConvBlock(last, (1, 1), padding=0, name="last")(features, train)
        return nn.Dense(self.num_classes, name="head")(global_average(features))
