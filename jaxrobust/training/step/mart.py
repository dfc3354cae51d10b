"""MART: wrong answers weigh more."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxrobust import checks
from jaxrobust.training.step.network import Passes
from jaxrobust.training.step.objectives import divergence
from jaxrobust.types import Array


@dataclasses.dataclass(frozen=True)
class MART:
    """Misclassification-aware adversarial training, of Wang et al.

    A boosted cross-entropy of the adversarial image, -log p_y(x') - log(1 - max_{k != y} p_k(x')), and
    the divergence of its answer from the clean one, KL(p(x) || p(x')), which counts the more the
    further the clean image is from being answered right, 1 - p_y(x). Its adversary is PGD.

    Attributes:
      beta: Weight of the divergence (the paper's lambda), above 0; the paper's is 5.

    References:
      Wang et al., "Improving Adversarial Robustness Requires Revisiting Misclassified Examples",
      ICLR 2020, table 1, https://openreview.net/forum?id=rklOg6EFwS
    """

    beta: float = 5.0

    compares: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.number("beta", self.beta, above=0.0)

    def __call__(
        self, forward: Passes, images: Array, adversarial: Array, labels: Array
    ) -> tuple[Array, Array, Passes]:
        """The mean over a batch."""
        clean, forward = forward(images)
        logits, forward = forward(adversarial)
        boosted = jax.vmap(_boosted_cross_entropy)(logits, labels)
        right = jnp.take_along_axis(jax.nn.softmax(clean), labels[:, None], axis=1)[:, 0]
        apart = jax.vmap(divergence)(clean, logits) * (1 - right)
        return jnp.mean(boosted + self.beta * apart), logits, forward


def _boosted_cross_entropy(logits: Array, label: Array) -> Array:
    """-log p_y - log(1 - max_{k != y} p_k), of logits [K]."""
    log_p = jax.nn.log_softmax(logits)
    others = jnp.where(jnp.arange(logits.size) == label, -jnp.inf, log_p)
    # 1 - p is the sum of all other probabilities: as such it is exact where p is nearly 1.
    largest = jnp.argmax(others)
    rest = jnp.where(jnp.arange(logits.size) == largest, -jnp.inf, log_p)
    return -log_p[label] - jax.nn.logsumexp(rest)
