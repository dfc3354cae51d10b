"""The networks of the study: the source's two, ResNet18 beside them, and small ones for a CPU."""

import dataclasses
from typing import Any

import flax.linen as nn

from jaxrobust import models


@dataclasses.dataclass(frozen=True)
class Network:
    """A network that is trained dense and compressed.

    Attributes:
      family: A name of `jaxrobust.models.MODELS`.
      source: The source's network whose figures stand beside it: a key of published.py.
      exclude: Path prefixes of the kernels that stay whole: stem and classifier.
      sizes: Constructor fields, where they are not the published ones.
      words: What it is, for tables.
    """

    family: str
    source: str
    exclude: tuple[str, ...] = ("stem", "head")
    sizes: dict[str, Any] = dataclasses.field(default_factory=dict)
    words: str = "as published, for 32x32 pixels"


NETWORKS = {
    "resnet34": Network("resnet34", "ResNet"),
    "resnet18": Network("resnet18", "ResNet"),
    "mobilenet_v2": Network("mobilenet_v2", "MobileNet"),
    # Of four times as many weights, on what 2 cores can train in two minutes, random masks keep as much
    # as any method: a tenth of its weights is enough for all that it learns.
    "resnet10_slim": Network(
        "resnet18",
        "ResNet",
        sizes={"stage_sizes": (1, 1, 1, 1), "widths": (8, 16, 32, 64)},
        words="one block in each of ResNet18's 4 stages, every width an eighth",
    ),
    "mobilenet_v2_narrow": Network(
        "mobilenet_v2",
        "MobileNet",
        sizes={"widths": (16, 8, 8, 16, 24, 32, 48, 80, 320)},
        words="MobileNetV2, widths a quarter to a half",
    ),
    "resnet6_tiny": Network(
        "resnet18",
        "ResNet",
        sizes={"stage_sizes": (1, 1), "widths": (8, 16)},
        words="two blocks of 8 and 16 channels",
    ),
    "cnn_tiny": Network(
        "cnn",
        "MobileNet",
        exclude=("block_0", "head"),
        sizes={"widths": (8, 8, 16, 16, 16)},
        words="five convolutions of 8 to 16 channels, in the place of a second architecture",
    ),
}

FULL = ("resnet18", "resnet34", "mobilenet_v2")
NARROW = ("resnet10_slim",)
TINY = ("resnet6_tiny", "cnn_tiny")


def create(name: str, num_classes: int) -> nn.Module:
    """A network without weights."""
    return models.create(NETWORKS[name].family, num_classes, **NETWORKS[name].sizes)
