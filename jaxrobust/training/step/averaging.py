"""Averages of the weights over the steps, which are validated and returned in their place."""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from jaxrobust import checks
from jaxrobust.training.step.network import is_floating
from jaxrobust.types import Array, PyTree


class Averaging(Protocol):
    """An average of {"params", "batch_stats"} over the steps: a frozen dataclass of static fields."""

    def start(self, variables: PyTree) -> PyTree:
        """The average before the first step."""

    def update(self, average: PyTree, variables: PyTree, step: Array) -> PyTree:
        """The average after a step; `step` counts from 1."""


@dataclasses.dataclass(frozen=True)
class EMA:
    """An exponential moving average.

    Its decay starts low and grows as (1 + step) / (10 + step), so that the average soon forgets the
    initial weights. Statistics are averaged too: those of the last weights would not fit.

    Attributes:
      decay: What it grows up to, in [0, 1).
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        checks.fraction("decay", self.decay)

    def start(self, variables: PyTree) -> PyTree:
        """The variables."""
        return variables

    def update(self, average: PyTree, variables: PyTree, step: Array) -> PyTree:
        """The old average times the decay, and for the rest the new variables; counts are the new."""
        decay = jnp.minimum(self.decay, (1 + step) / (10 + step))

        def averaged(old: Array, new: Array) -> Array:
            return decay * old + (1 - decay) * new if is_floating(new) else new

        return jax.tree.map(averaged, average, variables)
