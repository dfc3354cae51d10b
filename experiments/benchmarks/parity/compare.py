"""One network under every attack of both sides, each computed once, judged by one judge."""

import dataclasses
import functools
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.parity import matrix, ours
from experiments.benchmarks.parity.export import Network
from jaxrobust import studies
from jaxrobust.types import Attack

PER_IMAGE = 200  # of which we may leave one more robust than a peer does
_LONGER = 1.02  # how much longer our median perturbation may be

Ask = Callable[[dict[str, Any]], dict[str, Any]]


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """What the comparisons on one network share.

    Attributes:
      network: With its images.
      ask: Sends a request to torch_worker.py, `Peer.ask`.
      stages: That keep what was computed.
      effort: Of both sides.
      seeds: Of the attacks, on both sides; some are made with the first alone.
      art: Whether ART is one of the peers.
      attacks: The names of those to compare within a ball; None: all.
    """

    network: Network
    ask: Ask
    stages: studies.Stages
    effort: matrix.Effort
    seeds: tuple[int, ...] = (0,)
    art: bool = True
    attacks: tuple[str, ...] | None = None


def within_ball(comparison: Comparison, norm: str, num_radii: int) -> list[dict[str, Any]]:
    """Robust images of every attack at every radius: "cells" of result.json."""
    network, steps = comparison.network, comparison.effort.num_steps
    epsilons = comparison.stages.remember(
        f"{network.name} {norm}: radii",
        lambda _: ours.radii(network, norm, num_radii, steps, comparison.seeds[0]),
    )
    cells = []
    for epsilon in epsilons:
        suite: dict[str, list[dict[str, Any]]] = {}  # torchattacks' answers to its attacks
        rows = matrix.within_ball(comparison.effort, norm, epsilon, comparison.art)
        for row in (r for r in rows if comparison.attacks is None or r.name in comparison.attacks):
            mine, theirs = _both(comparison, row, norm, epsilon)
            if row.name in matrix.SUITE and "torchattacks" in theirs:
                suite[row.name] = theirs["torchattacks"]
            if isinstance(row.ours, dict):
                theirs = {"torchattacks": _intersections(suite, len(mine))}
            cells.append(
                {
                    "network": network.name,
                    "norm": norm,
                    "epsilon": epsilon,
                    "attack": row.name,
                    "num_images": len(network.images),
                    "ours": _counts(mine)
                    | {"by_our_own_reckoning": [answer["claimed"] for answer in mine]},
                    "peers": {
                        library: _beside(mine, answers) for library, answers in theirs.items()
                    },
                }
            )
    return cells


def smallest(
    comparison: Comparison, norm: str, row: matrix.Row, mask: np.ndarray
) -> dict[str, Any]:
    """Median norms of an attack that looks for the smallest perturbation: one of "minimal_norms".

    Args:
      comparison: The network and the sides.
      norm: "linf" or "l2".
      row: The attack.
      mask: bool [N], the images that are right when clean.
    """
    (mine,), theirs = _both(comparison, row, norm, None)
    median, found = _median(mine, norm, mask)
    answers = {}
    for library, (answer,) in theirs.items():
        answers[library] = answer
        if "error" not in answer:
            other, others = _median(answer, norm, mask)
            answers[library] = {
                "median": other,
                "found": others,
                "ratio": median / other if math.isfinite(median) and 0 < other < np.inf else None,
                "holds": median <= _LONGER * other,
                "seconds": answer["seconds"],
            }
    return {
        "network": comparison.network.name,
        "norm": norm,
        "attack": row.name,
        "num_images": int(mask.sum()),
        "ours": {"median": median, "found": found, "seconds": mine["seconds"]},
        "peers": answers,
    }


def count(cells: list[dict[str, Any]], norms: list[dict[str, Any]]) -> str:
    """How the run came out, in a line: robust images and minimal norms apart, and what broke."""
    words = []
    for name, rows in (("robust images", cells), ("minimal norms", norms)):
        peers = [peer for row in rows for peer in row["peers"].values()]
        held = sum(peer.get("holds", False) for peer in peers)
        broke = sum("error" in peer for peer in peers)
        words.append(
            f"{name}: {held} comparisons hold, {len(peers) - held - broke} do not, {broke} broke"
        )
    return "; ".join(words) + "."


