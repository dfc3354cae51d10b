"""Compares attacks, training and AutoAttack with PyTorch on an accelerator, in eight minutes.

    python -m experiments.benchmarks.accelerator --data-dir DATA

Expected time: 8 minutes on one GPU. A part that is not expected to end in this time is not started; the
same command continues with the remaining parts, and repeats those that failed on one side. --quick
takes 5 minutes on 2 cores. Expected numbers: none has been measured yet.

The benchmark needs this tree, jax, torch, and the wheels of flax, optax, orbax-checkpoint, chex,
torchattacks, tyro, equinox and dm-haiku; nothing is downloaded. DATA has cifar10-jpeg.tar.xz or its
unpacked folder, for the network that AutoAttack attacks; without it, images are noise and the network
is not trained.

Both sides have the same weights, images, steps, type and TF32 setting on the same device; PyTorch runs
eagerly and with torch.compile. `share` compares our rate of FLOPs with that of a large matrix product
of the same type, as a fraction. It counts the FLOPs of the network (`programs.describe`), forward and
backward for each step.

Sources: PGD, https://arxiv.org/abs/1706.06083; AutoAttack, https://arxiv.org/abs/2003.01690.
"""

import dataclasses
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import (
    attack_throughput,
    auto_attack,
    harness,
    network_files,
    training_throughput,
    users_networks,
)
from experiments.benchmarks.parity import matrix
from experiments.benchmarks.training_throughput import EPSILON, MEAN, STD, STEP_SIZE, Work
from jaxrobust import data, evaluation, models, programs, studies
from jaxrobust.attacks import APGD, PGD
from jaxrobust.types import LogitsFn

_PEERS = ("torch", "torch.compile")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(harness.PeerSettings):
    """Settings.

    Attributes:
      data_dir: The folder of cifar10-jpeg.tar.xz or of its unpacked folder.
      precision: float32, tf32 or bfloat16, on both sides.
      minutes: The number of minutes within which every part must be expected to end.
      peer_python: The Python of an environment with torch and torchattacks; by default this one.
      output: The path of the JSON file, with the precision in its name, from which an interrupted run
        is also resumed.
    """

    data_dir: Path | None = None
    precision: Literal["float32", "tf32", "bfloat16"] = "tf32"
    minutes: float = 8.0
    rounds: int = 3
    peer_python: Path = Path(sys.executable)
    output: Path = Path("results/benchmarks/accelerator.json")


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, the side of its images in pixels, a batch size, and the steps of its attacks."""

    name: str
    side: int
    batch_size: int
    attacks: dict[str, int]
    build: network_files.Build = attack_throughput.of_the_library


_CASES = (
    Case("resnet18", 32, 1024, {"PGD": 40, "APGD": 100}),
    Case("wide_resnet", 32, 512, {"PGD": 40}),
    Case("resnet50", 224, 128, {"PGD": 40}, users_networks.of_arrays),
)
Part = tuple[harness.Row, float, Callable[[], harness.Row]]
"""The keys of a row, its expected time in seconds, and the function that computes it."""
_QUICK = (Case("resnet_small", 32, 8, {"PGD": 2, "APGD": 3}),)


def main(config: Config) -> None:
    """Measures the parts that have no result yet, the most important first."""
    studies.check_settings(config)
    # Two libraries share the device's memory, of which jax would take most at its start.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    products = {"tf32": "tensorfloat32", "float32": "float32"}.get(config.precision)
    if products is not None:
        jax.config.update("jax_default_matmul_precision", products)
    stem = f"{config.output.stem}_{config.precision}"
    config = dataclasses.replace(config, output=config.output.with_stem(stem))
    rate = auto_attack.matrix_rate(jnp.bfloat16 if products is None else jnp.float32)
    with harness.peer(config.peer_python) as ask:
        rows = _rows(config, rate, ask)
        harness.record(config, "accelerator", rows, matrix_rate=rate)


def _rows(config: Config, rate: float, ask: harness.Ask) -> Iterator[harness.Row]:
    """Yields the rows of an earlier run in which nothing failed, then new rows while there is time."""
    deadline, left = time.monotonic() + 60 * config.minutes, []
    found = [row for row in harness.earlier_rows(config, ("minutes",)) if "error" not in row]
    yield from found
    for keys, seconds, compute in _parts(config, ask):
        if any(keys.items() <= row.items() for row in found):
            continue
        start = time.monotonic()
        if start + seconds > deadline:
            left.append(f"{keys['measure']} of {keys['network']}")
            continue
        row = keys | compute()
        speeds = {side: row["images"] / median for side, median in row["median_seconds"].items()}
        if "flops" in row:
            share = row["flops"] * speeds["jaxrobust"] / (rate * row["images"])
            row["share_of_matrix_rate"] = share
        yield row | {"images_per_second": speeds, "wall_seconds": time.monotonic() - start}
    if left:
        print(f"There was no time left for {', '.join(left)}: run the same command again.")


def _parts(config: Config, ask: harness.Ask) -> Iterator[Part]:
    """Yields all parts that can be measured, the most important first."""
    first, *others = _QUICK if config.quick else _CASES
    yield from _attacks(config, first, ask)
    for name, seconds, compute in (("training", 60, _training), ("AutoAttack", 150, _auto_attack)):
        keys = {"network": first.name, "measure": name}
        yield keys, seconds, functools.partial(compute, config, first, ask)
    for case in others:
        yield from _attacks(config, case, ask)


def _attacks(config: Config, case: Case, ask: harness.Ask) -> Iterator[Part]:
    """Yields attacks on a batch: ours, and PyTorch's eagerly and compiled, with the same weights."""

    @functools.cache  # never called if everything has been measured
    def drawn() -> tuple[LogitsFn, tuple[Any, Any], float]:
        shape = {"side": case.side, "statistics_batch": 16, "precision": config.precision}
        shape["num_threads"] = config.num_threads
        found = network_files.draw(ask, case.name, case.batch_size, **shape)
        tolerance = 1e-4 if config.precision == "float32" else 0.05
        exact = found.build({"": case.build}, tolerance)[""]
        batch = jnp.asarray(found.images), jnp.asarray(found.labels)
        flops = programs.describe(exact, batch[0][:1]).flops
        return narrowed(exact) if config.precision == "bfloat16" else exact, batch, flops

    def race(name: str, num_steps: int) -> harness.Row:
        logits_fn, batch, flops = drawn()
        attack: Any = PGD(EPSILON, STEP_SIZE, num_steps, keep="last")
        settings = {"eps": EPSILON, "alpha": STEP_SIZE, "steps": num_steps}
        if name == "APGD":
            attack = APGD(EPSILON, num_iterations=num_steps)
            settings.pop("alpha")
        request = {"library": "torchattacks", "attacks": [(name, settings)]}
        runs = attack_throughput.race(
            ask, {"jaxrobust": logits_fn}, batch, attack, request, config.rounds, _PEERS
        )
        images = case.batch_size
        # A step costs a forward pass, and a backward pass that costs about the same.
        counted = {"images": images, "flops": 2.0 * num_steps * flops * images}
        return counted | harness.compared(runs)

    for name, num_steps in case.attacks.items():
        keys = {"network": case.name, "measure": name, "num_steps": num_steps}
        yield keys, 45, functools.partial(race, name, num_steps)


