"""The settings of the study, its presets, and what they make of them.

Expected time of the cpu preset on 2 free cores: 1.5 hours, of which the trainings are an hour. quick:
some 140 seconds of one core, of which compiling is the most.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from experiments.robust_compression.networks import FULL, NARROW, NETWORKS, TINY
from jaxrobust import checks

DATA = ("cifar10_jpeg", "cifar10", "cifar100", "digits")

# The source's one-shot ADMM with its three sets S, and one more; then the alternatives.
SCHEMES = ("irregular", "funnel", "redundant", "n_of_m")
ALTERNATIVES = ("two_phase", "hydra", "rigl", "magnitude", "random_masks")
# Nothing is pruned: what an interrupted training alone costs the alternatives.
CONTROL = "dense_phases"
METHODS = (*SCHEMES, *ALTERNATIVES, CONTROL)

EPSILON = 8 / 255  # what every network is attacked at, the source's 0.03

# What a preset fills in where a setting was not given.
PRESETS: dict[str, dict[str, Any]] = {
    "gpu": {
        "networks": FULL,
        "methods": ("irregular",),
        "kept": (0.5, 0.1),
        "alternatives": "all",
        "seeds": 1,
        "radii": (EPSILON,),
        "ratios": (0.5, 0.1),
        "num_epochs": 30,
        "max_steps": 10,
        "batch_size": 128,
        "rho": 0.03,
        "num_train": None,
        "num_validation": 1000,
        "num_attacked": 1000,
        "fully_attacked": "all",
        "curve_epsilons": (0.0, 0.01, 0.02, EPSILON, 0.04, 0.06, 0.08, 0.1, 0.13, 0.16),
        "curve_steps": 100,
        "num_timed": 100,
    },
    "cpu": {
        "networks": NARROW,
        "methods": tuple(method for method in METHODS if method != "n_of_m"),
        "kept": (0.5, 0.1),
        "alternatives": "last",
        "seeds": 3,
        "radii": (EPSILON,),
        "ratios": (0.5, 0.1),
        "num_epochs": 12,
        "max_steps": 3,
        "batch_size": 32,
        "rho": 0.2,
        "num_train": 6000,
        "num_validation": 300,
        "num_attacked": 300,
        "fully_attacked": "main",
        "curve_epsilons": (0.0, 0.01, 0.02, EPSILON, 0.045, 0.06, 0.08, 0.1),
        "curve_steps": 40,
        "num_timed": 100,
    },
    "quick": {
        "networks": TINY[:1],
        "methods": ("irregular", "magnitude", "dense_phases"),
        "kept": (0.5, 0.1),
        "alternatives": "all",
        "seeds": 1,
        "radii": (EPSILON,),
        "ratios": (0.5,),
        "num_epochs": 6,
        "max_steps": 1,
        "batch_size": 64,
        "rho": 0.5,
        "num_train": 512,
        "num_validation": 32,
        "num_attacked": 24,
        "fully_attacked": "main",
        "curve_epsilons": (0.0, EPSILON, 0.1),
        "curve_steps": 7,
        "num_timed": 6,
    },
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings. What is not given is the preset's.

    Attributes:
      data: cifar10_jpeg, cifar10, cifar100 or digits. By default cifar10_jpeg, and digits with the
        preset quick where there is no --data-dir.
      data_dir: What holds the data set (data/README.md).
      download: Whether to fetch cifar10 or cifar100 into data_dir if it is not there.
      preset: gpu, the source's networks on all images; cpu, small ones on a part of them, for 2 cores;
        or quick, tiny ones and few steps, to see that everything runs.
      networks: Names in experiments/robust_compression/networks.py. All methods are compared on the
        first, over all seeds; of the others there are the dense network and the irregular scheme.
      methods: irregular, funnel, redundant and n_of_m are one-shot ADMM with these sets; two_phase,
        hydra, rigl, magnitude (then robust fine-tuning) and random_masks the alternatives;
        dense_phases is the dense network, its training interrupted like theirs.
      kept: Shares of the weights to keep, stem and classifier not counted, descending.
      alternatives: Whether the alternatives keep "all" of these shares, or the "last" alone.
      seeds: Trainings of everything that all methods are compared on; seed, seed + 1 and so on.
      radii: Of the attack that networks are trained against, in linf; the first is the one that all
        methods are compared at, and all networks are trained at. The first network is trained at the
        others too.
      ratios: Shares kept of naturally trained networks (figure B.1), descending.
      num_epochs: Of every method in all, whatever its phases.
      max_steps: The most steps of the attack in training.
      learning_rate: The source's 0.05; a fifth of it in the last quarter of the epochs.
      batch_size: Images in a step.
      weight_decay: Of all parameters.
      rho: Of ADMM, reached where the learning rate falls, and in the one-shot schemes from a hundredth
        of it. The weights come to lie in the set only if rho times the steps of the last epochs is
        large enough: too small a rho shows as a large residual, and as a loss at the last projection.
      num_train: Training images; None: all but those of validation.
      num_validation: Of the training images, at most a tenth of them, apart from those that are trained
        on: they say what the compressed network is worth after each epoch, and decide nothing.
      num_attacked: Test images that are attacked, for each seed others, the same for all networks of a
        seed; accuracies are of all test images.
      fully_attacked: Which networks meet all of AutoAttack: "main", the dense ones and those of the
        irregular scheme; or "all". The others meet its first two attacks.
      curve_epsilons: Radii of the curves, rising; a curve ends where accuracy falls below chance.
      curve_steps: Steps of their PGD; the source's are 100.
      num_timed: Images that are timed one by one, and batches of 100.
      suite_steps: Of every attack of AutoAttack at most so many steps, to try things out.
      seed: The first of the seeds.
      run: Name of the run; results go to <results_dir>/robust_compression/<run>.
      results_dir: Where results go.
      quick: Short for --preset quick.
    """

    data: str | None = None
    data_dir: Path | None = None
    download: bool = False
    preset: Literal["gpu", "cpu", "quick"] = "gpu"
    networks: tuple[str, ...] | None = None
    methods: tuple[str, ...] | None = None
    kept: tuple[float, ...] | None = None
    alternatives: Literal["all", "last"] | None = None
    seeds: int | None = None
    radii: tuple[float, ...] | None = None
    ratios: tuple[float, ...] | None = None
    num_epochs: int | None = None
    max_steps: int | None = None
    learning_rate: float = 0.05
    batch_size: int | None = None
    weight_decay: float = 5e-4
    rho: float | None = None
    num_train: int | None = None
    num_validation: int | None = None
    num_attacked: int | None = None
    fully_attacked: Literal["main", "all"] | None = None
    curve_epsilons: tuple[float, ...] | None = None
    curve_steps: int | None = None
    num_timed: int | None = None
    suite_steps: int | None = None
    seed: int = 0
    run: str = "default"
    results_dir: Path = Path("results")
    quick: bool = False

    @property
    def data_set(self) -> str:
        """The data set's name."""
        if self.data is not None:
            return self.data
        is_quick = self.quick or self.preset == "quick"
        return "digits" if is_quick and self.data_dir is None else "cifar10_jpeg"


