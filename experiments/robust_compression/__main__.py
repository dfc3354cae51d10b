"""Reproduces source 004 carefully: adversarial training with compression in the same training.

    python -m experiments.robust_compression --preset cpu --data-dir DIR
    python -m experiments.robust_compression --preset table --data-dir DIR
    python -m experiments.robust_compression --preset gpu --data-dir DIR
    python -m experiments.robust_compression --preset quick

DIR has the data set (data/README.md), by default CIFAR-10 as JPEG; the preset quick without --data-dir
runs on scikit-learn's digits, offline. Networks are trained against PGD and compressed at the same
time, by ADMM with the three constraints of the source and one more, and by the alternatives: two-phase
ADMM, HYDRA, RigL, magnitude pruning with robust fine-tuning, and random masks. All have the same number
of epochs. Each network is read back from its saved file, attacked by AutoAttack, and compared with the
dense network of the same seed. Then come the curves, transfers, weights, losses, combined networks and
times of the source. The report says what differs from the source, and why.

If a run is killed or stopped with Ctrl-C, the same command resumes it; a training resumes at the
unfinished epoch.

Expected time of the cpu preset on 2 free cores: 1.5 hours, of which the trainings take an hour. That
was measured when curves had 40 steps, transfer 20 and natural networks one seed; it has not been timed
since. The preset table took 8.7 hours of one core, most of them beside other work. quick: 140 seconds
on one core, mostly for compilation.

Source: 004, "Robust Convolutional Neural Networks with Resource Constraints".
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from experiments.robust_compression import attacks, measures, networks, trainings
from experiments.robust_compression.networks import EPSILON, METHODS, NETWORKS, Study, Variant
from jaxrobust import checks, data, studies, training

_TOY: dict[str, Any] = {
    "seeds": 3,
    "num_epochs": 12,
    "max_steps": 3,
    "batch_size": 32,
    "num_train": 6000,
    "num_validation": 300,
    "num_attacked": 300,
    "fully_attacked": "main",
}
PRESETS: dict[str, dict[str, Any]] = {
    "gpu": {},
    "cpu": {
        **_TOY,
        "preset": "cpu",
        "networks": ("resnet10_slim",),
        "methods": tuple(method for method in METHODS if method != "n_of_m"),
        "alternatives": "last",
        "curve_epsilons": (0.0, 0.01, 0.02, EPSILON, 0.045, 0.06, 0.08, 0.1),
    },
    "table": {
        **_TOY,
        "preset": "table",
        "networks": ("resnet10_slim", "mobilenet_v2_narrow"),
        "radii": (EPSILON, 0.1),
        "num_attacked": 150,
        "curve_epsilons": (0.0, 0.02, EPSILON, 0.06, 0.1),
    },
    "quick": {
        "preset": "quick",
        "quick": True,
        "networks": ("resnet6_tiny",),
        "methods": ("irregular", "magnitude", networks.CONTROL),
        "ratios": (0.5,),
        "num_epochs": 6,
        "max_steps": 1,
        "batch_size": 64,
        "num_train": 512,
        "num_validation": 32,
        "num_attacked": 24,
        "fully_attacked": "main",
        "curve_epsilons": (0.0, EPSILON, 0.1),
        "curve_steps": 7,
        "num_timed": 6,
        "suite_steps": 4,
    },
}
# The sections of the report that --publish writes: all but pictures and the records of single images.
PUBLISHED = (
    *("methods", "autoattack", "differences", "losses", "weights", "ratios", "epsilon-curves"),
    *("transfer-curves", "combined", "latency", "sizes", "models"),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings. If a setting is not given, the preset determines it.

    Attributes:
      data: The data set. By default cifar10_jpeg; digits for the preset quick without --data-dir.
      data_dir: The folder of the data set (data/README.md).
      download: Whether to download cifar10 or cifar100 to data_dir if it is missing.
      preset: gpu: the networks of the source on all images; cpu: all methods on a small network and a
        part of the images, for 2 cores; table: the source's table 4.2 at that size, with both
        architectures and both radii; quick: tiny networks and few steps, to see that everything runs.
      networks: Names in experiments/robust_compression/networks.py. All are trained densely and with
        the irregular scheme, at every radius; all methods are compared on the first network.
      methods: irregular, funnel, redundant and n_of_m are one-shot ADMM with these constraints;
        two_phase, hydra, rigl, magnitude (then robust fine-tuning) and random_masks are the
        alternatives; dense_phases is the dense network, whose training is split in phases like theirs.
      kept: The fractions of the weights to keep, without stem and classifier, in descending order.
      alternatives: Whether the alternatives keep "all" of these fractions, or only the "last".
      seeds: The number of trainings of each network: seed, seed + 1 and so on.
      radii: The linf radii of the attack in training; all methods are compared at the first.
      ratios: The fractions to keep of naturally trained networks (figure B.1), in descending order.
      num_epochs: The number of epochs of every method, over all its phases.
      max_steps: The largest number of steps of the attack in training.
      learning_rate: The learning rate, 0.05 in the source; it falls to a fifth for the last quarter of
        the epochs.
      batch_size: The number of images in a step.
      weight_decay: The weight decay of all parameters.
      augmentation: What training images go through besides flips: "rotation" by up to 15 degrees, as
        in the source, which does not say by how much, or "translation" by up to an eighth of the image.
      num_train: The number of training images; None: all except those of validation.
      num_validation: The number of training images, at most a tenth, on which networks are evaluated
        after each epoch. Networks are not trained on them, and nothing is chosen by them.
      num_attacked: The number of attacked test images, which differ between seeds; clean accuracies
        are of all test images.
      fully_attacked: The networks that all of AutoAttack attacks: "main", the dense ones and those of
        the irregular scheme; or "all". The others are attacked by its first two attacks.
      curve_epsilons: The radii of the curves, in ascending order; a curve ends where accuracy falls
        below chance.
      curve_steps: The number of steps of PGD for the curves and for transfer, 100 in the source.
      num_timed: The number of images that are timed one by one, and of timed batches of 100.
      suite_steps: The largest number of steps of every attack of AutoAttack, to try things out.
      seed: The first of the seeds.
      run: The name of the run; results go to <results_dir>/robust_compression/<run>.
      results_dir: The folder of all results.
      quick: Short for --preset quick.
    """

    data: Literal["cifar10_jpeg", "cifar10", "cifar100", "digits"] | None = None
    data_dir: Path | None = None
    download: bool = False
    preset: Literal["gpu", "cpu", "table", "quick"] = "gpu"
    networks: tuple[str, ...] = ("resnet18", "resnet34", "mobilenet_v2")
    methods: tuple[str, ...] = ("irregular",)
    kept: tuple[float, ...] = (0.5, 0.1)
    alternatives: Literal["all", "last"] = "all"
    seeds: int = 1
    radii: tuple[float, ...] = (EPSILON,)
    ratios: tuple[float, ...] = (0.5, 0.1)
    num_epochs: int = 30
    max_steps: int = 10
    learning_rate: float = 0.05
    batch_size: int = 128
    weight_decay: float = 5e-4
    augmentation: Literal["rotation", "translation"] = "rotation"
    num_train: int | None = None
    num_validation: int = 1000
    num_attacked: int = 1000
    fully_attacked: Literal["main", "all"] = "all"
    curve_epsilons: tuple[float, ...] = (0, 0.01, 0.02, EPSILON, 0.04, 0.06, 0.08, 0.1, 0.13, 0.16)
    curve_steps: int = 100
    num_timed: int = 100
    suite_steps: int | None = None
    seed: int = 0
    run: str = "default"
    results_dir: Path = Path("results")
    quick: bool = False

    @property
    def data_set(self) -> str:
        """The name of the data set."""
        if self.data is not None:
            return self.data
        return "digits" if self.preset == "quick" and self.data_dir is None else "cifar10_jpeg"

    @property
    def all_seeds(self) -> range:
        """The seeds over which all methods are compared."""
        return range(self.seed, self.seed + self.seeds)

    def pair(self, network: str, radius: float) -> list[Variant]:
        """The dense network and the irregular scheme at every fraction, as in the source.

        With the radius 0 they are naturally trained, at every ratio of figure B.1.
        """
        shares = self.kept if radius else self.ratios
        schemes = [Variant(network, "irregular", share, radius) for share in shares]
        return [Variant(network, radius=radius), *schemes]

    def pairs(self) -> list[list[Variant]]:
        """All `pair`s against an adversary: every network at every radius."""
        return [self.pair(network, radius) for network in self.networks for radius in self.radii]

    def compared(self) -> list[Variant]:
        """The variants that are compared over seeds: the first network by all methods."""
        found = [Variant(self.networks[0], radius=self.radii[0])]
        for method in self.methods:
            is_last = self.alternatives == "last" and method in networks.ALTERNATIVES
            wanted = self.kept[-1:] if is_last else self.kept
            shares = dict.fromkeys(trainings.share_of(method, kept) for kept in wanted)
            found += [found[0].but(method=method, kept=share) for share in shares]
        return found

    def asked(self, variant: Variant) -> float:
        """The nearest fraction in the settings, because N of M cannot keep every fraction."""
        return min(self.kept, key=lambda kept: abs(kept - variant.kept))

    def seeded(self, variant: Variant) -> list[Variant]:
        """A variant with every seed."""
        return [variant.but(seed=seed) for seed in self.all_seeds]

    def robust(self) -> list[Variant]:
        """All variants that are trained against attacks, in the order of training."""
        kinds = [*self.compared(), *(variant for pair in self.pairs() for variant in pair)]
        return [v.but(seed=seed) for seed in self.all_seeds for v in dict.fromkeys(kinds)]

    def variants(self) -> list[Variant]:
        """All networks."""
        natural = [v for network in self.networks for v in self.pair(network, 0.0)]
        return self.robust() + [v for variant in natural for v in self.seeded(variant)]


