"""Decisions that follow from the epochs so far: the best epoch, the plateau, and when to stop.

They are computed from the rows of the log each time. There are no counters that an interruption could
lose, so a resumed run decides as an uninterrupted one does.
"""

import math
from collections.abc import Sequence
from typing import Any

from jaxrobust.training.step.learning_rates import Plateau
from jaxrobust.training.step.recipe import Recipe

# Of PyTorch's ReduceLROnPlateau: an improvement is a tenth of a per mille of the best value.
PLATEAU_THRESHOLD = 1e-4

Row = dict[str, Any]


def scores(monitor: str, history: Sequence[Row]) -> list[float]:
    """Returns the monitored figure of every epoch, signed so that lower is better; [] without one.

    It is infinite in epochs of a compression before the last budget: a network that is larger than the
    one asked for cannot be the best.
    """
    sign = -1.0 if monitor == "validation_accuracy" else 1.0
    return [
        sign * row[monitor] if row.get("kept_is_final", True) else math.inf
        for row in history
        if monitor in row
    ]


def best_epoch(monitor: str, history: Sequence[Row]) -> int | None:
    """Returns the first epoch (counted from 1) with the best figure; None if there is no figure.

    Example:
      >>> best_epoch("validation_loss", [{"validation_loss": loss} for loss in (2.0, 1.0, 1.0)])
      2
    """
    values = scores(monitor, history)
    if not values or min(values) == math.inf:
        return None
    return 1 + values.index(min(values))


def catastrophic_overfitting(history: Sequence[Row]) -> int | None:
    """Finds the epoch of catastrophic overfitting.

    A network that is trained against a single step may become robust to that step only: within an
    epoch or two its accuracy under a stronger attack collapses, while that under the training attack
    rises.

    Args:
      history: The rows of the log of a run with an attack on its validation images.

    Returns:
      The first epoch, counted from 1, whose validation accuracy is less than half of the best one
      before it, and whose training accuracy is not lower than in that best epoch. None if there is
      none.

    References:
      Wong, Rice, Kolter, "Fast is better than free: Revisiting adversarial training", ICLR 2020,
      section 5.4, https://arxiv.org/abs/2001.03994

    Example:
      >>> rows = [(0.3, 0.30), (0.4, 0.35), (0.6, 0.10)]
      >>> names = ("train_accuracy", "validation_accuracy")
      >>> catastrophic_overfitting([dict(zip(names, row)) for row in rows])
      3
    """
    best: Row | None = None
    for epoch, row in enumerate(history, start=1):
        robust = row.get("validation_accuracy")
        if robust is None:
            return None
        if best is not None and robust < best["validation_accuracy"] / 2:
            if row["train_accuracy"] >= best["train_accuracy"]:
                return epoch
        elif best is None or robust > best["validation_accuracy"]:
            best = row
    return None


def plateau_scale(values: Sequence[float], factor: float, patience: int) -> float:
    """Returns the number by which the plateau schedule multiplies the learning rate.

    It works like PyTorch's ReduceLROnPlateau with its defaults: an epoch improves if it is below the
    best one by one part in 10,000. After more than `patience` epochs in a row without improvement, the
    learning rate is lowered and the count starts again. (PyTorch ignores changes below 1e-8; this does
    not.)

    Args:
      values: The figure of each epoch, lower is better.
      factor: The factor of each reduction, in (0, 1).
      patience: How many epochs in a row may bring no improvement, at least 0.

    Returns:
      A power of `factor`.

    Example:
      >>> plateau_scale([1.0, 1.0, 1.0, 1.0], factor=0.5, patience=1)
      0.5
    """
    best, bad_epochs, scale = math.inf, 0, 1.0
    for value in values:
        # The allowance is relative to the size of the best value: a negative one (an accuracy
        # turned round) must be beaten too, not merely approached.
        if best == math.inf or value < best - PLATEAU_THRESHOLD * abs(best):
            best, bad_epochs = value, 0
        else:
            bad_epochs += 1
        if bad_epochs > patience:
            scale, bad_epochs = scale * factor, 0
    return scale


def learning_rate_scale(recipe: Recipe, history: Sequence[Row]) -> float:
    """Returns the factor of the next epoch's learning rate: 1 unless the schedule is a `Plateau`."""
    schedule = recipe.schedule
    if not isinstance(schedule, Plateau):
        return 1.0
    values = scores(recipe.validation.monitor, history)
    return plateau_scale(values, schedule.factor, schedule.patience)


def is_finished(recipe: Recipe, history: Sequence[Row]) -> bool:
    """Whether all epochs are done, or early stopping ends the run.

    Example:
      >>> from jaxrobust.training.step.recipe import Validation
      >>> recipe = Recipe(validation=Validation(early_stopping_patience=2))
      >>> [is_finished(recipe, [{"validation_loss": x} for x in xs]) for xs in ([1, 2], [1, 2, 2])]
      [False, True]
    """
    if len(history) >= recipe.num_epochs:
        return True
    patience = recipe.validation.early_stopping_patience
    best = best_epoch(recipe.validation.monitor, history)
    if patience is None or best is None:
        return False
    return len(history) - best >= patience