def complete(config: Config) -> Config:
    """The configuration with what its preset says, and checked.

    Raises:
      TypeError: A setting that is no number.
      ValueError: A setting out of range, an unknown name.
    """
    checks.one_of("preset", config.preset, tuple(PRESETS))
    name = "quick" if config.quick else config.preset
    preset = PRESETS[name]
    given = {field: getattr(config, field) for field in preset}
    filled = {field: preset[field] if value is None else value for field, value in given.items()}
    if name == "quick":
        filled["suite_steps"] = min(config.suite_steps or 4, 4)
    config = dataclasses.replace(config, **filled, preset=name, quick=name == "quick")
    _check(config)
    return config


def _check(config: Config) -> None:
    if config.data is not None:
        checks.one_of("data", config.data, DATA)
    _names("networks", config.networks or (), tuple(NETWORKS))
    _names("methods", config.methods or (), METHODS)
    if "irregular" not in (config.methods or ()):
        raise ValueError(
            f"`methods` must hold irregular, the source's own scheme, got {config.methods}."
        )
    for name in ("kept", "ratios"):
        shares = getattr(config, name)
        for share in shares:
            checks.number(name, share, above=0.0, maximum=0.99)
        if not shares or list(shares) != sorted(set(shares), reverse=True):
            raise ValueError(f"`{name}` must be some, descending, got {shares}.")
    for name, maximum in (("radii", 1.0), ("curve_epsilons", 1.0)):
        for radius in getattr(config, name):
            checks.number(name, radius, minimum=0.0, maximum=maximum)
    radii, epsilons = config.radii or (), config.curve_epsilons or ()
    if not radii or len(set(radii)) < len(radii) or min(radii) == 0:
        raise ValueError(f"`radii` must be some, above 0, none twice, got {radii}.")
    if list(epsilons) != sorted(set(epsilons)) or epsilons[:1] != (0.0,):
        raise ValueError(f"`curve_epsilons` must rise from 0, got {epsilons}.")
    least = {
        "seeds": 1,
        "num_epochs": 6,  # a phase for each half and quarter
        "max_steps": 1,
        "batch_size": 2,
        "num_validation": 1,
        "num_attacked": 1,
        "curve_steps": 1,
        "num_timed": 2,
        "seed": 0,
    }
    for name, minimum in least.items():
        checks.integer(name, getattr(config, name), minimum=minimum)
    for name in ("num_train", "suite_steps"):
        if getattr(config, name) is not None:
            checks.integer(name, getattr(config, name), minimum=1)
    checks.number("learning_rate", config.learning_rate, above=0.0)
    checks.number("weight_decay", config.weight_decay, minimum=0.0)
    checks.number("rho", config.rho, above=0.0)
    checks.one_of("alternatives", config.alternatives, ("all", "last"))
    checks.one_of("fully_attacked", config.fully_attacked, ("main", "all"))


def _names(argument: str, names: tuple[str, ...], known: tuple[str, ...]) -> None:
    for name in names:
        checks.one_of(argument, name, known)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"`{argument}` must be at least one and no name twice, got {names}.")
