"""Suites: several attacks in turn, each on the images that have withstood the earlier ones."""

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
    """The report of a suite of attacks on N images, as arrays on the host.

    Attributes:
      suite: {name: attack}, in their order.
      labels: int [N], the true classes.
      clean_images: float32 [N, H, W, C] in [0, 1].
      images: float32 [N, H, W, C] in [0, 1], adversarial if an attack succeeded, else clean.
      clean_logits: float32 [N, K], the logits of the clean images.
      logits: float32 [N, K], the logits of `images`, evaluated after the attacks.
      fooled_by: int [N], the number of the attack that fooled each image, from 0; -1 if none did, -2 if
        the clean image was misclassified.
      num_queries: int [N], how many images the classifier evaluated for this image.
      num_gradients: int [N], how many gradients were computed for this image.
      saw_nan: bool [N], whether a logit or a gradient has been NaN.
      seconds: {name: the seconds that this process spent on the attack, with compilation}.
      remarks: Sentences about how the classifier was evaluated; usually empty.
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
        right = f"{int(self.robust.sum())} of {len(self.labels)} images robust"
        return f"SuiteReport({', '.join(self.suite)}; {right})"

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences that say why the figures may be wrong; usually empty."""
        return (*unusual(self.clean_logits), *self.remarks)

    @functools.cached_property
    def robust(self) -> np.ndarray:
        """Whether the image is classified correctly and no attack fooled it, bool [N]."""
        return self.fooled_by == WITHSTOOD

    @property
    def clean_accuracy(self) -> Rate:
        """The share of all images whose clean form is classified correctly."""
        return rate(int((self.fooled_by != WRONG).sum()), len(self.labels))

    @property
    def robust_accuracy(self) -> Rate:
        """The share of all images that are classified correctly and withstood every attack."""
        return rate(int(self.robust.sum()), len(self.labels))

    def after(self, name: str) -> Rate:
        """Returns the share of all images that withstood an attack and all attacks before it.

        Args:
          name: The name of the attack.
        """
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
    """Runs several attacks in turn, each on the images that no earlier attack has fooled.

    Only images that are classified correctly are attacked. The attack on an image ends at its first
    success, and the remaining restarts and target classes are dropped. For a `Stochastic` classifier
    all are run, and the best point is classified again. The processes of `jax.distributed` share the
    images, and each of them must make the same call.

    Args:
      suite: {name: attack}, at least one; each attack is untargeted and has an epsilon.
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K].
      images: [N, H, W, C], uint8 or floating point in [0, 1], with N at least 1.
      labels: int [N], the true classes.
      key: A PRNG key; attack j on image i uses it folded with j and then with i.
      execution: How many images at a time, and in which type to search. Its `path` is a folder with a
        file for each attack, from which a killed suite is resumed. `progress` is called with (name of
        the attack, questions done, questions in all).

    Returns:
      SuiteReport.

    Raises:
      TypeError: The labels are not integers, or `logits_fn` cannot be called.
      ValueError: There is no attack, an attack is targeted or has no epsilon, or `attack_dataset` would
        refuse the arguments.
    """
    if not suite:
        raise ValueError("`suite` must hold at least one attack, got none.")
    for name, attack in suite.items():
        if attack.targeted or epsilon_of(attack) is None:
            raise ValueError(
                f"`suite` must hold untargeted attacks with an epsilon only, and {name!r} is not one."
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
    # The logits that users see come from one evaluation, whichever attack fooled the image.
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
    """Summarises a suite for result.json (docs/result_format.md, SUITE).

    Args:
      report: The report of one suite on one model.
      model: The model's name.

    Returns:
      A dict that JSON can hold.
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
