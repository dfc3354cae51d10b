"""Networks without shortcuts: those of the two Sports-10 reports, one for photographs, and VGG."""

from collections.abc import Sequence

import flax.linen as nn

from jaxrobust.models.layers import (
    ConvBlock,
    DenseBlock,
    batch_norm,
    check_count,
    flatten,
    global_average,
    he_fan_in,
)
from jaxrobust.types import Array


class MLP(nn.Module):
    """Dense layers with BatchNorm and ReLU on the flattened image (Sports-10 report A).

    Attributes:
      num_classes: The number of classes K.
      widths: The widths of the hidden layers.
    """

    num_classes: int = 10
    widths: Sequence[int] = (512, 256, 64)

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """Returns logits [B, K] for normalised images [B, H, W, C]."""
        features = flatten(images)
        for index, width in enumerate(self.widths):
            features = DenseBlock(width, name=f"block_{index}")(features, train)
        return nn.Dense(self.num_classes, name="head")(features)


class CNN(nn.Module):
    """Five convolutions, three poolings, global average, BatchNorm, one dense layer (report A).

    Attributes:
      num_classes: The number of classes K.
      widths: The channels of the five convolutions; the image is halved after the second, fourth and
        fifth.
    """

    num_classes: int = 10
    widths: Sequence[int] = (32, 32, 64, 64, 128)

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """Returns logits [B, K] for normalised images [B, H, W, C]; H and W are multiples of 8."""
        features = images
        for index, width in enumerate(self.widths):
            features = ConvBlock(width, use_bias=True, name=f"block_{index}")(features, train)
            if index in (1, 3, 4):
                features = nn.max_pool(features, (2, 2), (2, 2))
        features = batch_norm(train, name="head_bn")(global_average(features))
        return nn.Dense(self.num_classes, name="head")(features)


class PhotoCNN(nn.Module):
    """A convolution of stride 2, then five with three poolings, for images of at least 64 pixels.

    Larger images show more of a photograph. The stride of the first convolution reduces the cost to
    that of a network for images of half the side.

    Attributes:
      num_classes: The number of classes K.
      widths: The channels of the stem and the five other convolutions; the image is halved by the stem
        and after the first, third and fifth of the others.
    """

    num_classes: int = 10
    widths: Sequence[int] = (32, 32, 64, 64, 128, 128)

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """Returns logits [B, K] for normalised images [B, H, W, C]; H and W are multiples of 16."""
        stem, *widths = self.widths
        features = ConvBlock(stem, strides=(2, 2), name="stem")(images, train)
        for index, width in enumerate(widths):
            features = ConvBlock(width, name=f"block_{index}")(features, train)
            if index in (0, 2, 4):
                features = nn.max_pool(features, (2, 2), (2, 2))
        features = batch_norm(train, name="head_bn")(global_average(features))
        return nn.Dense(self.num_classes, name="head")(features)


class SimpleCNN(nn.Module):
    """Three convolutions, each followed by pooling, and two dense layers with dropout (report B).

    Attributes:
      num_classes: The number of classes K.
      widths: The channels of the convolutions. Max pooling follows each but the last, which is followed
        by average pooling.
      hidden_width: The width of the first dense layer.
    """

    num_classes: int = 10
    widths: Sequence[int] = (32, 64, 128)
    hidden_width: int = 256

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """Returns logits [B, K] for normalised images [B, H, W, C]; H and W are multiples of 8.

        In training it needs the random stream "dropout".
        """
        features = images
        last = len(self.widths) - 1
        for index, width in enumerate(self.widths):
            features = ConvBlock(width, use_bias=True, name=f"block_{index}")(features, train)
            features = (
                nn.max_pool(features, (2, 2), (2, 2))
                if index < last
                else nn.avg_pool(features, (2, 2), (2, 2))
            )
        features = nn.Dropout(0.5, deterministic=not train)(flatten(features))
        hidden = nn.Dense(self.hidden_width, kernel_init=he_fan_in, name="hidden")(features)
        features = nn.Dropout(0.3, deterministic=not train)(nn.relu(hidden))
        return nn.Dense(self.num_classes, name="head")(features)


class VGG(nn.Module):
    """Stages of 3x3 convolutions with BatchNorm, pooling after each stage, and one dense layer.

    Attributes:
      num_classes: The number of classes K.
      stage_sizes: The number of convolutions in each stage; every stage halves the image.
      widths: The channels of all convolutions, in order.

    References:
      Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR
      2015, https://arxiv.org/abs/1409.1556 (configuration E, with BatchNorm, for small images)
    """

    num_classes: int = 10
    stage_sizes: Sequence[int] = (2, 2, 4, 4, 4)
    widths: Sequence[int] = (*(64,) * 2, *(128,) * 2, *(256,) * 4, *(512,) * 8)

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """Returns logits [B, K] for normalised images [B, H, W, C]; H and W are multiples of 32."""
        check_count("widths", self.widths, sum(self.stage_sizes), "one for each convolution")
        features, widths = images, iter(enumerate(self.widths))
        for size in self.stage_sizes:
            for _ in range(size):
                index, width = next(widths)
                block = ConvBlock(width, use_bias=True, name=f"block_{index}")
                features = block(features, train)
            features = nn.max_pool(features, (2, 2), (2, 2))
        return nn.Dense(self.num_classes, name="head")(global_average(features))
