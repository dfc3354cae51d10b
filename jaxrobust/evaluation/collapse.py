"""Detects trainings whose loss explodes because the network has been compressed too far."""

import math
from collections.abc import Sequence
from typing import TypedDict

from jaxrobust import checks


class LossAlarm(TypedDict):
    """The result of `loss_alarm`. Epochs count from 1, and None means that there is no such epoch."""

    collapsed: bool
    collapse_epoch: int | None
    explosion_epoch: int | None
    lowest_epoch: int | None
    rise: float | None


def loss_alarm(
    losses: Sequence[float | None],
    num_classes: int,
    *,
    resets: Sequence[int] = (),
    tolerance: float = 0.25,
) -> LossAlarm:
    """Says whether a training's loss exploded, and whether it ended at chance level.

    A loss that rises because the attack becomes stronger means nothing. A loss that rises under the
    same attack means that the remaining weights no longer hold what was learned. Chance level is ln K,
    the loss of a network that gives all K classes the same probability.

    Args:
      losses: The (adversarial) training loss of each epoch, in nats. None stands for a loss that was
        not finite.
      num_classes: The number of classes K, at least 2.
      resets: The epochs, counted from 1, in which the attack changes. From each of them on the smallest
        loss is computed anew.
      tolerance: A rise by more than this share of the smallest loss since the last reset is an
        explosion. At least 0.

    Returns:
      {"collapsed": whether the last loss is at least ln K or not finite, "collapse_epoch": the epoch
      from which on all losses are this high, or None, "explosion_epoch": the first epoch whose loss
      exploded or was not finite, or None, "lowest_epoch": the epoch of the smallest loss since the
      last reset, "rise": the last loss divided by that smallest loss, minus 1, or None if that is not
      a finite number}.

    Raises:
      TypeError: The number of classes or an epoch is not an integer.
      ValueError: There are no losses, there are fewer than 2 classes, a reset is beyond the last epoch,
        or the tolerance is below 0.

    Example:
      >>> alarm = loss_alarm([2.0, 1.5, 1.6, 2.1, 2.4], 10)
      >>> alarm["collapsed"], alarm["collapse_epoch"], alarm["explosion_epoch"]
      (True, 5, 4)
      >>> loss_alarm([2.0, 1.5, 2.0, 1.9], 10, resets=[3])["explosion_epoch"] is None
      True

    References:
      Source 004, section 4.1.2: "explosions in the adversarial loss, indicating no good solution can be
      found past a certain compression ratio". It defines no criteria; both criteria here are our own.
    """
    checks.integer("num_classes", num_classes, minimum=2)
    checks.number("tolerance", tolerance, minimum=0.0)
    if not len(losses):
        raise ValueError("`losses` must hold the loss of at least one epoch, got none.")
    for epoch in resets:
        checks.integer("resets", epoch, minimum=1)
        if epoch > len(losses):
            raise ValueError(
                f"`resets` must be epochs in 1 .. {len(losses)}, one for each loss, got {epoch}."
            )
    values = [math.inf if loss is None or not math.isfinite(loss) else loss for loss in losses]
    chance = math.log(num_classes)
    # An explosion is above the smallest loss under the attack of the time.
    lowest, lowest_epoch, explosion = math.inf, None, None
    for epoch, value in enumerate(values, start=1):
        if epoch in set(resets):
            lowest, lowest_epoch = math.inf, None
        exploded = value == math.inf or value > lowest * (1 + tolerance)
        if exploded and explosion is None:
            explosion = epoch
        if value < lowest:
            lowest, lowest_epoch = value, epoch
    # A collapse lasts to the end: what recovers was none.
    collapsed = values[-1] >= chance
    below = [epoch for epoch, value in enumerate(values, start=1) if value < chance]
    known = math.isfinite(values[-1]) and 0 < lowest < math.inf
    return {
        "collapsed": collapsed,
        "collapse_epoch": (below[-1] if below else 0) + 1 if collapsed else None,
        "explosion_epoch": explosion,
        "lowest_epoch": lowest_epoch,
        "rise": values[-1] / lowest - 1 if known else None,
    }