def check(settings: Settings) -> None:
    """Raises ValueError or TypeError for a setting that is out of range or unknown."""
    least = {"num_epochs": 6, "batch_size": 2, "num_timed": 2, "seed": 0}  # an epoch for each phase
    studies.check_settings(settings, least, networks=NETWORKS, methods=METHODS)
    if "irregular" not in settings.methods:
        raise ValueError(
            f"`methods` must include irregular, the scheme of the source, got {settings.methods}."
        )
    for name, most in (("kept", 0.99), ("ratios", 0.99), ("radii", 1.0)):
        shares = getattr(settings, name)
        for share in shares:
            checks.number(name, share, above=0.0, maximum=most)
        # The main radius is the first of them, whichever it is.
        wanted = list(shares) if name == "radii" else sorted(shares, reverse=True)
        if not shares or list(shares) != wanted or len(set(shares)) < len(shares):
            order = "different" if name == "radii" else "descending"
            raise ValueError(f"`{name}` must be one or more {order} numbers, got {shares}.")
    epsilons = settings.curve_epsilons
    if list(epsilons) != sorted(set(epsilons)) or epsilons[:1] != (0,) or epsilons[-1] > 1:
        raise ValueError(f"`curve_epsilons` must ascend from 0 to at most 1, got {epsilons}.")
    checks.number("learning_rate", settings.learning_rate, above=0.0)
    checks.number("weight_decay", settings.weight_decay, minimum=0.0)


