"""DenseNets for small images: every layer gets the outputs of all earlier layers of its stage.

References:
  Huang et al., "Densely Connected Convolutional Networks", CVPR 2017, https://arxiv.org/abs/1608.06993
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from jaxrobust.models.layers import (
    ConvBlock,
    NormRelu,
    check_count,
    convolution,
    global_average,
)
from jaxrobust.types import Array


class DenseLayer(nn.Module):
    """A 1x1 and a 3x3 convolution, each after BatchNorm and ReLU; the output is joined to the input.

    Attributes:
      features: The number of channels that it adds.
      inner: The number of channels between the two convolutions.
    """

    features: int
    inner: int

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """Maps float32 [B, H, W, C] to [B, H, W, features + C], with the new channels first."""
        active = NormRelu(name="norm")(images, train)
        hidden = ConvBlock(self.inner, (1, 1), padding=0, name="conv_0")(active, train)
        return jnp.concatenate(
            [convolution(self.features, 3, 1, name="conv_1")(hidden), images], -1
        )


class DenseNet(nn.Module):
    """Stages of `DenseLayer`, with a 1x1 convolution and average pooling between them.

    Attributes:
      num_classes: The number of classes K.
      stage_sizes: The number of layers in each stage; every stage but the first halves the image.
      widths: The number of channels that each layer adds, for all layers in order.
      inner_widths: The channels within each layer, for all layers in order; None: four times what the
        layer adds.
      transition_widths: The channels after each transition between stages; None: half of the channels
        before it.
      stem_width: The channels of the first convolution.
    """

    num_classes: int = 10
    stage_sizes: Sequence[int] = (6, 12, 24, 16)
    widths: Sequence[int] = (32,) * 58
    inner_widths: Sequence[int] | None = None
    transition_widths: Sequence[int] | None = None
    stem_width: int = 64

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """Returns logits [B, K] for normalised images [B, H, W, C]; H and W are multiples of 8."""
        count, stages = sum(self.stage_sizes), len(self.stage_sizes)
        check_count("widths", self.widths, count, "one for each layer")
        inner_widths = self.inner_widths or tuple(4 * width for width in self.widths)
        check_count("inner_widths", inner_widths, count, "one for each layer")
        if self.transition_widths is not None:
            check_count("transition_widths", self.transition_widths, stages - 1, "between stages")
        features = convolution(self.stem_width, 3, 1, name="stem")(images)
        left = iter(zip(self.widths, inner_widths, strict=True))
        for stage, size in enumerate(self.stage_sizes):
            if stage:
                width = features.shape[-1] // 2
                if self.transition_widths is not None:
                    width = self.transition_widths[stage - 1]
                features = NormRelu(name=f"transition_{stage}_norm")(features, train)
                features = convolution(width, 1, 1, name=f"transition_{stage}")(features)
                features = nn.avg_pool(features, (2, 2), (2, 2))
            for layer in range(size):
                width, inner = next(left)
                block = DenseLayer(width, inner, name=f"stage_{stage}_layer_{layer}")
                features = block(features, train)
        features = global_average(NormRelu(name="final")(features, train))
        return nn.Dense(self.num_classes, name="head")(features)
