"""What a step descends.

With x a clean image, x' what the adversary made of it, f the network and CE the cross-entropy:

    CrossEntropy    (1 - w) CE(f(x'), y) + w CE(f(x), y)

`trades`, `mart` and `distillation` have one more each, and any function like them is one.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from jaxrobust import checks, losses
from jaxrobust.training.step.network import Passes
from jaxrobust.types import Array


class Objective(Protocol):
    """What a step descends: a function, or a frozen dataclass like one.

    Its arrays are arguments of compiled code where it is registered as a pytree (`distillation`);
    everything else is compiled in.

    Attributes:
      compares: Whether it compares clean with adversarial images, so that an adversary has to make
        these from those.
    """

    @property
    def compares(self) -> bool: ...  # noqa: D102

    def __call__(
        self, forward: Passes, images: Array, adversarial: Array, labels: Array
    ) -> tuple[Array, Array, Passes]:
        """The mean over a batch.

        Args:
          forward: Passes in training mode: images -> (logits, the passes after).
          images: float32 [B, H, W, C] in [0, 1], the clean ones.
          adversarial: Likewise, what the adversary made of them; without one, the clean ones.
          labels: int [B].

        Returns:
          (the loss, the logits [B, K] of the adversarial images, the passes that are left).
        """


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """The cross-entropy of the adversarial images, and if wanted of the clean ones beside it.

    Attributes:
      natural_weight: The clean images' share, in [0, 1).
      label_smoothing: Probability that is spread evenly over all classes, in [0, 1).

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
        """Whether the clean images have a share."""
        return self.natural_weight > 0

    def __call__(
        self, forward: Passes, images: Array, adversarial: Array, labels: Array
    ) -> tuple[Array, Array, Passes]:
        """The mean over a batch."""
        logits, forward = forward(adversarial)
        value = jnp.mean(smoothed_cross_entropy(logits, labels, self.label_smoothing))
        if self.natural_weight:
            clean, forward = forward(images)
            natural = jnp.mean(smoothed_cross_entropy(clean, labels, self.label_smoothing))
            value = (1 - self.natural_weight) * value + self.natural_weight * natural
        return value, logits, forward


def divergence(first: Array, second: Array) -> Array:
    """KL(p || q) of the softmaxes of two vectors of logits [K], in nats: a scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> round(float(divergence(jnp.array([0.0, 0.0]), jnp.log(jnp.array([0.25, 0.75])))), 4)
      0.1438
    """
    first, second = jax.nn.log_softmax(first), jax.nn.log_softmax(second)
    return jnp.sum(jnp.exp(first) * (first - second))


def smoothed_cross_entropy(logits: Array, labels: Array, smoothing: float = 0.0) -> Array:
    """Cross-entropy against (1 - smoothing) of the label and smoothing / K of every class.

    Of logits [B, K], labels int [B] and a smoothing in [0, 1).

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
