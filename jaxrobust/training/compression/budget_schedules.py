"""Schedules of the attack and the budget of a compressing training, which change one at a time.

References:
  Marshall, "Robust Convolutional Neural Networks with Resource Constraints", master thesis, Université
  Grenoble Alpes, section 3.1: the radius rises every T / 3 epochs, the number of attack steps every
  epoch, and is reset when the radius rises; the number of weights falls.
  Wong, Rice, Kolter, "Fast is better than free: Revisiting adversarial training", ICLR 2020,
  https://arxiv.org/abs/2001.03994 (section 4.3: a single step of 1.25 epsilon, not of 2)
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from jaxrobust import checks
from jaxrobust.attacks import Attack
from jaxrobust.pruning import cubic_schedule
from jaxrobust.training.step.attack_schedule import AttackSchedule

# Of a single step, in epsilons: longer ones, at the corners of the ball, are what networks overfit to.
LONGEST_STEP = 1.25
RELATIVE_STEP = 2.5  # of several, in epsilons over their number


def check_sequences(epsilons: Sequence[Any], steps: Sequence[int], kept: Sequence[float]) -> None:
    """Raises if more than one of radius, attack steps and budget changes in the same epoch.

    Each of these changes moves the figures by itself; the effects of two at once cannot be told apart.

    Args:
      epsilons: The radius of the attack in each epoch.
      steps: The number of attack steps in each epoch.
      kept: The fraction of the weights that stay in each epoch, in (0, 1].

    Raises:
      ValueError: The sequences have different lengths, or two of them change in the same epoch.

    Example:
      >>> check_sequences([0.1, 0.2, 0.2], [3, 3, 5], [1.0, 1.0, 1.0])
      >>> check_sequences([0.1, 0.2], [3, 3], [1.0, 0.5])
      Traceback (most recent call last):
      ...
      ValueError: Only one of epsilon, steps, kept may change per epoch; epoch 2 changes epsilon, kept.
    """
    sequences = {"epsilon": epsilons, "steps": steps, "kept": kept}
    if len({len(values) for values in sequences.values()}) > 1:
        lengths = ", ".join(f"{name} {len(values)}" for name, values in sequences.items())
        raise ValueError(
            f"The sequences must have equal lengths, one value per epoch, got {lengths}."
        )
    for epoch in range(1, len(kept)):
        changed = [name for name, values in sequences.items() if values[epoch] != values[epoch - 1]]
        if len(changed) > 1:
            raise ValueError(
                f"Only one of {', '.join(sequences)} may change per epoch; epoch {epoch + 1} changes "
                f"{', '.join(changed)}."
            )


def source_sequences(
    num_epochs: int,
    attack: Attack,
    kept: float,
    *,
    num_radii: int = 3,
    first_steps: int = 1,
    settle: float = 0.2,
    separate: bool = True,
) -> tuple[AttackSchedule, tuple[float, ...]]:
    """Makes the schedules of Marshall's algorithm: of the attack, and of the weights that stay.

    The radius rises in `num_radii` equal steps, one every T / num_radii epochs. Within each of these
    parts the number of attack steps rises from `first_steps` to that of `attack`. The budget falls
    cubically from 1, and stays at `kept` for the last epochs. By default only one of the three changes
    in an epoch: in each part the first epoch has the new radius, the second resets the number of steps,
    and then budget and steps take turns. With `separate=False`, as in the thesis, the steps are reset
    together with the radius and rise in every epoch, while the budget falls too.

    The step size is 2.5 epsilon divided by the number of steps, but at most 1.25 epsilon, the step of
    FGSM-RS.

    Args:
      num_epochs: The number of epochs T, at least 3 * num_radii, and enough for the budget to fall.
      attack: The attack of the last epoch, with `epsilon`, `step_size` and `num_steps`.
      kept: The fraction of the weights that stay at the end, in (0, 1].
      num_radii: The number of radii, at least 1.
      first_steps: The smallest number of attack steps, from 1 to that of `attack`.
      settle: The share of the epochs, at the end, in which the budget no longer changes, in [0, 1).
      separate: Whether only one of radius, steps and budget changes in an epoch.

    Returns:
      (the schedule of attacks; a tuple with the budget of each epoch, for the field `kept` of a
      compression). Each number of attack steps compiles another program.

    Raises:
      TypeError: An argument has the wrong type.
      ValueError: An argument is out of range, or there are too few epochs.

    Example:
      >>> from jaxrobust.attacks import PGD
      >>> schedule, kept = source_sequences(6, PGD(0.03, 0.01, num_steps=4), 0.1, num_radii=1)
      >>> [(first, one.num_steps) for first, one in schedule.stages]
      [(1, 1), (2, 2), (4, 3), (6, 4)]
      >>> [round(value, 3) for value in kept]
      [1.0, 1.0, 0.213, 0.213, 0.1, 0.1]
    """
    checks.integer("num_radii", num_radii, minimum=1)
    checks.integer("num_epochs", num_epochs, minimum=3 * num_radii)
    checks.integer("first_steps", first_steps, minimum=1)
    checks.number("kept", kept, above=0.0, maximum=1.0)
    checks.fraction("settle", settle)
    for name in ("epsilon", "step_size", "num_steps"):
        if not hasattr(attack, name):
            raise TypeError(f"`attack` must have `{name}`, got {type(attack).__name__}.")
    checks.integer("attack.num_steps", attack.num_steps, minimum=first_steps)
    falls_until = math.ceil((1 - settle) * num_epochs)
    parts = [epoch * num_radii // num_epochs for epoch in range(num_epochs)]
    starts = [parts.index(part) for part in range(num_radii)]
    falls: list[int] = []
    steps: list[int] = []
    for part, start in enumerate(starts):
        end = starts[part + 1] if part + 1 < num_radii else num_epochs
        rises = []
        for epoch in range(start + 1, end):
            is_reset = separate and part > 0 and epoch == start + 1
            # The last epoch is that of the whole attack.
            may_fall = epoch < min(falls_until, num_epochs - 1) and not is_reset
            if may_fall and (not separate or (epoch - start) % 2 == 0):
                falls.append(epoch)
            if not is_reset and (not separate or epoch not in falls):
                rises.append(epoch)
        for epoch in range(start, end):
            done = sum(rise <= epoch for rise in rises)
            share = done / len(rises) if rises else 0.0
            raised = round(first_steps + share * (attack.num_steps - first_steps))
            # The new radius meets the number of steps that the old one ended with.
            held = separate and part > 0 and epoch == start
            steps.append(steps[-1] if held else raised)
    if not falls and kept < 1:
        raise ValueError(
            f"`num_epochs` = {num_epochs} leaves no epoch in which only the budget falls: give more."
        )
    sparsities = cubic_schedule(1 - kept, len(falls)) if falls else ()
    budgets = []
    for epoch in range(num_epochs):
        done = sum(fall <= epoch for fall in falls)
        budgets.append(kept if done == len(falls) else 1 - sparsities[done - 1] if done else 1.0)
    stages: list[tuple[int, Any]] = []
    for epoch, (part, count) in enumerate(zip(parts, steps, strict=True), start=1):
        epsilon = attack.epsilon * (part + 1) / num_radii  # type: ignore[attr-defined]
        step_size = epsilon * min(RELATIVE_STEP / count, LONGEST_STEP)
        changed = {"epsilon": epsilon, "step_size": step_size}
        one = dataclasses.replace(attack, num_steps=count, **changed)  # type: ignore[type-var]
        if not stages or (part, count) != (parts[epoch - 2], steps[epoch - 2]):
            stages.append((epoch, one))
    return AttackSchedule(tuple(stages)), tuple(budgets)
