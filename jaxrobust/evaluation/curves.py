"""Robust accuracy over the size of the perturbation."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxrobust import checks
from jaxrobust.attacks import Attack
from jaxrobust.evaluation.answers import answers
from jaxrobust.evaluation.attack_report import (
    AttackReport,
    attack_label,
    epsilon_label,
    robust_accuracy,
)
from jaxrobust.evaluation.classification import predictions
from jaxrobust.evaluation.execution import KEEP_IT, Execution, check_execution
from jaxrobust.evaluation.rates import rate
from jaxrobust.evaluation.search import Prepared, beat, prepare
from jaxrobust.evaluation.thresholds import at_epsilon
from jaxrobust.programs.company import unusual
from jaxrobust.types import LogitsFn


@dataclasses.dataclass(frozen=True)
class Sweep:
    """At which epsilons an attack is made, and on which images.

    Attributes:
      epsilons: In pixel units, not negative; 0 is the accuracy on clean images.
      stop_below: The first point whose robust accuracy is below this, in (0, 1], is the last one; 1 / K
        is chance. The epsilons must rise then. None computes all points.
      carry_over: Whether an image that was fooled at a smaller epsilon counts as fooled without being
        attacked again: it is, by what was found there. Sooner done, but then the curve falls by
        construction, and no longer shows an attack that does worse in a larger ball. The epsilons must
        rise.

    Raises:
      TypeError: A number that is none.
      ValueError: A number out of range, or epsilons that do not rise where they must.
    """

    epsilons: Sequence[float]
    stop_below: float | None = None
    carry_over: bool = False

    def __post_init__(self) -> None:
        if not np.ndim(self.epsilons) or not len(self.epsilons):
            raise TypeError(
                f"`epsilons` must be a sequence of at least one number, got {self.epsilons!r}."
            )
        for epsilon in self.epsilons:
            checks.number("epsilons", epsilon, minimum=0.0)
        if self.stop_below is not None:
            checks.number("stop_below", self.stop_below, above=0.0, maximum=1.0)
        must_rise = self.stop_below is not None or self.carry_over
        if must_rise and np.any(np.diff(self.epsilons) <= 0):
            raise ValueError(
                f"`epsilons` must rise with `stop_below` or `carry_over`, got {list(self.epsilons)}."
            )


def robustness_curve(
    attack: Attack,
    logits_fn: LogitsFn,
    images: Any,
    labels: Any,
    sweep: Sweep,
    *,
    key: jax.Array,
    model: str,
    execution: Execution = Execution(),
) -> dict[str, Any]:
    """Robust accuracy at several epsilons (docs/result_format.md, CURVE); compiles nothing anew.

    The attack's step size, where it has one, keeps its proportion to epsilon. Only images that are
    right when clean are attacked, and each is left at its first success where that changes no figure:
    not with `keep="last"`, which may lose what it has found, nor for a `Stochastic` classifier.

    With `Sweep.stop_below` it is the test against an increasingly strong adversary: from small to large
    epsilons, until the accuracy is below chance.

    Args:
      attack: Untargeted, with an epsilon above 0.
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K].
      images: uint8, or floating in [0, 1], [N, H, W, C].
      labels: int [N].
      sweep: The epsilons.
      key: A PRNG key, the same for every epsilon.
      model: The model's name.
      execution: As in `attack_dataset`, without a `path`; `progress` is called with the epsilon that is
        done, as in "epsilon 8/255", how many are and how many there are.

    Returns:
      {"model", "label", "points": [{"epsilon", "robust_accuracy": a rate}]}.

    Raises:
      ValueError: A targeted attack or one without an epsilon above 0, or anything that `attack_dataset`
        refuses.
    """
    checks.instance("sweep", sweep, Sweep, "an evaluation.Sweep, such as Sweep([0.0, 4 / 255])")
    check_execution(execution)
    execution.refuse("path", "robustness_curve", KEEP_IT)
    if attack.targeted:
        raise ValueError("`attack` must be untargeted: robust accuracy is defined for no other.")
    # All attacks are made before the first one runs, so that a wrong epsilon costs no time.
    attacks = [at_epsilon(attack, epsilon) for epsilon in sweep.epsilons]
    prepared = prepare(logits_fn, images, labels, execution.num_lanes)
    right = standing = predictions(prepared.clean_logits) == prepared.labels
    points = []
    for done, (epsilon, swept) in enumerate(zip(sweep.epsilons, attacks, strict=True), start=1):
        wanted = standing if sweep.carry_over else right
        standing = wanted
        if epsilon > 0 and wanted.any():
            standing = _standing(swept, prepared, wanted, key, execution)
        accuracy = rate(int(standing.sum()), len(standing))
        points.append({"epsilon": float(epsilon), "robust_accuracy": accuracy})
        execution.tell(f"epsilon {epsilon_label(epsilon)}", done, len(attacks))
        if sweep.stop_below is not None and standing.mean() < sweep.stop_below:
            break
    return _curve(model, attack, points, unusual(prepared.clean_logits))


def _curve(
    model: str, attack: Attack, points: list[dict[str, Any]], noticed: Sequence[str]
) -> dict[str, Any]:
    curve = {"model": model, "label": attack_label(attack, epsilon=False), "points": points}
    return curve | {"warnings": list(noticed)} if noticed else curve


def _standing(
    attack: Attack,
    prepared: Prepared,
    wanted: np.ndarray,
    key: jax.Array,
    execution: Execution,
) -> np.ndarray:
    """Which of the wanted images, bool [N], all of them right when clean, withstand the attack."""
    untold = dataclasses.replace(execution, progress=None)  # the curve counts epsilons
    found, beaten = beat(attack, prepared, wanted, key=key, execution=untold)
    predicted = predictions(answers(prepared.function, found.images, execution.num_lanes))
    # What answers with NaN is not right.
    standing: np.ndarray = wanted & ~beaten & (predicted >= 0)
    return standing


def curve_from_norms(
    report: AttackReport, epsilons: Sequence[float], *, model: str
) -> dict[str, Any]:
    """Robust accuracy at any epsilons from one run of an attack that looks for the smallest norm.

    An image withstands an epsilon that is smaller than the smallest perturbation found. The curve falls
    by construction.

    Args:
      report: Of an untargeted attack with `keep == "closest"` (FAB, DeepFool, CarliniWagner) that was
        made without `until_fooled`: that one stops at a perturbation which need not be the smallest.
      epsilons: In pixel units and the attack's norm, not negative; 0 is the accuracy on clean images.
      model: The model's name.

    Returns:
      As `robustness_curve`.

    Raises:
      ValueError: Another attack, a targeted one, or a negative epsilon.
    """
    if report.attack.keep != "closest":
        raise ValueError(
            "`report` must be of an attack that looks for the smallest perturbation, got one of "
            f"{attack_label(report.attack)}."
        )
    points = []
    for epsilon in epsilons:
        checks.number("epsilons", epsilon, minimum=0.0)
        points.append(
            {"epsilon": float(epsilon), "robust_accuracy": robust_accuracy(report, epsilon)}
        )
    return {"model": model, "label": attack_label(report.attack, epsilon=False), "points": points}
