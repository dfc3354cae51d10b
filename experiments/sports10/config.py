"""The settings of the study, and what --quick makes of them."""

import dataclasses
from pathlib import Path

from experiments.sports10.networks import SUBJECTS
from jaxrobust import checks
from jaxrobust.attacks import PGD

OURS = "photo_cnn"
EPSILONS = (0.01, 0.03, 0.05, 0.1)  # source 001's


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      data_dir: The folder with train/<class>/*.jpg and valid/<class>/*.jpg.
      models: Which networks: mlp, cnn, simple_cnn, resnet_small, photo_cnn.
      num_seeds: The networks are trained with seed, seed + 1, ...; the first of them is explained and
        attacked. Slow ones are trained less often: cnn three times, resnet_small once.
      num_folds: Of the cross-validation on the training photographs (not of cnn and resnet_small).
      seed: The first seed.
      num_epochs: Of every network; by default as in its recipe.
      sparsities: Fractions of the weights to prune, ascending.
      epsilon: Radius of the linf ball of the main attacks, in pixel units.
      step_size: Of PGD, in pixel units.
      num_steps: Of PGD.
      target: The class that targeted attacks aim at.
      num_recorded: Examples of each attack in the gallery.
      latency_runs: Measured runs of each latency.
      run: Name of the run; results go to <results_dir>/sports10/<run>.
      results_dir: Where results go.
      quick: Two networks, two epochs, few steps: to see that everything runs.
      skip_damaged: Leave damaged photographs out, and list them.
    """

    data_dir: Path
    models: tuple[str, ...] = tuple(SUBJECTS)
    num_seeds: int = 5
    num_folds: int = 5
    seed: int = 0
    num_epochs: int | None = None
    sparsities: tuple[float, ...] = (0.2, 0.5, 0.8)
    epsilon: float = 0.03
    step_size: float = 0.01
    num_steps: int = 40
    target: str = "basketball"
    num_recorded: int = 10
    latency_runs: int = 200
    run: str = "default"
    results_dir: Path = Path("results")
    quick: bool = False
    skip_damaged: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.models if name not in SUBJECTS]
        if unknown or not self.models or len(set(self.models)) != len(self.models):
            raise ValueError(
                f"`models` must be different names out of {tuple(SUBJECTS)}, got {self.models}."
            )
        checks.integer("num_seeds", self.num_seeds, minimum=1)
        checks.integer("num_folds", self.num_folds, minimum=2)
        checks.integer("seed", self.seed, minimum=0)
        checks.number("epsilon", self.epsilon, above=0.0, maximum=1.0)
        checks.integer("num_recorded", self.num_recorded, minimum=0)
        checks.integer("latency_runs", self.latency_runs, minimum=2)
        if self.num_epochs is not None:
            checks.integer("num_epochs", self.num_epochs, minimum=1)
        for sparsity in self.sparsities:
            checks.number("sparsities", sparsity, above=0.0, maximum=0.99)
        if not self.sparsities or list(self.sparsities) != sorted(set(self.sparsities)):
            raise ValueError(f"`sparsities` must ascend, got {self.sparsities}.")
        PGD(self.epsilon, self.step_size, self.num_steps)  # checks its own settings


def quick(config: Config) -> Config:
    """The configuration that --quick stands for."""
    small = ("mlp", OURS)
    return dataclasses.replace(
        config,
        models=small if config.models == tuple(SUBJECTS) else config.models,
        num_seeds=min(config.num_seeds, 2),
        num_folds=2,
        num_epochs=2,
        sparsities=config.sparsities[-1:],
        num_steps=5,
        num_recorded=2,
        latency_runs=10,
    )
