"""What compressing while training costs, against plain adversarial training with the same attack.

    python -m experiments.benchmarks.compression_overhead

Expected time: 8 minutes on 2 cores; with --quick (few images, one round: a rehearsal, not a
measurement) one. Expected numbers: README.md.

Plain training under PGD and training with each method of `fit(compression=...)` take turns, round after
round, on the same images from the same weights. Compared is what an epoch takes, the method's update at
its end included; the first epoch of a call, in which the machine warms up, is left out, and compilation
is in none. Epochs are of few steps here, so that the update at their end weighs more than in a study.
"""

import dataclasses
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from jaxrobust import checks, files, models, pruning, studies, training
from jaxrobust.attacks import PGD

_EPSILON = 8 / 255


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      network: A name in `jaxrobust.models.MODELS`.
      widths: Of it; none: the published ones.
      num_images: Of 32x32 pixels, random: what they show changes no time.
      batch_size: Images in a step.
      pgd_steps: Of the attack.
      rounds: How often each trains for three epochs.
      output: Where the JSON goes.
      quick: Few images, one round: to see that everything runs.
    """

    network: str = "resnet18"
    widths: tuple[int, ...] = (16, 32, 64, 128)
    num_images: int = 1024
    batch_size: int = 128
    pgd_steps: int = 3
    rounds: int = 3
    output: Path = Path("results/benchmarks/compression_overhead.json")
    quick: bool = False


def main(config: Config) -> None:
    """Times the trainings and prints a line for each method."""
    checks.one_of("network", config.network, tuple(models.MODELS))
    for name in ("num_images", "batch_size", "pgd_steps", "rounds"):
        checks.integer(name, getattr(config, name), minimum=1)
    if config.quick:
        config = dataclasses.replace(config, num_images=32, batch_size=16, pgd_steps=1, rounds=1)
    seconds = measure(config)
    plain = seconds["plain"]
    rows = []
    for name, times in seconds.items():
        ratios = [own / other for own, other in zip(times, plain, strict=True)]
        rows.append(
            {
                "method": name,
                "seconds_per_epoch": statistics.median(times),
                "ratio": statistics.median(ratios),
                "ratio_range": [min(ratios), max(ratios)],
            }
        )
        print(describe(rows[-1]), flush=True)
    output = config.output
    output = output.with_stem(f"{output.stem}_quick") if config.quick else output
    document = {
        "config": studies.configuration(config),
        "environment": studies.environment(),
        "rows": rows,
    }
    files.write_json(output, document)
    print(f"Written to {output}.")


def measure(config: Config) -> dict[str, list[float]]:
    """{method: seconds of an epoch in each round}."""
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
    methods: dict[str, Any] = {
        "plain": None,
        "plain, again": None,  # what two alike differ by
        "ADMM, irregular": training.ADMM(pruning.Irregular(), 0.1),
        "ADMM, funnel": training.ADMM(pruning.Funnel(), 0.1),
        "ADMM, redundant": training.ADMM(pruning.Redundant(), 0.1),
        "HYDRA": training.Hydra(pruning.Irregular(), 0.1),
        "RigL": training.RigL(0.1),
    }
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(config.rounds):
        for name, method in methods.items():
            compressed = dataclasses.replace(recipe, compression=method)
            fitted = training.fit(network, data, compressed, progress=False)
            times = [row["train_seconds"] for row in fitted.timings]
            seconds[name].append(statistics.median(times[1:]))
    return seconds


def describe(row: dict[str, Any]) -> str:
    """A method in a line."""
    low, high = row["ratio_range"]
    return (
        f"{row['method']:16s} {row['seconds_per_epoch']:.2f} s an epoch, {row['ratio']:.3f} times "
        f"plain training ({low:.3f} to {high:.3f})"
    )


if __name__ == "__main__":
    import tyro

    # Not `studies.run_script`: training takes one device with all cores.
    main(tyro.cli(Config, description=__doc__))
