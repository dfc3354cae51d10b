r"""Compares the time of AutoAttack with torchattacks, on the same network in the same run.

    python -m experiments.benchmarks.auto_attack --peer-python PEER/bin/python --shared SHARED \
        --cifar CIFAR

Expected time: 25 minutes on 2 cores, if the networks exist (experiments/benchmarks/parity makes them,
and says what SHARED and CIFAR are); --quick (8 images) takes one minute. Expected numbers: README.md.
On CPUs our side uses oneDNN for convolutions, as PyTorch does; with JAXROBUST_ONEDNN=0 it does not.

Both sides make the attacks of `standard` with the same settings on the same kind of device. The time of
the arithmetic alone is estimated from the rate of a large matrix product in the same run: the
operations of the network on all queried images, at that rate. Further rows have the additional time of
each attack.
"""

import dataclasses
import functools
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks import attack_throughput, harness, network_files
from experiments.benchmarks.parity import matrix, networks
from jaxrobust import compilation, evaluation, programs, studies
from jaxrobust.evaluation import Execution

_NETWORKS = ("reference", "cifar_robust")
_SIDES = {"cpu": 2048, "cuda": 8192}  # of the matrices whose product is timed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(harness.PeerSettings):
    """Settings.

    Attributes:
      shared: The folder that has reference/sports10_cnn.
      cifar: cifar10-jpeg.tar.xz or its unpacked folder; without it, and with `quick`, only the
        reference network is used.
      networks: The networks to use, of reference and cifar_robust; the latter needs `cifar`.
      reference_epsilon: The linf radius for the reference network, at which half the images are robust.
      cifar_epsilon: The linf radius for the robust CIFAR network, at which a quarter are robust.
      num_lanes: The number of images that our attacks process at a time.
      results_dir: The networks are in <results_dir>/parity/networks.
    """

    shared: Path
    cifar: Path | None = None
    networks: tuple[str, ...] = _NETWORKS
    reference_epsilon: float = 0.0042
    cifar_epsilon: float = 7 / 255
    rounds: int = 3
    num_lanes: int = 128
    results_dir: Path = Path("results")
    output: Path = Path("results/benchmarks/auto_attack.json")


def main(config: Config) -> None:
    """Compares the networks."""
    studies.check_settings(config, networks=_NETWORKS)
    versions = harness.versions(config.peer_python, *matrix.PACKAGES)
    epsilons = {"reference": config.reference_epsilon, "cifar_robust": config.cifar_epsilon}
    used = networks.select(config)
    rows = (row for network in used for row in compare(config, network, epsilons[network.name]))
    harness.record(config, "auto_attack", rows, peer_versions=versions)


def race(
    ask: harness.Ask,
    batch: tuple[Any, Any, Any],
    effort: matrix.Effort,
    epsilon: float,
    rounds: int,
    execution: Execution,
) -> tuple[dict[str, list[harness.Row]], list[evaluation.SuiteReport]]:
    """Runs AutoAttack of both sides on (classifier, images, labels), and a matrix product, in turns.

    Without rounds each side runs once; otherwise the peer's first call has few steps. Returns the
    result of `harness.turns`, and our reports of all calls.
    """
    suite = matrix.suite(effort, "linf", epsilon)
    reports: list[evaluation.SuiteReport] = []

    def ours() -> harness.Row:
        options: Any = {"key": jax.random.key(0), "execution": execution}
        call = functools.partial(evaluation.attack_suite, suite, *batch, **options)
        run = harness.clocked(lambda: reports.append(call()))
        right = reports[-1].clean_logits.argmax(1) == reports[-1].labels
        return run | {"robust": int(reports[-1].robust.sum()), "clean": int(right.sum())}

    def theirs(effort: matrix.Effort) -> harness.Row:
        drawn = {"indices": list(range(len(batch[1]))), "seed": 0}
        return attack_throughput.theirs(ask, matrix.auto_attack(effort, epsilon) | drawn)

    sides = {
        "matrix": lambda: {"seconds": 1 / matrix_rate()},  # for one operation
        "jaxrobust": ours,
        "torchattacks": lambda: theirs(effort),
    }
    first = {"torchattacks": lambda: theirs(matrix.QUICK)}
    return harness.turns(sides, rounds, first if rounds else None), reports


def compare(
    config: Config, network: network_files.Network, epsilon: float
) -> Iterator[harness.Row]:
    """Times both sides on one network; yields a row for the suite, and one for each part of ours."""
    effort, rounds, batch = matrix.Effort(), config.rounds, network.target
    execution = Execution(config.num_lanes)
    if config.quick:
        effort, rounds, batch = matrix.QUICK, 1, network.first(8).target
    with harness.peer(config.peer_python) as ask:
        hello = network_files.load(ask, network.path, num_threads=config.num_threads)
        runs, reports = race(ask, batch, effort, epsilon, rounds, execution)
    rate = 1 / statistics.median(run["seconds"] for run in runs.pop("matrix"))
    whole = harness.compared(runs)
    operations = _operations(batch, reports[1], execution)
    named = {"network": network.name, "num_images": len(batch[1]), "epsilon": epsilon}

    def row(attack: str, seconds: float, operations: float) -> harness.Row:
        arithmetic = operations / rate
        return named | {
            "attack": attack,
            "median_seconds": {"jaxrobust": seconds},
            "operations": operations,
            "arithmetic_seconds": arithmetic,
            "beyond_arithmetic_seconds": seconds - arithmetic,
            "share_of_matrix_rate": arithmetic / seconds,
        }

    median = whole["median_seconds"]["jaxrobust"]
    facts = {"effort": dataclasses.asdict(effort), "matrix_rate": rate, "peer": hello}
    facts["fingerprint"] = network_files.fingerprint(network.path)
    yield row("AutoAttack", median, sum(operations.values())) | facts | whole
    for name, operation in operations.items():
        seconds = statistics.median(report.seconds[name] for report in reports[1:])
        median -= seconds
        yield row(name, seconds, operation)
    yield row("predictions", median, 0.0)  # before and after the attacks


def matrix_rate(kind: Any = jnp.float32) -> float:
    """Returns the operations per second of a product of two large matrices: the best of 8 runs."""
    side = _SIDES[harness.peer_device()]
    factor = jnp.ones((side, side), kind)
    product = compilation.jit(lambda a: a @ a)
    product(factor).block_until_ready()
    best = min(harness.clocked(lambda: product(factor))["seconds"] for _ in range(8))
    return 2 * side**3 / best


def _operations(
    batch: tuple[Any, Any, Any], report: evaluation.SuiteReport, execution: Execution
) -> dict[str, float]:
    """Returns {attack: operations of the network alone}.

    Each attack runs once more, on the images that were left to it. A gradient by the image is counted
    like a forward pass. The starts are drawn anew, so the numbers can differ from those of the timed
    run in the steps to a success.
    """
    classifier, images, labels = batch
    image = jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32)
    forward = float(programs.describe(classifier, image).flops)
    operations = {}
    for number, (name, attack) in enumerate(report.suite.items()):
        left = report.robust | (report.fooled_by >= number)
        operations[name] = 0.0
        if left.any():
            arguments = {name: attack}, classifier, images[left], labels[left]
            alone = evaluation.attack_suite(*arguments, key=jax.random.key(0), execution=execution)
            operations[name] = forward * float(alone.num_queries.sum() + alone.num_gradients.sum())
    return operations


if __name__ == "__main__":
    studies.run_script(main, Config, {"quick": {}})
