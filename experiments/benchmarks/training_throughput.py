"""How many images a second are trained on, against PyTorch on the same network in the same run.

    python -m experiments.benchmarks.training_throughput --peer-python PEER/bin/python

Expected time: 5 minutes on 2 cores; with --quick (one round of few steps: a rehearsal, not a
measurement) one. Expected numbers: README.md.

Both sides take the same SGD steps (Nesterov momentum .9, weight decay 5e-4) from the same weights on
the same batch, in float32, and must have the same loss to 1 % after them, where nothing is random.
Clean steps, and steps under PGD of `--pgd-steps` steps with the network in evaluation mode; PyTorch's
PGD is written out in the worker, channels last, without a library's checks. The two sides take turns,
so that drift of the machine meets both. Compilation is reported apart. PEER is an environment with
torch:

    python3 -m venv PEER && PEER/bin/pip install torch
"""

import dataclasses
import functools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import worker
from experiments.benchmarks.parity.peers import num_cores
from jaxrobust import checks, compilation, files, models, studies, training
from jaxrobust.attacks import PGD

_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_LEARNING_RATE = 0.01
_RECIPE = training.Recipe(
    optimizer=training.SGD(nesterov=True, weight_decay=5e-4),
    schedule=training.Constant(_LEARNING_RATE),
)
_EPSILON, _STEP_SIZE = 8 / 255, 2 / 255
# simple_cnn has dropout, whose numbers the two sides do not share.
_RANDOM = ("simple_cnn",)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      peer_python: Python of an environment with torch.
      networks: Which of simple_cnn and resnet_small.
      batch_size: Images in a step.
      steps: That a round takes.
      pgd_steps: Of the attack in adversarial training.
      rounds: How often each side runs; the medians are compared.
      num_threads: That PyTorch may use; by default as many as this process may use cores.
      output: Where the JSON goes.
      quick: One round of two steps, to see that everything runs.
    """

    peer_python: Path
    networks: tuple[str, ...] = ("simple_cnn", "resnet_small")
    batch_size: int = 128
    steps: int = 5
    pgd_steps: int = 7
    rounds: int = 5
    num_threads: int = dataclasses.field(default_factory=num_cores)
    output: Path = Path("results/benchmarks/training_throughput.json")
    quick: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "steps", "pgd_steps", "rounds", "num_threads"):
            checks.integer(name, getattr(self, name), minimum=1)
        for network in self.networks:
            checks.one_of("networks", network, ("simple_cnn", "resnet_small"))


def main(config: Config) -> None:
    """Compares the networks and prints a line for each kind of training."""
    if config.quick:
        config = dataclasses.replace(config, rounds=1, steps=2, pgd_steps=2, batch_size=16)
    rows = []
    for network in config.networks:
        for pgd_steps in (0, config.pgd_steps):
            rows.append(compare(config, network, pgd_steps))
            print(describe(rows[-1]), flush=True)
    output = config.output
    output = output.with_stem(f"{output.stem}_quick") if config.quick else output
    document = {
        "config": studies.configuration(config),
        "environment": studies.environment() | {"num_cores": num_cores()},
        "rows": rows,
    }
    files.write_json(output, document)
    print(f"Written to {output}.")


def compare(config: Config, name: str, pgd_steps: int) -> dict[str, Any]:
    """Times both sides on one network; `pgd_steps` of 0: clean images."""
    with (
        tempfile.TemporaryDirectory() as folder,
        worker.Worker(config.peer_python, "experiments.benchmarks.torch_training_worker") as peer,
    ):
        path = Path(folder) / "network.npz"
        versions = peer.ask(
            {
                "model": name,
                "batch_size": config.batch_size,
                "path": str(path),
                "mean": _MEAN,
                "std": _STD,
                "steps": config.steps,
                "pgd_steps": pgd_steps,
                "epsilon": _EPSILON,
                "step_size": _STEP_SIZE,
                "learning_rate": _LEARNING_RATE,
                "num_threads": config.num_threads,
            }
        )
        ours = _Ours(name, path, config.steps, pgd_steps)
        start = time.perf_counter()
        ours.run()
        first = time.perf_counter() - start
        peer.ask("run")  # theirs warms up too
        mine, theirs = [], []
        for _ in range(config.rounds):
            theirs.append(peer.ask("run"))
            mine.append(ours.run())
    losses = mine[-1]["loss"], theirs[-1]["loss"]
    if name not in _RANDOM and abs(losses[0] - losses[1]) > 0.01 * abs(losses[1]):
        raise RuntimeError(f"The two sides disagree on the loss of {name}: {losses}.")
    ratios = [t["seconds"] / m["seconds"] for m, t in zip(mine, theirs, strict=True)]
    images = config.batch_size * config.steps
    seconds = {
        side: statistics.median(run["seconds"] for run in runs)
        for side, runs in (("jaxrobust", mine), ("torch", theirs))
    }
    return {
        "network": name,
        "pgd_steps": pgd_steps,
        "batch_size": config.batch_size,
        "images_per_second": {side: images / value for side, value in seconds.items()},
        "ratio": seconds["torch"] / seconds["jaxrobust"],
        "ratio_range": [min(ratios), max(ratios)],
        "first_call_seconds": first,
        "losses": {"jaxrobust": losses[0], "torch": losses[1]},
        "versions": versions,
    }


class _Ours:
    """Our side: the same steps from the same weights, again and again."""

    def __init__(self, name: str, path: Path, steps: int, pgd_steps: int) -> None:
        with np.load(path) as archive:
            data = dict(archive)
        prefix = "weights/"
        weights = {k.removeprefix(prefix): v for k, v in data.items() if k.startswith(prefix)}
        network: Any = models.create(name)
        attack = PGD(_EPSILON, _STEP_SIZE, pgd_steps, random_start=False) if pgd_steps else None
        recipe = dataclasses.replace(_RECIPE, adversary=attack)
        # Made anew for each run: the compiled step donates its state.
        self._start = lambda: training.create_state(models.from_torch(name, weights), recipe)
        self._batch = jnp.asarray(data["images"]), jnp.asarray(data["labels"])
        self._steps = steps
        step = functools.partial(
            training.train_step,
            network=training.Network(network, _MEAN, _STD),
            recipe=recipe,
            steps_per_epoch=1,
        )
        self._step = compilation.jit(step, donate_argnums=0)

    def run(self) -> dict[str, float]:
        """All steps: seconds, and the loss before the last."""
        state = jax.block_until_ready(self._start())
        start = time.perf_counter()
        for index in range(self._steps):
            state, metrics = self._step(state, self._batch, jax.random.key(index))
        loss = float(jax.block_until_ready(metrics["loss"]))
        return {"seconds": time.perf_counter() - start, "loss": loss}


def describe(row: dict[str, Any]) -> str:
    """A comparison in a line."""
    low, high = row["ratio_range"]
    kind = f"PGD-{row['pgd_steps']}" if row["pgd_steps"] else "clean"
    ours, theirs = (row["images_per_second"][side] for side in ("jaxrobust", "torch"))
    return (
        f"{row['network']:13s} batch {row['batch_size']}, {kind}: jaxrobust {ours:.0f} images/s, "
        f"PyTorch {theirs:.0f}: {row['ratio']:.2f} times its throughput ({low:.2f} to {high:.2f}; "
        f"first call {row['first_call_seconds']:.1f} s)"
    )


if __name__ == "__main__":
    studies.run_script(main, Config)
