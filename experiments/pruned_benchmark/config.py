"""The settings of the study, its presets, and what --quick makes of them."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from experiments.pruned_benchmark.networks import FULL, NARROW, NETWORKS, TINY
from jaxrobust import checks

DATA = ("cifar10_jpeg", "cifar10", "cifar100", "digits")
CRITERIA = ("l1", "l2", "geometric_median", "random")
INITIAL = 0.1  # sparsity of the first epoch of fine-tuning, the source's pruning_init

# What a preset fills in where a setting was not given.
PRESETS: dict[str, dict[str, Any]] = {
    "full": {
        "networks": FULL,
        "criteria": ("l1", "l2", "geometric_median"),
        "sparsities": (0.1, 0.2, 0.3, 0.4, 0.5),
        "num_epochs": 10,
        "fine_tuning_epochs": 10,
        "pruning_epochs": 5,
        "fine_tuning_milestones": (6, 8),
        "num_train": None,
        "num_attacked": 10_000,
        "num_controls": 3,
        "latency_runs": 100,
        "max_steps": None,
    },
    "cpu": {
        "networks": NARROW,
        "criteria": ("l1", "l2", "geometric_median"),
        "sparsities": (0.1, 0.2, 0.3, 0.4, 0.5),
        "num_epochs": 10,
        "fine_tuning_epochs": 6,
        "pruning_epochs": 3,
        "fine_tuning_milestones": (4,),
        "num_train": 10_000,
        "num_attacked": 500,
        "num_controls": 3,
        "latency_runs": 100,
        "max_steps": None,
    },
    "quick": {
        "networks": TINY,
        "criteria": ("l1", "l2"),
        "sparsities": (0.5,),
        "num_epochs": 2,
        "fine_tuning_epochs": 2,
        "pruning_epochs": 2,
        "fine_tuning_milestones": (1,),
        "num_train": 1024,
        "num_attacked": 24,
        "num_controls": 1,
        "latency_runs": 10,
        "max_steps": 2,
    },
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings. What is not given is the preset's.

    Attributes:
      data: cifar10_jpeg, cifar10, cifar100 or digits. By default cifar10_jpeg, and digits where --quick
        is given without a --data-dir.
      data_dir: What holds the data set (data/README.md).
      download: Whether to fetch cifar10 or cifar100 into data_dir if it is not there.
      preset: full, the source's networks on all images, for a GPU; or cpu, smaller networks of the
        same families on a part of the images.
      networks: Of mobilenet_v1, densenet121, resnet50 and vgg19 (full), mobilenet_v1_narrow,
        densenet23_narrow, resnet14_narrow and vgg9_narrow (cpu), resnet8_tiny and vgg6_tiny (quick).
      criteria: By which filters are removed: l1, l2, geometric_median (by default these three), and
        random, the one to beat.
      sparsities: Fractions of the filters of every layer to remove, ascending, from 0.1 on;
        0.1 to 0.5, quick 0.5.
      num_epochs: Of the base networks: the source's 10, quick 2.
      fine_tuning_epochs: Of pruned networks and of the controls: full 10, cpu 6, quick 2. The source
        does not say how many.
      pruning_epochs: Of these, in how many the sparsity rises from 0.1: full 5, cpu 3, quick 2; the
        rest has the last one.
      milestones: Epochs of the base networks after which the learning rate falls to a tenth.
      fine_tuning_milestones: Likewise of fine-tuning, of pruned networks and of controls: figures are
        of the last epoch, and at a high rate those of one epoch say little about the next. Full 6
        and 8, cpu 4, quick 1.
      learning_rate: The source's 0.1.
      batch_size: The source's 128.
      num_train: Training images; by default all, with the cpu preset 10,000.
      num_attacked: Test images that are attacked, or all where there are fewer: full 10,000, cpu 500,
        quick 24; accuracies are of all test images.
      num_controls: Unpruned networks with as much fine-tuning as the pruned ones: the first sees the
        images in the same order as they do, further ones show what another order changes. 3, quick 1.
      latency_runs: Measured runs of each latency: 100, quick 10.
      max_steps: Of every attack at most so many steps for each start, to try things out.
      seed: Of everything that is random.
      run: Name of the run; results go to <results_dir>/pruned_benchmark/<run>.
      results_dir: Where results go.
      quick: Two tiny networks, two criteria, two epochs, two steps, where nothing else is given: to
        see that everything runs.
    """

    data: str | None = None
    data_dir: Path | None = None
    download: bool = False
    preset: Literal["full", "cpu"] = "full"
    networks: tuple[str, ...] | None = None
    criteria: tuple[str, ...] | None = None
    sparsities: tuple[float, ...] | None = None
    num_epochs: int | None = None
    fine_tuning_epochs: int | None = None
    pruning_epochs: int | None = None
    milestones: tuple[int, ...] = (10, 20, 30)
    fine_tuning_milestones: tuple[int, ...] | None = None
    learning_rate: float = 0.1
    batch_size: int = 128
    num_train: int | None = None
    num_attacked: int | None = None
    num_controls: int | None = None
    latency_runs: int | None = None
    max_steps: int | None = None
    seed: int = 0
    run: str = "default"
    results_dir: Path = Path("results")
    quick: bool = False

    @property
    def data_set(self) -> str:
        """The data set's name."""
        if self.data is not None:
            return self.data
        return "digits" if self.quick and self.data_dir is None else "cifar10_jpeg"


