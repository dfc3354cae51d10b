"""Learning rate schedules that count in epochs.

Any optax schedule, which counts in steps, can be used instead.
"""

import dataclasses
from typing import Any, ClassVar, Protocol

import jax.numpy as jnp
import optax

from jaxrobust import checks
from jaxrobust.types import Array


class Schedule(Protocol):
    """The interface of a learning rate schedule that counts in epochs."""

    def over(self, num_epochs: int, steps_per_epoch: int) -> optax.Schedule:
        """Returns the learning rate as a function of the step, counted from 0."""


@dataclasses.dataclass(frozen=True)
class Constant:
    """A constant learning rate.

    Attributes:
      learning_rate: The learning rate after the warm-up, above 0.
      warmup_epochs: The number of epochs at the start in which the rate grows linearly to
        `learning_rate`; the first step has 1 / (number of warm-up steps) of it. At least 0.
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
    """A learning rate that falls along a cosine, from the end of the warm-up to 0 after the last step.

    Attributes:
      learning_rate: The largest learning rate, at the end of the warm-up. Above 0.
      warmup_epochs: The number of epochs of linear warm-up, at least 0; see `Constant`.

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
    """A learning rate that is multiplied by a factor after each of several epochs.

    Attributes:
      learning_rate: The learning rate after the warm-up, above 0.
      milestones: The epochs after which the rate falls, counted from 1, ascending, at least one.
      factor: The factor by which the rate is multiplied after each milestone, in (0, 1].
      warmup_epochs: The number of epochs of linear warm-up, at least 0; see `Constant`.
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
                "`milestones` must be one or more epochs in ascending order, got "
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
    """A learning rate that falls when the monitored validation figure stops improving.

    The figure is `Validation.monitor` of the recipe.

    Attributes:
      learning_rate: The learning rate after the warm-up, above 0.
      factor: The factor by which the rate is multiplied when it falls, in (0, 1).
      patience: How many epochs in a row may bring no improvement; one more lowers the rate. At
        least 0.
      warmup_epochs: The number of epochs of linear warm-up, at least 0; see `Constant`.
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
        """Returns the rate before any reduction; `TrainState.learning_rate_scale` holds those."""
        del num_epochs
        return _warmed_up(optax.constant_schedule(self.learning_rate), self, steps_per_epoch)


def as_optax(schedule: Any, num_epochs: int, steps_per_epoch: int) -> optax.Schedule:
    """Returns a schedule of this module, or of optax, as a function of the step."""
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