def check_sizes(study: Study) -> None:
    """Raises ValueError if a network does not accept the images, or if there are too few images.

    Otherwise the study would fail after hours.
    """
    settings, train, shape = study.settings, study.dataset.train, study.dataset.image_shape
    for name in settings.networks:
        try:
            jax.eval_shape(study.network(name).init, jax.random.key(0), jnp.zeros((1, *shape)))
        except Exception as error:  # flax and jax raise errors of many classes
            raise ValueError(
                f"`networks` must accept images of shape {shape}, but {name} does not: {error}"
            ) from error
    left = len(train) - len(study.validation)
    if settings.num_train is not None and settings.num_train > left:
        raise ValueError(
            f"`num_train` must be at most {left}, the number of training images without those for "
            f"validation, got {settings.num_train}."
        )


def main(settings: Settings) -> Path:
    """Runs the study; returns the report's path."""
    check(settings)
    dataset = data.load(settings.data_set, settings.data_dir, download=settings.download)
    constants = {
        "networks": [NETWORKS[name] for name in settings.networks],
        "training": trainings.CONSTANTS,
        "combined": [attacks.EPSILONS, attacks.STEPS],
        "panels": attacks.PANEL_EPSILONS,
    }
    run = studies.start(
        "robust_compression",
        settings,
        ignored=("download",),
        also={"constants": training.describe(constants)},
    )
    study = Study(run, dataset)
    check_sizes(study)
    if settings.preset == "gpu" and jax.default_backend() == "cpu":
        print("This preset is for a GPU; use --preset cpu on this machine.", file=sys.stderr)
    measured = measures.measure(study)
    recipe = trainings.recipe(study, settings.radii[0], 0, settings.num_epochs)
    return run.finish(
        f"Robust training with compression on {dataset.name}",
        dataset,
        Path(__file__).with_name("report.md.j2"),
        recipes=training.describe({"training": recipe}),
        study=study,
        chance=1 / dataset.num_classes,
        rhos=trainings.rhos(study),
        augmentation=recipe.augmentation,
        attacks=attacks,
        measures=measures,
        networks=networks,
        trainings=trainings,
        **measured,
    )


if __name__ == "__main__":
    studies.run_script(main, Settings, PRESETS, published=PUBLISHED)
