"""Decisions that follow from the epochs so far: the best one, the plateau, when to stop.

They are computed from the log's rows each time instead of being kept as counters, so a run that was
killed decides what it would have decided: there is no counter that could be lost or out of step.
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
    """The monitored figure of every epoch, turned so that lower is better; [] if there is none.

    Infinite for an epoch of a compression whose budget has not reached its last value: what is larger
    than the network that was asked for cannot be the best one.
    """
    sign = -1.0 if monitor == "validation_accuracy" else 1.0
    return [
        sign * row[monitor] if row.get("kept_is_final", True) else math.inf
        for row in history
        if monitor in row
    ]


def best_epoch(monitor: str, history: Sequence[Row]) -> int | None:
    """The first epoch (counted from 1) that no other one beats; None if none can be said to.

    Example:
      >>> best_epoch("validation_loss", [{"validation_loss": loss} for loss in (2.0, 1.0, 1.0)])
      2
    """
    values = scores(monitor, history)
    if not values or min(values) == math.inf:
        return None
    return 1 + values.index(min(values))


def catastrophic_overfitting(history: Sequence[Row]) -> int | None:
    """The epoch in which training against weak attacks stopped to help against the stronger one.

    Networks that are trained against a single step may learn to hide from just that: within an epoch or
    two the accuracy under a stronger attack collapses, and that under the training attack rises.

    Args:
      history: Of a run whose validation images are attacked.

    Returns:
      The first epoch, counted from 1, with less than half of the best validation accuracy before it and
      no lower training accuracy than in that best epoch; None if there is none.

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
    """What the plateau schedule has multiplied the learning rate by after these epochs.

    As PyTorch's ReduceLROnPlateau with its defaults: an epoch is better if it is below the best one
    by one part in 10,000; after more than `patience` epochs in a row that are not, the learning
    rate is lowered and the count begins anew. (PyTorch's floor of 1e-8 under a change is left out.)

    Args:
      values: One per epoch, lower is better.
      factor: In (0, 1).
      patience: At least 0.

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
    """What the next epoch's learning rate is multiplied by: 1 unless the schedule is a `Plateau`."""
    schedule = recipe.schedule
    if not isinstance(schedule, Plateau):
        return 1.0
    values = scores(recipe.validation.monitor, history)
    return plateau_scale(values, schedule.factor, schedule.patience)


def is_finished(recipe: Recipe, history: Sequence[Row]) -> bool:
    """Whether all epochs are done or early stopping ends the run.

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
