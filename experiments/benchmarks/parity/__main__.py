r"""How strong our attacks are beside PyTorch's libraries, on the same weights, images and radii.

    python -m experiments.benchmarks.parity --peer-python PEER/bin/python --shared SHARED --cifar CIFAR
    python -m experiments.benchmarks.parity --peer-python PEER/bin/python --shared SHARED --quick

SHARED holds reference/sports10_cnn, CIFAR is cifar10-jpeg.tar.xz or the folder that it unpacks to. PEER
is a virtual environment; the project itself does not depend on what is in it:

    python3 -m venv PEER
    PEER/bin/pip install torch torchattacks foolbox
    PEER/bin/pip install adversarial-robustness-toolbox packaging multiprocess

Expected time: half an hour on 2 cores to train the two CIFAR networks (networks.py beside this file),
then many hours, most of them of the peers. Every answer is kept: killed, the same command goes on with
the first that it had not finished, and asks a peer that broke once more. With --quick, 2 minutes: few
steps, few images, the reference network alone. Expected numbers: docs/parity.md, which
`--docs docs/parity.md` writes from all runs in <results_dir>/parity but quick ones.

A core does more for one process of its own than half of two cores does. Make the networks first
(`python -m experiments.benchmarks.parity.networks`), then cut the work by network and norm into runs,
and work them off in two processes, each bound to a core (Linux; jax counts the cores that it is bound
to, PyTorch is told):

    taskset --cpu-list 0 python -m experiments.benchmarks.parity --peer-python PEER/bin/python \
        --shared SHARED --networks reference --norms linf --run reference-linf --num-threads 1 \
        --docs docs/parity.md
    taskset --cpu-list 1 python -m experiments.benchmarks.parity --peer-python PEER/bin/python \
        --shared SHARED --networks reference --norms l2 --run reference-l2 --num-threads 1 \
        --docs docs/parity.md

and so on for the other norms and, with --cifar CIFAR, networks. Whichever run ends last writes the
tables of all. Runs of other settings or versions do not go into one table: that is an error, as is
the same cell twice; of a cell that is there with more images or seeds too, that one counts.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from experiments.benchmarks.parity import compare, export, matrix, networks, ours, peers, tables
from jaxrobust import checks, files, studies

_ALL_IMAGES = networks.NUM_IMAGES  # within Config, `networks` is a setting


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
      attacks: Which to compare within a ball, by their names in the tables; None: all. AutoAttack
        needs the attacks that it is made of.
      art: Whether ART is one of the peers; it is the slowest of all.
      num_images: Of each network, at most: the first of its 50 or 200.
      num_radii: For each network and norm; 0: minimal norms alone.
      num_searches: Of Carlini-Wagner.
      num_iterations: Of each of its searches.
      num_threads: That PyTorch may use; by default as many as this process may use cores.
      seeds: Of the attacks, on both sides. What draws anything is made once with each (but one that
        takes too long, matrix.py), and the sums are compared: of two equally strong attacks either may
        win by an image or two.
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
    attacks: tuple[str, ...] | None = None
    art: bool = True
    num_images: int = _ALL_IMAGES
    num_radii: int = 3
    num_searches: int = 9
    num_iterations: int = 1000
    num_threads: int = dataclasses.field(default_factory=peers.num_cores)
    seeds: tuple[int, ...] = (0, 1, 2)
    run: str = "default"
    results_dir: Path = Path("results")
    docs: Path | None = None
    quick: bool = False

    def __post_init__(self) -> None:
        checks.integer("num_images", self.num_images, minimum=1)
        checks.integer("num_radii", self.num_radii, minimum=0)
        checks.integer("num_threads", self.num_threads, minimum=1)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"`seeds` must be different integers, at least one, got {self.seeds}.")
        matrix.minimal(self.effort)  # checks its own settings
        for name in self.networks:
            checks.one_of("networks", name, networks.NAMES)
        for norm in self.norms:
            checks.one_of("norms", norm, matrix.NORMS)
        for attack in self.attacks or ():
            checks.one_of("attacks", attack, matrix.NAMES)
        missing = [name for name in matrix.SUITE if name not in (self.attacks or matrix.SUITE)]
        if missing and "AutoAttack" in (self.attacks or ()):
            raise ValueError(f"`attacks` with AutoAttack must have {', '.join(missing)} too.")

    @property
    def effort(self) -> matrix.Effort:
        """How long attacks work."""
        if self.quick:
            return matrix.QUICK
        return matrix.Effort(num_searches=self.num_searches, num_iterations=self.num_iterations)


def main(config: Config) -> Path:
    """Runs the comparison; returns the path of result.json."""
    versions = peers.versions(config.peer_python)  # before hours are spent on networks
    used = _networks(config)
    # Where the tables go decides nothing, and must not keep a run from going on.
    kept = dataclasses.replace(config, docs=None)
    hashes = {network.name: export.fingerprint(network.path) for network in used}
    folder = studies.open_run(
        config.results_dir,
        "parity",
        config.run,
        kept,
        hashes=hashes,
        peers=versions,
        torch_device=peers.device(),
    )
    stages = studies.Stages(folder)

    seeds = config.seeds[:1] if config.quick else config.seeds
    facts, cells, norms = [], [], []
    devices: dict[str, Any] = {}
    for network in used:
        with peers.Peer(config.peer_python, network.path, config.num_threads) as peer:
            hello = peer.hello()
            count = min(8 if config.quick else _ALL_IMAGES, config.num_images)
            network = dataclasses.replace(
                network, images=network.images[:count], labels=network.labels[:count]
            )
            devices = {"torch_device": hello["device"], "torch_threads": hello["num_threads"]}
            comparison = compare.Comparison(
                network, peer.ask, stages, config.effort, seeds, config.art, config.attacks
            )
            mask = ours.right(network)
            facts.append(
                {
                    "name": network.name,
                    "fingerprint": hashes[network.name],
                    "num_images": len(network.images),
                    "num_right": int(mask.sum()),
                    "logits_difference": hello["logits_difference"],
                    "recipe": network.recipe,
                }
            )
            for norm, row in matrix.minimal(config.effort) if config.smallest else []:
                if norm in config.norms:
                    norms.append(compare.smallest(comparison, norm, row, mask))
            for norm in config.norms if config.num_radii else ():
                radii = 1 if config.quick else config.num_radii
                cells += compare.within_ball(comparison, norm, radii)
    result = {
        "experiment": "parity",
        "run": config.run,
        "config": studies.configuration(kept),
        "effort": dataclasses.asdict(config.effort),
        "per_image": compare.PER_IMAGE,
        "environment": studies.environment()
        | devices
        | {"num_cores": peers.num_cores(), "commits_of_stages": stages.commits},
        "peer_versions": versions,
        "timings": stages.seconds,
        "networks": facts,
        "cells": cells,
        "minimal_norms": norms,
    }
    path = folder / "result.json"
    files.write_json(path, result)
    files.replace_text(folder / "parity.md", tables.markdown([result]))
    print(f"{compare.count(cells, norms)} Written to {path}.")
    if config.docs is not None:
        runs = sorted((config.results_dir / "parity").glob("*/result.json"))
        results = [json.loads(run.read_text(encoding="utf-8")) for run in runs]
        whole = [run for run in results if not run["config"]["quick"]]
        files.replace_text(config.docs, tables.markdown(whole or [result]))
        print(f"The tables are in {config.docs}, runs: {len(whole) or 1}.")
    return path


def _networks(config: Config) -> list[export.Network]:
    """The networks that were asked for, and no training for others."""
    with_cifar = config.cifar is not None and not config.quick
    names = [name for name in config.networks if name == "reference" or with_cifar]
    if not names or not config.norms:
        raise ValueError(
            "`networks` and `norms` must leave something to compare (the CIFAR networks need `cifar` "
            f"and are not part of `quick`), got {config.networks} and {config.norms}."
        )
    home = config.results_dir / "parity" / "networks"
    used = [networks.reference(home, config.shared)] if "reference" in names else []
    if config.cifar is not None and names != ["reference"]:
        used += networks.cifar(home, config.cifar)
    return [network for network in used if network.name in names]


if __name__ == "__main__":
    studies.run_script(main, Config)
