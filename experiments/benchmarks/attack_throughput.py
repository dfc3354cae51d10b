"""How many images a second PGD attacks, against torchattacks on the same network in the same run.

    python -m experiments.benchmarks.attack_throughput --peer-python PEER/bin/python

Expected time: 3 minutes on 2 cores. Expected numbers: at least 1.5 times torchattacks' throughput on
simple_cnn (batch 128) and .95 times on resnet_small (batch 64).

PEER is a virtual environment with torch and torchattacks; the project itself does not depend on them:
    python3 -m venv PEER && PEER/bin/pip install torch torchattacks

Weights and images come from the peer; both sides must agree on the logits to 1e-4 before anything is
timed. The two sides take turns, so drift of the machine meets both. Compilation is reported apart.
"""

import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import worker
from jaxrobust import compilation, evaluation, files, models, studies
from jaxrobust.attacks import PGD
from jaxrobust.types import LogitsFn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the benchmark.

    Attributes:
      peer_python: Python of an environment with torch and torchattacks.
      rounds: How often each side runs; the medians are compared.
      num_steps: Of PGD.
      num_threads: That PyTorch may use.
      output: Where the JSON goes.
    """

    peer_python: Path
    rounds: int = 9
    num_steps: int = 40
    num_threads: int = os.cpu_count() or 1
    output: Path = Path("results/benchmarks/attack_throughput.json")


Network = Callable[[str, dict[str, np.ndarray]], LogitsFn]


def of_the_library(name: str, weights: dict[str, np.ndarray]) -> LogitsFn:
    """The library's own network of this name with PyTorch's weights."""
    variables = models.from_torch(name, weights)
    return models.Classifier(models.create(name).apply, variables, np.array(MEAN), np.array(STD))


def compare(
    config: Config, name: str, batch_size: int, networks: Mapping[str, Network], *, num_steps: int
) -> list[dict[str, Any]]:
    """Times networks that have the weights of one of PyTorch's, in turns with it.

    Args:
      config: Settings.
      name: Of PyTorch's network, in torchattacks_worker.py.
      batch_size: Images.
      networks: (name, PyTorch's weights) -> logits_fn, by the name that their row gets.
      num_steps: Of PGD.

    Returns:
      A row for each network: medians in seconds, and ratios.

    Raises:
      RuntimeError: A network has other logits than PyTorch's, by more than 1e-4 of the largest.
    """
    attack = PGD(epsilon=8 / 255, step_size=2 / 255, num_steps=num_steps, keep="last")
    with (
        tempfile.TemporaryDirectory() as folder,
        worker.Worker(config.peer_python, "experiments.benchmarks.torchattacks_worker") as peer,
    ):
        path = Path(folder) / "network.npz"
        settings = {
            "model": name,
            "batch_size": batch_size,
            "path": str(path),
            "mean": MEAN,
            "std": STD,
            "epsilon": attack.epsilon,
            "step_size": attack.step_size,
            "num_steps": attack.num_steps,
            "num_threads": config.num_threads,
        }
        versions = peer.ask(settings)
        with np.load(path) as file:
            data = dict(file)
        return _timed(config, name, networks, data, attack, peer, versions)


def _timed(
    config: Config,
    name: str,
    networks: Mapping[str, Network],
    data: dict[str, np.ndarray],
    attack: PGD,
    peer: worker.Worker,
    versions: dict[str, str],
) -> list[dict[str, Any]]:
    weights = {k.removeprefix("weights/"): v for k, v in data.items() if k.startswith("weights/")}
    images, labels = jnp.asarray(data["images"]), jnp.asarray(data["labels"])
    key, expected = jax.random.key(0), data["logits"]

    def run(logits_fn: LogitsFn) -> dict[str, float]:
        start = time.perf_counter()
        result = jax.block_until_ready(attack(key, logits_fn, images, labels))
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "success": float(jnp.mean(result.success))}

    functions, first_calls = {}, {}
    for row, network in networks.items():
        function = functions[row] = network(name, weights)
        logits = evaluation.logits(function, images, len(images))
        difference = float(np.abs(logits - expected).max() / np.abs(expected).max())
        if difference > 1e-4:
            raise RuntimeError(f"{row} and PyTorch disagree on logits by {difference:.2g}.")
        first_calls[row] = run(function)["seconds"]
    peer.ask("run")  # theirs warms up too
    theirs: list[dict] = []
    ours: dict[str, list[dict]] = {row: [] for row in functions}
    for _ in range(config.rounds):
        theirs.append(peer.ask("run"))
        for row, function in functions.items():
            ours[row].append(run(function))
    theirs_seconds = statistics.median(one["seconds"] for one in theirs)
    found = []
    for row, runs in ours.items():
        seconds = statistics.median(one["seconds"] for one in runs)
        ratios = [t["seconds"] / o["seconds"] for o, t in zip(runs, theirs, strict=True)]
        found.append(
            {
                "model": row,
                "peer_model": name,
                "batch_size": len(images),
                "num_steps": attack.num_steps,
                "seconds": {"jaxrobust": seconds, "torchattacks": theirs_seconds},
                "ratio": theirs_seconds / seconds,
                "ratio_range": [min(ratios), max(ratios)],
                "first_call_seconds": first_calls[row],
                "success": {
                    "jaxrobust": runs[-1]["success"],
                    "torchattacks": theirs[-1]["success"],
                },
                "versions": versions,
            }
        )
    return found


def say(row: dict[str, Any], rounds: int) -> None:
    """Prints a row."""
    seconds, (low, high) = row["seconds"], row["ratio_range"]
    print(
        f"{row['model']:28s} batch {row['batch_size']:3d}, PGD-{row['num_steps']}: "
        f"jaxrobust {seconds['jaxrobust']:.3f} s, torchattacks {seconds['torchattacks']:.3f} s, "
        f"{row['ratio']:.2f} times its throughput ({low:.2f} to {high:.2f} over {rounds} rounds; "
        f"first call {row['first_call_seconds']:.1f} s)",
        flush=True,
    )


def main(config: Config) -> None:
    """Compares both networks and prints a line for each."""
    rows = []
    for name, batch_size in (("simple_cnn", 128), ("resnet_small", 64)):
        networks = {name: of_the_library}
        (row,) = compare(config, name, batch_size, networks, num_steps=config.num_steps)
        rows.append(row)
        say(row, config.rounds)
    document = {
        "environment": studies.environment(),
        "compiler_options": compilation.compiler_options(),
        "rows": rows,
    }
    files.write_json(config.output, document)
    print(f"Written to {config.output}.")


if __name__ == "__main__":
    studies.run_script(main, Config)
