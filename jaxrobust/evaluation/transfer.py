"""Transfer: what adversarial images made on one model do to another."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np

from jaxrobust.evaluation.classification import logits
from jaxrobust.evaluation.rates import Rate, rate
from jaxrobust.evaluation.robustness import AttackReport, attack_label
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

    Returns:
      {"of_successes": of all images that succeeded on the source, those that the target has wrong,
      "of_right": the same, of only those that the target has right when clean}. Of a targeted attack:
      those that the target takes for the target class, and the same of only those that are not of
      that class and that the target does not take for it when clean.
    """
    clean_logits = logits(logits_fn, source_report.clean_images, batch_size)
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
        same = report.attack == first.attack and np.array_equal(report.labels, first.labels)
        if not same or not np.array_equal(report.clean_images, first.clean_images):
            raise ValueError(
                f"`reports` must be of one attack and the same images; {name!r} is not."
            )
    rates = [
        [
            _of_right(source, _shown(source, logits_fn, reports[name].clean_logits, batch_size))
            for name, logits_fn in logits_fns.items()
        ]
        for source in reports.values()
    ]
    return {"label": attack_label(first.attack), "models": list(reports), "rates": rates}


def _shown(
    source: AttackReport, logits_fn: LogitsFn, clean_logits: np.ndarray, batch_size: int
) -> AttackReport:
    """The report as it would be had these images been made on the target model."""
    values = logits(logits_fn, source.images, batch_size)
    return dataclasses.replace(source, logits=values, clean_logits=clean_logits)


def _of_right(source: AttackReport, shown: AttackReport) -> Rate:
    """Transfers among the source's successes that the target model stands up to when clean."""
    counted = source.success & source.attacked & shown.attacked
    if source.targets is not None:
        counted &= shown.clean_predictions != source.targets
    return rate(int((shown.success & counted).sum()), int(counted.sum()))
