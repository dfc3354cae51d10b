"""How long AutoAttack takes to its verdict, against torchattacks on the same network in the same run.

    python -m experiments.benchmarks.auto_attack --peer-python PEER/bin/python --shared SHARED \
        --cifar CIFAR
    python -m experiments.benchmarks.auto_attack --peer-python PEER/bin/python --shared SHARED --quick

Expected time: 25 minutes on 2 cores, once the networks are there (experiments/benchmarks/parity, which
says what SHARED, CIFAR and PEER are); with --quick (8 images, few steps, one round: a rehearsal, not a
measurement) one minute. Expected numbers: README.md. With JAXROBUST_ONEDNN=1 in the environment our
side uses the convolutions of the library that PyTorch uses (`jaxrobust.compilation.with_onednn`).

Both sides make the attacks of `standard` with the same settings on the same kind of device: where jax
computes on a GPU, PyTorch has to as well. They take turns, so that drift of the machine meets both.
Each has a first call that is not counted: ours compiles and is reported apart, that of the peer has few
steps. What arithmetic alone would allow is reckoned from the rate of a large matrix product in the same
run: the network's operations on all the images that were asked about, at that rate. What each attack
takes beyond that is printed beside it.
"""

import dataclasses
import os
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.parity import export, matrix, networks, peers
from jaxrobust import checks, compilation, evaluation, files, studies
from jaxrobust.types import Attack