def _both(
    comparison: Comparison, row: matrix.Row, norm: str, epsilon: float | None
) -> tuple[list[dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """Our answers and the peers' for each seed, computed once; a peer that broke is asked anew."""
    network, stages = comparison.network, comparison.stages
    where = f"{network.name} {norm} {'smallest' if epsilon is None else f'{epsilon:g}'} {row.name}"
    ball = {"norm": norm, "epsilon": epsilon, "indices": list(range(len(network.images)))}
    mine: list[dict[str, Any]] = []
    theirs: dict[str, list[dict[str, Any]]] = {library: [] for library in row.peers}
    for seed in comparison.seeds[: row.num_seeds]:
        name = f"{where} {seed}"
        make = functools.partial(_made, comparison, row.ours, epsilon, ball, seed)
        mine.append(stages.remember(f"{name}: jaxrobust", make))
        for library, request in row.peers.items():
            asked = request | {"indices": ball["indices"], "seed": seed}
            try:
                answer = stages.remember(
                    f"{name}: {library}", functools.partial(_answer, comparison.ask, asked)
                )
            except _BrokenError as error:
                print(f"{name}: {library} broke: {error}", flush=True)
                answer = {"error": str(error)}
            theirs[library].append(answer)
    return mine, theirs


class _BrokenError(Exception):
    """A peer answered with an error."""


def _answer(ask: Ask, request: dict[str, Any], _: Any) -> dict[str, Any]:
    answer = ask(request)
    if "error" in answer:
        raise _BrokenError(answer["error"])
    return answer


def _made(
    comparison: Comparison,
    chosen: Attack | dict[str, Attack],
    epsilon: float | None,
    ball: dict[str, Any],
    seed: int,
    _: Any,
) -> dict[str, Any]:
    """Our images as the peers' judge sees them, with what we said of them ourselves."""
    images, robust, seconds = ours.attack(comparison.network, chosen, epsilon, seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        np.save(path, images)
        verdict = comparison.ask({"judge": str(path), **ball})
    if "error" in verdict:  # the judge, unlike an attack, must not break
        raise ValueError(f"Our images could not be judged: {verdict['error']}")
    return verdict | {"claimed": int(robust.sum()), "seconds": seconds}


def _intersections(suite: dict[str, list[dict[str, Any]]], count: int) -> list[dict[str, Any]]:
    """A peer's suite, seed by seed; an attack that draws nothing has one answer for all seeds."""
    return [
        _intersection(
            {name: answers[min(seed, len(answers) - 1)] for name, answers in suite.items()}
        )
        for seed in range(count)
    ]


def _intersection(answers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What withstood each attack of a suite, which were all made on all images."""
    broke = [name for name in matrix.SUITE if "error" in answers.get(name, {"error": ""})]
    if broke:
        return {"error": f"of its suite {', '.join(broke)} broke"}
    masks = np.array([answers[name]["robust"] for name in matrix.SUITE])
    seconds = sum(answers[name]["seconds"] for name in matrix.SUITE)
    return {"robust": masks.all(axis=0).tolist(), "outside": 0, "seconds": seconds}


def _counts(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """How many images are robust, seed by seed, and what all seeds have in common."""
    return {
        "robust": [sum(answer["robust"]) for answer in answers],
        "outside": sum(answer["outside"] for answer in answers),
        "seconds": sum(answer["seconds"] for answer in answers),
    }


def _beside(mine: list[dict[str, Any]], answers: list[dict[str, Any]]) -> dict[str, Any]:
    """A peer's counts and how ours compare, over all seeds together."""
    for answer in answers:
        if "error" in answer:
            return answer
    difference = sum(_counts(mine)["robust"]) - sum(_counts(answers)["robust"])
    judged = sum(len(answer["robust"]) for answer in answers)
    return _counts(answers) | {
        "difference": difference,
        "holds": difference * PER_IMAGE <= judged,
    }


def _median(answer: dict[str, Any], norm: str, mask: np.ndarray) -> tuple[float, int]:
    """(median norm over the mask, infinite where nothing fools; how many were fooled)."""
    sizes = np.where(answer["fooled"], np.array(answer[norm], float), np.inf)[mask]
    return float(np.median(sizes)), int(np.isfinite(sizes).sum())
