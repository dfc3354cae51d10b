"""What the stages of the study share: data, networks by name, and what each has right."""

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from experiments.robust_compression import networks
from experiments.robust_compression.config import ALTERNATIVES, CONTROL, EPSILON, SCHEMES
from experiments.robust_compression.shares import part_of, spread_rows, validation_rows
from jaxrobust import data, evaluation, models, studies
from jaxrobust.evaluation.attack_report import epsilon_label
from jaxrobust.studies.outcomes import rate_of, unpack

METHOD_WORDS = {
    "dense": "dense",
    "pretrained": "dense half",
    "irregular": "ADMM, irregular",
    "funnel": "ADMM, funnel",
    "redundant": "ADMM, redundant",
    "n_of_m": "ADMM, N:M",
    "two_phase": "two-phase ADMM",
    "hydra": "HYDRA",
    "rigl": "RigL",
    "magnitude": "magnitude, fine-tuned",
    "random_masks": "random masks",
    "dense_phases": "dense, in two phases",
}
_BLOCK = 4  # N of every 4 weights; of 8 where that is no whole number, at least one


@dataclasses.dataclass(frozen=True)
class Variant:
    """A trained network.

    Attributes:
      network: Its name in networks.py.
      method: "dense" or one of `config.METHODS`.
      kept: Share of the weights kept, stem and classifier not counted.
      radius: Of the attack that it was trained against; 0 for natural training.
      seed: Of its training.
    """

    network: str
    method: str = "dense"
    kept: float = 1.0
    radius: float = EPSILON
    seed: int = 0

    @property
    def share(self) -> str:
        """Of the weights, in words: "50 %", or "dense"."""
        return "dense" if self.kept == 1 else f"{100 * self.kept:g} %"

    @property
    def words(self) -> str:
        """Without network and seed: "ADMM, irregular, 50 %, trained at 8/255"."""
        at = f"trained at {epsilon_label(self.radius)}" if self.radius else "natural"
        method = METHOD_WORDS[self.method]
        return f"{method}, {at}" if self.kept == 1 else f"{method}, {self.share}, {at}"

    @property
    def name(self) -> str:
        """With network and seed."""
        return f"{self.network}, {self.words}, seed {self.seed}"

    @property
    def stem(self) -> str:
        """Of its files."""
        words = [self.network, self.method, f"{100 * self.kept:g}", epsilon_label(self.radius)]
        return "-".join([*words, f"seed{self.seed}"]).replace("/", "of").replace("_", "-").lower()


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
        size = len(dataset.train)
        held = validation_rows(config, size)
        self.validation = part_of(dataset.train, held)
        rest = np.setdiff1d(np.arange(size), held)
        self.train = part_of(dataset.train, rest[spread_rows(len(rest), config.num_train)])
        self.test = dataset.test
        self._attacked: dict[int, data.Split] = {}
        self._classifiers: dict[Variant, models.Classifier] = {}
        self.facts: dict[Variant, dict[str, Any]] = {}  # of every network that was trained
        self.suites: dict[Variant, dict[str, Any]] = {}  # SUITE of docs/result_format.md
        self.combined: dict[str, dict[str, dict[str, str]]] = {}  # of combined.py, by network
        self.transfers: dict[
            Variant, list[dict[str, Any]]
        ] = {}  # curves, by what they were made on
        self.timed: list[dict[str, Any]] | None = None  # of cost.py

    @property
    def main(self) -> str:
        """The network that all methods are compared on."""
        return self.config.networks[0]

    @property
    def key(self) -> jax.Array:
        """The key of whatever is random outside of training."""
        return jax.random.key(self.config.seed)

    @property
    def seeds(self) -> list[int]:
        """Of the trainings that all methods are compared on."""
        return [self.config.seed + index for index in range(self.config.seeds)]

    @property
    def attacked(self) -> data.Split:
        """The test images that networks of the first seed meet attacks on."""
        return self.attacked_by(self.seeds[0])

    def attacked_by(self, seed: int) -> data.Split:
        """The test images that are attacked, for each seed others."""
        if seed not in self._attacked:
            part = self.seeds.index(seed), len(self.seeds)
            rows = spread_rows(len(self.test), self.config.num_attacked, part)
            self._attacked[seed] = part_of(self.test, rows)
        return self._attacked[seed]

    def radii_of(self, network: str) -> tuple[float, ...]:
        """All radii of training for the main network, the first for the others."""
        return self.config.radii if network == self.main else self.config.radii[:1]

    def seeds_of(self, network: str, radius: float) -> list[int]:
        """All seeds of the main network at the first radius, one of everything else."""
        whole = network == self.main and radius == self.config.radii[0]
        return self.seeds if whole else self.seeds[:1]

    def pair(self, network: str, radius: float, seed: int | None = None) -> list[Variant]:
        """The dense network and the irregular scheme at every share: those of the source."""
        seed = self.seeds[0] if seed is None else seed
        schemes = [Variant(network, "irregular", k, radius, seed) for k in self.config.kept]
        return [Variant(network, radius=radius, seed=seed), *schemes]

    def compared(self, seed: int) -> list[Variant]:
        """Everything that is compared over seeds: the main network by all methods."""
        radius = self.config.radii[0]
        found = [Variant(self.main, radius=radius, seed=seed)]
        for method in self.config.methods:
            wanted = self.config.kept
            if self.config.alternatives == "last" and method in ALTERNATIVES:
                wanted = wanted[-1:]
            shares = {share_of(method, kept): kept for kept in wanted}
            found += [Variant(self.main, method, kept, radius, seed) for kept in shares]
        return found

    def natural(self, network: str) -> list[Variant]:
        """Naturally trained: dense, and by the irregular scheme at every ratio (figure B.1)."""
        seed = self.seeds[0]
        schemes = [Variant(network, "irregular", k, 0.0, seed) for k in self.config.ratios]
        return [Variant(network, radius=0.0, seed=seed), *schemes]

    def robust(self) -> list[Variant]:
        """All that were trained against attacks, in the order of training."""
        found = [variant for seed in self.seeds for variant in self.compared(seed)]
        for network in self.config.networks:
            for radius in self.radii_of(network):
                found += self.pair(network, radius)
        return list(dict.fromkeys(found))

    def variants(self) -> list[Variant]:
        """All networks."""
        natural = [v for network in self.config.networks for v in self.natural(network)]
        # The spread of natural weights over seeds, to which robust ones are compared.
        seeds = [Variant(self.main, radius=0.0, seed=seed) for seed in self.seeds]
        return list(dict.fromkeys([*self.robust(), *seeds, *natural]))

    def is_fully_attacked(self, variant: Variant) -> bool:
        """Whether it meets all of AutoAttack."""
        return self.config.fully_attacked == "all" or variant.method in ("dense", "irregular")

    def network(self, name: str) -> nn.Module:
        """A network without weights."""
        return networks.create(name, self.dataset.num_classes)

    def path(self, variant: Variant) -> Path:
        """The file that a trained network is saved in, without the weights that are zero."""
        return self.folder / "models" / f"{variant.stem}.jrw"

    def save(self, variant: Variant, variables: Any, *, sparse: bool = True) -> int:
        """Saves a network; returns the file's size in bytes. A dense file stands beside it."""
        path = self.path(variant)
        return models.save(
            path if sparse else path.with_suffix(".dense"),
            models.Classifier(
                self.network(variant.network).apply, variables, self.dataset.mean, self.dataset.std
            ),
            class_names=self.dataset.class_names,
            sparse=sparse,
        )

    def classifier(self, variant: Variant) -> models.Classifier:
        """A trained network, read from its file: what is measured is what was saved."""
        if variant not in self._classifiers:
            self._classifiers[variant] = models.load(self.path(variant)).classifier
        return self._classifiers[variant]

    def right(self, variant: Variant) -> np.ndarray:
        """Which of all test images a network has right, bool [N]."""
        return unpack(self.facts[variant]["right"], len(self.test))

    def accuracy(self, variant: Variant) -> evaluation.Rate:
        """Of all test images."""
        return rate_of(self.right(variant))

    def standing(self, variant: Variant, attack: str | None = None) -> np.ndarray:
        """Which attacked images withstood an attack and those before it, bool [N]; None: all."""
        suite = self.suites[variant]
        fooled_by = np.array(suite["fooled_by"])
        names = [entry["name"] for entry in suite["attacks"]]
        number = len(names) - 1 if attack is None else names.index(attack)
        return (fooled_by == -1) | (fooled_by > number)

    def over_seeds(self, variant: Variant) -> list[Variant]:
        """The same network with every seed that it was trained with."""
        seeds = self.seeds if variant in self.compared(variant.seed) else [variant.seed]
        if variant.radius == 0 and variant.method == "dense" and variant.network == self.main:
            seeds = self.seeds
        return [dataclasses.replace(variant, seed=seed) for seed in seeds]


def share_of(method: str, kept: float) -> float:
    """The share that a method keeps where it cannot keep any: N of M is whole numbers."""
    if method == CONTROL:
        return 1.0
    return n_of_m(kept)[0] / n_of_m(kept)[1] if method == "n_of_m" else kept


def n_of_m(kept: float) -> tuple[int, int]:
    """(N, M) nearest to a share: 2 of 4 for a half, 1 of 8 for a tenth.

    Example:
      >>> n_of_m(0.5), n_of_m(0.1)
      ((2, 4), (1, 8))
    """
    exact = abs(kept * _BLOCK - round(kept * _BLOCK)) < 1e-6 and round(kept * _BLOCK) > 0
    size = _BLOCK if exact else 2 * _BLOCK
    return max(1, round(kept * size)), size


def is_scheme(method: str) -> bool:
    """Whether a method is one-shot ADMM."""
    return method in SCHEMES
