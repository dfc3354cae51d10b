"""Losses of one example, from its logits; vmap for a batch.

Never averaged here: rows of a batch must not depend on each other (a NaN row spoils no other row).
"""

import jax

from jaxrobust.types import Array


def cross_entropy(logits: Array, label: Array) -> Array:
    """Cross-entropy of the softmax, -log p(label).

    Args:
      logits: [K].
      label: An integer scalar in 0 .. K - 1.

    Returns:
      A scalar, in nats.

    Example:
      >>> import jax.numpy as jnp
      >>> round(float(cross_entropy(jnp.array([0.0, 0.0]), 1)), 4)
      0.6931
    """
    return jax.nn.logsumexp(logits) - logits[label]
