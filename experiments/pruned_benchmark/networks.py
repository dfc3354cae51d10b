"""The networks of the study: the source's four, and smaller ones of the same families for a CPU."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrobust import models


@dataclasses.dataclass(frozen=True)
class Network:
    """A base network.

    Attributes:
      family: The source's network that it is, or is a smaller relative of; a name of
        `jaxrobust.models.MODELS` and of published.py.
      sizes: Constructor fields, where they are not the published ones.
      words: What it is, for tables.
    """

    family: str
    sizes: dict[str, Any] = dataclasses.field(default_factory=dict)
    words: str = "as published, for 32x32 pixels"


def _smaller(family: str, words: str, **sizes: Any) -> Network:
    return Network(family, sizes, words)


# The source's short names of its networks.
SHORT = {
    "mobilenet_v1": "MobileNet",
    "densenet121": "DenseNet121",
    "resnet50": "ResNet50",
    "vgg19": "VGG19",
}

NETWORKS = {
    "mobilenet_v1": Network("mobilenet_v1"),
    "densenet121": Network("densenet121"),
    "resnet50": Network("resnet50"),
    "vgg19": Network("vgg19"),
    "mobilenet_v1_narrow": _smaller(
        "mobilenet_v1",
        "MobileNetV1, every width a quarter",
        widths=(8, 16, 32, 32, 64, 64, *(128,) * 6, 256, 256),
    ),
    "densenet23_narrow": _smaller(
        "densenet121",
        "DenseNet of 4 stages of 1, 2, 3 and 3 layers, growth 8",
        stage_sizes=(1, 2, 3, 3),
        widths=(8,) * 9,
        stem_width=16,
    ),
    "resnet14_narrow": _smaller(
        "resnet50",
        "one bottleneck block in each of 4 stages, every width an eighth of ResNet50's",
        stage_sizes=(1, 1, 1, 1),
        widths=(32, 64, 128, 256),
        stem_width=8,
        stem_shortcut=True,
        bottleneck=True,
    ),
    "vgg9_narrow": _smaller(
        "vgg19",
        "8 convolutions in VGG's 5 stages, every width a quarter",
        stage_sizes=(1, 1, 2, 2, 2),
        widths=(16, 32, 64, 64, 128, 128, 128, 128),
    ),
    "resnet8_tiny": _smaller(
        "resnet50",
        "two bottleneck blocks of 16 and 32 channels",
        stage_sizes=(1, 1),
        widths=(16, 32),
        stem_width=8,
        stem_shortcut=True,
        bottleneck=True,
    ),
    "vgg6_tiny": _smaller(
        "vgg19",
        "5 convolutions of 8 to 32 channels",
        stage_sizes=(1, 1, 1, 1, 1),
        widths=(8, 16, 16, 32, 32),
    ),
}

FULL = ("mobilenet_v1", "densenet121", "resnet50", "vgg19")
NARROW = ("mobilenet_v1_narrow", "densenet23_narrow", "resnet14_narrow", "vgg9_narrow")
TINY = ("resnet8_tiny", "vgg6_tiny")


def create(name: str, num_classes: int, **widths: Any) -> nn.Module:
    """A network without weights; `widths` are those that pruning has left."""
    return models.create(NETWORKS[name].family, num_classes, **NETWORKS[name].sizes | widths)


def widths(network: nn.Module) -> dict[str, Any]:
    """The widths of a network's layers, as `create` takes them."""
    # A residual network's widths do not say by themselves whether its stem has a shortcut.
    names = [field.name for field in dataclasses.fields(network) if "width" in field.name]
    if hasattr(network, "stem_shortcut"):
        names.append("stem_shortcut")
    return {name: getattr(network, name) for name in names}


def published_parameters(family: str, num_classes: int) -> int:
    """How many parameters a network of the source has, which takes no arithmetic to find out."""
    network, image = models.create(family, num_classes), jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(network.init, jax.random.key(0), image)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
