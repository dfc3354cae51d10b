"""Compares the images per second of training with PyTorch, on the same network in the same run.

    python -m experiments.benchmarks.training_throughput --peer-python PEER/bin/python

Both sides take the same SGD steps (Nesterov momentum .9, weight decay 5e-4) from the same weights on
the same batch, in float32. If the network has no random parts, their losses must agree to 1 %
afterwards. There are clean steps, and steps under PGD with the network in evaluation mode. PyTorch's
PGD is written in torch_worker.py, with channels last and without the checks of a library. Expected
time: 5 minutes on 2 cores; --quick takes one. Expected numbers: docs/performance.md.
experiments/benchmarks/README.md says what PEER is.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import harness, network_files
from jaxrobust import compilation, models, studies, training
from jaxrobust.attacks import PGD

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
EPSILON, STEP_SIZE = 8 / 255, 2 / 255
_NETWORKS = ("simple_cnn", "resnet_small")
_RANDOM = ("simple_cnn",)  # has dropout, whose numbers the two sides do not share
PRESETS = {"quick": {"rounds": 1, "steps": 2, "pgd_steps": 2, "batch_size": 16}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(harness.PeerSettings):
    """Settings.

    Attributes:
      networks: The networks to use, of simple_cnn and resnet_small.
      batch_size: The number of images in a step.
      steps: The number of steps in a round.
      pgd_steps: The number of steps of the attack in adversarial training.
    """

    networks: tuple[str, ...] = _NETWORKS
    batch_size: int = 128
    steps: int = 5
    pgd_steps: int = 7
    rounds: int = 5
    output: Path = Path("results/benchmarks/training_throughput.json")


@dataclasses.dataclass(frozen=True)
class Work:
    """The work of a round: SGD steps under PGD of `pgd_steps` (0: clean), products in `precision`."""

    steps: int
    pgd_steps: int
    learning_rate: float = 0.01
    precision: Literal["float32", "bfloat16"] = "float32"


class Ours:
    """Our side: rounds of training steps, each of which begins with the same variables."""

    def __init__(self, name: str, variables: Any, work: Work) -> None:
        attack = PGD(EPSILON, STEP_SIZE, work.pgd_steps or 1, random_start=False)
        self._recipe = training.Recipe(
            optimizer=training.SGD(nesterov=True, weight_decay=5e-4),
            schedule=training.Constant(work.learning_rate),
            adversary=attack if work.pgd_steps else None,
            precision=work.precision,
        )
        step = functools.partial(
            training.train_step,
            network=training.Network(models.create(name), MEAN, STD),
            recipe=self._recipe,
            steps_per_epoch=1,
        )
        self._step = compilation.jit(step, donate_argnums=0)
        # On the host, because the compiled step donates its state: each round makes it anew.
        self._variables, self._num_steps = jax.tree.map(np.asarray, variables), work.steps
        self.begin()

    def begin(self) -> None:
        """Goes back to the first variables."""
        state = training.create_state(jax.tree.map(jnp.asarray, self._variables), self._recipe)
        self.state = jax.block_until_ready(state)

    def step(self, batch: Any, index: int) -> Any:
        """Takes a step; returns the loss before it."""
        self.state, metrics = self._step(self.state, batch, jax.random.key(index))
        return metrics["loss"]

    def run(self, batch: Any) -> harness.Row:
        """Runs a round; returns its seconds, and the loss before its last step."""
        self.begin()
        return harness.clocked(
            lambda: [self.step(batch, index) for index in range(self._num_steps)],
            lambda losses: {"loss": float(losses[-1])},
        )


def race(
    ask: harness.Ask,
    drawn: network_files.Drawn,
    work: Work,
    rounds: int,
    peers: Sequence[str] = ("torch",),
) -> harness.Row:
    """Times both sides on one network; `peers` are "torch" (eagerly) and "torch.compile"."""
    ours = Ours(drawn.name, network_files.from_torch(drawn.name, drawn.weights), work)
    batch = jnp.asarray(drawn.images), jnp.arange(len(drawn.images)) % 10
    settings = dataclasses.asdict(work) | {"epsilon": EPSILON, "step_size": STEP_SIZE}
    sides: dict[str, harness.Side] = {
        peer: functools.partial(ask, "train", compiled=peer == "torch.compile", **settings)
        for peer in peers
    }
    sides["jaxrobust"] = functools.partial(ours.run, batch)
    row = harness.compared(harness.turns(sides, rounds))
    images = len(drawn.images) * work.steps
    speeds = {side: images / seconds for side, seconds in row["median_seconds"].items()}
    named = {"network": drawn.name, "batch_size": len(drawn.images), "pgd_steps": work.pgd_steps}
    return named | row | {"images_per_second": speeds}


def draw(ask: harness.Ask, name: str, batch_size: int, **load: Any) -> network_files.Drawn:
    """Has the peer draw a network that has not been trained, and images in PyTorch's best layout."""
    noise = {"statistics_batch": 0, "mean": MEAN, "std": STD}
    return network_files.draw(ask, name, batch_size, channels_last=True, **noise, **load)


def compare(config: Config, name: str, pgd_steps: int) -> harness.Row:
    """Times both sides on one network; raises RuntimeError if they disagree on the loss."""
    with harness.peer(config.peer_python) as ask:
        drawn = draw(ask, name, config.batch_size, num_threads=config.num_threads)
        row = race(ask, drawn, Work(config.steps, pgd_steps), config.rounds)
    ours, theirs = row["loss"]["jaxrobust"], row["loss"].get("torch", np.nan)
    if name not in _RANDOM and abs(ours - theirs) > 0.01 * abs(theirs):
        raise RuntimeError(f"The two sides disagree on the loss of {name}: {row['loss']}.")
    return row


def main(config: Config) -> None:
    """Compares the networks, on clean images and under PGD."""
    studies.check_settings(config, networks=_NETWORKS)
    versions = harness.versions(config.peer_python, "torch")
    work = itertools.product(config.networks, (0, config.pgd_steps))
    rows = (compare(config, name, pgd_steps) for name, pgd_steps in work)
    harness.record(config, "training_throughput", rows, peer_versions=versions)


if __name__ == "__main__":
    studies.run_script(main, Config, PRESETS)
