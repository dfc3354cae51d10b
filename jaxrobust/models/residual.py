"""Residual networks for small images, with a 3x3 stem and without the first pooling.

References:
  He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, https://arxiv.org/abs/1512.03385
  He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016, https://arxiv.org/abs/1603.05027
  Zagoruyko, Komodakis, "Wide Residual Networks", BMVC 2016, https://arxiv.org/abs/1605.07146
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import flax.linen as nn

from jaxrobust.models.layers import ConvBlock, NormRelu, check_count, convolution, global_average
from jaxrobust.types import Array


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    Attributes:
      features: The number of output channels.
      inner: The channels between the two convolutions.
      strides: The strides of the first convolution and of the shortcut.
      projected: Whether the shortcut is a 1x1 convolution; it must be if the shape changes.
    """

    features: int
    inner: tuple[int, ...]
    strides: tuple[int, int] = (1, 1)
    projected: bool = False

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """Maps float32 [B, H, W, C_in] to [B, H / stride, W / stride, features]."""
        shortcut = _projection(self)(images, train) if self.projected else images
        features = ConvBlock(self.inner[0], strides=self.strides, name="conv_0")(images, train)
        return ConvBlock(self.features, name="conv_1")(features, train, residual=shortcut)


class BottleneckBlock(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution, and a shortcut.

    Attributes:
      features: The number of output channels.
      inner: The channels after the first and after the second convolution.
      strides: The strides of the second convolution and of the shortcut.
      projected: Whether the shortcut is a 1x1 convolution; it must be if the shape changes.
    """

    features: int
    inner: tuple[int, ...]
    strides: tuple[int, int] = (1, 1)
    projected: bool = False

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """Maps float32 [B, H, W, C_in] to [B, H / stride, W / stride, features]."""
        shortcut = _projection(self)(images, train) if self.projected else images
        first, second = self.inner
        features = ConvBlock(first, (1, 1), padding=0, name="conv_0")(images, train)
        features = ConvBlock(second, strides=self.strides, name="conv_1")(features, train)
        return ConvBlock(self.features, (1, 1), padding=0, name="conv_2")(
            features, train, residual=shortcut
        )


def _projection(block: BasicBlock | BottleneckBlock) -> ConvBlock:
    return ConvBlock(block.features, (1, 1), block.strides, padding=0, relu=False, name="shortcut")


class ResNet(nn.Module):
    """A residual network: stages of residual blocks.

    Attributes:
      num_classes: The number of classes K.
      stage_sizes: The number of blocks in each stage; every stage but the first halves the image.
      widths: The output channels of each stage.
      inner_widths: The channels within the blocks, for all blocks in order: one number per block, two
        with `bottleneck`. None: the output channels of the stage, with `bottleneck` a quarter of them.
      stem_width: The channels of the first convolution; None: the first of `widths`.
      stem_shortcut: Whether the shortcut of the first block is a convolution. None: if the stem and
        the first stage differ in width. True keeps the convolution when pruning makes them equal.
      bottleneck: Whether blocks have three convolutions instead of two.
    """

    num_classes: int = 10
    stage_sizes: Sequence[int] = (2, 2, 2)
    widths: Sequence[int] = (64, 128, 256)
    inner_widths: Sequence[int] | None = None
    stem_width: int | None = None
    stem_shortcut: bool | None = None
    bottleneck: bool = False

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """Returns logits [B, K] for normalised images [B, H, W, C]."""
        kind: type[BottleneckBlock | BasicBlock] = (
            BottleneckBlock if self.bottleneck else BasicBlock
        )
        per_block, share = (2, 4) if self.bottleneck else (1, 1)
        features = ConvBlock(self.stem_width or self.widths[0], name="stem")(images, train)
        for place in _places(self, per_block=per_block, share=share):
            block = kind(place.width, place.inner, place.strides, place.projected, name=place.name)
            features = block(features, train)
        return nn.Dense(self.num_classes, name="head")(global_average(features))


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after BatchNorm and ReLU, and a shortcut.

    Attributes:
      features: The number of output channels.
      inner: The channels between the two convolutions.
      strides: The strides of the first convolution and of the shortcut.
      projected: Whether the shortcut is a 1x1 convolution; it must be if the shape changes.
      raw_shortcut: Whether that convolution is applied before the first BatchNorm and ReLU.
    """

    features: int
    inner: tuple[int, ...]
    strides: tuple[int, int] = (1, 1)
    projected: bool = False
    raw_shortcut: bool = False

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """Maps float32 [B, H, W, C_in] to [B, H / stride, W / stride, features]."""
        active = NormRelu(name="norm")(images, train)
        shortcut = images
        if self.projected:
            source = images if self.raw_shortcut else active
            shortcut = convolution(self.features, 1, self.strides[0], name="shortcut")(source)
        features = ConvBlock(self.inner[0], strides=self.strides, name="conv_0")(active, train)
        return convolution(self.features, 3, 1, name="conv_1")(features) + shortcut


class PreActResNet(nn.Module):
    """A pre-activation residual network, which normalises before each convolution and at the end.

    Published networks of this kind differ in `final_norm` and `raw_shortcut`, which their weights do
    not always show.

    Attributes:
      num_classes: The number of classes K.
      stage_sizes: The number of blocks in each stage; every stage but the first halves the image.
      widths: The output channels of each stage.
      inner_widths: The channels within each block, in order; None: the output channels of its stage.
      stem_width: The channels of the first convolution; None: the first of `widths`.
      stem_shortcut: Whether the shortcut of the first block is a convolution. None: if the stem and
        the first stage differ in width.
      final_norm: Whether there is BatchNorm and ReLU after the last stage.
      raw_shortcut: Whether shortcut convolutions are applied before BatchNorm and ReLU.
    """

    num_classes: int = 10
    stage_sizes: Sequence[int] = (2, 2, 2, 2)
    widths: Sequence[int] = (64, 128, 256, 512)
    inner_widths: Sequence[int] | None = None
    stem_width: int | None = None
    stem_shortcut: bool | None = None
    final_norm: bool = True
    raw_shortcut: bool = False

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """Returns logits [B, K] for normalised images [B, H, W, C]."""
        features = convolution(self.stem_width or self.widths[0], 3, 1, name="stem")(images)
        for place in _places(self):
            block = PreActBlock(
                place.width,
                place.inner,
                place.strides,
                place.projected,
                self.raw_shortcut,
                name=place.name,
            )
            features = block(features, train)
        if self.final_norm:
            features = NormRelu(name="final")(features, train)
        return nn.Dense(self.num_classes, name="head")(global_average(features))


def has_stem_shortcut(network: ResNet | PreActResNet) -> bool:
    """Whether the shortcut of the network's first block is a convolution."""
    stem_width = network.stem_width or network.widths[0]
    if network.stem_shortcut is None:
        return stem_width != network.widths[0]
    if stem_width != network.widths[0] and not network.stem_shortcut:
        raise ValueError(
            f"`stem_width` must be {network.widths[0]}, the width of the first stage, if "
            f"`stem_shortcut` is False, got {stem_width}."
        )
    return network.stem_shortcut


class _Place(NamedTuple):
    """The name and the sizes of a block."""

    name: str
    width: int
    inner: tuple[int, ...]
    strides: tuple[int, int]
    projected: bool


def _places(
    network: ResNet | PreActResNet, *, per_block: int = 1, share: int = 1
) -> Iterator[_Place]:
    """Yields the blocks; without `inner_widths`, inner widths are 1 / share of the outer ones."""
    stage_sizes, widths, inner_widths = network.stage_sizes, network.widths, network.inner_widths
    check_count("widths", widths, len(stage_sizes), "one for each stage of `stage_sizes`")
    if inner_widths is None:
        inner_widths = [
            width // share
            for size, width in zip(stage_sizes, widths, strict=True)
            for _ in range(size * per_block)
        ]
    count = per_block * sum(stage_sizes)
    check_count("inner_widths", inner_widths, count, f"{per_block} for each block")
    left = iter(inner_widths)
    for stage, (size, width) in enumerate(zip(stage_sizes, widths, strict=True)):
        for block in range(size):
            inner = tuple(next(left) for _ in range(per_block))
            halves = stage > 0 and block == 0
            yield _Place(
                f"stage_{stage}_block_{block}",
                width,
                inner,
                (2, 2) if halves else (1, 1),
                halves or (block == 0 and has_stem_shortcut(network)),
            )
