"""Transfer: what adversarial images made on one model do to another."""

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
    """How many of the source's successes fool the target model, counted in two ways."""

    of_successes: Rate
    of_right: Rate


def transfer_rates(
    source_report: AttackReport, logits_fn: LogitsFn, batch_size: int = 256
) -> TransferRates:
    """How often the images that fool the model they were made on fool another one.

    An image that the other model has wrong before anything was done to it "transfers" without any
    help from the attack. The two rates differ by these images.

    Args:
      source_report: Of the attack on the source model.
      logits_fn: The target model: images float32 [B, H, W, C] in [0, 1] -> logits [B, K].
      batch_size: Images at a time.

    Raises:
      ValueError: A target model with another number of classes, or anything that `logits` refuses.

    Returns:
      {"of_successes": of all images that succeeded on the source, those that the target has wrong,
      "of_right": the same, of only those that the target has right when clean}. Of a targeted attack:
      those that the target takes for the target class, and the same of only those that are not of
      that class and that the target does not take for it when clean.
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
    """How far adversarial images made on one model fool another (docs/result_format.md, TRANSFER).

    Args:
      logits_fns: {name: images -> logits}, the models shown the images.
      reports: {name: AttackReport}, the same attack on each of them over the same images.
      batch_size: Images at a time.

    Returns:
      {"label", "models", "rates"}. rates[source][target] is of the images that succeeded on the source
      and that the target has right when clean: the share that it has wrong. Of a targeted attack: of
      those that succeeded on the source and that the target does not take for the target class when
      clean, the share that it does. This is the "of_right" of `transfer_rates`.

    Raises:
      ValueError: No models, models and reports that do not match, or reports of different attacks or
        images.
    """
    if not logits_fns or list(logits_fns) != list(reports):
        raise ValueError(
            f"`reports` must be for the models {list(logits_fns)}, at least one, got {list(reports)}."
        )
    first = next(iter(reports.values()))
    for name, report in reports.items():
        same = attacks.to_dict(report.attack) == attacks.to_dict(first.attack)
        same &= np.array_equal(report.labels, first.labels)
        if not same or not np.array_equal(report.clean_images, first.clean_images):
            raise ValueError(
                f"`reports` must be of one attack and the same images; {name!r} is not."
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
    """Accuracy of every model over epsilon, on images made on one (docs/result_format.md, CURVE).

    All images are attacked to the last step, those that the source has wrong already too, and all are
    counted for every model. So a curve begins at the model's clean accuracy; that of the source is its
    accuracy under the attack itself. `transfer_matrix` counts the successes alone.

    Args:
      attack: Untargeted, with an epsilon above 0 that it keeps to.
      logits_fns: {name: images -> logits}, the models shown the images; the source among them.
      source: The name of the model that the images are made on. A study of models that differ in
        strength makes one call for the strongest and one for the weakest.
      images: uint8, or floating in [0, 1], [N, H, W, C].
      labels: int [N].
      epsilons: In pixel units, not negative; 0 is the accuracy on clean images.
      key: A PRNG key, the same for every epsilon.
      execution: As in `robustness_curve`.

    Returns:
      [{"model", "label", "points": [{"epsilon", "robust_accuracy": a rate}]}], one for each model in
      their order. The labels are equal and name the source: a report draws the curves in one figure.

    Raises:
      ValueError: A source that is no model, a targeted attack, one without an epsilon above 0 or one
        that does not keep to it, or anything that `attack_dataset` refuses.
    """
    check_execution(execution)
    execution.refuse("path", "transfer_curves", KEEP_IT)
    checks.one_of("source", source, tuple(logits_fns))
    if attack.targeted or attack.keep == "closest":
        raise ValueError(
            "`attack` must be untargeted and keep to its epsilon, got "
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
    """The report as it would be had these images been made on the target model."""
    values = logits(logits_fn, source.images, batch_size)
    return dataclasses.replace(source, logits=values, clean_logits=clean_logits)


def _check_classes(source: AttackReport, clean_logits: np.ndarray, name: str) -> None:
    num_classes, own = clean_logits.shape[1], source.clean_logits.shape[1]
    if num_classes != own:
        raise ValueError(
            f"`{name}` must tell the {own} classes apart that the source model does, got {num_classes} "
            "logits: a class of the one would be counted as another class of the other."
        )


def _of_right(source: AttackReport, shown: AttackReport) -> Rate:
    """Transfers among the source's successes that the target model stands up to when clean."""
    counted = source.success & source.attacked & shown.attacked
    if source.targets is not None:
        counted &= shown.clean_predictions != source.targets
    return rate(int((shown.success & counted).sum()), int(counted.sum()))
