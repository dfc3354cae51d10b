"""What is compared with what: our attacks, and those of the peers with the same settings."""

import dataclasses
from typing import Any

from jaxrobust import evaluation
from jaxrobust.attacks import APGD, FAB, MIFGSM, PGD, CarliniWagner, DeepFool, Square
from jaxrobust.types import Attack

NORMS = ("linf", "l2", "l1")
SUITE = ("APGD-CE", "APGD-T", "FAB-T", "Square")
"""The attacks of AutoAttack standard: what withstands each of them withstands the suite."""
NAMES = (
    "APGD-CE",
    "APGD-DLR",
    "APGD-T",
    "FAB",
    "FAB-T",
    "Square",
    "Square, rescaled",
    "PGD",
    "MI-FGSM",
    "AutoAttack",
)
"""What can be compared within a ball."""

UNMATCHED = (
    ("AutoAttack plus and rand", "all", "made of attacks that are compared one by one"),
    (
        "Carlini-Wagner",
        "linf",
        "ART alone has one, by another algorithm and too slow for this table",
    ),
    ("universal perturbation", "all", "no peer but ART, which stops by a rate of its own"),
    ("RandomNoise", "all", "a control; no library has it"),
    ("FGSM, BIM", "all", "PGD with one step, or without a random start"),
    ("MI-FGSM", "l2", "torchattacks has it in linf alone"),
    ("PGD", "l1", "torchattacks has none; foolbox's take steps of other shapes"),
    (
        "APGD-T, FAB, FAB-T",
        "l1",
        "torchattacks has nothing in l1, ART neither FAB nor targeted DLR",
    ),
    ("AutoAttack", "l1", "for want of the same"),
    ("Square", "l1", "jaxrobust has none"),
)
"""(attack, norm, why it has no peer)."""


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long attacks work, on both sides alike.

    Attributes:
      num_steps: Of APGD and FAB.
      num_queries: Of Square.
      pgd_steps: Of PGD and MI-FGSM.
      num_searches: Of Carlini-Wagner.
      num_iterations: Of each of its searches.
      deepfool_steps: Of DeepFool.
    """

    num_steps: int = 100
    num_queries: int = 5000
    pgd_steps: int = 40
    num_searches: int = 9
    num_iterations: int = 1000
    deepfool_steps: int = 50


QUICK = Effort(5, 20, 5, 3, 20, 10)


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
      name: Of the attack.
      ours: The attack, or a suite of attacks by name.
      peers: {library: request}, for torch_worker.py.
      num_seeds: At most; 1 where nothing is drawn, or where a peer takes too long.
    """

    name: str
    ours: Attack | dict[str, Attack]
    peers: dict[str, dict[str, Any]]
    num_seeds: int | None = None


def suite(effort: Effort, norm: str, epsilon: float) -> dict[str, Attack]:
    """AutoAttack standard on ten classes, working as long as everything else here."""

    def shortened(attack: Any) -> Attack:
        if isinstance(attack, Square):
            return dataclasses.replace(attack, num_steps=effort.num_queries)
        return dataclasses.replace(attack, num_iterations=effort.num_steps)

    whole = evaluation.auto_attack_suite(epsilon, norm)
    return {name: shortened(attack) for name, attack in whole.items()}


