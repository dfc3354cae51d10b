"""Curves of robust accuracy over epsilon."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxrobust import checks
from jaxrobust.attacks import Attack, engine
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
    """The epsilons of a robustness curve, and how to shorten its computation.

    Attributes:
      epsilons: The epsilons in pixel units, not negative. At 0 the curve is the accuracy on clean
        images.
      stop_below: The curve ends after the first point whose robust accuracy is below this value, in
        (0, 1]; chance is 1 / K. The epsilons must then increase. None computes all points.
      carry_over: Whether an image that was fooled at a smaller epsilon counts as fooled without another
        attack. This is faster, but then the curve cannot rise, so it does not show an attack that does
        worse in a larger ball. The epsilons must then increase.

    Raises:
      TypeError: A value is not a number.
      ValueError: A value is out of range, or the epsilons do not increase where they must.
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
                "`epsilons` must increase with `stop_below` or `carry_over`, got "
                f"{list(self.epsilons)}."
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
    """Measures robust accuracy at several epsilons (docs/result_format.md, CURVE).

    The attack is compiled once. If it has a step size, that is scaled with epsilon. Only images that
    are classified correctly are attacked, and the attack on an image ends at its first success if that
    changes no figure, which excludes `keep="last"` and `Stochastic` classifiers.

    With `Sweep.stop_below` and increasing epsilons this tests the network against an increasingly
    strong adversary, for example until its accuracy is below chance.

    Args:
      attack: An untargeted attack with an epsilon above 0.
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K].
      images: [N, H, W, C], uint8 or floating point in [0, 1].
      labels: int [N], the true classes.
      sweep: The epsilons.
      key: A PRNG key, which is used for every epsilon.
      model: The model's name.
      execution: How many images to attack at a time; `path` must be None. `progress` is called after
        each epsilon with (its name, such as "epsilon 8/255", epsilons done, epsilons in all).

    Returns:
      {"model", "label", "points": [{"epsilon", "robust_accuracy": a rate}]}.

    Raises:
      ValueError: The attack is targeted or has no epsilon above 0, or `attack_dataset` would refuse
        the arguments.
    """
    checks.instance("sweep", sweep, Sweep, "an evaluation.Sweep, such as Sweep([0.0, 4 / 255])")
    check_execution(execution)
    execution.refuse("path", "robustness_curve", KEEP_IT)
    engine.check_attack(attack)
    if attack.targeted:
        raise ValueError(
            "`attack` must be untargeted, got a targeted one, for which robust accuracy is not defined."
        )
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
    """Which wanted images, bool [N], withstand the attack; their clean forms must be right."""
    untold = dataclasses.replace(execution, progress=None)  # the curve counts epsilons
    found, beaten = beat(attack, prepared, wanted, key=key, execution=untold)
    predicted = predictions(answers(prepared.function, found.images, execution.num_lanes))
    # An answer with NaN is not correct.
    standing: np.ndarray = wanted & ~beaten & (predicted >= 0)
    return standing


def curve_from_norms(
    report: AttackReport, epsilons: Sequence[float], *, model: str
) -> dict[str, Any]:
    """Computes robust accuracy at any epsilons from one attack that looks for the smallest norm.

    An image withstands every epsilon that is smaller than the perturbation found for it. The curve
    therefore never rises.

    Args:
      report: The report of an untargeted attack with `keep == "closest"` (FAB, DeepFool,
        CarliniWagner). It must have been made without `until_fooled`, which stops at a perturbation
        that need not be the smallest.
      epsilons: In pixel units and the attack's norm, not negative. At 0 the curve is the accuracy on
        clean images.
      model: The model's name.

    Returns:
      {"model", "label", "points": [{"epsilon", "robust_accuracy": a rate}]}.

    Raises:
      ValueError: The attack is of another kind or targeted, or an epsilon is negative.
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
