"""Losses of one example, from its logits; vmap for a batch.

Never averaged here: rows of a batch must not depend on each other (a NaN row spoils no other row).
"""

import jax
import jax.numpy as jnp

from jaxrobust.types import Array

_TINY = 1e-12  # in the denominators of DLR, as in the reference implementation


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


def margin(logits: Array, label: Array, targeted: bool = False) -> Array:
    """The largest other logit minus the label's: positive where another class is predicted.

    Args:
      logits: [K], K of at least 2.
      label: An integer scalar in 0 .. K - 1.
      targeted: Whether the label is the class to reach: then the negative, positive where it is
        predicted.

    Returns:
      A scalar.

    Example:
      >>> float(margin(jnp.array([1.0, -2.0, -3.0]), 0))
      -3.0
    """
    others = jnp.where(jnp.arange(logits.shape[0]) == label, -jnp.inf, logits)
    value = jnp.max(others) - logits[label]
    return -value if targeted else value


def dlr(logits: Array, label: Array) -> Array:
    """Difference of logits ratio: the margin over the distance of the first logit to the third.

    Scaling or shifting the logits changes nothing, so a network cannot hide from it by being sure.
    Two classes have no third: there it is the margin itself.

    Args:
      logits: [K].
      label: An integer scalar in 0 .. K - 1.

    Returns:
      A scalar, positive where another class is predicted.

    Example:
      >>> float(dlr(jnp.array([4.0, 1.0, 2.0]), 0)), float(dlr(jnp.array([4.0, 1.0]), 0))
      (-0.6666666865348816, -3.0)

    References:
      Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
      parameter-free attacks", ICML 2020, equation 6, https://arxiv.org/abs/2003.01690
    """
    if logits.shape[0] < 3:
        return margin(logits, label)
    ordered = jnp.sort(logits)
    return margin(logits, label) / (ordered[-1] - ordered[-3] + _TINY)


def targeted_dlr(logits: Array, label: Array, target: Array) -> Array:
    """DLR towards one class, over the distance of the first logit to the mean of third and fourth.

    With three classes it is over the distance to the third, with two it is the difference itself.

    Args:
      logits: [K].
      label: An integer scalar in 0 .. K - 1, the class to leave.
      target: Likewise, the class to reach.

    Returns:
      A scalar, positive where the target's logit is above the label's.

    References:
      Croce, Hein, 2020, equation 7.
    """
    difference = logits[target] - logits[label]
    if logits.shape[0] < 3:
        return difference
    ordered = jnp.sort(logits)
    lower = ordered[-3] if logits.shape[0] == 3 else 0.5 * (ordered[-3] + ordered[-4])
    return difference / (ordered[-1] - lower + _TINY)
