"""Objectives: the losses that a training step minimises.

With x a clean image, x' its adversarial image, f the network and CE the cross-entropy:

    CrossEntropy    (1 - w) CE(f(x'), y) + w CE(f(x), y)

`trades`, `mart` and `distillation` each define one more. Any function like them is an objective.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from jaxrobust import checks, losses
from jaxrobust.training.step.network import Passes
from jaxrobust.types import Array


class Objective(Protocol):
    """The interface of a loss that training minimises: a function, or a callable frozen dataclass.

    If it is registered as a pytree (as in `distillation`), its arrays are arguments of compiled code;
    everything else is compiled in.

    Attributes:
      compares: Whether it compares clean with adversarial images. If so, the recipe must have an
        adversary that keeps the clean images.
    """

    @property
    def compares(self) -> bool: ...  # noqa: D102

    def __call__(
        self, forward: Passes, images: Array, adversarial: Array, labels: Array
    ) -> tuple[Array, Array, Passes]:
        """Computes the mean loss over a batch.

        Args:
          forward: Forward passes in training mode: `logits, forward = forward(images)`.
          images: float32 [B, H, W, C] in [0, 1], the clean images.
          adversarial: float32 [B, H, W, C] in [0, 1], the adversarial images; without an adversary,
            the clean ones.
          labels: int [B], the true classes.

        Returns:
          (the loss, a scalar; the logits [B, K] of the adversarial images; the last `forward`).
        """


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """The cross-entropy of the adversarial images, optionally mixed with that of the clean images.

    Attributes:
      natural_weight: The weight w of the clean images, in [0, 1): the loss is (1 - w) times the
        adversarial cross-entropy plus w times the clean one.
      label_smoothing: The probability that is spread evenly over all classes, in [0, 1).

    References:
      Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018,
      equation 2.1, https://arxiv.org/abs/1706.06083 (a natural weight of 0)
    """

    natural_weight: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        checks.fraction("natural_weight", self.natural_weight)
        checks.fraction("label_smoothing", self.label_smoothing)

    @property
    def compares(self) -> bool:
        """Whether the clean images have a weight above 0."""
        return self.natural_weight > 0

    def __call__(
        self, forward: Passes, images: Array, adversarial: Array, labels: Array
    ) -> tuple[Array, Array, Passes]:
        """Returns (mean loss, adversarial logits [B, K], the passes that are left)."""
        logits, forward = forward(adversarial)
        value = jnp.mean(smoothed_cross_entropy(logits, labels, self.label_smoothing))
        if self.natural_weight:
            clean, forward = forward(images)
            natural = jnp.mean(smoothed_cross_entropy(clean, labels, self.label_smoothing))
            value = (1 - self.natural_weight) * value + self.natural_weight * natural
        return value, logits, forward


def divergence(first: Array, second: Array) -> Array:
    """Computes KL(p || q) in nats, where p and q are the softmaxes of two vectors of logits [K].

    Example:
      >>> import jax.numpy as jnp
      >>> round(float(divergence(jnp.array([0.0, 0.0]), jnp.log(jnp.array([0.25, 0.75])))), 4)
      0.1438
    """
    first, second = jax.nn.log_softmax(first), jax.nn.log_softmax(second)
    return jnp.sum(jnp.exp(first) * (first - second))


def smoothed_cross_entropy(logits: Array, labels: Array, smoothing: float = 0.0) -> Array:
    """Computes the cross-entropy with smoothed labels.

    The target is 1 - smoothing at the label, plus smoothing / K at every class.

    Args:
      logits: [B, K].
      labels: int [B].
      smoothing: The probability that is spread evenly over all classes, in [0, 1).

    Returns:
      [B], in nats.

    References:
      Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016,
      https://arxiv.org/abs/1512.00567 (section 7).
    """
    label_loss = jax.vmap(losses.cross_entropy)(logits, labels)
    if smoothing == 0.0:
        return label_loss
    mean_loss = jax.nn.logsumexp(logits, -1) - jnp.mean(logits, -1)
    return (1 - smoothing) * label_loss + smoothing * mean_loss
