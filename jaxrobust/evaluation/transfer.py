"""Transfer: how often adversarial images made on one model fool another."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import jax
import numpy as np

from jaxrobust import attacks, checks
from jaxrobust.attacks import Attack
from jaxrobust.evaluation.attack_report import AttackReport, attack_label, epsilon_label
from jaxrobust.evaluation.classification import logits, predictions
from jaxrobust.evaluation.execution import KEEP_IT, Execution, check_execution
from jaxrobust.evaluation.rates import Rate, rate
from jaxrobust.evaluation.robustness import attack_dataset
from jaxrobust.evaluation.thresholds import at_epsilon
from jaxrobust.types import LogitsFn


class TransferRates(TypedDict):
    """How many of the source model's successes fool the target model, counted in two ways."""

    of_successes: Rate
    of_right: Rate


def transfer_rates(
    source_report: AttackReport, logits_fn: LogitsFn, batch_size: int = 256
) -> TransferRates:
    """Computes how often images that fool the model they were made on also fool another model.

    An image whose clean form the other model misclassifies "transfers" without the attack. The two
    rates differ in whether such images count.

    Args:
      source_report: The report of the attack on the source model.
      logits_fn: The target model: images float32 [B, H, W, C] in [0, 1] -> logits [B, K].
      batch_size: How many images to evaluate at a time.

    Returns:
      {"of_successes": a rate over all images that succeeded on the source model, "of_right": a rate
      over those of them whose clean form the target model classifies correctly}. Both are shares of
      images that the target model misclassifies. For a targeted attack both are shares of images that
      the target model classifies as the target class, and "of_right" counts only images that are not
      of that class and whose clean form the target model does not classify as it.

    Raises:
      ValueError: The target model has another number of classes, or `logits` would refuse it.
    """
    clean_logits = logits(logits_fn, source_report.clean_images, batch_size)
    _check_classes(source_report, clean_logits, "logits_fn")
    shown = _shown(source_report, logits_fn, clean_logits, batch_size)
    successes = source_report.success & source_report.attacked
    return {
        "of_successes": rate(int((shown.success & successes).sum()), int(successes.sum())),
        "of_right": _of_right(source_report, shown),
    }


def transfer_matrix(
    logits_fns: Mapping[str, LogitsFn], reports: Mapping[str, AttackReport], batch_size: int = 256
) -> dict[str, Any]:
    """Computes how often images made on each model fool each other model.

    The result is in the format of docs/result_format.md, TRANSFER.

    Args:
      logits_fns: {name: images [B, H, W, C] -> logits [B, K]}, the models.
      reports: {name: AttackReport}, the same attack on each model over the same images.
      batch_size: How many images to evaluate at a time.

    Returns:
      {"label", "models", "rates"}. rates[source][target] is the share of images that the target model
      misclassifies, among those that succeeded on the source model and whose clean form the target
      model classifies correctly. For a targeted attack it is the share that the target model
      classifies as the target class, among those whose clean form it does not. This is the "of_right"
      of `transfer_rates`.

    Raises:
      ValueError: There are no models, models and reports do not match, or the reports are of different
        attacks or images.
    """
    if not logits_fns or list(logits_fns) != list(reports):
        raise ValueError(
            f"`reports` must be for the models {list(logits_fns)} in that order, at least one, got "
            f"{list(reports)}."
        )
    first = next(iter(reports.values()))
    for name, report in reports.items():
        same = attacks.to_dict(report.attack) == attacks.to_dict(first.attack)
        same &= np.array_equal(report.labels, first.labels)
        if not same or not np.array_equal(report.clean_images, first.clean_images):
            raise ValueError(
                f"`reports` must be of one attack and the same images, and {name!r} is of others."
            )
    for name, report in reports.items():
        _check_classes(first, report.clean_logits, f"logits_fns[{name!r}]")
    rates = [
        [
            _of_right(source, _shown(source, logits_fn, reports[name].clean_logits, batch_size))
            for name, logits_fn in logits_fns.items()
        ]
        for source in reports.values()
    ]
    matrix = {"label": attack_label(first.attack), "models": list(reports), "rates": rates}
    noticed = [f"{name}: {one}" for name, report in reports.items() for one in report.warnings]
    return matrix | {"warnings": noticed} if noticed else matrix


