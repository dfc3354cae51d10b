"""Compares the strength of our attacks with PyTorch libraries, on equal weights, images and radii.

    python -m experiments.benchmarks.parity --peer-python PEER/bin/python --shared SHARED --cifar CIFAR
    python -m experiments.benchmarks.parity --peer-python PEER/bin/python --shared SHARED --quick

SHARED has reference/sports10_cnn; CIFAR is cifar10-jpeg.tar.xz or its unpacked folder.
experiments/benchmarks/README.md says what PEER is, and how to split the work into two processes.

Expected time: half an hour on 2 cores to train the two CIFAR networks (networks.py in this folder),
then many hours, most of them for the PyTorch libraries. Every result is saved: if a run is killed, the
same command resumes it, and repeats the attacks of a library that failed. --quick takes 2 minutes.
Expected numbers: docs/results/parity.md, which `--docs docs/results/parity.md` writes from all runs in
<results_dir>/parity except quick ones.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from experiments.benchmarks import harness, network_files
from experiments.benchmarks.parity import compare, matrix, networks, tables
from jaxrobust import compilation, files, studies
from jaxrobust.studies.outcomes import right_ones


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      peer_python: The Python of an environment with the PyTorch libraries.
      shared: The folder that has reference/sports10_cnn.
      cifar: cifar10-jpeg.tar.xz or its unpacked folder; without it only the reference network is used.
      networks: The networks to use, of reference, cifar_standard and cifar_robust.
      norms: The norms to use, of linf, l2 and l1.
      smallest: Whether to compare minimal norms too.
      attacks: The attacks to compare within a ball, by their names in the tables; None: all.
        If AutoAttack is among them, the attacks of which it consists must be too.
      art: Whether to compare with ART, which is the slowest library.
      num_images: The largest number of images of each network: the first of its 50 or 200.
      num_radii: The number of radii for each network and norm; 0: only minimal norms.
      num_searches: The number of searches of Carlini-Wagner.
      num_iterations: The number of iterations of each of these searches.
      num_threads: The number of threads of PyTorch; by default the number of available cores.
      seeds: The seeds of the attacks on both sides. Random attacks are made once with each seed (except
        one that takes too long, matrix.py), and the sums are compared, because either of two equally
        strong attacks may win by an image or two.
      run: The name of the run; results go to <results_dir>/parity/<run>.
      results_dir: The folder of all results.
      docs: A Markdown file for the tables of all runs in <results_dir>/parity; None: a file beside
        result.json, for this run.
      quick: Use few steps, few images and only the reference network, to see that everything runs.
    """

    peer_python: Path
    shared: Path
    cifar: Path | None = None
    networks: tuple[str, ...] = networks.NAMES
    norms: tuple[str, ...] = matrix.NORMS
    smallest: bool = True
    attacks: tuple[str, ...] | None = None
    art: bool = True
    num_images: int = 200
    num_radii: int = 3
    num_searches: int = 9
    num_iterations: int = 1000
    num_threads: int = dataclasses.field(default_factory=compilation.num_cores)
    seeds: tuple[int, ...] = (0, 1, 2)
    run: str = "default"
    results_dir: Path = Path("results")
    docs: Path | None = None
    quick: bool = False

    @property
    def effort(self) -> matrix.Effort:
        """The number of steps of each attack."""
        searches = {"num_searches": self.num_searches, "num_iterations": self.num_iterations}
        return matrix.QUICK if self.quick else matrix.Effort(**searches)


def check(config: Config) -> None:
    """Checks the settings."""
    names = {"networks": networks.NAMES, "norms": matrix.NORMS, "attacks": matrix.NAMES}
    studies.check_settings(config, {"num_radii": 0}, **names)
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise ValueError(f"`seeds` must be different integers, at least one, got {config.seeds}.")
    missing = [name for name in matrix.SUITE if name not in (config.attacks or matrix.SUITE)]
    if missing and "AutoAttack" in (config.attacks or ()):
        raise ValueError(f"`attacks` with AutoAttack must also have {', '.join(missing)}.")


def main(config: Config) -> Path:
    """Runs the comparison; returns the path of result.json."""
    check(config)
    # Checked before hours are spent on networks.
    versions = harness.versions(config.peer_python, *matrix.PACKAGES)
    used = networks.select(config)
    # The path of the tables changes no result, and must not keep a run from being resumed.
    kept = dataclasses.replace(config, docs=None)
    hashes = {network.name: network_files.fingerprint(network.path) for network in used}
    decisive: Any = {"hashes": hashes, "peers": versions, "torch_device": harness.peer_device()}
    run = studies.start("parity", kept, also=decisive)
    environment: dict[str, Any] = {"num_cores": compilation.num_cores()}
    result: dict[str, Any] = {
        "experiment": "parity",
        "run": config.run,
        "config": studies.configuration(kept),
        "effort": dataclasses.asdict(config.effort),
        "per_image": compare.PER_IMAGE,
        "environment": environment,
        "peer_versions": versions,
        "timings": run.stages.seconds,
        **{name: [] for name in tables.LISTS},
    }
    for network in used:
        with harness.peer(config.peer_python) as ask:
            hello = network_files.load(ask, network.path, num_threads=config.num_threads)
            environment |= {"torch_device": hello["device"], "torch_threads": hello["num_threads"]}
            found = _compared(config, network, ask, run.stages)
        found["networks"][0] |= {
            "logits_difference": hello["logits_difference"],
            "fingerprint": hashes[network.name],
            "recipe": network.recipe,
        }
        for name in tables.LISTS:
            result[name] += found[name]
    environment |= studies.environment() | {"commits_of_stages": run.stages.commits}
    path = run.folder / "result.json"
    files.write_json(path, result)
    files.replace_text(path.with_name("parity.md"), tables.markdown([result]))
    for name in ("cells", "minimal_norms"):
        words = [f"{word} {count}" for word, count in compare.counted(result[name]).items()]
        print(f"{name}: {', '.join(words)}")
    print(f"Written to {path}.")
    if config.docs is not None:
        runs = sorted((config.results_dir / "parity").glob("*/result.json"))
        results = [json.loads(run.read_text(encoding="utf-8")) for run in runs]
        whole = [run for run in results if not run["config"]["quick"]] or [result]
        files.replace_text(config.docs, tables.markdown(whole))
        print(f"The tables are in {config.docs}, runs: {len(whole)}.")
    return path


def _compared(
    config: Config, network: network_files.Network, ask: harness.Ask, stages: studies.Stages
) -> dict[str, list[dict[str, Any]]]:
    """Returns the entries of a network for the lists of result.json."""
    count = min(8, config.num_images) if config.quick else config.num_images
    network = network.first(count)
    seeds = config.seeds[:1] if config.quick else config.seeds
    comparison = compare.Comparison(
        network, ask, stages, config.effort, seeds, config.art, config.attacks
    )
    right = right_ones(*network.target)
    norms = [
        compare.smallest(comparison, norm, row, right)
        for norm, row in (matrix.minimal(config.effort) if config.smallest else ())
        if norm in config.norms
    ]
    radii = min(config.num_radii, 1) if config.quick else config.num_radii
    cells: list[dict[str, Any]] = []
    for norm in config.norms if radii else ():
        cells += compare.within_ball(comparison, norm, radii)
    facts = {"name": network.name, "num_images": len(right), "num_right": int(right.sum())}
    return {"networks": [facts], "cells": cells, "minimal_norms": norms}


if __name__ == "__main__":
    studies.run_script(main, Config)
