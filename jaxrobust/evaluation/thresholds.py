"""The epsilon and the number of steps at which an attack reaches a given success rate."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxrobust import checks
from jaxrobust.attacks.attack import Attack, epsilon_of
from jaxrobust.evaluation.attack_report import AttackReport, epsilon_label, success_rate
from jaxrobust.evaluation.classification import softmax
from jaxrobust.evaluation.execution import KEEP_IT, Execution, check_execution
from jaxrobust.evaluation.rates import Rate
from jaxrobust.evaluation.robustness import attack_dataset
from jaxrobust.types import LogitsFn


def at_epsilon(attack: Attack, epsilon: float) -> Attack:
    """Returns the attack with another epsilon and, if it has one, a step size scaled with it.

    Args:
      attack: An attack with an epsilon above 0.
      epsilon: The new epsilon in pixel units, not negative.

    Raises:
      ValueError: The attack has no epsilon above 0, or it does not accept the new one.

    Example:
      >>> from jaxrobust.attacks import BIM
      >>> swept = at_epsilon(BIM(epsilon=0.1, step_size=0.02), 0.05)
      >>> swept.epsilon, swept.step_size
      (0.05, 0.01)
    """
    own = epsilon_of(attack)
    if np.ndim(own):
        raise ValueError(
            "`attack.epsilon` must be one number for a sweep over epsilon, got one for each image."
        )
    base = 0.0 if own is None else float(own)
    checks.number("attack.epsilon", base, above=0.0)
    changes = {"epsilon": float(epsilon)}
    if hasattr(attack, "step_size"):
        changes["step_size"] = float(attack.step_size * epsilon / base)
    return dataclasses.replace(attack, **changes)  # type: ignore[type-var]


@dataclasses.dataclass(frozen=True)
class Crossing:
    """The success rate for which an epsilon is searched, and the range and precision of the search.

    Attributes:
      rate: The success rate, in (0, 1].
      maximum: The largest epsilon to try, in pixel units, above 0; for linf at most 1.
      tolerance: The precision of the result in pixel units, above 0: its largest distance to a smaller
        epsilon that fails.
      interval: Whether to find the ends of its 95 % interval too, which takes about three times as many
        attacks in all.

    Raises:
      TypeError: A value is not a number.
      ValueError: A value is out of range.
    """

    rate: float = 0.5
    maximum: float = 0.3
    tolerance: float = 1e-3
    interval: bool = True

    def __post_init__(self) -> None:
        checks.number("rate", self.rate, above=0.0, maximum=1.0)
        checks.number("maximum", self.maximum, above=0.0)
        checks.number("tolerance", self.tolerance, above=0.0)


def epsilon_for_success(
    attack: Attack,
    logits_fn: LogitsFn,
    images: Any,
    labels: Any,
    *,
    key: jax.Array,
    targets: Any = None,
    crossing: Crossing = Crossing(),
    execution: Execution = Execution(),
) -> dict[str, Any]:
    """Searches for the smallest epsilon at which an attack reaches a success rate.

    The search is a bisection between 0 and the maximum. Only the attack's epsilon changes, so the
    attack is compiled once. An attack need not do better in a larger ball (FGSM overshoots, PGD takes
    another path), so the result is a crossing of the rate: the first among the epsilons tried. A
    smaller epsilon at which the attack succeeds may be missed. The result lists each epsilon tried.

    Args:
      attack: An attack with an epsilon above 0. If it has a step size, that is scaled with epsilon.
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K].
      images: [N, H, W, C], uint8 or floating point in [0, 1].
      labels: int [N], the true classes.
      key: A PRNG key, which is used for every epsilon.
      targets: The classes to reach, for a targeted attack: one class for all images, or int [N].
      crossing: The success rate, and the range and precision of the search.
      execution: How many images to attack at a time; `path` must be None. `progress` is called with
        (the epsilon under way, such as "epsilon 8/255", questions done, questions in all) for each
        epsilon.

    Returns:
      {"rate", "epsilon", "low", "high", "evaluations": [{"epsilon", "success": a rate}, ...]}.

      epsilon is None if the rate was not reached or there was no image to attack. It is 0 if enough
      clean images are already classified as the targets of a targeted attack. low and high are a 95 %
      interval of epsilon over images like these: the first epsilons at which the upper and the lower
      end of the success rate's 95 % Wilson interval reach the rate. Each is None if the maximum is not
      enough; with few images, high may be None even if all of them are fooled.

    Raises:
      ValueError: The attack has no epsilon above 0, or `attack_dataset` would refuse the arguments.
    """
    checks.instance("crossing", crossing, Crossing, "an evaluation.Crossing, such as Crossing(0.5)")
    check_execution(execution)
    execution.refuse("path", "epsilon_for_success", KEEP_IT)

    def run(epsilon: float) -> AttackReport:
        return attack_dataset(
            at_epsilon(attack, epsilon),
            logits_fn,
            images,
            labels,
            key=key,
            targets=targets,
            execution=execution.part(f"epsilon {epsilon_label(epsilon)}"),
        )

    # The clean images are epsilon 0, which needs no attack.
    maximum = float(crossing.maximum)
    report = run(maximum)
    clean = dataclasses.replace(report, images=report.clean_images, logits=report.clean_logits)
    tried = {0.0: success_rate(clean), maximum: success_rate(report)}

    def first(reached: Callable[[Rate], bool]) -> float | None:
        """Bisects to the first epsilon where the condition holds, starting from all known ones."""
        while True:
            holds = [epsilon for epsilon, success in tried.items() if reached(success)]
            if not holds or min(holds) == 0.0:
                return min(holds, default=None)
            high = min(holds)
            low = max(epsilon for epsilon in tried if epsilon < high)
            middle = (low + high) / 2
            if high - low <= crossing.tolerance or not low < middle < high:
                return high
            tried[middle] = success_rate(run(middle))

    def at_least(bound: str) -> Callable[[Rate], bool]:
        return lambda success: success["n"] > 0 and success[bound] >= crossing.rate  # type: ignore[literal-required]

    # The ends first: the epsilon between them is then the first of all that were tried.
    low, high = (
        (first(at_least("high")), first(at_least("low"))) if crossing.interval else (None, None)
    )
    epsilon = first(at_least("rate"))
    return {
        "rate": float(crossing.rate),
        "epsilon": epsilon,
        "low": low,
        "high": high,
        "evaluations": [{"epsilon": e, "success": tried[e]} for e in sorted(tried)],
    }


def steps_for_success(report: AttackReport, rate: float = 0.5) -> int | None:
    """Computes after how many steps a share of the attacked images had been fooled.

    An image counts from its first success, and only if it fools in the end: with `keep="last"` an
    attack may lose a success again. Steps are counted through all restarts.

    Args:
      report: The report of an attack.
      rate: The share of the attacked images, in (0, 1].

    Returns:
      The number of steps, or None if the share was never reached.

    Raises:
      ValueError: `rate` is outside (0, 1].
    """
    checks.number("rate", rate, above=0.0, maximum=1.0)
    num_attacked = int(report.attacked.sum())
    steps = np.sort(report.num_steps[report.attacked & report.success])
    shares = np.arange(1, len(steps) + 1) / max(num_attacked, 1)
    enough = np.flatnonzero(shares >= rate)
    return int(steps[enough[0]]) if len(enough) else None


def confidences(report: AttackReport) -> dict[str, Any]:
    """Computes the classifier's mean confidence in wrong classes and in target classes.

    Args:
      report: The report of an attack.

    Returns:
      {"wrong": {"mean", "n"}, "target": {"mean", "n"} or None}. "wrong" is the mean probability of the
      predicted class over the n successes among the attacked images. "target" is the mean probability
      of the class to reach over all n attacked images, or None for an untargeted attack. Images with
      NaN logits are left out, and a mean over no images is None.
    """
    probabilities = softmax(report.logits)
    attacked = report.attacked & ~np.isnan(report.logits).any(axis=1)
    of_target = None
    if report.targets is not None:
        rows = np.arange(len(report.targets))
        of_target = _mean(probabilities[rows, report.targets][attacked])
    return {
        "wrong": _mean(probabilities.max(axis=1)[attacked & report.success]),
        "target": of_target,
    }


def _mean(values: np.ndarray) -> dict[str, Any]:
    return {"mean": float(values.mean()) if len(values) else None, "n": len(values)}
