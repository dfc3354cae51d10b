"""Measures the cost of compression during training, against plain training with the same attack.

    python -m experiments.benchmarks.compression_overhead

Expected time: 8 minutes on 2 cores; --quick takes one. Expected numbers: docs/performance.md.

Plain training under PGD, and training with each compression method, run in turns on the same images
from the same weights. The time of an epoch is compared, including the update of the method at its end;
the first epoch of a call, in which the machine warms up, is left out, and compilation is never
included. Epochs have few steps here, so that the update weighs more than in a study.
"""

import dataclasses
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.benchmarks import harness
from jaxrobust import models, pruning, studies, training
from jaxrobust.attacks import PGD

_EPSILON = 8 / 255
# Plain training takes part twice, to show by how much two equal trainings differ.
METHODS: dict[str, Any] = {
    "plain": None,
    "plain_again": None,
    "admm_irregular": training.ADMM(pruning.Irregular(), 0.1),
    "admm_funnel": training.ADMM(pruning.Funnel(), 0.1),
    "admm_redundant": training.ADMM(pruning.Redundant(), 0.1),
    "hydra": training.Hydra(pruning.Irregular(), 0.1),
    "rigl": training.RigL(0.1),
}
PRESETS = {"quick": {"num_images": 32, "batch_size": 16, "pgd_steps": 1, "rounds": 1}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(harness.Settings):
    """Settings.

    Attributes:
      network: A name in `jaxrobust.models.MODELS`.
      widths: The widths of the network; empty: the published ones.
      num_images: The number of images, which are random, of 32x32 pixels.
      batch_size: The number of images in a step.
      pgd_steps: The number of steps of the attack.
      rounds: The number of trainings of three epochs with each method; the medians are compared.
    """

    network: str = "resnet18"
    widths: tuple[int, ...] = (16, 32, 64, 128)
    num_images: int = 1024
    batch_size: int = 128
    pgd_steps: int = 3
    rounds: int = 3
    output: Path = Path("results/benchmarks/compression_overhead.json")


def measure(config: Config) -> Iterator[harness.Row]:
    """Times an epoch of each method in every round; yields a row for each method."""
    sizes = {"widths": config.widths} if config.widths else {}
    network = models.create(config.network, 10, **sizes)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (config.num_images, 32, 32, 3), dtype=np.uint8)
    labels = generator.integers(0, 10, config.num_images)
    data = training.Data((images, labels), mean=0.5, std=0.25)
    recipe = training.Recipe(
        num_epochs=3,
        batch_size=config.batch_size,
        optimizer=training.SGD(),
        schedule=training.Constant(0.01),
        objective=training.CrossEntropy(natural_weight=0.1),
        adversary=PGD(_EPSILON, _EPSILON / 2, config.pgd_steps),
    )

    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    for _ in range(config.rounds):
        for name, method in METHODS.items():
            compressed = dataclasses.replace(recipe, compression=method)
            fitted = training.fit(network, data, compressed, progress=False)
            _, *times = [row["train_seconds"] for row in fitted.timings]
            seconds[name].append(statistics.median(times))
    for name, times in seconds.items():
        row = {"method": name, "seconds_per_epoch": statistics.median(times)}
        yield row | {"seconds": times, "ratio": harness.ratio(times, seconds["plain"])}


def main(config: Config) -> None:
    """Times the trainings."""
    studies.check_settings(config)
    harness.record(config, "compression_overhead", measure(config))


if __name__ == "__main__":
    jax.devices()  # initialises jax with one device for all cores, which training uses
    studies.run_script(main, Config, PRESETS)
