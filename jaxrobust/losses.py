"""Losses of one example, from its logits; vmap for a batch.

Never averaged here: rows of a batch must not depend on each other (a NaN row spoils no other row).
"""

import jax
import jax.numpy as jnp

from jaxrobust.types import Array


def cross_entropy(logits: Array, label: Array) -> Array:
    """Cross-entropy of the softmax, -log p(label).

    Args:
      logits: [K].
      label: An integer scalar in 0 .. K - 1.

    Returns:
      A scalar, in nats.

    Example:
      >>> round(float(cross_entropy(jnp.array([0.0, 0.0]), 1)), 4)
      0.6931
    """
    return jax.nn.logsumexp(logits) - logits[label]


def margin(logits: Array, label: Array) -> Array:
    """The label's logit less the largest other one: positive where the prediction is right.

    The label is masked with -inf; masking by multiplication is wrong for negative logits.

    Args:
      logits: [K], K of at least 2.
      label: An integer scalar in 0 .. K - 1.

    Returns:
      A scalar.
    """
    others = jnp.where(jnp.arange(logits.shape[-1]) == label, -jnp.inf, logits)
    return logits[label] - jnp.max(others)
