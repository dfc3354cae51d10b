"""Averages of the weights over the training steps, which replace the weights in the result."""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from jaxrobust import checks
from jaxrobust.training.step.network import is_floating
from jaxrobust.types import Array, PyTree


class Averaging(Protocol):
    """The interface of an average of the variables over the steps.

    It is a frozen dataclass of static fields. The variables are {"params": ..., "batch_stats": ...}.
    """

    def start(self, variables: PyTree) -> PyTree:
        """Returns the average before the first step."""

    def update(self, average: PyTree, variables: PyTree, step: Array) -> PyTree:
        """Returns the average after a step; `step` counts from 1."""


@dataclasses.dataclass(frozen=True)
class EMA:
    """An exponential moving average of the weights and the running statistics.

    The decay is (1 + step) / (10 + step) until that exceeds `decay`, so that the average soon forgets
    the initial weights. The running statistics are averaged too, because those of the last weights
    would not fit the averaged ones.

    Attributes:
      decay: The largest decay, in [0, 1).
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        checks.fraction("decay", self.decay)

    def start(self, variables: PyTree) -> PyTree:
        """Returns the variables themselves."""
        return variables

    def update(self, average: PyTree, variables: PyTree, step: Array) -> PyTree:
        """Returns decay * average + (1 - decay) * variables; integers are taken from the variables."""
        decay = jnp.minimum(self.decay, (1 + step) / (10 + step))

        def averaged(old: Array, new: Array) -> Array:
            return decay * old + (1 - decay) * new if is_floating(new) else new

        return jax.tree.map(averaged, average, variables)