def within_ball(effort: Effort, norm: str, epsilon: float, art: bool = True) -> list[Row]:
    """The attacks that have a radius: what stays robust is compared.

    "AutoAttack" has no request of its own: its peer is what withstood each attack of SUITE.

    Args:
      effort: For both sides.
      norm: "linf", "l2" or "l1".
      epsilon: In pixel units.
      art: Whether ART is one of the peers.
    """
    # What a library does not have in a norm; torchattacks has nothing in l1.
    has = {"torchattacks": norm != "l1", "art": art}
    ball = {"norm": norm, "epsilon": epsilon}
    steps, queries = effort.num_steps, effort.num_queries

    def row(name: str, ours: Attack, num_seeds: int | None = None, **peers: dict[str, Any]) -> Row:
        requests = {
            library: {"library": library, **ball, **settings}
            for library, settings in peers.items()
            if has[library]
        }
        return Row(name, ours, requests, num_seeds)

    def art_apgd(loss: str) -> dict[str, Any]:
        return {"attack": "AutoProjectedGradientDescent", "loss": loss, "num_steps": steps}

    def apgd(loss: str) -> dict[str, Any]:
        return {"attack": "APGD", "loss": loss, "num_steps": steps}

    rows = [
        row(
            "APGD-CE",
            APGD(epsilon, "ce", steps, norm),
            torchattacks=apgd("ce"),
            art=art_apgd("ce"),
        ),
        row(
            "APGD-DLR",
            APGD(epsilon, "dlr", steps, norm),
            torchattacks=apgd("dlr"),
            art=art_apgd("dlr"),
        ),
    ]
    if norm == "l1":
        return rows
    size = epsilon / 10
    rows += [
        row(
            "APGD-T",
            APGD(epsilon, "targeted_dlr", steps, norm, num_restarts=9),
            torchattacks={"attack": "APGDT", "num_steps": steps},
        ),
        row(
            "FAB",
            FAB(epsilon, steps, norm),
            num_seeds=1,
            torchattacks={"attack": "FAB", "num_steps": steps},
        ),
        row(
            "FAB-T",
            FAB(epsilon, steps, norm, aim="one", num_restarts=9),
            num_seeds=1,
            torchattacks={"attack": "FABT", "num_steps": steps},
        ),
        row(
            "Square",
            Square(epsilon, queries, norm),
            torchattacks={"attack": "Square", "num_queries": queries},
        ),
        # ART's windows shrink at shares of the queries.
        row(
            "Square, rescaled",
            Square(epsilon, queries, norm, rescale_schedule=True),
            num_seeds=1,  # ART takes five minutes for 50 images
            art={"attack": "SquareAttack", "num_queries": queries},
        ),
        row(
            "PGD",
            PGD(epsilon, size, effort.pgd_steps, norm),  # its best point; the peer's is its last
            torchattacks={"attack": "PGD", "num_steps": effort.pgd_steps, "step_size": size},
        ),
    ]
    if norm == "linf":
        momentum = {
            "attack": "MIFGSM",
            "num_steps": effort.pgd_steps,
            "step_size": size,
            "decay": 1.0,
        }
        ours = MIFGSM(epsilon, size, num_steps=effort.pgd_steps)
        rows.append(row("MI-FGSM", ours, num_seeds=1, torchattacks=momentum))
    rows = [row for row in rows if row.peers]
    return [*rows, Row("AutoAttack", suite(effort, norm, epsilon), {})]


def minimal(effort: Effort) -> list[tuple[str, Row]]:
    """The attacks that look for the smallest perturbation: (norm, comparison)."""
    searches, iterations = effort.num_searches, effort.num_iterations
    steps = effort.deepfool_steps
    carlini = {
        "library": "foolbox",
        "attack": "L2CarliniWagnerAttack",
        "norm": "l2",
        "num_searches": searches,
        "num_iterations": iterations,
    }
    ours = CarliniWagner(num_searches=searches, num_iterations=iterations)
    rows = [("l2", Row("Carlini-Wagner", ours, {"foolbox": carlini}, num_seeds=1))]
    for norm, foolbox in (("l2", "L2DeepFoolAttack"), ("linf", "LinfDeepFoolAttack")):
        shared = {"norm": norm, "num_steps": steps, "overshoot": 0.02}
        peers = {"foolbox": {"library": "foolbox", "attack": foolbox, **shared}}
        if norm == "l2":
            peers["art"] = {"library": "art", "attack": "DeepFool", **shared}
        deepfool = DeepFool(num_steps=steps, norm=norm)
        rows.append((norm, Row("DeepFool", deepfool, peers, num_seeds=1)))
    return rows
