"""Losses of one example, computed from its logits; use `jax.vmap` for a batch.

Nothing is averaged over a batch here, so that a NaN in one row cannot spoil the others.
"""

import jax
import jax.numpy as jnp

from jaxrobust.types import Array

_TINY = 1e-12  # in the denominators of DLR, as in the reference implementation
# A class whose logit is at most this is masked: it is never predicted. Networks mask with -inf, or with
# the smallest number of a type.
_IMPOSSIBLE = -1e20


def is_possible(logits: Array) -> Array:
    """Says which classes can be predicted: those whose logit has not been masked.

    Args:
      logits: [..., K]. A logit of at most -1e20 counts as masked.

    Returns:
      bool [..., K].

    Example:
      >>> import jax.numpy as jnp
      >>> is_possible(jnp.array([2.0, -jnp.inf, jnp.finfo(jnp.float32).min])).tolist()
      [True, False, False]
    """
    return ~(logits <= _IMPOSSIBLE)


def bounded(logits: Array) -> Array:
    """Replaces masked logits by the constant -1e20, which float32 can subtract without overflow.

    Args:
      logits: [..., K].

    Returns:
      [..., K].
    """
    return jnp.where(is_possible(logits), logits, jnp.asarray(_IMPOSSIBLE, logits.dtype))


def cross_entropy(logits: Array, label: Array) -> Array:
    """Computes the cross-entropy of the softmax, -log p(label).

    Args:
      logits: [K].
      label: An integer scalar in 0 .. K - 1, the true class.

    Returns:
      A scalar, in nats.

    Example:
      >>> import jax.numpy as jnp
      >>> round(float(cross_entropy(jnp.array([0.0, 0.0]), 1)), 4)
      0.6931
    """
    return jax.nn.logsumexp(logits) - logits[label]


def margin(logits: Array, label: Array, targeted: bool = False) -> Array:
    """Computes the largest other logit minus the label's logit.

    Args:
      logits: [K], with K at least 2.
      label: An integer scalar in 0 .. K - 1.
      targeted: Whether the label is the class to reach. The sign is then reversed.

    Returns:
      A scalar, positive if another class is predicted (targeted: if the label is predicted).

    Example:
      >>> float(margin(jnp.array([1.0, -2.0, -3.0]), 0))
      -3.0
    """
    logits = bounded(logits)
    others = jnp.where(jnp.arange(logits.shape[0]) == label, -jnp.inf, logits)
    value = jnp.max(others) - logits[label]
    return -value if targeted else value


def dlr(logits: Array, label: Array) -> Array:
    """Computes the difference of logits ratio (DLR).

    It is the margin, divided by the difference between the largest and the third largest logit. Scaling
    or shifting the logits does not change it, so large logits cannot hide the gradient. With only two
    classes, or two that are not masked, it is the margin itself.

    Args:
      logits: [K], with K at least 2.
      label: An integer scalar in 0 .. K - 1, the true class.

    Returns:
      A scalar, positive if another class is predicted.

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
    """The difference between the largest logit and a lower one, or 1 if there is no lower one."""
    return jnp.where(exists, ordered[-1] - jnp.where(exists, lower, 0.0) + _TINY, 1.0)


def targeted_dlr(logits: Array, label: Array, target: Array) -> Array:
    """Computes the difference of logits ratio (DLR) towards a target class.

    It is the target's logit minus the label's, divided by the difference between the largest logit and
    the mean of the third and fourth largest. With three classes the third replaces that mean, and with
    two the result is the difference itself. Masked classes do not count.

    Args:
      logits: [K], with K at least 2.
      label: An integer scalar in 0 .. K - 1, the class to leave.
      target: An integer scalar in 0 .. K - 1, the class to reach.

    Returns:
      A scalar, positive if the target's logit is larger than the label's.

    References:
      Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
      parameter-free attacks", ICML 2020, equation 7, https://arxiv.org/abs/2003.01690
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
