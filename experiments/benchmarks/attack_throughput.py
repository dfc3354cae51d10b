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
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import worker
from jaxrobust import compilation, files, models, studies
from jaxrobust.attacks import PGD

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


def compare(config: Config, model: str, batch_size: int, path: Path) -> dict:
    """Times both sides on one network; returns medians in seconds and their ratio."""
    attack = PGD(epsilon=8 / 255, step_size=2 / 255, num_steps=config.num_steps, keep="last")
    settings = {
        "model": model,
        "batch_size": batch_size,
        "path": str(path),
        "mean": MEAN,
        "std": STD,
        "epsilon": attack.epsilon,
        "step_size": attack.step_size,
        "num_steps": attack.num_steps,
        "num_threads": config.num_threads,
    }
    with worker.Worker(config.peer_python, "experiments.benchmarks.torchattacks_worker") as peer:
        return _timed(config, model, batch_size, path, attack, peer, peer.ask(settings))


def _timed(
    config: Config,
    model: str,
    batch_size: int,
    path: Path,
    attack: PGD,
    peer: worker.Worker,
    versions: dict,
) -> dict:
    data = np.load(path)
    weights = {k.removeprefix("weights/"): data[k] for k in data.files if k.startswith("weights/")}
    classifier = models.Classifier(
        models.create(model).apply, models.from_torch(model, weights), np.array(MEAN), np.array(STD)
    )
    images, labels = jnp.asarray(data["images"]), jnp.asarray(data["labels"])
    difference = float(jnp.max(jnp.abs(classifier(images) - data["logits"])))
    if difference > 1e-4:
        raise RuntimeError(f"The two {model} disagree on logits by {difference:.2g}.")

    key = jax.random.key(0)

    def ours() -> dict:
        start = time.perf_counter()
        result = jax.block_until_ready(attack(key, classifier, images, labels))
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "success": float(jnp.mean(result.success))}

    compile_seconds = ours()["seconds"]
    peer.ask("run")  # theirs warms up too
    theirs_runs, ours_runs = [], []
    for _ in range(config.rounds):
        theirs_runs.append(peer.ask("run"))
        ours_runs.append(ours())
    seconds = {
        "jaxrobust": statistics.median(run["seconds"] for run in ours_runs),
        "torchattacks": statistics.median(run["seconds"] for run in theirs_runs),
    }
    ratios = [t["seconds"] / o["seconds"] for o, t in zip(ours_runs, theirs_runs, strict=True)]
    return {
        "model": model,
        "batch_size": batch_size,
        "num_steps": config.num_steps,
        "seconds": seconds,
        "images_per_second": {name: batch_size / s for name, s in seconds.items()},
        "ratio": seconds["torchattacks"] / seconds["jaxrobust"],
        "ratio_range": [min(ratios), max(ratios)],
        "first_call_seconds": compile_seconds,
        "success": {
            "jaxrobust": ours_runs[-1]["success"],
            "torchattacks": theirs_runs[-1]["success"],
        },
        "versions": versions,
    }


def main(config: Config) -> None:
    """Compares both networks and prints a line for each."""
    rows = []
    for model, batch_size in (("simple_cnn", 128), ("resnet_small", 64)):
        with tempfile.TemporaryDirectory() as folder:
            row = compare(config, model, batch_size, Path(folder) / "network.npz")
        rows.append(row)
        print(
            f"{model:13s} batch {batch_size:3d}, PGD-{config.num_steps}: "
            f"jaxrobust {row['seconds']['jaxrobust']:.3f} s, "
            f"torchattacks {row['seconds']['torchattacks']:.3f} s, "
            f"{row['ratio']:.2f} times its throughput "
            f"({row['ratio_range'][0]:.2f} to {row['ratio_range'][1]:.2f} over {config.rounds} rounds; "
            f"first call {row['first_call_seconds']:.1f} s)"
        )
    document = {
        "environment": studies.environment(),
        "compiler_options": compilation.compiler_options(),
        "rows": rows,
    }
    files.write_json(config.output, document)
    print(f"Written to {config.output}.")


if __name__ == "__main__":
    studies.run_script(main, Config)
