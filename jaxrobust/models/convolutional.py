"""Plain networks: those of the two Sports-10 reports (but the residual one), one of our own, VGG."""

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
      num_classes: K.
      widths: Of the hidden layers.
    """

    num_classes: int = 10
    widths: Sequence[int] = (512, 256, 64)

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """Normalised images float32 [B, H, W, C] -> logits [B, K]."""
        features = flatten(images)
        for index, width in enumerate(self.widths):
            features = DenseBlock(width, name=f"block_{index}")(features, train)
        return nn.Dense(self.num_classes, name="head")(features)


class CNN(nn.Module):
    """Five convolutions, three poolings, global average, BatchNorm, one dense layer (report A).

    Attributes:
      num_classes: K.
      widths: Of the five convolutions; the image is halved after the second, fourth and fifth.
    """

    num_classes: int = 10
    widths: Sequence[int] = (32, 32, 64, 64, 128)

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """Normalised images float32 [B, H, W, C], H and W multiples of 8 -> logits [B, K]."""
        features = images
        for index, width in enumerate(self.widths):
            features = ConvBlock(width, use_bias=True, name=f"block_{index}")(features, train)
            if index in (1, 3, 4):
                features = nn.max_pool(features, (2, 2), (2, 2))
        features = batch_norm(train, name="head_bn")(global_average(features))
        return nn.Dense(self.num_classes, name="head")(features)


class PhotoCNN(nn.Module):
    """A convolution of stride 2, then five with three poolings: for images of 64 pixels and more.

    What it sees of a photograph is worth more than what it could compute on fewer pixels; the stem
    brings it back to the cost of a network for half the side.

    Attributes:
      num_classes: K.
      widths: Of the stem and of the five convolutions; the image is halved by the stem and after the
        first, third and fifth of the others.
    """

    num_classes: int = 10
    widths: Sequence[int] = (32, 32, 64, 64, 128, 128)

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """Normalised images float32 [B, H, W, C], H and W multiples of 16 -> logits [B, K]."""
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
      num_classes: K.
      widths: Of the convolutions; max pooling after each but the last, average pooling there.
      hidden_width: Of the dense layer.
    """

    num_classes: int = 10
    widths: Sequence[int] = (32, 64, 128)
    hidden_width: int = 256

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """Normalised images float32 [B, H, W, C], H and W multiples of 8 -> logits [B, K].

        In training it needs the PRNG stream "dropout".
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
    """Stages of 3x3 convolutions with BatchNorm, pooling after each, one dense layer.

    Attributes:
      num_classes: K.
      stage_sizes: Convolutions in each stage; every stage halves the image.
      widths: Of the convolutions, one after the other.

    References:
      Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR
      2015, https://arxiv.org/abs/1409.1556 (configuration E, with BatchNorm, for small images)
    """

    num_classes: int = 10
    stage_sizes: Sequence[int] = (2, 2, 4, 4, 4)
    widths: Sequence[int] = (*(64,) * 2, *(128,) * 2, *(256,) * 4, *(512,) * 8)

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """Normalised images float32 [B, H, W, C], H and W multiples of 32 -> logits [B, K]."""
        check_count("widths", self.widths, sum(self.stage_sizes), "one for each convolution")
        features, widths = images, iter(enumerate(self.widths))
        for size in self.stage_sizes:
            for _ in range(size):
                index, width = next(widths)
                block = ConvBlock(width, use_bias=True, name=f"block_{index}")
                features = block(features, train)
            features = nn.max_pool(features, (2, 2), (2, 2))
        return nn.Dense(self.num_classes, name="head")(global_average(features))
