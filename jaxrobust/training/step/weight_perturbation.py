"""Adversarial weight perturbation: the adversary perturbs the weights as well."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxrobust import checks, compilation
from jaxrobust.training.step.adversaries import Batch, Descend, Metrics, as_adversary
from jaxrobust.types import Array, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AWP:
    """Adversarial weight perturbation, in addition to the adversary that makes the images.

    The gradient is computed at perturbed weights: each kernel is moved up the objective by `gamma`
    times its l2 norm. The step is then taken from the unperturbed weights. It costs one more forward
    and backward pass (on a CPU also during the warm-up).

    Attributes:
      adversary: What makes the images: an attack, an AttackSchedule, FreeReplays, a Warmup of these,
        or None for clean images.
      gamma: The length of the perturbation of each kernel, relative to the l2 norm of the kernel.
        Above 0; 0.005 to 0.01 in the paper.
      warmup_epochs: The number of epochs at the start without perturbed weights, at least 0.

    References:
      Wu, Xia, Wang, "Adversarial Weight Perturbation Helps Robust Generalization", NeurIPS 2020,
      equations 8 to 10, https://arxiv.org/abs/2004.05884
    """

    adversary: Any = None
    gamma: float = dataclasses.field(default=0.005, metadata={"static": True})
    warmup_epochs: int = dataclasses.field(default=0, metadata={"static": True})

    def __post_init__(self) -> None:
        checks.number("gamma", self.gamma, above=0.0)
        checks.integer("warmup_epochs", self.warmup_epochs, minimum=0)
        if isinstance(self.adversary, AWP | int | float):
            raise TypeError(
                "`adversary` must be an adversary that makes the images, or None, got "
                f"{self.adversary!r}."
            )

    def memory(self, shape: tuple[int, ...]) -> PyTree | None:
        """Returns the memory of the wrapped adversary."""
        return as_adversary(self.adversary).memory(shape)

    def craft(self, batch: Batch, memory: PyTree | None) -> Array:
        """Returns the images of the wrapped adversary."""
        return as_adversary(self.adversary).craft(batch, memory)

    def step(self, batch: Batch, state: Any, descend: Descend) -> tuple[Any, Metrics]:
        """Takes a step of the wrapped adversary, with gradients at perturbed weights."""
        before = batch.step < self.warmup_epochs * batch.steps_per_epoch
        gamma = jnp.asarray(jnp.where(before, 0.0, self.gamma), jnp.float32)

        def shift(params: PyTree, gradient: Any, masked: Any) -> PyTree:
            def perturbed(params: PyTree, gamma: Array) -> PyTree:
                added = weight_perturbation(params, masked(gradient(params)), gamma)
                return jax.tree.map(jnp.add, params, added)

            if self.warmup_epochs == 0 or not compilation.loops_are_fast():
                # A gradient inside a branch is many times slower on the CPU: rather a pass for nothing.
                return perturbed(params, gamma)
            # Before its warm-up is over it shall not cost its pass.
            return jax.lax.cond(gamma > 0, perturbed, lambda same, _: same, params, gamma)

        shifted = functools.partial(descend, shift=shift)
        return as_adversary(self.adversary).step(batch, state, shifted)


def weight_perturbation(params: PyTree, gradients: PyTree, gamma: Array | float) -> PyTree:
    """Computes the adversarial perturbation of the weights.

    Args:
      params: The parameters of the network.
      gradients: The gradient of the loss with respect to the parameters.
      gamma: The length of the perturbation of a kernel, relative to its l2 norm; at least 0.

    Returns:
      What to add to the parameters: 0 for biases and the scales of normalisation layers.
    """

    def step(weight: Array, gradient: Array) -> Array:
        if weight.ndim < 2:
            return jnp.zeros_like(weight)
        length = jnp.linalg.norm(gradient.ravel())
        return gamma * jnp.linalg.norm(weight.ravel()) * gradient / (length + 1e-12)

    return jax.tree.map(step, params, gradients)
