"""Free adversarial training: a batch is stepped on several times, and the perturbation with it."""

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
    """Free adversarial training: every batch is trained on several times, the perturbation with it.

    One pass gives the gradient for the weights and for the perturbation, which goes on from batch to
    batch. Train for `num_epochs` divided by the replays.

    Attributes:
      epsilon: Radius of the linf ball and size of a step, in pixel units, in [0, 1].
      num_replays: Passes over each batch; the paper's m, 8 for CIFAR-10.

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
        """The perturbation of a batch, none at first."""
        return jnp.zeros(shape, jnp.float32)

    def craft(self, batch: Batch, memory: Array) -> Array:
        """The images under the perturbation that there is."""
        return jnp.clip(batch.images + memory, 0.0, 1.0)

    def step(self, batch: Batch, state: Any, descend: Descend) -> tuple[Any, Metrics]:
        """Steps on one batch, between which the perturbation takes one as well."""

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
