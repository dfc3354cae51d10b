"""The settings of the study."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from experiments.sports10.networks import DEFAULT, SUBJECTS
from jaxrobust import checks, studies
from jaxrobust.attacks import PGD

OURS = "photo_cnn"
# The first of these that is in a run is explained by every method.
EXPLAINED = (OURS, "simple_cnn", "cnn")
EPSILONS = (0.01, 0.03, 0.05, 0.1)  # those of source 001


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      data_dir: The folder with train/<class>/*.jpg and valid/<class>/*.jpg.
      preset: full: our networks; source: also networks by recipes nearer to the two reports', in a run
        of this name; quick: two networks, two epochs and few steps, to see that everything runs.
      models: The networks: mlp, cnn, simple_cnn, resnet_small, photo_cnn; and, trained more like their
        reports, cnn_plateau, cnn_plateau_by_test, simple_cnn_stopped and resnet_small_stopped.
      defended: The networks that are defended; none if it is empty. By default all of `models`, or one
        with `quick`.
      num_seeds: The number of trainings of each network: seed, seed + 1, ... The first is explained
        and attacked. Slow networks are trained less often: resnet_small once, resnet_small_stopped
        three times.
      num_folds: The number of folds of the cross-validation on the training photographs (not for
        resnet_small), at least 2; 0 for no cross-validation, and no lottery tickets.
      seed: The first seed.
      num_epochs: The number of epochs of every network; by default that of its recipe.
      sparsities: The fractions of the weights to prune, in ascending order.
      epsilon: The radius of the linf ball of the main attacks, in pixel units.
      step_size: The step size of PGD, in pixel units.
      num_steps: The number of steps of PGD.
      target: The class at which targeted attacks aim.
      num_recorded: The number of examples of each attack in the gallery.
      latency_runs: The number of measured runs of each latency.
      run: The name of the run; results go to <results_dir>/sports10/<run>.
      results_dir: The folder of all results.
      quick: Short for --preset quick.
      skip_damaged: Leave damaged photographs out, and list them.
    """

    data_dir: Path
    preset: Literal["full", "source", "quick"] = "full"
    models: tuple[str, ...] = DEFAULT
    defended: tuple[str, ...] | None = None
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


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "preset": "quick",
        "quick": True,
        "models": ("mlp", OURS),
        "num_seeds": 2,
        "num_folds": 2,
        "num_epochs": 2,
        "sparsities": (0.8,),
        "num_steps": 5,
        "num_recorded": 2,
        "latency_runs": 10,
    },
    # Networks trained more like their reports', beside ours of the same name; resnet_small, which is
    # not here, is in the full preset.
    "source": {
        "preset": "source",
        "models": (
            *("mlp", "cnn", "cnn_plateau", "cnn_plateau_by_test"),
            *("simple_cnn", "simple_cnn_stopped", "resnet_small_stopped"),
        ),
        "run": "source",
    },
}


def check(config: Config) -> None:
    """Raises ValueError for settings that are out of range."""
    least = {"num_folds": 0, "seed": 0, "num_recorded": 0, "latency_runs": 2}
    studies.check_settings(config, least, models=SUBJECTS)
    if config.num_folds == 1:
        raise ValueError("`num_folds` must be at least 2, or 0 for no cross-validation, got 1.")
    for name in config.defended or ():
        checks.one_of("defended", name, config.models)
    checks.number("epsilon", config.epsilon, above=0.0, maximum=1.0)
    for sparsity in config.sparsities:
        checks.number("sparsities", sparsity, above=0.0, maximum=0.99)
    if not config.sparsities or list(config.sparsities) != sorted(set(config.sparsities)):
        raise ValueError(f"`sparsities` must ascend, got {config.sparsities}.")
    PGD(config.epsilon, config.step_size, config.num_steps)  # checks its own settings
