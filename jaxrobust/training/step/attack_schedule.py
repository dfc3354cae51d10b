"""Which attack an epoch has."""

import dataclasses
from typing import Any

from jaxrobust import checks
from jaxrobust.attacks import Attack
from jaxrobust.training.step.adversaries import Warmup, check_attack


@dataclasses.dataclass(frozen=True)
class AttackSchedule:
    """Another attack from an epoch on: a larger radius, more steps.

    Attributes:
      stages: ((first epoch, attack), ...), the epochs counted from 1 as in the log, ascending, the
        first of them 1. Attacks that differ in numbers alone (epsilon, step size, not in how many
        steps) share a compiled program.

    Raises:
      TypeError: Not a tuple of such pairs.
      ValueError: Epochs that do not ascend from 1.

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
        """The schedule of one phase of a training whose epochs this one counts through.

        Args:
          before: Epochs before the phase.
          num_epochs: Of the phase.

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
    """((first epoch, adversary), ...): those of the schedule inside, or one for all epochs.

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
    """(the radius, the number of steps) in an epoch counted from 1, 0 where there is no such thing."""
    if adversary is None:
        return 0.0, 0
    one = next(one for first, one in reversed(stages_of(adversary)) if first <= epoch)
    if not hasattr(one, "adversary"):
        return getattr(one, "epsilon", 0.0), getattr(one, "num_steps", 0)
    epsilon, num_steps = strength(one.adversary, epoch)
    share = min(1.0, epoch / one.warmup_epochs) if isinstance(one, Warmup) else 1.0
    return epsilon * share, num_steps
