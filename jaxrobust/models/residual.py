"""Residual networks.

References:
  He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, https://arxiv.org/abs/1512.03385
"""

from collections.abc import Sequence

import flax.linen as nn

from jaxrobust.models.layers import ConvBlock, global_average
from jaxrobust.types import Array


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes.

    Attributes:
      features: C_out.
      strides: Of the first convolution and of the shortcut.
    """

    features: int
    strides: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """float32 [B, H, W, C_in] -> float32 [B, H / stride, W / stride, features]."""
        shortcut = images
        if self.strides != (1, 1) or images.shape[-1] != self.features:
            shortcut = ConvBlock(
                self.features, (1, 1), self.strides, padding=0, relu=False, name="shortcut"
            )(images, train)
        features = ConvBlock(self.features, strides=self.strides, name="conv_0")(images, train)
        return ConvBlock(self.features, name="conv_1")(features, train, residual=shortcut)


class ResNet(nn.Module):
    """A residual network for small images: a 3x3 stem, no first pooling.

    Attributes:
      num_classes: K.
      stage_sizes: Blocks in each stage; every stage but the first halves the image.
      widths: Channels of each stage; the stem has those of the first.
    """

    num_classes: int = 10
    stage_sizes: Sequence[int] = (2, 2, 2)
    widths: Sequence[int] = (64, 128, 256)

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """Normalised images float32 [B, H, W, C] -> logits [B, K]."""
        if len(self.stage_sizes) != len(self.widths):
            raise ValueError(
                f"`widths` must have one entry for each of the {len(self.stage_sizes)} stages of "
                f"`stage_sizes`, got {tuple(self.widths)}."
            )
        features = ConvBlock(self.widths[0], name="stem")(images, train)
        for stage, (size, width) in enumerate(zip(self.stage_sizes, self.widths, strict=True)):
            for block in range(size):
                strides = (2, 2) if stage > 0 and block == 0 else (1, 1)
                name = f"stage_{stage}_block_{block}"
                features = BasicBlock(width, strides, name=name)(features, train)
        return nn.Dense(self.num_classes, name="head")(global_average(features))
