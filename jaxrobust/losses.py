"""Losses of one example, from its logits; vmap for a batch.

Never averaged here: rows of a batch must not depend on each other (a NaN row spoils no other row).
"""

import jax
import jax.numpy as jnp

from jaxrobust.types import Array

_TINY = 1e-12  # in the denominators of DLR, as in the reference implementation
# A class with a logit of no more than this has been masked: no image can get it. Networks mask with
# -inf, or with the smallest number of a type.
_IMPOSSIBLE = -1e20


def is_possible(logits: Array) -> Array:
    """Which classes an image can get: those whose logit has not been masked; bool, as the logits.

    Example:
      >>> import jax.numpy as jnp
      >>> is_possible(jnp.array([2.0, -jnp.inf, jnp.finfo(jnp.float32).min])).tolist()
      [True, False, False]
    """
    return ~(logits <= _IMPOSSIBLE)


def bounded(logits: Array) -> Array:
    """The logits, masked ones as a number whose differences float32 can hold and without a gradient."""
    return jnp.where(is_possible(logits), logits, jnp.asarray(_IMPOSSIBLE, logits.dtype))


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
    logits = bounded(logits)
    others = jnp.where(jnp.arange(logits.shape[0]) == label, -jnp.inf, logits)
    value = jnp.max(others) - logits[label]
    return -value if targeted else value


def dlr(logits: Array, label: Array) -> Array:
    """Difference of logits ratio: the margin over the distance of the first logit to the third.

    Scaling or shifting the logits changes nothing, so a network cannot hide from it by being sure.
    Two classes have no third: there it is the margin itself, also where all others are masked.

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
    ordered, count = jnp.sort(bounded(logits)), jnp.sum(is_possible(logits))
    return margin(logits, label) / _length(ordered, ordered[-3], count >= 3)


def _length(ordered: Array, lower: Array, exists: Array) -> Array:
    """How far the first logit is above a lower one; 1 where there is no lower one."""
    return jnp.where(exists, ordered[-1] - jnp.where(exists, lower, 0.0) + _TINY, 1.0)


def targeted_dlr(logits: Array, label: Array, target: Array) -> Array:
    """DLR towards one class, over the distance of the first logit to the mean of third and fourth.

    With three classes it is over the distance to the third, with two it is the difference itself;
    masked classes do not count.

    Args:
      logits: [K].
      label: An integer scalar in 0 .. K - 1, the class to leave.
      target: Likewise, the class to reach.

    Returns:
      A scalar, positive where the target's logit is above the label's.

    References:
      Croce, Hein, 2020, equation 7.
    """
    count, logits = jnp.sum(is_possible(logits)), bounded(logits)
    difference = logits[target] - logits[label]
    if logits.shape[0] < 3:
        return difference
    ordered = jnp.sort(logits)
    lower = ordered[-3]
    if logits.shape[0] > 3:
        lower = jnp.where(count > 3, 0.5 * (ordered[-3] + ordered[-4]), ordered[-3])
    return difference / _length(ordered, lower, count >= 3)
