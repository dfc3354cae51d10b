"""MART: an objective in which misclassified images weigh more."""

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
    """The objective of misclassification-aware adversarial training (Wang et al. 2020).

    It is the boosted cross-entropy of the adversarial image, -log p_y(x') - log(1 - max_{k != y}
    p_k(x')), plus beta times the divergence KL(p(x) || p(x')) between the clean and the adversarial
    prediction, weighted by 1 - p_y(x): by how wrong the clean prediction is. The paper's adversary is
    PGD.

    Attributes:
      beta: The weight of the divergence (the paper's lambda), above 0; 5 in the paper.

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
        """Returns (mean loss, adversarial logits [B, K], the passes that are left)."""
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
