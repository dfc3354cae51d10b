"""The networks of the study with their names, and the data that they share.

The source has ResNet34 and MobileNetV2. This study adds ResNet18, and small networks for a CPU.
"""

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from jaxrobust import data, models
from jaxrobust.evaluation.attack_report import epsilon_label

EPSILON = 8 / 255  # at which every network is attacked; 0.03 in the source

# The source's one-shot ADMM with its three sets S and one more, and the alternatives.
SCHEMES = ("irregular", "funnel", "redundant", "n_of_m")
ALTERNATIVES = ("two_phase", "hydra", "rigl", "magnitude", "random_masks")
CONTROL = "dense_phases"  # nothing is pruned, to measure the cost of an interrupted training
METHODS = (*SCHEMES, *ALTERNATIVES, CONTROL)
PRETRAINED = "pretrained"  # the dense half of the training, with which methods in phases begin

# The names of methods in tables, and in the names of stages on the disk.
METHOD_WORDS = {
    "dense": "dense",
    PRETRAINED: "dense half",
    "irregular": "ADMM, irregular",
    "funnel": "ADMM, funnel",
    "redundant": "ADMM, redundant",
    "n_of_m": "ADMM, N:M",
    "two_phase": "two-phase ADMM",
    "hydra": "HYDRA",
    "rigl": "RigL",
    "magnitude": "magnitude, fine-tuned",
    "random_masks": "random masks",
    CONTROL: "dense, in two phases",
}


@dataclasses.dataclass(frozen=True)
class Network:
    """A network that is trained dense and compressed.

    Attributes:
      family: A name of `jaxrobust.models.MODELS`.
      source: The name in published.csv of the source's network that it is compared with.
      exclude: The path prefixes of the kernels that are not pruned: stem and classifier.
      sizes: The constructor fields that differ from the published ones.
      words: A description for tables.
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
    # With four times as many weights, random masks are as good as any method in a training of two
    # minutes on 2 cores, because a tenth of the weights is enough for all that the network learns.
    "resnet10_slim": Network(
        "resnet18",
        "ResNet",
        sizes={"stage_sizes": (1, 1, 1, 1), "widths": (8, 16, 32, 64)},
        words="one block in each of ResNet18's 4 stages, every width an eighth",
    ),
    # Without the stride of the stem it would take four times as long.
    "mobilenet_v2_narrow": Network(
        "mobilenet_v2",
        "MobileNet",
        sizes={
            "widths": (8, 8, 8, 8, 16, 24, 32, 64, 128),
            "strides": (2, 1, 1, 2, 2, 1, 2, 1),
        },
        words="MobileNetV2, widths a tenth to a half, and a stem of stride 2",
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


@dataclasses.dataclass(frozen=True)
class Variant:
    """A trained network; its fields are the keys of the facts about it.

    Attributes:
      network: The name in NETWORKS.
      method: "dense" or one of METHODS.
      kept: The share of the weights that is kept, without stem and classifier.
      radius: The radius of the attack in training; 0 for natural training.
      seed: The seed of the training, an integer; None: all seeds.
    """

    network: str
    method: str = "dense"
    kept: float = 1.0
    radius: float = EPSILON
    seed: Any = None

    def but(self, **changes: Any) -> "Variant":
        """Returns the variant with some fields changed."""
        return dataclasses.replace(self, **changes)

    @property
    def dense(self) -> "Variant":
        """The dense network that it is compared with."""
        return self.but(method="dense", kept=1.0)

    @property
    def exclude(self) -> tuple[str, ...]:
        """The path prefixes of the kernels that are not pruned."""
        return NETWORKS[self.network].exclude

    @property
    def share(self) -> str:
        """The share of the weights in words: "50 %", or "dense"."""
        return "dense" if self.kept == 1 else f"{100 * self.kept:g} %"

    @property
    def method_words(self) -> str:
        """The method's name in tables."""
        return METHOD_WORDS[self.method]

    @property
    def words(self) -> str:
        """The description without network and seed: "ADMM, irregular, 50 %, trained at 8/255"."""
        share = [] if self.kept == 1 else [self.share]
        at = f"trained at {epsilon_label(self.radius)}" if self.radius else "natural"
        return ", ".join([self.method_words, *share, at])

    @property
    def name(self) -> str:
        """The description with network and seed, as in the names of stages."""
        return f"{self.network}, {self.words}, seed {self.seed}"

    @property
    def stem(self) -> str:
        """The name of the variant's files, without a suffix."""
        words = [self.network, self.method, f"{100 * self.kept:g}", epsilon_label(self.radius)]
        return "-".join([*words, f"seed{self.seed}"]).replace("/", "of").replace("_", "-").lower()


