"""How long AutoAttack takes to its verdict, against torchattacks on the same network in the same run.

    python -m experiments.benchmarks.auto_attack --peer-python PEER/bin/python --shared SHARED \
        --cifar CIFAR

Expected time: 20 minutes on 2 cores, once the networks are there (experiments/benchmarks/parity, which
says what SHARED, CIFAR and PEER are). Expected numbers: less than 1/1.5 of torchattacks' time on the
reference network (50 images, half of them robust), and less than 1/1.2 on the robust CIFAR network (200
images, a quarter of them robust).

Both sides make the attacks of `standard` with the same settings. They take turns, so that drift of the
machine meets both. Our first call is reported apart: it compiles. What arithmetic alone would allow is
reckoned from the rate of a large matrix product in the same run.
"""

import dataclasses
import os
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.parity import export, networks
from experiments.benchmarks.parity.peer import Peer
from jaxrobust import checks, compilation, evaluation, files, studies

_SIDE = 2048  # of the matrices of which the product is timed


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      peer_python: Python of an environment with the peers.
      shared: The folder that holds reference/sports10_cnn.
      cifar: cifar10-jpeg.tar.xz, or the folder that it unpacks to; without it, the reference network
        alone.
      reference_epsilon: linf radius on the reference network; half of the images withstand it.
      cifar_epsilon: linf radius on the robust CIFAR network; a quarter of the images withstand it.
      rounds: How often each side runs; the medians are compared.
      num_lanes: Of our attacks.
      num_threads: That PyTorch may use.
      results_dir: The networks are in <results_dir>/parity/networks.
      output: Where the JSON goes.
    """

    peer_python: Path
    shared: Path
    cifar: Path | None = None
    reference_epsilon: float = 0.0042
    cifar_epsilon: float = 7 / 255
    rounds: int = 3
    num_lanes: int = 128
    num_threads: int = os.cpu_count() or 1
    results_dir: Path = Path("results")
    output: Path = Path("results/benchmarks/auto_attack.json")

    def __post_init__(self) -> None:
        checks.integer("rounds", self.rounds, minimum=1)


def main(config: Config) -> None:
    """Compares the networks and prints a line for each."""
    home = config.results_dir / "parity" / "networks"
    used = [(networks.reference(home, config.shared), config.reference_epsilon)]
    if config.cifar is not None:
        used.append((networks.cifar(home, config.cifar)[1], config.cifar_epsilon))
    rows = []
    for network, epsilon in used:
        with Peer(config.peer_python, network.path, config.num_threads) as peer:
            rows.append(compare(config, network, epsilon, peer))
        # After every network: a long run that is killed keeps what it has.
        document = {"environment": studies.environment(), "rows": rows}
        files.write_json(config.output, document)
        print(_line(rows[-1]), flush=True)
    print(f"Written to {config.output}.")


def compare(config: Config, network: export.Network, epsilon: float, peer: Peer) -> dict[str, Any]:
    """Times both sides on one network."""
    versions = peer.hello()["versions"]
    request = {
        "library": "torchattacks",
        "attack": "AutoAttack",
        "norm": "linf",
        "epsilon": epsilon,
        "num_steps": 100,
        "num_queries": 5000,
        "indices": list(range(len(network.images))),
        "seed": 0,
    }

    def ours() -> tuple[float, evaluation.SuiteReport]:
        start = time.perf_counter()
        report = evaluation.auto_attack(
            network.classifier,
            network.images,
            network.labels,
            epsilon,
            key=jax.random.key(0),
            num_lanes=config.num_lanes,
        )
        return time.perf_counter() - start, report

    first, _ = ours()
    mine, theirs, rates = [], [], []
    for _ in range(config.rounds):
        rates.append(matrix_rate())
        seconds, report = ours()
        mine.append(seconds)
        answer = peer.ask(request)
        theirs.append(answer["seconds"])
    rates.append(matrix_rate())
    rate, seconds = statistics.median(rates), statistics.median(mine)
    operations = _operations(network, report)
    ratios = [b / a for a, b in zip(mine, theirs, strict=True)]
    return {
        "network": network.name,
        "epsilon": epsilon,
        "num_images": len(network.images),
        "robust": {"jaxrobust": int(report.robust.sum()), "torchattacks": sum(answer["robust"])},
        "seconds": {"jaxrobust": mine, "torchattacks": theirs},
        "first_call_seconds": first,
        "ratio": statistics.median(theirs) / seconds,
        "ratio_range": [min(ratios), max(ratios)],
        "seconds_of_attacks": dict(report.seconds),
        "operations": operations,
        "matrix_rate": rate,
        "share_of_matrix_rate": operations / seconds / rate,
        "versions": versions,
    }


def matrix_rate() -> float:
    """Operations per second of a product of two large float32 matrices: the best of some."""
    factor = jnp.ones((_SIDE, _SIDE), jnp.float32)
    product = compilation.jit(lambda a: a @ a)
    product(factor).block_until_ready()
    best = np.inf
    for _ in range(8):
        start = time.perf_counter()
        product(factor).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * _SIDE**3 / best


def _operations(network: export.Network, report: evaluation.SuiteReport) -> float:
    """Of the network alone: a gradient by the image costs as much again as the forward pass."""
    image = jax.ShapeDtypeStruct((1, *network.images.shape[1:]), jnp.float32)
    analysis = jax.jit(network.classifier.__call__).lower(image).compile().cost_analysis()
    if not analysis or "flops" not in analysis:
        return float("nan")  # this platform does not count them
    return float(analysis["flops"]) * float(report.num_queries.sum() + report.num_gradients.sum())


def _line(row: dict[str, Any]) -> str:
    median = {side: statistics.median(times) for side, times in row["seconds"].items()}
    low, high = row["ratio_range"]
    attacks = ", ".join(f"{k} {v:.1f} s" for k, v in row["seconds_of_attacks"].items())
    return (
        f"{row['network']}, {row['num_images']} images, epsilon {row['epsilon']:.4g}: "
        f"jaxrobust {median['jaxrobust']:.1f} s ({row['robust']['jaxrobust']} robust; {attacks}), "
        f"torchattacks {median['torchattacks']:.1f} s ({row['robust']['torchattacks']} robust); "
        f"{row['ratio']:.2f} times as fast ({low:.2f} to {high:.2f} "
        f"over {len(row['seconds']['jaxrobust'])} rounds; "
        f"first call {row['first_call_seconds']:.1f} s; "
        f"{100 * row['share_of_matrix_rate']:.0f} % of the matrix rate, "
        f"{row['matrix_rate'] / 1e9:.0f} GFLOP/s)"
    )


if __name__ == "__main__":
    studies.run_script(main, Config)
