"""How much it takes: the epsilon and the number of steps at which a share of attacks succeeds."""

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
    """The attack at another epsilon; its step size, where it has one, keeps its proportion.

    Args:
      attack: With an epsilon above 0.
      epsilon: In pixel units, not negative.

    Raises:
      ValueError: An attack without an epsilon above 0, or an epsilon that it refuses.

    Example:
      >>> from jaxrobust.attacks import BIM
      >>> swept = at_epsilon(BIM(epsilon=0.1, step_size=0.02), 0.05)
      >>> swept.epsilon, swept.step_size
      (0.05, 0.01)
    """
    own = epsilon_of(attack)
    if np.ndim(own):
        raise ValueError("`attack.epsilon` must be one number to be swept, got one for each image.")
    base = 0.0 if own is None else float(own)
    checks.number("attack.epsilon", base, above=0.0)
    changes = {"epsilon": float(epsilon)}
    if hasattr(attack, "step_size"):
        changes["step_size"] = float(attack.step_size * epsilon / base)
    return dataclasses.replace(attack, **changes)  # type: ignore[type-var]


@dataclasses.dataclass(frozen=True)
class Crossing:
    """Which share of the images is to be fooled, and how closely the epsilon for it is looked for.

    Attributes:
      rate: The share, in (0, 1].
      maximum: The largest epsilon to try, in pixel units (linf: at most 1).
      tolerance: How far from a smaller epsilon that fails the result may be, in pixel units.
      interval: Whether to find its ends too, which takes about twice as many attacks again.

    Raises:
      TypeError: A number that is none.
      ValueError: A number out of range.
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
    """The smallest epsilon at which an attack succeeds on a share of the images it attacks.

    Found by bisection between 0 and the maximum; only the attack's epsilon changes, so nothing is
    compiled anew. An attack need not do better in a larger ball: FGSM overshoots, PGD is led elsewhere.
    So this is a crossing of the rate, the first among the epsilons tried; an attack that succeeds
    below it, or in between only, may be missed. Each epsilon tried is in the result.

    Args:
      attack: With an epsilon above 0, which gives the proportion of its step size.
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K].
      images: uint8, or floating in [0, 1], [N, H, W, C].
      labels: int [N], true classes.
      key: A PRNG key, the same for every epsilon.
      targets: For a targeted attack the class to reach, one for all or [N].
      crossing: The share, and where the epsilon is looked for.
      execution: As in `attack_dataset`, without a `path`; `progress` is called with the epsilon that is
        tried, as in "epsilon 8/255", and the questions to the classifier at that epsilon.

    Returns:
      {"rate", "epsilon", "low", "high", "evaluations": [{"epsilon", "success": a rate}, ...]}. epsilon
      is None where the rate was not reached (which includes that there was no image to attack), and 0
      where a targeted attack finds that many images taken for their targets already. low and high are
      the first epsilons at which the 95 % Wilson interval of the success reaches up to the rate, and
      lies above it: a 95 % interval for epsilon over images like these. Each is None where the maximum
      is not enough; with few images even success on all of them leaves high open.

    Raises:
      ValueError: An attack without an epsilon above 0, or anything that `attack_dataset` refuses.
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
        """Bisects to the first epsilon where this holds, starting from all that is known."""
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
    """After how many steps a share of the attacked images had been fooled; None if never.

    An image counts from its first success, and only if it fools in the end: with `keep="last"` an
    attack may lose what it had found. Steps of restarts are counted through.

    Args:
      report: Of an attack.
      rate: The share of the images attacked, in (0, 1].

    Raises:
      ValueError: A rate outside (0, 1].
    """
    checks.number("rate", rate, above=0.0, maximum=1.0)
    num_attacked = int(report.attacked.sum())
    steps = np.sort(report.num_steps[report.attacked & report.success])
    shares = np.arange(1, len(steps) + 1) / max(num_attacked, 1)
    enough = np.flatnonzero(shares >= rate)
    return int(steps[enough[0]]) if len(enough) else None


def confidences(report: AttackReport) -> dict[str, Any]:
    """How sure the classifier is of the class that the attack led it to.

    Args:
      report: Of an attack.

    Returns:
      {"wrong": {"mean", "n"}, "target": {"mean", "n"} or None}. wrong: the probability of the class
      predicted, mean over the n successes among the images attacked. target: the probability of the
      class to reach, mean over all n images attacked, None for an untargeted attack. Images with NaN
      logits are left out; a mean over none is None.
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