class Study:
    """A run with its data and its trained networks, as they are saved.

    Args:
      run: The result of `studies.start`.
      dataset: The data set.
    """

    def __init__(self, run: Any, dataset: data.Dataset) -> None:
        self.run, self.settings, self.dataset = run, run.settings, dataset
        train, self.test = dataset.train, dataset.test
        most = min(run.settings.num_validation, max(1, len(train) // 10))
        held = spread_rows(len(train), most)
        self.validation = train.take(held)
        rest = np.setdiff1d(np.arange(len(train)), held)
        self.train = train.take(rest[spread_rows(len(rest), run.settings.num_train)])
        self.records: dict[Variant, dict[str, Any]] = {}  # what `trainings.train` returned
        self._classifiers: dict[Variant, models.Classifier] = {}

    @property
    def batch_size(self) -> int:
        """The number of images in a step."""
        return min(self.settings.batch_size, len(self.train))

    def attacked_rows(self, seed: int) -> np.ndarray:
        """Returns the rows of the attacked test images, which differ between seeds."""
        part = seed - self.settings.seed, self.settings.seeds
        return spread_rows(len(self.test), self.settings.num_attacked, part)

    def attacked(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the attacked test images of a seed, and their labels."""
        rows = self.attacked_rows(seed)
        return self.test.images[rows], self.test.labels[rows]

    def target(self, variant: Variant) -> tuple[models.Classifier, np.ndarray, np.ndarray]:
        """Returns the network of a variant, and the images and labels of its seed, for attacks."""
        return self.classifier(variant), *self.attacked(variant.seed)

    def network(self, name: str) -> nn.Module:
        """Returns a network without weights."""
        known = NETWORKS[name]
        return models.create(known.family, self.dataset.num_classes, **known.sizes)

    def path(self, variant: Variant) -> Path:
        """Returns the path of the file of a trained network, which leaves out zeros."""
        return self.run.folder / "models" / f"{variant.stem}.jrw"

    def save(self, variant: Variant, variables: Any) -> tuple[int, int]:
        """Saves a network; returns the size of the file in bytes, and of one that includes zeros."""
        apply, names = self.network(variant.network).apply, self.dataset.class_names
        model = models.Classifier(apply, variables, self.dataset.mean, self.dataset.std)
        dense, sparse = (
            models.save(self.path(variant), model, class_names=names, sparse=sparse)
            for sparse in (False, True)
        )
        return sparse, dense

    def classifier(self, variant: Variant) -> models.Classifier:
        """Returns a trained network, read from its file, so that the saved network is measured."""
        if variant not in self._classifiers:
            self._classifiers[variant] = models.load(self.path(variant)).classifier
        return self._classifiers[variant]


def spread_rows(size: int, most: int | None, part: tuple[int, int] = (0, 1)) -> np.ndarray:
    """Returns at most `most` rows, spread evenly.

    `part` is (number, number of parts); the rows of different parts overlap as little as possible.
    """
    count = size if most is None else min(most, size)
    number, parts = part
    shifted = np.arange(count) + (number + 0.5) / parts
    return np.unique((shifted * size / max(count, 1)).astype(int))
