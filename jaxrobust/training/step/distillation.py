"""Distillation: the network learns the predictions of a teacher instead of the labels."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxrobust import checks, losses
from jaxrobust.training.step.network import Passes
from jaxrobust.training.step.objectives import divergence
from jaxrobust.types import Array, LogitsFn


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Distillation:
    """The divergence of the network's adversarial predictions from a teacher's clean predictions.

    The loss is weight t^2 KL(p_teacher(x; t) || p(x'; t)) + (1 - weight) CE(f(x), y), with softmaxes
    at temperature t. With an adversary this is adversarially robust distillation; without one it is
    the distillation of Hinton et al.

    Attributes:
      teacher: A function from images, float32 [B, H, W, C] in [0, 1], to logits [B, K], in evaluation
        mode. It must be a pytree whose arrays are its weights, such as a Classifier, an nnx module
        after `eval()` or an equinox module.
      weight: The weight of the divergence from the teacher, in [0, 1]; the paper's alpha is 1. (The
        paper's code divides the divergence by the number of classes K; there the labels weigh K times
        as much.)
      temperature: The temperature t, above 0; 30 in the paper.

    Raises:
      ValueError: The teacher has another number of classes (raised when it is called).
      TypeError: The teacher is a plain function. A resumed training could not tell whether the weights
        in its closure have changed.

    References:
      Goldblum, Fowl, Feizi, Goldstein, "Adversarially Robust Distillation", AAAI 2020, section 4,
      https://arxiv.org/abs/1905.09747
      Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2,
      https://arxiv.org/abs/1503.02531
    """

    teacher: LogitsFn
    weight: float = dataclasses.field(default=1.0, metadata={"static": True})
    temperature: float = dataclasses.field(default=30.0, metadata={"static": True})

    compares: ClassVar[bool] = False

    def __post_init__(self) -> None:
        checks.number("weight", self.weight, minimum=0.0, maximum=1.0)
        checks.number("temperature", self.temperature, above=0.0)
        # Placeholders, which jax puts in the place of arrays, pass.
        if callable(self.teacher) and all(map(callable, jax.tree.leaves(self.teacher))):
            raise TypeError(
                "`teacher` must be a pytree of its weights, such as Classifier(apply, variables, mean, "
                f"std) or jax.tree_util.Partial(function, weights), got {self.teacher!r}."
            )

    def __call__(
        self, forward: Passes, images: Array, adversarial: Array, labels: Array
    ) -> tuple[Array, Array, Passes]:
        """Returns (mean loss, adversarial logits [B, K], the passes that are left)."""
        teacher: Any = self.teacher
        answers = jax.lax.stop_gradient(teacher(images)) / self.temperature
        logits, forward = forward(adversarial)
        if answers.shape != logits.shape:
            raise ValueError(
                f"`teacher` must return logits of shape {logits.shape}, like the network that is "
                f"trained, got {answers.shape}."
            )
        apart = jax.vmap(divergence)(answers, logits / self.temperature)
        value = self.weight * self.temperature**2 * jnp.mean(apart)
        if self.weight < 1:
            clean, forward = forward(images)
            natural = jnp.mean(jax.vmap(losses.cross_entropy)(clean, labels))
            value = value + (1 - self.weight) * natural
        return value, logits, forward
