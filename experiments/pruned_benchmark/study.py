"""What the stages of the study share: data, networks by name, and what each has right."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.pruned_benchmark import networks
from jaxrobust import data, models, pruning, studies
from jaxrobust.studies.outcomes import unpack

CRITERION_WORDS = {
    "l1": "L1",
    "l2": "L2",
    "geometric_median": "GM",
    "random": "random",
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """A base network or what was made of it.

    Attributes:
      network: The base network's name.
      kind: "base", "control" (fine-tuned without pruning), or a criterion.
      sparsity: Fraction of the filters removed.
      number: Of a control, from 0.
    """

    network: str
    kind: str = "base"
    sparsity: float = 0.0
    number: int = 0

    @property
    def words(self) -> str:
        """Without the network: "L2, 30 %"."""
        if self.kind == "control":
            return "control" + f" {self.number + 1}" * (self.number > 0)
        if self.kind == "base":
            return "base"
        return f"{CRITERION_WORDS[self.kind]}, {100 * self.sparsity:g} %"

    @property
    def name(self) -> str:
        """With the network: "resnet50, L2, 30 %"."""
        return f"{self.network}, {self.words}"

    @property
    def stem(self) -> str:
        """Of its files."""
        words = self.name.replace(", ", "-").replace(" %", "").replace(" ", "-")
        return words.lower().replace("_", "-")


class Study:
    """One run: its settings, its folder, and everything that several stages need.

    Args:
      config: The settings, complete.
      folder: Of the run.
      dataset: The data.
    """

    def __init__(self, config: Any, folder: Path, dataset: data.Dataset) -> None:
        # Any: a complete configuration has no None where a preset fills in.
        self.config, self.folder, self.dataset = config, folder, dataset
        self.stages = studies.Stages(folder)
        self.train = spread(dataset.train, config.num_train)
        self.test = dataset.test
        self.attacked = spread(dataset.test, config.num_attacked)
        self._classifiers: dict[Variant, models.Classifier] = {}
        self.facts: dict[Variant, dict[str, Any]] = {}  # of every network that was trained
        # (surrogate, setting, attack) -> victim -> bool [N]: which images it has right.
        self.shown: dict[tuple[str, str, str], dict[Variant, np.ndarray]] = {}
        self.white_box: dict[Variant, dict[str, np.ndarray]] = {}  # of `crafting.make`

    @property
    def key(self) -> jax.Array:
        """The key of whatever is random outside of training."""
        return jax.random.key(self.config.seed)

    @property
    def source_data(self) -> str | None:
        """The source's data set that these figures stand beside, if any."""
        return self.dataset.name.removesuffix("_jpeg") if "cifar" in self.dataset.name else None

    def family(self, network: str) -> str:
        """The source's network that a network is or is related to."""
        return networks.NETWORKS[network].family

    def variants(self, network: str) -> list[Variant]:
        """Base, controls, and every criterion at every sparsity."""
        controls = [Variant(network, "control", 0.0, i) for i in range(self.config.num_controls)]
        pruned = [
            Variant(network, criterion, sparsity)
            for criterion in self.config.criteria
            for sparsity in self.config.sparsities
        ]
        return [Variant(network), *controls, *pruned]

    def pruned(self, network: str, criterion: str) -> list[Variant]:
        """A criterion at every sparsity."""
        return [Variant(network, criterion, sparsity) for sparsity in self.config.sparsities]

    @property
    def shown_criterion(self) -> str:
        """The criterion whose networks are timed and shown other networks' images: L2, as there."""
        return "l2" if "l2" in self.config.criteria else self.config.criteria[0]

    def network(self, name: str) -> nn.Module:
        """A base network without weights."""
        return networks.create(name, self.dataset.num_classes)

    def groups(self, name: str) -> pruning.ChannelGroups:
        """The groups of channels of a base network."""
        network, image = self.network(name), jnp.zeros((1, *self.dataset.image_shape))
        shapes = jax.eval_shape(network.init, jax.random.key(0), image)
        return pruning.channel_groups(network.apply, shapes, image)

    def as_classifier(self, network: nn.Module, variables: Any) -> models.Classifier:
        """A network with weights, as attacks take it."""
        return models.Classifier(network.apply, variables, self.dataset.mean, self.dataset.std)

    def path(self, variant: Variant) -> Path:
        """The file that a trained network is saved in, shrunk where it was pruned."""
        return self.folder / "models" / f"{variant.stem}.jrw"

    def save(self, variant: Variant, variables: Any, widths: Mapping[str, Any]) -> int:
        """Saves a network as a file of its own, dense; returns its size in bytes."""
        network = networks.create(variant.network, self.dataset.num_classes, **widths)
        return models.save(
            self.path(variant),
            self.as_classifier(network, variables),
            class_names=self.dataset.class_names,
            sparse=False,
        )

    def classifier(self, variant: Variant) -> models.Classifier:
        """A trained network, read from its file: what was removed is not in it."""
        if variant not in self._classifiers:
            self._classifiers[variant] = models.load(self.path(variant)).classifier
        return self._classifiers[variant]

    def right(self, variant: Variant) -> np.ndarray:
        """Which of all test images a network has right, bool [N]."""
        return unpack(self.facts[variant]["right"], len(self.test))

    def right_of_attacked(self, variant: Variant) -> np.ndarray:
        """Which of the images that are attacked it has right without an attack."""
        rows = spread_rows(len(self.test), self.config.num_attacked)
        return self.right(variant)[rows]


def spread_rows(size: int, most: int | None) -> np.ndarray:
    """At most so many rows, spread evenly: of images in the order of their classes a fair share."""
    count = size if most is None else min(most, size)
    return np.unique(np.linspace(0, size - 1, count).round().astype(int))


def spread(split: data.Split, most: int | None) -> data.Split:
    """At most so many images of a split, spread evenly."""
    rows = spread_rows(len(split), most)
    names = tuple(split.files[row] for row in rows)
    return data.Split(split.images[rows], split.labels[rows], names)
