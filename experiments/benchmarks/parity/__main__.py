"""How strong our attacks are beside PyTorch's libraries, on the same weights, images and radii.

    python -m experiments.benchmarks.parity --peer-python PEER/bin/python --shared SHARED --cifar CIFAR
    python -m experiments.benchmarks.parity --peer-python PEER/bin/python --shared SHARED --quick

SHARED holds reference/sports10_cnn, CIFAR is cifar10-jpeg.tar.xz or the folder that it unpacks to. PEER
is a virtual environment; the project itself does not depend on what is in it:

    python3 -m venv PEER
    PEER/bin/pip install torch torchattacks foolbox
    PEER/bin/pip install adversarial-robustness-toolbox packaging multiprocess

Expected time: half an hour to train the two CIFAR networks (networks.py beside this file), then many
hours on 2 cores, most of them of the peers. Every cell is kept: killed, the same command goes on with
the first that it had not finished. With --quick, 5 minutes: few steps, few images, one network.
Expected numbers: docs/parity.md, which `--docs docs/parity.md` writes.
"""

import dataclasses
import functools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.parity import matrix, networks, ours, tables
from experiments.benchmarks.parity.export import Network
from experiments.benchmarks.parity.peer import Peer
from jaxrobust import checks, files, studies

_PER_IMAGE = 200  # of which we may leave one more robust than a peer does
_LONGER = 1.02  # how much longer our median perturbation may be


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      peer_python: Python of an environment with the peers.
      shared: The folder that holds reference/sports10_cnn.
      cifar: cifar10-jpeg.tar.xz, or the folder that it unpacks to; without it, the reference network
        alone.
      networks: Which of reference, cifar_standard and cifar_robust.
      norms: Which of linf, l2 and l1.
      smallest: Whether to compare minimal norms too.
      art_suite: Whether ART's AutoAttack is one of the peers; it is the slowest of all.
      num_radii: For each network and norm.
      num_searches: Of Carlini-Wagner.
      num_iterations: Of each of its searches.
      num_threads: That PyTorch may use.
      seed: Of the attacks, on both sides.
      run: Name of the run; results go to <results_dir>/parity/<run>.
      results_dir: Where results go.
      docs: A Markdown file for the tables of all runs in <results_dir>/parity; None: beside
        result.json, for this one.
      quick: Few steps, few images, the reference network alone, to see that everything runs.
    """

    peer_python: Path
    shared: Path
    cifar: Path | None = None
    networks: tuple[str, ...] = networks.NAMES
    norms: tuple[str, ...] = matrix.NORMS
    smallest: bool = True
    art_suite: bool = True
    num_radii: int = 3
    num_searches: int = 9
    num_iterations: int = 1000
    num_threads: int = os.cpu_count() or 1
    seed: int = 0
    run: str = "default"
    results_dir: Path = Path("results")
    docs: Path | None = None
    quick: bool = False

    def __post_init__(self) -> None:
        checks.integer("num_radii", self.num_radii, minimum=1)
        checks.integer("num_threads", self.num_threads, minimum=1)
        matrix.minimal(self.effort)  # checks its own settings
        for name in self.networks:
            checks.one_of("networks", name, networks.NAMES)
        for norm in self.norms:
            checks.one_of("norms", norm, matrix.NORMS)

    @property
    def effort(self) -> matrix.Effort:
        """How long attacks work."""
        if self.quick:
            return matrix.QUICK
        return matrix.Effort(num_searches=self.num_searches, num_iterations=self.num_iterations)


def main(config: Config) -> Path:
    """Runs the comparison; returns the path of result.json."""
    # Where the tables go decides nothing, and must not keep a run from going on.
    kept = dataclasses.replace(config, docs=None)
    folder = studies.open_run(config.results_dir, "parity", config.run, kept)
    stages = studies.Stages(folder)
    home = config.results_dir / "parity" / "networks"
    used = [networks.reference(home, config.shared)]
    if config.cifar is not None and not config.quick:
        used += networks.cifar(home, config.cifar)
    used = [network for network in used if network.name in config.networks]

    facts, cells, norms = [], [], []
    versions: dict[str, str] = {}
    for network in used:
        with Peer(config.peer_python, network.path, config.num_threads) as peer:
            hello = stages.remember(f"{network.name}: peers", functools.partial(_hello, peer))
            versions |= hello["versions"]
            if config.quick:
                network = _first(network, 8)
            mask = ours.right(network)
            facts.append(
                {
                    "name": network.name,
                    "num_images": len(network.images),
                    "num_right": int(mask.sum()),
                    "logits_difference": hello["logits_difference"],
                    "recipe": network.recipe,
                }
            )
            for norm in config.norms:
                cells += _within_ball(config, stages, network, peer, norm)
            for norm, row in matrix.minimal(config.effort) if config.smallest else []:
                norms.append(_minimal(config, stages, network, peer, norm, row, mask))
    result = {
        "experiment": "parity",
        "config": studies.configuration(kept),
        "effort": dataclasses.asdict(config.effort),
        "per_image": _PER_IMAGE,
        "environment": studies.environment() | {"commits_of_stages": stages.commits},
        "peer_versions": versions,
        "timings": stages.seconds,
        "networks": facts,
        "cells": cells,
        "minimal_norms": norms,
    }
    path = folder / "result.json"
    files.write_json(path, result)
    files.replace_text(folder / "parity.md", tables.markdown([result]))
    if config.docs is not None:
        runs = sorted((config.results_dir / "parity").glob("*/result.json"))
        results = [json.loads(run.read_text(encoding="utf-8")) for run in runs]
        whole = [run for run in results if not run["config"]["quick"]]
        files.replace_text(config.docs, tables.markdown(whole or [result]))
    failed = [row for row in cells if not all(p.get("holds", True) for p in row["peers"].values())]
    print(f"{len(cells)} attacks compared, {len(failed)} do not hold. Written to {path}.")
    return path


def _hello(peer: Peer, _: Any) -> dict[str, Any]:
    return peer.hello()


def _ask(peer: Peer, request: dict[str, Any], _: Any) -> dict[str, Any]:
    return peer.ask(request)


def _first(network: Network, count: int) -> Network:
    return dataclasses.replace(
        network, images=network.images[:count], labels=network.labels[:count]
    )


def _within_ball(
    config: Config, stages: studies.Stages, network: Network, peer: Peer, norm: str
) -> list[dict[str, Any]]:
    """Robust images of every attack at every radius."""
    count, steps = (1 if config.quick else config.num_radii), config.effort.num_steps
    epsilons = stages.remember(
        f"{network.name} {norm}: radii",
        lambda _: ours.radii(network, norm, count, steps, config.seed),
    )
    cells = []
    for epsilon in epsilons:
        for row in matrix.within_ball(config.effort, norm, epsilon, config.art_suite):
            name = f"{network.name} {norm} {epsilon:g} {row.name}"
            mine, theirs = _both(config, stages, network, peer, norm, epsilon, row, name)
            robust = sum(mine["robust"])
            answers = {}
            for library, answer in theirs.items():
                answers[library] = answer
                if "error" not in answer:
                    difference = robust - sum(answer["robust"])
                    answers[library] = {
                        "robust": sum(answer["robust"]),
                        "outside": answer["outside"],
                        "difference": difference,
                        "holds": difference * _PER_IMAGE <= len(network.images),
                        "seconds": answer["seconds"],
                    }
            cells.append(
                {
                    "network": network.name,
                    "norm": norm,
                    "epsilon": epsilon,
                    "attack": row.name,
                    "ours": {"robust": robust, "seconds": mine["seconds"]},
                    "peers": answers,
                }
            )
    return cells


def _minimal(
    config: Config,
    stages: studies.Stages,
    network: Network,
    peer: Peer,
    norm: str,
    row: matrix.Row,
    mask: np.ndarray,
) -> dict[str, Any]:
    """Median norms of an attack that looks for the smallest perturbation."""
    name = f"{network.name} {norm} smallest {row.name}"
    mine, theirs = _both(config, stages, network, peer, norm, None, row, name)
    lengths = np.array([np.inf if size is None else size for size in mine["lengths"]])
    median = float(np.median(lengths[mask]))
    answers = {}
    for library, answer in theirs.items():
        answers[library] = answer
        if "error" not in answer:
            sizes = np.where(answer["fooled"], answer[norm], np.inf)[mask]
            other = float(np.median(sizes))
            answers[library] = {
                "median": other,
                "found": int(np.isfinite(sizes).sum()),
                "ratio": median / other if np.isfinite([median, other]).all() else None,
                "holds": median <= _LONGER * other,
                "seconds": answer["seconds"],
            }
    found = int(np.isfinite(lengths[mask]).sum())
    return {
        "network": network.name,
        "norm": norm,
        "attack": row.name,
        "ours": {"median": median, "found": found, "seconds": mine["seconds"]},
        "peers": answers,
    }


def _both(
    config: Config,
    stages: studies.Stages,
    network: Network,
    peer: Peer,
    norm: str,
    epsilon: float | None,
    row: matrix.Row,
    name: str,
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Our answer and the peers', each computed once."""
    mine = stages.remember(
        f"{name}: jaxrobust",
        lambda _: ours.attack(network, row.ours, norm, epsilon, config.seed),
    )
    indices = list(range(len(network.images)))
    theirs = {}
    for library, request in row.peers.items():
        asked = request | {"indices": indices, "seed": config.seed}
        theirs[library] = stages.remember(
            f"{name}: {library}", functools.partial(_ask, peer, asked)
        )
    return mine, theirs


if __name__ == "__main__":
    studies.run_script(main, Config)