def complete(config: Config) -> Config:
    """The configuration with what its preset says, and checked.

    Raises:
      TypeError: A setting that is no number.
      ValueError: A setting out of range, an unknown name.
    """
    checks.one_of("preset", config.preset, ("full", "cpu"))
    preset = PRESETS["quick" if config.quick else config.preset]
    given = {name: getattr(config, name) for name in preset}
    filled = {name: preset[name] if value is None else value for name, value in given.items()}
    if config.fine_tuning_epochs is not None:  # fewer than the preset's leave less to plan
        for name in ("pruning_epochs", "fine_tuning_milestones"):
            if given[name] is None:
                filled[name] = _within(filled[name], config.fine_tuning_epochs)
    config = dataclasses.replace(config, **filled)
    _check(config)
    return config


def _check(config: Config) -> None:
    if config.data is not None:
        checks.one_of("data", config.data, DATA)
    _names("networks", config.networks, tuple(NETWORKS))
    _names("criteria", config.criteria, CRITERIA)
    sparsities = config.sparsities or ()
    for sparsity in sparsities:
        checks.number("sparsities", sparsity, minimum=INITIAL, maximum=0.95)
    if not sparsities or list(sparsities) != sorted(set(sparsities)):
        raise ValueError(f"`sparsities` must be some, ascending, got {sparsities}.")
    least = {
        "num_epochs": 1,
        "fine_tuning_epochs": 1,
        "batch_size": 2,
        "num_attacked": 1,
        "num_controls": 1,
        "latency_runs": 2,
        "seed": 0,
    }
    for name, minimum in least.items():
        checks.integer(name, getattr(config, name), minimum=minimum)
    for name in ("num_train", "max_steps", "pruning_epochs"):
        if getattr(config, name) is not None:
            checks.integer(name, getattr(config, name), minimum=1)
    if (config.pruning_epochs or 0) > (config.fine_tuning_epochs or 0):
        raise ValueError(
            f"`pruning_epochs` must be at most `fine_tuning_epochs` = {config.fine_tuning_epochs}, got "
            f"{config.pruning_epochs}."
        )
    checks.number("learning_rate", config.learning_rate, above=0.0)
    for name in ("milestones", "fine_tuning_milestones"):
        milestones = getattr(config, name)
        for milestone in milestones:
            checks.integer(name, milestone, minimum=1)
        if list(milestones) != sorted(set(milestones)):
            raise ValueError(f"`{name}` must ascend, got {milestones}.")


def _within(planned: Any, num_epochs: int) -> Any:
    """A number of epochs, or milestones, that a shorter training has."""
    if isinstance(planned, tuple):
        return tuple(milestone for milestone in planned if milestone < num_epochs)
    return min(planned, num_epochs)


def _names(argument: str, names: tuple[str, ...] | None, known: tuple[str, ...]) -> None:
    for name in names or ():
        checks.one_of(argument, name, known)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"`{argument}` must be at least one and no name twice, got {names}.")