def transfer_curves(
    attack: Attack,
    logits_fns: Mapping[str, LogitsFn],
    source: str,
    images: Any,
    labels: Any,
    epsilons: Sequence[float],
    *,
    key: jax.Array,
    execution: Execution = Execution(),
) -> list[dict[str, Any]]:
    """Measures every model's accuracy over epsilon on images made on one model.

    All images are attacked with all steps, even those that the source model misclassifies, and all
    count for every model. A curve therefore begins at the model's clean accuracy, and the curve of the
    source model is its accuracy under the attack itself. `transfer_matrix` counts only successes. The
    result is in the format of docs/result_format.md, CURVE.

    Args:
      attack: An untargeted attack with an epsilon above 0 that limits its perturbations.
      logits_fns: {name: images [B, H, W, C] -> logits [B, K]}, the models, with the source among them.
      source: The name of the model on which the images are made. In a study of models that differ in
        strength, make one call for the strongest and one for the weakest.
      images: [N, H, W, C], uint8 or floating point in [0, 1].
      labels: int [N], the true classes.
      epsilons: In pixel units, not negative. At 0 a curve is the accuracy on clean images.
      key: A PRNG key, which is used for every epsilon.
      execution: How many images to attack at a time; `path` must be None. `progress` is called after
        each epsilon with (its name, such as "epsilon 8/255", epsilons done, epsilons in all).

    Returns:
      [{"model", "label", "points": [{"epsilon", "robust_accuracy": a rate}]}], one for each model in
      their order. The labels are equal and name the source, so a report draws the curves in one figure.

    Raises:
      ValueError: The source is not one of the models; the attack is targeted, has no epsilon above 0 or
        is not limited by it; or `attack_dataset` would refuse the arguments.
    """
    check_execution(execution)
    execution.refuse("path", "transfer_curves", KEEP_IT)
    checks.one_of("source", source, tuple(logits_fns))
    if attack.targeted or attack.keep == "closest":
        raise ValueError(
            "`attack` must be untargeted and limited by its epsilon, got "
            f"{attack_label(attack)}, targeted={attack.targeted}, keep={attack.keep!r}."
        )
    points: dict[str, list[dict[str, Any]]] = {name: [] for name in logits_fns}
    untold = dataclasses.replace(execution, progress=None)  # the curves count epsilons
    # Made once at each epsilon, on the source, and shown to all.
    for done, epsilon in enumerate(epsilons, start=1):
        swept, attacked = at_epsilon(attack, epsilon), (logits_fns[source], images, labels)
        report = attack_dataset(swept, *attacked, key=key, execution=untold)
        for name, logits_fn in logits_fns.items():
            own = report.logits
            if name != source:
                own = logits(logits_fn, report.images, execution.num_lanes)
            _check_classes(report, own, f"logits_fns[{name!r}]")
            count = int((predictions(own) == report.labels).sum())
            accuracy = rate(count, len(report.labels))
            points[name].append({"epsilon": float(epsilon), "robust_accuracy": accuracy})
        execution.tell(f"epsilon {epsilon_label(epsilon)}", done, len(epsilons))
    label = f"{attack_label(attack, epsilon=False)}, made on {source}"
    return [{"model": name, "label": label, "points": points[name]} for name in logits_fns]


def _shown(
    source: AttackReport, logits_fn: LogitsFn, clean_logits: np.ndarray, batch_size: int
) -> AttackReport:
    """Returns the report with the logits of the target model in place of the source model's."""
    values = logits(logits_fn, source.images, batch_size)
    return dataclasses.replace(source, logits=values, clean_logits=clean_logits)


def _check_classes(source: AttackReport, clean_logits: np.ndarray, name: str) -> None:
    num_classes, own = clean_logits.shape[1], source.clean_logits.shape[1]
    if num_classes != own:
        raise ValueError(
            f"`{name}` must have the {own} classes of the source model, got {num_classes} logits: "
            "classes of one model would be counted as other classes of the other."
        )


def _of_right(source: AttackReport, shown: AttackReport) -> Rate:
    """Transfers among the source's successes whose clean form does not fool the target model."""
    counted = source.success & source.attacked & shown.attacked
    if source.targets is not None:
        counted &= shown.clean_predictions != source.targets
    return rate(int((shown.success & counted).sum()), int(counted.sum()))