_NETWORKS = ("reference", "cifar_robust")
_SIDES = {"cpu": 2048, "cuda": 8192}  # of the matrices of which the product is timed


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      peer_python: Python of an environment with the peers.
      shared: The folder that holds reference/sports10_cnn.
      cifar: cifar10-jpeg.tar.xz, or the folder that it unpacks to; without it, the reference network
        alone.
      networks: Which of reference and cifar_robust; the latter needs `cifar`.
      reference_epsilon: linf radius on the reference network; half of the images withstand it.
      cifar_epsilon: linf radius on the robust CIFAR network; a quarter of the images withstand it.
      rounds: How often each side runs; the medians are compared.
      num_lanes: Of our attacks.
      num_threads: That PyTorch may use; by default as many as this process may use cores.
      results_dir: The networks are in <results_dir>/parity/networks.
      output: Where the JSON goes; a rehearsal's beside it.
      quick: 8 images, few steps, one round, the reference network alone: to see that everything runs.
    """

    peer_python: Path
    shared: Path
    cifar: Path | None = None
    networks: tuple[str, ...] = _NETWORKS
    reference_epsilon: float = 0.0042
    cifar_epsilon: float = 7 / 255
    rounds: int = 3
    num_lanes: int = 128
    num_threads: int = dataclasses.field(default_factory=peers.num_cores)
    results_dir: Path = Path("results")
    output: Path = Path("results/benchmarks/auto_attack.json")
    quick: bool = False

    def __post_init__(self) -> None:
        checks.integer("rounds", self.rounds, minimum=1)
        for name in self.networks:
            checks.one_of("networks", name, _NETWORKS)


def main(config: Config) -> None:
    """Compares the networks and prints a line for each."""
    versions = peers.versions(config.peer_python)
    home = config.results_dir / "parity" / "networks"
    used = []
    if "reference" in config.networks:
        used.append((networks.reference(home, config.shared), config.reference_epsilon))
    if "cifar_robust" in config.networks and config.cifar is not None and not config.quick:
        used.append((networks.cifar(home, config.cifar)[1], config.cifar_epsilon))
    if not used:
        raise ValueError(
            "`networks` must leave one to compare (cifar_robust needs `cifar` and is not part of "
            f"`quick`), got {config.networks}."
        )
    output = (
        config.output.with_stem(f"{config.output.stem}_quick") if config.quick else config.output
    )
    rows = []
    for network, epsilon in used:
        with peers.Peer(config.peer_python, network.path, config.num_threads) as peer:
            rows.append(compare(config, network, epsilon, peer))
        # After every network: a long run that is killed keeps what it has.
        document = {
            "config": studies.configuration(config),
            "environment": studies.environment() | {"num_cores": peers.num_cores()},
            "peer_versions": versions,
            "rows": rows,
        }
        files.write_json(output, document)
        print(describe(rows[-1]), flush=True)
    print(f"Written to {output}.")


def compare(
    config: Config, network: export.Network, epsilon: float, peer: peers.Peer
) -> dict[str, Any]:
    """Times both sides on one network."""
    hello = peer.hello()
    effort, rounds = matrix.Effort(), config.rounds
    if config.quick:
        effort, rounds = matrix.QUICK, 1
        network = dataclasses.replace(network, images=network.images[:8], labels=network.labels[:8])
    suite = matrix.suite(effort, "linf", epsilon)
    request = {
        "library": "torchattacks",
        "attack": "AutoAttack",
        "norm": "linf",
        "epsilon": epsilon,
        "num_steps": effort.num_steps,
        "num_queries": effort.num_queries,
        "indices": list(range(len(network.images))),
        "seed": 0,
    }
    shortened = {"num_steps": matrix.QUICK.num_steps, "num_queries": matrix.QUICK.num_queries}

    def ours() -> tuple[float, evaluation.SuiteReport]:
        start = time.perf_counter()
        report = _attack(config, network, suite)
        return time.perf_counter() - start, report

    def theirs() -> dict[str, Any]:
        answer = peer.ask(request)
        if "error" in answer:
            raise ValueError(f"torchattacks broke: {answer['error']}")
        return answer

    first, _ = ours()
    peer.ask(request | shortened)  # its first call allocates and chooses kernels
    timed, reports, answers, rates = [], [], [], []
    for _ in range(rounds):
        rates.append(matrix_rate())
        seconds, report = ours()
        timed.append(seconds)
        reports.append(report)
        answers.append(theirs())
    rates.append(matrix_rate())
    rate, seconds = statistics.median(rates), statistics.median(timed)
    peer_seconds = [answer["seconds"] for answer in answers]
    ratios = [b / a for a, b in zip(timed, peer_seconds, strict=True)]
    operations = _operations(config, network, reports[0])
    total = sum(operations.values())
    return {
        "network": network.name,
        "fingerprint": export.fingerprint(network.path),
        "epsilon": epsilon,
        "effort": dataclasses.asdict(effort),
        "num_images": len(network.images),
        "devices": {"jaxrobust": _device(), "torchattacks": hello["device"]},
        "onednn": compilation.with_onednn(),
        "num_threads": {"jaxrobust": peers.num_cores(), "torchattacks": hello["num_threads"]},
        "robust": {
            "jaxrobust": int(reports[-1].robust.sum()),
            "torchattacks": sum(answers[-1]["robust"]),
        },
        "seconds": {"jaxrobust": timed, "torchattacks": peer_seconds},
        "first_call_seconds": first,
        "ratio": statistics.median(peer_seconds) / seconds,
        "ratio_range": [min(ratios), max(ratios)],
        "matrix_rate": rate,
        "operations": total,
        "arithmetic_seconds": total / rate,
        "share_of_matrix_rate": total / rate / seconds,
        "attacks": {
            name: {
                "seconds": statistics.median(report.seconds[name] for report in reports),
                "arithmetic_seconds": operations[name] / rate,
            }
            for name in suite
        },
    }


def matrix_rate(kind: Any = jnp.float32) -> float:
    """Operations per second of a product of two large matrices of a type: the best of some."""
    side = _SIDES[peers.device()]
    factor = jnp.ones((side, side), kind)
    product = compilation.jit(lambda a: a @ a)
    product(factor).block_until_ready()
    best = np.inf
    for _ in range(8):
        start = time.perf_counter()
        product(factor).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def _attack(
    config: Config,
    network: export.Network,
    suite: Mapping[str, Attack],
    rows: np.ndarray | slice = slice(None),
) -> evaluation.SuiteReport:
    return evaluation.attack_suite(
        suite,
        network.classifier,
        network.images[rows],
        network.labels[rows],
        key=jax.random.key(0),
        num_lanes=config.num_lanes,
    )


def _operations(
    config: Config, network: export.Network, report: evaluation.SuiteReport
) -> dict[str, float]:
    """{attack: operations of the network alone}: each attack once more, on what was left to it.

    A gradient by the image costs as much again as the forward pass. The starts are drawn anew, so that
    the numbers are those of the timed run but for the steps to a success.
    """
    image = jax.ShapeDtypeStruct((1, *network.images.shape[1:]), jnp.float32)
    # Before compilation, after which a GPU's own kernels would not be counted, nor are oneDNN's.
    with mock.patch.dict(os.environ, JAXROBUST_ONEDNN="0"):
        analysis = jax.jit(network.classifier.__call__).lower(image).cost_analysis()
    forward = float((analysis or {}).get("flops", float("nan")))
    operations = {}
    for number, (name, attack) in enumerate(report.suite.items()):
        left = report.robust | (report.fooled_by >= number)
        operations[name] = 0.0
        if left.any():
            alone = _attack(config, network, {name: attack}, left)
            questions = alone.num_queries.sum() + alone.num_gradients.sum()
            operations[name] = forward * float(questions)
    return operations


def _device() -> str:
    return str(jax.devices()[0].device_kind)


def describe(row: dict[str, Any]) -> str:
    """A network's results in words."""
    ours, theirs = (statistics.median(row["seconds"][k]) for k in ("jaxrobust", "torchattacks"))
    low, high = row["ratio_range"]
    lines = [
        f"{row['network']}, {row['num_images']} images, linf {row['epsilon']:.4g}, "
        f"jax on {row['devices']['jaxrobust']} (CPU cores: {row['num_threads']['jaxrobust']}"
        f"{', with oneDNN' if row['onednn'] else ''}), "
        f"PyTorch on {row['devices']['torchattacks']} (threads: {row['num_threads']['torchattacks']}):",
        f"  jaxrobust {ours:.1f} s ({row['robust']['jaxrobust']} robust; first call "
        f"{row['first_call_seconds']:.1f} s), torchattacks {theirs:.1f} s "
        f"({row['robust']['torchattacks']} robust): {row['ratio']:.2f} times as fast "
        f"({low:.2f} to {high:.2f} over {len(row['seconds']['jaxrobust'])} rounds)",
        f"  arithmetic alone: {row['arithmetic_seconds']:.1f} s at a matrix product's "
        f"{row['matrix_rate'] / 1e9:.0f} GFLOP/s, "
        f"{100 * row['share_of_matrix_rate']:.0f} % of the time; beyond it",
    ]
    spent = 0.0
    for name, attack in row["attacks"].items():
        spent += attack["seconds"]
        beyond = attack["seconds"] - attack["arithmetic_seconds"]
        lines.append(f"    {name}: {beyond:.1f} s of {attack['seconds']:.1f} s")
    return "\n".join([*lines, f"    clean and final predictions: {ours - spent:.1f} s"])


if __name__ == "__main__":
    studies.run_script(main, Config)
