"""Several attacks one after the other, each on the images that withstood those before it."""

import dataclasses
import functools
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrobust import attacks
from jaxrobust.attacks import engine
from jaxrobust.attacks.attack import Attack, epsilon_of
from jaxrobust.evaluation.answers import answers
from jaxrobust.evaluation.attack_report import attack_label
from jaxrobust.evaluation.classification import predictions
from jaxrobust.evaluation.execution import Execution, check_execution
from jaxrobust.evaluation.rates import Rate, rate
from jaxrobust.evaluation.search import beat, prepare
from jaxrobust.programs.company import unusual
from jaxrobust.types import LogitsFn, as_key

WITHSTOOD, WRONG = -1, -2


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SuiteReport:
    """What a suite of M attacks came to on N images; host arrays.

    Attributes:
      suite: {name: attack}, in their order.
      labels: int [N].
      clean_images: float32 [N, H, W, C] in [0, 1].
      images: float32 [N, H, W, C] in [0, 1]: adversarial where an attack succeeded, else clean.
      clean_logits: float32 [N, K].
      logits: float32 [N, K], of `images`, evaluated anew.
      fooled_by: int [N], the number of the attack that fooled an image; -1 where none did, -2 where the
        image was wrong before.
      num_queries: int [N], images that the classifier was asked about on behalf of this one.
      num_gradients: int [N].
      saw_nan: bool [N], whether an answer has been NaN.
      seconds: {name: of this process on the attack, compiling included}.
      remarks: Sentences on how the classifier was evaluated; mostly none.
    """

    suite: Mapping[str, Attack]
    labels: np.ndarray
    clean_images: np.ndarray
    images: np.ndarray
    clean_logits: np.ndarray
    logits: np.ndarray
    fooled_by: np.ndarray
    num_queries: np.ndarray
    num_gradients: np.ndarray
    saw_nan: np.ndarray
    seconds: Mapping[str, float]
    remarks: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"SuiteReport({', '.join(self.suite)}; {len(self.labels)} images)"

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences on what makes the figures doubtful; mostly none."""
        return (*unusual(self.clean_logits), *self.remarks)

    @functools.cached_property
    def robust(self) -> np.ndarray:
        """Bool [N]: right when clean, and no attack fooled it."""
        return self.fooled_by == WITHSTOOD

    @property
    def clean_accuracy(self) -> Rate:
        """Of all images, those right when clean."""
        return rate(int((self.fooled_by != WRONG).sum()), len(self.labels))

    @property
    def robust_accuracy(self) -> Rate:
        """Of all images, those that withstood every attack."""
        return rate(int(self.robust.sum()), len(self.labels))

    def after(self, name: str) -> Rate:
        """Of all images, those left by an attack and all before it."""
        number = list(self.suite).index(name)
        standing = self.robust | (self.fooled_by > number)
        return rate(int(standing.sum()), len(self.labels))


def attack_suite(
    suite: Mapping[str, Attack],
    logits_fn: LogitsFn,
    images: Any,
    labels: Any,
    *,
    key: jax.Array,
    execution: Execution = Execution(),
) -> SuiteReport:
    """Makes each attack on the images that are right and that none before it has fooled.

    An image is left at its first success, with all restarts and target classes that are still to come;
    for a `Stochastic` classifier all are made, and the best point is shown again.

    Args:
      suite: {name: attack}, untargeted, each with an epsilon.
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K].
      images: uint8, or floating in [0, 1], [N, H, W, C], N of at least 1.
      labels: int [N].
      key: A PRNG key; attack j on image i uses it folded with j and then with i.
      execution: As in `attack_dataset`, but that `path` is a folder, which has a file for each attack,
        and `progress` is told the attack's name.

    Returns:
      SuiteReport.

    Raises:
      TypeError: As `attack_dataset`.
      ValueError: As `attack_dataset`; no attack, or a targeted one.
    """
    if not suite:
        raise ValueError("`suite` must hold at least one attack, got none.")
    for name, attack in suite.items():
        if attack.targeted or epsilon_of(attack) is None:
            raise ValueError(
                f"`suite` must be of untargeted attacks with an epsilon; {name!r} is not."
            )
    check_execution(execution)
    if execution.path is not None and Path(execution.path).is_file():
        raise ValueError(
            f"`execution.path` must be a folder for a suite, got the file {os.fspath(execution.path)}."
        )
    prepared, key = prepare(logits_fn, images, labels), as_key(key)
    # Before the first attack, which may take hours: no later one will fail for the images' shape.
    for attack in suite.values():
        engine.check_image(attack, prepared.images.shape[1:])
    right = predictions(prepared.clean_logits) == prepared.labels
    fooled_by = np.where(right, WITHSTOOD, WRONG)
    found_images = prepared.images.copy()
    queries, gradients = np.zeros((2, len(right)), np.int64)
    saw_nan = np.isnan(prepared.clean_logits).any(axis=1)
    seconds = {}
    for number, (name, attack) in enumerate(suite.items()):
        start = time.perf_counter()
        standing = fooled_by == WITHSTOOD
        if standing.any():
            part = execution.part(name, file=f"{number}_{_plain(name)}")
            # Each attack has starts of its own, and a classifier that answers at random other draws.
            own = jax.random.fold_in(key, number)
            found, beaten = beat(
                attack, prepared, standing, key=own, execution=part, draw=number + 1
            )
            fooled_by[beaten] = number
            found_images[beaten] = found.images[beaten]
            queries, gradients = queries + found.num_queries, gradients + found.num_gradients
            saw_nan |= found.saw_nan
        seconds[name] = time.perf_counter() - start
    # What users see of an image in the end is one answer, the same whichever attack fooled it.
    shown = answers(logits_fn, found_images, 256)
    prepared.watch.check()
    return SuiteReport(
        suite=dict(suite),
        labels=prepared.labels,
        clean_images=prepared.images,
        images=found_images,
        clean_logits=prepared.clean_logits,
        logits=shown,
        fooled_by=fooled_by,
        num_queries=queries,
        num_gradients=gradients,
        saw_nan=saw_nan,
        seconds=seconds,
        remarks=prepared.remarks,
    )


def summarise_suite(report: SuiteReport, model: str) -> dict[str, Any]:
    """The suite as it goes into result.json (docs/result_format.md, SUITE).

    Args:
      report: Of one suite on one model.
      model: The model's name.
    """
    rows = [
        {
            "name": name,
            "label": attack_label(attack),
            "parameters": attacks.to_dict(attack),
            "fooled": int((report.fooled_by == number).sum()),
            "robust_accuracy": report.after(name),
            "seconds": report.seconds[name],
        }
        for number, (name, attack) in enumerate(report.suite.items())
    ]
    summary = {
        "model": model,
        "clean_accuracy": report.clean_accuracy,
        "robust_accuracy": report.robust_accuracy,
        "attacks": rows,
        "num_queries": int(report.num_queries.sum()),
        "num_gradients": int(report.num_gradients.sum()),
        "saw_nan": int(report.saw_nan.sum()),
        "fooled_by": report.fooled_by.tolist(),
        "predictions": predictions(report.logits).tolist(),
        "labels": report.labels.tolist(),
    }
    return summary | {"warnings": list(report.warnings)} if report.warnings else summary


def _plain(name: str) -> str:
    return "".join(character if character.isalnum() else "_" for character in name)
