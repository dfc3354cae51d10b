"""Free adversarial training: each batch is replayed, and each replay also moves the perturbation."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxrobust import checks, compilation
from jaxrobust.training.step.adversaries import Batch, Descend, Metrics
from jaxrobust.types import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FreeReplays:
    """Free adversarial training: several steps on every batch, each of which updates the attack too.

    One backward pass gives the gradients for the weights and for the perturbation. The perturbation is
    carried over from batch to batch. Divide the usual `num_epochs` by `num_replays`.

    Attributes:
      epsilon: The radius of the linf ball and the size of a step, in pixel units, in [0, 1].
      num_replays: The number of steps on each batch, at least 1: the paper's m, 8 for CIFAR-10.

    References:
      Shafahi et al., "Adversarial Training for Free!", NeurIPS 2019, https://arxiv.org/abs/1904.12843
      (algorithm 1)
    """

    epsilon: float = 8 / 255
    num_replays: int = dataclasses.field(default=8, metadata={"static": True})

    def __post_init__(self) -> None:
        checks.number("epsilon", self.epsilon, minimum=0.0, maximum=1.0)
        checks.integer("num_replays", self.num_replays, minimum=1)

    def memory(self, shape: tuple[int, ...]) -> Array:
        """Returns the perturbation of a batch before the first step, which is 0."""
        return jnp.zeros(shape, jnp.float32)

    def craft(self, batch: Batch, memory: Array) -> Array:
        """Returns the images with the present perturbation, without a new step."""
        return jnp.clip(batch.images + memory, 0.0, 1.0)

    def step(self, batch: Batch, state: Any, descend: Descend) -> tuple[Any, Metrics]:
        """Takes the steps on one batch, and moves the perturbation after each."""

        def replay(carry: tuple[Any, Array], number: Array) -> tuple[tuple[Any, Array], Metrics]:
            state, perturbation = carry
            state, metrics, by_image = descend(state, self.craft(batch, perturbation), number)
            moved = perturbation + self.epsilon * jnp.sign(by_image)
            return (state, jnp.clip(moved, -self.epsilon, self.epsilon)), metrics

        (state, perturbation), metrics = jax.lax.scan(
            replay,
            (state, state.adversary),
            jnp.arange(self.num_replays),
            unroll=not compilation.loops_are_fast(),
        )
        state = dataclasses.replace(state, adversary=perturbation)
        return state, jax.tree.map(lambda values: values[-1], metrics)
