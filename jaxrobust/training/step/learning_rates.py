"""Schedules of the learning rate, counted in epochs.

Any schedule of optax, which is counted in steps, will do in their place.
"""

import dataclasses
from typing import Any, ClassVar, Protocol

import jax.numpy as jnp
import optax

from jaxrobust import checks
from jaxrobust.types import Array


class Schedule(Protocol):
    """A learning rate over a training whose length in steps is not known yet."""

    def over(self, num_epochs: int, steps_per_epoch: int) -> optax.Schedule:
        """The rate as a function of the step; 0 is the first."""


@dataclasses.dataclass(frozen=True)
class Constant:
    """The same rate in every step.

    Attributes:
      learning_rate: Above 0.
      warmup_epochs: The rate grows linearly over so many epochs first, from 1 / their steps of it.
    """

    learning_rate: float = 1e-3
    warmup_epochs: int = 0

    def __post_init__(self) -> None:
        _check(self)

    def over(self, num_epochs: int, steps_per_epoch: int) -> optax.Schedule:
        """The rate as a function of the step."""
        del num_epochs
        return _warmed_up(optax.constant_schedule(self.learning_rate), self, steps_per_epoch)


@dataclasses.dataclass(frozen=True)
class Cosine:
    """A cosine that falls in every step, from the end of the warm-up, to 0 after the last step.

    Attributes:
      learning_rate: Of the first step, or of the end of the warm-up. Above 0.
      warmup_epochs: As `Constant`.

    References:
      Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017,
      https://arxiv.org/abs/1608.03983 (equation 5, without restarts)

    Example:
      >>> rate = Cosine(0.001).over(num_epochs=4, steps_per_epoch=10)
      >>> [round(float(rate(step)), 6) for step in (0, 20, 40)]
      [0.001, 0.0005, 0.0]
    """

    learning_rate: float = 1e-3
    warmup_epochs: int = 0

    def __post_init__(self) -> None:
        _check(self)

    def over(self, num_epochs: int, steps_per_epoch: int) -> optax.Schedule:
        """The rate as a function of the step."""
        warmup = self.warmup_epochs * steps_per_epoch
        cosine = optax.cosine_decay_schedule(
            self.learning_rate, num_epochs * steps_per_epoch - warmup
        )

        def rate(step: Array) -> Array:
            return cosine(jnp.maximum(step - warmup, 0))

        return _warmed_up(rate, self, steps_per_epoch)


@dataclasses.dataclass(frozen=True)
class Steps:
    """A rate that falls after certain epochs.

    Attributes:
      learning_rate: Of the first step, or of the end of the warm-up. Above 0.
      milestones: The epochs after which it falls, ascending, at least one.
      factor: What it is multiplied by after each, in (0, 1].
      warmup_epochs: As `Constant`.
    """

    learning_rate: float
    milestones: tuple[int, ...]
    factor: float = 0.1
    warmup_epochs: int = 0

    def __post_init__(self) -> None:
        _check(self)
        if not isinstance(self.milestones, tuple):
            raise TypeError(f"`milestones` must be a tuple of epochs, got {self.milestones!r}.")
        for milestone in self.milestones:
            checks.integer("milestones", milestone, minimum=1)
        if not self.milestones or list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(
                "`milestones` must be at least one epoch, and ascend, got "
                f"{tuple(self.milestones)}."
            )
        checks.number("factor", self.factor, above=0.0, maximum=1.0)

    def over(self, num_epochs: int, steps_per_epoch: int) -> optax.Schedule:
        """The rate as a function of the step."""
        del num_epochs
        falls = {milestone * steps_per_epoch: self.factor for milestone in self.milestones}
        rate = optax.piecewise_constant_schedule(self.learning_rate, falls)
        return _warmed_up(rate, self, steps_per_epoch)


@dataclasses.dataclass(frozen=True)
class Plateau:
    """A rate that falls when the monitored figure of the validation set stops improving.

    `run.epoch_decisions.plateau_scale` says by how much it has fallen.

    Attributes:
      learning_rate: Of the first step, or of the end of the warm-up. Above 0.
      factor: What it is multiplied by, in (0, 1).
      patience: Epochs without improvement that are borne; the next one lowers the rate.
      warmup_epochs: As `Constant`.
    """

    learning_rate: float = 1e-3
    factor: float = 0.5
    patience: int = 3
    warmup_epochs: int = 0

    needs_validation: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(self)
        checks.fraction("factor", self.factor)
        checks.number("factor", self.factor, above=0.0)
        checks.integer("patience", self.patience, minimum=0)

    def over(self, num_epochs: int, steps_per_epoch: int) -> optax.Schedule:
        """The rate before it has fallen: what follows from results is `learning_rate_scale`."""
        del num_epochs
        return _warmed_up(optax.constant_schedule(self.learning_rate), self, steps_per_epoch)


def as_optax(schedule: Any, num_epochs: int, steps_per_epoch: int) -> optax.Schedule:
    """A schedule of ours, or of optax, as a function of the step."""
    if hasattr(schedule, "over"):
        return schedule.over(num_epochs, steps_per_epoch)
    return schedule


def _check(schedule: Any) -> None:
    checks.number("learning_rate", schedule.learning_rate, above=0.0)
    checks.integer("warmup_epochs", schedule.warmup_epochs, minimum=0)


def _warmed_up(rate: optax.Schedule, schedule: Any, steps_per_epoch: int) -> optax.Schedule:
    warmup = schedule.warmup_epochs * steps_per_epoch
    if warmup == 0:
        return rate
    # The first step is 1 / warmup of the full rate rather than a wasted step at 0.
    return lambda step: rate(step) * jnp.minimum(1.0, (step + 1) / warmup)
