"""Schedules of attacks: which attack is used in which epoch."""

import dataclasses
from typing import Any

from jaxrobust import checks
from jaxrobust.attacks import Attack
from jaxrobust.training.step.adversaries import Warmup, check_attack


@dataclasses.dataclass(frozen=True)
class AttackSchedule:
    """Attacks that change at given epochs, for instance to a larger radius or more steps.

    Attributes:
      stages: ((first epoch, attack), ...). Epochs are counted from 1, as in the log; they ascend, and
        the first is 1. Attacks that differ only in real numbers (epsilon, step size) share a compiled
        program; attacks with different numbers of steps do not.

    Raises:
      TypeError: `stages` is not a tuple of such pairs.
      ValueError: The epochs do not ascend from 1.

    Example:
      >>> from jaxrobust.attacks import PGD
      >>> AttackSchedule(((1, PGD(2 / 255, num_steps=3)), (11, PGD(8 / 255, num_steps=10))))
      AttackSchedule(stages=((1, PGD(...)), (11, PGD(...))))
    """

    stages: tuple[tuple[int, Attack], ...]

    def __post_init__(self) -> None:
        pairs = isinstance(self.stages, tuple) and all(
            isinstance(stage, tuple) and len(stage) == 2 for stage in self.stages
        )
        if not pairs:
            raise TypeError(
                f"`stages` must be a tuple of pairs (first epoch, attack), got {self.stages!r}."
            )
        for index, (epoch, attack) in enumerate(self.stages):
            checks.integer(f"stages[{index}][0]", epoch, minimum=1)
            check_attack(f"stages[{index}][1]", attack)
        epochs = [epoch for epoch, _ in self.stages]
        if epochs[:1] != [1] or epochs != sorted(set(epochs)):
            raise ValueError(f"`stages` must begin with epoch 1 and ascend, got epochs {epochs}.")

    def part(self, before: int, num_epochs: int) -> "AttackSchedule":
        """Returns the schedule of one phase of a training that this schedule covers as a whole.

        Args:
          before: The number of epochs before the phase.
          num_epochs: The number of epochs of the phase.

        Example:
          >>> from jaxrobust.attacks import PGD
          >>> whole = AttackSchedule(((1, PGD(0.1)), (3, PGD(0.2)), (6, PGD(0.3))))
          >>> [(epoch, attack.epsilon) for epoch, attack in whole.part(3, 4).stages]
          [(1, 0.2), (3, 0.3)]
        """
        phase = {
            max(1, e - before): attack for e, attack in self.stages if e <= before + num_epochs
        }
        return AttackSchedule(tuple(phase.items()))


def stages_of(adversary: Any) -> tuple[tuple[int, Any], ...]:
    """Returns ((first epoch, adversary), ...): one pair for each stage, or one for all epochs.

    Example:
      >>> from jaxrobust.attacks import PGD
      >>> from jaxrobust.training.step.adversaries import Warmup
      >>> schedule = AttackSchedule(((1, PGD(0.1)), (3, PGD(0.2))))
      >>> [(first, one.adversary.epsilon) for first, one in stages_of(Warmup(schedule, 2))]
      [(1, 0.1), (3, 0.2)]
    """
    if isinstance(adversary, AttackSchedule):
        return adversary.stages
    if not hasattr(adversary, "adversary"):
        return ((1, adversary),)
    return tuple(
        (first, dataclasses.replace(adversary, adversary=one))
        for first, one in stages_of(adversary.adversary)
    )


def strength(adversary: Any, epoch: int) -> tuple[float, int]:
    """Returns (radius, number of steps) in an epoch, counted from 1; 0 for what does not exist."""
    if adversary is None:
        return 0.0, 0
    one = next(one for first, one in reversed(stages_of(adversary)) if first <= epoch)
    if not hasattr(one, "adversary"):
        return getattr(one, "epsilon", 0.0), getattr(one, "num_steps", 0)
    epsilon, num_steps = strength(one.adversary, epoch)
    share = min(1.0, epoch / one.warmup_epochs) if isinstance(one, Warmup) else 1.0
    return epsilon * share, num_steps
