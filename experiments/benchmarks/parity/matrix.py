"""The pairs of attacks to compare, from attacks.json: ours and the peers' with the same settings.

An entry of attacks.json has our attack, as `attacks.from_dict` takes it, and the class and arguments of
each peer. Values may be names in `words` of `_rows`. Arguments are those of the papers, because the
defaults of the libraries differ from them: torchattacks takes 10 steps, also within AutoAttack (the
paper takes 100), and its Square rescales the schedule of window sizes; ART's APGD begins with steps of
0.1 (instead of 2 epsilon; in l1 epsilon), and its DeepFool overshoots by 1e-6; foolbox' Carlini-Wagner
stops a search early. "num_seeds" is 1 if an attack is not random, or if a peer takes too long: ART's
Square needs five minutes for 50 images.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxrobust import attacks, evaluation
from jaxrobust.attacks import Attack, Square

PACKAGES = ("torch", "torchattacks", "adversarial-robustness-toolbox", "foolbox")
NORMS = ("linf", "l2", "l1")
# The attacks of AutoAttack standard: an image that withstands each of them withstands the suite.
SUITE = ("APGD-CE", "APGD-T", "FAB-T", "Square")
_TABLE = json.loads(Path(__file__).with_name("attacks.json").read_text(encoding="utf-8"))
# The attacks that can be compared within a ball.
NAMES = (*dict.fromkeys(entry["name"] for entry in _TABLE["within_ball"]), "AutoAttack")


@dataclasses.dataclass(frozen=True)
class Effort:
    """The numbers of steps of the attacks, the same on both sides."""

    num_steps: int = 100  # of APGD and FAB
    num_queries: int = 5000  # of Square
    pgd_steps: int = 40  # and of MI-FGSM
    num_searches: int = 9  # of Carlini-Wagner
    num_iterations: int = 1000  # of each of its searches
    deepfool_steps: int = 50


QUICK = Effort(5, 20, 5, 3, 20, 10)


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison: our attack, or a suite {name: attack}, and the request to each library."""

    name: str
    ours: Attack | dict[str, Attack]
    peers: dict[str, dict[str, Any]]
    num_seeds: int | None = None


def suite(effort: Effort, norm: str, epsilon: float) -> dict[str, Attack]:
    """Returns AutoAttack standard on ten classes, with the numbers of steps of `effort`."""

    def shortened(attack: Any) -> Attack:
        if isinstance(attack, Square):
            return dataclasses.replace(attack, num_steps=effort.num_queries)
        return dataclasses.replace(attack, num_iterations=effort.num_steps)

    whole = evaluation.auto_attack_suite(epsilon, norm)
    return {name: shortened(attack) for name, attack in whole.items()}


def _rows(kind: str, effort: Effort, norm: str, epsilon: float | None = None) -> Iterator[Row]:
    size = epsilon or 0.0
    words = {
        **dataclasses.asdict(effort),
        "norm": norm,
        "torchattacks_norm": {"linf": "Linf", "l2": "L2"}.get(norm),
        "art_norm": {"linf": "inf", "l2": 2, "l1": 1}[norm],
        "epsilon": size,
        "twice_epsilon": 2 * size,
        "step_size": size / 10,
    }

    def filled(settings: dict[str, Any]) -> dict[str, Any]:
        return {k: words.get(v, v) if isinstance(v, str) else v for k, v in settings.items()}

    ball = {"norm": norm, "epsilon": epsilon}
    for entry in _TABLE[kind]:
        if norm in entry["norms"]:
            peers = {
                library: {"library": library, "attacks": [(name, filled(arguments))], **ball}
                for library, (name, arguments) in entry["peers"].items()
            }
            ours = attacks.from_dict(filled(entry["ours"]))
            yield Row(entry["name"], ours, peers, entry.get("num_seeds"))


def within_ball(effort: Effort, norm: str, epsilon: float, art: bool = True) -> list[Row]:
    """Returns the attacks that have a radius, whose robust images are compared.

    "AutoAttack" has no request of its own: its peer are the images that withstood all attacks of SUITE.
    """
    rows = list(_rows("within_ball", effort, norm, epsilon))
    for row in rows if not art else ():
        row.peers.pop("art", None)
    if norm == "l1":  # torchattacks has no attacks in l1
        return rows
    return [
        *(row for row in rows if row.peers),
        Row("AutoAttack", suite(effort, norm, epsilon), {}),
    ]


def minimal(effort: Effort) -> list[tuple[str, Row]]:
    """Returns (norm, comparison) of the attacks that look for the smallest perturbation."""
    return [(norm, row) for norm in ("l2", "linf") for row in _rows("minimal", effort, norm)]


def auto_attack(effort: Effort, epsilon: float) -> dict[str, Any]:
    """Returns the request to torchattacks for AutoAttack standard in linf."""
    rows = {row.name: row.peers for row in _rows("within_ball", effort, "linf", epsilon)}
    made = [attack for name in SUITE for attack in rows[name]["torchattacks"]["attacks"]]
    return {"library": "torchattacks", "attacks": made, "norm": "linf", "epsilon": epsilon}