def narrowed(logits_fn: LogitsFn) -> LogitsFn:
    """Returns the classifier with weights and images in bfloat16."""
    weights = jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(jnp.bfloat16), logits_fn)
    return jax.tree_util.Partial(_in_bfloat16, weights)


def _in_bfloat16(logits_fn: Any, images: Any) -> Any:
    return logits_fn(images.astype(jnp.bfloat16)).astype(jnp.float32)


def _work(config: Config, steps: int, pgd_steps: int) -> Work:
    narrow: Any = "bfloat16" if config.precision == "bfloat16" else "float32"
    return Work(steps, pgd_steps, learning_rate=0.1, precision=narrow)


def _training(config: Config, case: Case, ask: harness.Ask) -> harness.Row:
    """Times steps of PGD-10 training on one batch; an epoch has the steps of 50,000 images."""
    work = _work(config, 1, 2) if config.quick else _work(config, 3, 10)
    # Weights stay float32: only products are in bfloat16.
    exact = "float32" if config.precision == "float32" else "tf32"
    drawn = training_throughput.draw(ask, case.name, case.batch_size, precision=exact)
    row = training_throughput.race(ask, drawn, work, config.rounds, _PEERS)
    images = case.batch_size * work.steps
    epochs = {side: 50_000 / images * median for side, median in row["median_seconds"].items()}
    return row | {"images": images, "epoch_seconds": epochs}


def _auto_attack(config: Config, case: Case, ask: harness.Ask) -> harness.Row:
    """Times AutoAttack once, on 1,000 images and a network trained under PGD for a minute."""
    num_images, effort = (8, matrix.QUICK) if config.quick else (1000, matrix.Effort())
    module: Any = models.create(case.name)
    variables = module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    work = _work(config, 1, 2 if config.quick else 7)
    ours = training_throughput.Ours(case.name, variables, work)
    draw = np.random.default_rng(0)
    images: Any = draw.random((num_images, 32, 32, 3), np.float32)
    labels: Any = None
    if config.data_dir is not None:
        dataset = data.load("cifar10_jpeg", data_dir=config.data_dir)
        images = dataset.test.images[:num_images].astype(np.float32) / 255
        labels = dataset.test.labels[:num_images]
        until, index = time.monotonic() + (10 if config.quick else 60), 0
        while time.monotonic() < until:
            rows = np.sort(draw.choice(len(dataset.train), case.batch_size, replace=False))
            batch = dataset.train.images[rows], dataset.train.labels[rows]
            jax.block_until_ready(ours.step(batch, index))
            index += 1
    variables = {"params": ours.state.params, "batch_stats": ours.state.batch_stats}
    exact = models.Classifier(module.apply, variables, np.array(MEAN), np.array(STD))
    if labels is None:  # the predictions, so that there are images to attack
        labels = evaluation.logits(exact, images).argmax(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.npz"
        network_files.save(path, case.name, exact, images, labels)
        network_files.load(ask, path, precision=config.precision)
    execution = evaluation.Execution(num_images, search_type=work.precision)
    runs, _ = auto_attack.race(ask, (exact, images, labels), effort, EPSILON, 0, execution)
    pair = {"jaxrobust": runs["jaxrobust"], "torch": runs["torchattacks"]}
    trained_on = "noise" if config.data_dir is None else "cifar10_jpeg"
    return {"images": num_images, "trained_on": trained_on} | harness.compared(pair)


if __name__ == "__main__":
    studies.run_script(main, Config, {"quick": {}})
