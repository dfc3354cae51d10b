"""An alarm for trainings in which compression has gone too far: the loss explodes."""

import math
from collections.abc import Sequence
from typing import TypedDict

from jaxrobust import checks


class LossAlarm(TypedDict):
    """What `loss_alarm` found; epochs are counted from 1 and None where there is none."""

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
    """Whether the loss of a training exploded, and whether it ended no better than a guess.

    A loss that rises as the attack becomes stronger says nothing; one that rises while the attack stays
    as it is says that the weights that are left no longer hold what was learned. ln K is the loss of a
    network that takes all K classes for equally likely.

    Args:
      losses: One per epoch, in nats: the (adversarial) training loss. None stands for one that was not
        finite.
      num_classes: K, at least 2.
      resets: Epochs, counted from 1, from which on the attack is another one: the smallest loss is
        sought anew from there.
      tolerance: An explosion is a rise by more than this share of the smallest loss since the last
        reset. At least 0.

    Returns:
      {"collapsed": the last loss is ln K or more, or not finite, "collapse_epoch": the first epoch
      from which on all are, "explosion_epoch": the first whose loss is that much above the smallest
      since the last reset, or not finite, "lowest_epoch": of the smallest loss since the last reset of
      all, "rise": the last loss over that smallest, less 1; None where not finite or where the smallest
      is 0}.

    Raises:
      TypeError: A number of classes or an epoch that is no integer.
      ValueError: No losses, fewer than 2 classes, an epoch beyond the losses, a tolerance below 0.

    Example:
      >>> alarm = loss_alarm([2.0, 1.5, 1.6, 2.1, 2.4], 10)
      >>> alarm["collapsed"], alarm["collapse_epoch"], alarm["explosion_epoch"]
      (True, 5, 4)
      >>> loss_alarm([2.0, 1.5, 2.0, 1.9], 10, resets=[3])["explosion_epoch"] is None
      True

    References:
      Source 004, section 4.1.2: "explosions in the adversarial loss, indicating no good solution can be
      found past a certain compression ratio". It gives no criterion; these two are ours.
    """
    checks.integer("num_classes", num_classes, minimum=2)
    checks.number("tolerance", tolerance, minimum=0.0)
    if not len(losses):
        raise ValueError("`losses` must be at least one, got none.")
    for epoch in resets:
        checks.integer("resets", epoch, minimum=1)
        if epoch > len(losses):
            raise ValueError(f"`resets` must be at most the {len(losses)} epochs, got {epoch}.")
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
