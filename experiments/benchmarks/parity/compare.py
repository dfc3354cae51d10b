"""Attacks one network with every attack of both sides; each runs once, and one judge judges all."""

import dataclasses
import functools
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.benchmarks import harness
from experiments.benchmarks.network_files import Network
from experiments.benchmarks.parity import matrix
from jaxrobust import evaluation, studies
from jaxrobust.attacks import APGD, Attack
from jaxrobust.studies.outcomes import right_ones

PER_IMAGE = 200  # among this many images, ours may leave one more robust than the peer's
_LONGER = 1.02  # the largest ratio of our median perturbation to the peer's
_FIRST = {"linf": 4 / 255, "l2": 0.5, "l1": 6.0}  # radii
# Robust accuracies are spread between this and the clean accuracy. It is above 10 %, because the suite
# is stronger than the single attack that finds the radii.
_LOWEST = 0.15
Answer = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """The arguments that all comparisons on one network share.

    Some attacks are made with the first seed only.
    """

    network: Network
    ask: harness.Ask  # the peer, which has the network
    stages: studies.Stages
    effort: matrix.Effort
    seeds: tuple[int, ...] = (0,)
    art: bool = True
    attacks: tuple[str, ...] | None = None  # within a ball; None: all


def attack(
    network: Network, chosen: Attack | dict[str, Attack], epsilon: float | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Runs an attack of ours, or a suite.

    Without `epsilon`, every image that fools the network counts as a success.

    Returns:
      (images, bool [N]: which images are robust by our own count).
    """
    key = jax.random.key(seed)
    if isinstance(chosen, dict):
        suite = evaluation.attack_suite(chosen, *network.target, key=key)
        return suite.images, suite.robust
    # An attack within a ball stops at its first success, unless it returns its last point; a search for
    # the smallest perturbation does not stop.
    until_fooled = epsilon is not None
    report = evaluation.attack_dataset(chosen, *network.target, key=key, until_fooled=until_fooled)
    return report.images, report.attacked & ~report.success


def radii(network: Network, norm: str, count: int, num_steps: int, seed: int) -> list[float]:
    """Finds radii that spread robust accuracies under APGD-CE between 10 and 90 %, in rising order."""

    @functools.cache
    def accuracy(epsilon: float) -> float:
        _, robust = attack(network, APGD(epsilon, "ce", num_steps, norm), epsilon, seed)
        return float(robust.mean())

    clean = min(float(right_ones(*network.target).mean()), 0.9)
    shares = [1 - (index + 1) / (count + 1) for index in range(count)]
    goals = [_LOWEST + (clean - _LOWEST) * share for share in shares]
    high = _FIRST[norm]
    while accuracy(high) > goals[-1] and high < 64 * _FIRST[norm]:
        high *= 2
    found = [0.0]
    for goal in goals:
        below, above = found[-1], high
        while True:
            middle = float(f"{(below + above) / 2:.3g}")
            if abs(accuracy(middle) - goal) <= 0.03 or above - below < 0.02 * above:
                break
            below, above = (middle, above) if accuracy(middle) > goal else (below, middle)
        found.append(middle)
    return found[1:]


def within_ball(comparison: Comparison, norm: str, num_radii: int) -> list[Answer]:
    """Counts the robust images of every attack at every radius: "cells" of result.json."""
    network, steps = comparison.network, comparison.effort.num_steps
    epsilons = comparison.stages.remember(
        f"{network.name} {norm}: radii",
        lambda _: radii(network, norm, num_radii, steps, comparison.seeds[0]),
    )
    cells = []
    for epsilon in epsilons:
        suite: dict[str, list[Answer]] = {}  # torchattacks' answers to its attacks
        rows = matrix.within_ball(comparison.effort, norm, epsilon, comparison.art)
        for row in (r for r in rows if comparison.attacks is None or r.name in comparison.attacks):
            mine, theirs = _both(comparison, row, norm, epsilon)
            suite[row.name] = theirs.get("torchattacks", [])
            if isinstance(row.ours, dict):
                theirs = {"torchattacks": _intersections(suite, len(mine))}
            reckoned = {"by_our_own_reckoning": [answer["claimed"] for answer in mine]}
            peers = {library: _beside(mine, answers) for library, answers in theirs.items()}
            where = {"network": network.name, "norm": norm, "epsilon": epsilon, "attack": row.name}
            sides = {"ours": _counts(mine) | reckoned, "peers": peers}
            cells.append(where | {"num_images": len(network.images)} | sides)
    return cells


def smallest(comparison: Comparison, norm: str, row: matrix.Row, mask: np.ndarray) -> Answer:
    """Compares median norms of an attack that looks for the smallest perturbation.

    `mask` is bool [N], the images that are right when clean. Returns an entry of "minimal_norms".
    """
    (mine,), theirs = _both(comparison, row, norm, None)
    own = _median(mine, norm, mask)
    peers = {}
    for library, (answer,) in theirs.items():
        peers[library] = answer
        if "error" not in answer:
            found = _median(answer, norm, mask)
            finite = math.isfinite(own["median"]) and 0 < found["median"] < np.inf
            ratio = own["median"] / found["median"] if finite else None
            holds = own["median"] <= _LONGER * found["median"]
            peers[library] = found | {"ratio": ratio, "holds": holds}
    where = {"network": comparison.network.name, "norm": norm, "attack": row.name}
    return where | {"num_images": int(mask.sum()), "ours": own, "peers": peers}


def counted(rows: list[Answer]) -> dict[str, int]:
    """Counts the comparisons that "hold", those that were "judged", and those whose peer "broke"."""
    peers = [peer for row in rows for peer in row["peers"].values()]
    held = [peer["holds"] for peer in peers if "holds" in peer]
    return {"hold": sum(held), "judged": len(held), "broke": len(peers) - len(held)}


def _both(
    comparison: Comparison, row: matrix.Row, norm: str, epsilon: float | None
) -> tuple[list[Answer], dict[str, list[Answer]]]:
    """Returns our answers and the peers' for each seed; only failed requests are computed again."""
    network = comparison.network
    where = f"{network.name} {norm} {'smallest' if epsilon is None else f'{epsilon:g}'} {row.name}"
    ball = {"norm": norm, "epsilon": epsilon, "indices": list(range(len(network.images)))}
    mine: list[Answer] = []
    theirs: dict[str, list[Answer]] = {library: [] for library in row.peers}

    def keep(side: str, compute: Callable[..., Answer], *given: Any, **settings: Any) -> Answer:
        return comparison.stages.remember(side, lambda _: compute(*given, **settings))

    for seed in comparison.seeds[: row.num_seeds]:
        name = f"{where} {seed}"
        mine.append(keep(f"{name}: jaxrobust", _made, comparison, row.ours, ball, seed))
        for library, request in row.peers.items():
            asked = request | ball | {"seed": seed}
            try:
                answer = keep(f"{name}: {library}", comparison.ask, "attack", **asked)
            except harness.PeerError as error:
                print(f"{name}: {library} failed: {error}", flush=True)
                answer = {"error": str(error)}
            theirs[library].append(answer)
    return mine, theirs


def _made(
    comparison: Comparison, chosen: Attack | dict[str, Attack], ball: Answer, seed: int
) -> Answer:
    """Makes our images and has the peer judge them; "claimed" is our own count of robust images."""
    made = functools.partial(attack, comparison.network, chosen, ball["epsilon"], seed)
    run = harness.clocked(made, lambda found: {"found": found})
    images, robust = run["found"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        np.save(path, images)
        verdict = comparison.ask("judge", path=str(path), **ball)
    return verdict | {"claimed": int(robust.sum()), "seconds": run["seconds"]}


def _intersections(suite: dict[str, list[Answer]], count: int) -> list[Answer]:
    """Returns the images that withstood all attacks of a peer's suite, seed by seed.

    All attacks were made on all images.
    """
    found: list[Answer] = []
    for seed in range(count):
        # An attack without randomness has one answer for all seeds.
        answers = {name: suite[name][min(seed, len(suite[name]) - 1)] for name in matrix.SUITE}
        broke = [name for name, answer in answers.items() if "error" in answer]
        if broke:
            found.append({"error": f"{', '.join(broke)} of its suite failed"})
            continue
        masks = np.array([answer["robust"] for answer in answers.values()])
        seconds = sum(answer["seconds"] for answer in answers.values())
        found.append({"robust": masks.all(axis=0).tolist(), "outside": 0, "seconds": seconds})
    return found


def _counts(answers: list[Answer]) -> Answer:
    """Returns the number of robust images for each seed, and the sums of other values over seeds."""
    sums = {name: sum(answer[name] for answer in answers) for name in ("outside", "seconds")}
    return {"robust": [sum(answer["robust"]) for answer in answers], **sums}


def _beside(mine: list[Answer], answers: list[Answer]) -> Answer:
    """Returns a peer's counts and the comparison with ours, over all seeds together."""
    for answer in answers:
        if "error" in answer:
            return answer
    difference = sum(_counts(mine)["robust"]) - sum(_counts(answers)["robust"])
    judged = sum(len(answer["robust"]) for answer in answers)
    holds = difference * PER_IMAGE <= judged
    return _counts(answers) | {"difference": difference, "holds": holds}


def _median(answer: Answer, norm: str, mask: np.ndarray) -> Answer:
    """Returns the median norm over the mask, where failures are infinite, and counts successes."""
    sizes = np.where(answer["fooled"], np.array(answer[norm], float), np.inf)[mask]
    found = int(np.isfinite(sizes).sum())
    return {"median": float(np.median(sizes)), "found": found, "seconds": answer["seconds"]}
