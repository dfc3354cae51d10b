"""Robust accuracy over the size of the perturbation."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxrobust import checks
from jaxrobust.attacks import Attack
from jaxrobust.evaluation.answers import answers
from jaxrobust.evaluation.attack_report import AttackReport, attack_label, robust_accuracy
from jaxrobust.evaluation.classification import Progress, predictions
from jaxrobust.evaluation.rates import rate
from jaxrobust.evaluation.search import Examples, Options, fooled, prepare, search
from jaxrobust.evaluation.thresholds import at_epsilon
from jaxrobust.programs.company import unusual
from jaxrobust.types import LogitsFn


def robustness_curve(
    attack: Attack,
    logits_fn: LogitsFn,
    images: Any,
    labels: Any,
    epsilons: Sequence[float],
    *,
    key: jax.Array,
    model: str,
    stop_below: float | None = None,
    carry_over: bool = False,
    num_lanes: int = 128,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Robust accuracy at several epsilons (docs/result_format.md, CURVE); compiles nothing anew.

    The attack's step size, where it has one, keeps its proportion to epsilon. Only images that are
    right when clean are attacked, and each is left at its first success where that changes no figure:
    not with `keep="last"`, which may lose what it has found, nor for a `Stochastic` classifier.

    With `stop_below` it is the test against an increasingly strong adversary: from small to large
    epsilons, until the accuracy is below chance.

    Args:
      attack: Untargeted, with an epsilon above 0.
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K].
      images: uint8, or floating in [0, 1], [N, H, W, C].
      labels: int [N].
      epsilons: In pixel units, not negative; 0 is the accuracy on clean images.
      key: A PRNG key, the same for every epsilon.
      model: The model's name.
      stop_below: The first point whose robust accuracy is below this, in (0, 1], is the last one; 1 / K
        is chance. The epsilons must rise then. None computes all points.
      carry_over: Whether an image that was fooled at a smaller epsilon counts as fooled without being
        attacked again: it is, by what was found there. Sooner done, but then the curve falls by
        construction, and no longer shows an attack that does worse in a larger ball. The epsilons must
        rise.
      num_lanes: Images at a time.
      progress: Called with (epsilons done, how many there are).

    Returns:
      {"model", "label", "points": [{"epsilon", "robust_accuracy": a rate}]}.

    Raises:
      ValueError: A targeted attack or one without an epsilon above 0, epsilons that do not rise where
        they must, or anything that `attack_dataset` refuses.
    """
    if attack.targeted:
        raise ValueError("`attack` must be untargeted: robust accuracy is defined for no other.")
    if stop_below is not None:
        checks.number("stop_below", stop_below, above=0.0, maximum=1.0)
    if (stop_below is not None or carry_over) and np.any(np.diff(epsilons) <= 0):
        raise ValueError(
            f"`epsilons` must rise with `stop_below` or `carry_over`, got {list(epsilons)}."
        )
    sweep = [at_epsilon(attack, epsilon) for epsilon in epsilons]
    examples = prepare(logits_fn, images, labels, num_lanes)
    right = standing = predictions(examples.clean_logits) == examples.labels
    points = []
    for done, (epsilon, swept) in enumerate(zip(epsilons, sweep, strict=True), start=1):
        wanted = standing if carry_over else right
        standing = _standing(swept, float(epsilon), examples, wanted, key, num_lanes)
        accuracy = rate(int(standing.sum()), len(standing))
        points.append({"epsilon": float(epsilon), "robust_accuracy": accuracy})
        if progress is not None:
            progress(done, len(epsilons))
        if stop_below is not None and standing.mean() < stop_below:
            break
    return _curve(model, attack, points, unusual(examples.clean_logits))


def _curve(
    model: str, attack: Attack, points: list[dict[str, Any]], noticed: Sequence[str]
) -> dict[str, Any]:
    curve = {"model": model, "label": attack_label(attack, epsilon=False), "points": points}
    return curve | {"warnings": list(noticed)} if noticed else curve


def _standing(
    attack: Attack,
    epsilon: float,
    examples: Examples,
    wanted: np.ndarray,
    key: jax.Array,
    num_lanes: int,
) -> np.ndarray:
    """Which of the wanted images, bool [N], all of them right when clean, withstand the attack."""
    if epsilon == 0 or not wanted.any():
        return wanted
    options = Options(num_lanes, until_fooled=True)
    found = search(attack, examples, examples.labels, wanted, key=key, options=options)
    beaten = fooled(attack, examples, examples.labels, found, options)
    predicted = predictions(answers(examples.function, found.images, num_lanes))
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
