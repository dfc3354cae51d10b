"""Norms of perturbations, balls around images, and projections onto them.

Everything here is for one perturbation [H, W, C]; vmap for a batch.
"""

import jax
import jax.numpy as jnp

from jaxrobust import checks
from jaxrobust.types import Array

NORMS = ("linf", "l2")
"""The norms that attacks are bounded by; `norm` measures l1 too."""


def norm(perturbation: Array, order: str) -> Array:
    """The norm of one perturbation.

    Args:
      perturbation: [H, W, C] in pixel units.
      order: "linf" (largest change of a value), "l2" or "l1".

    Returns:
      A scalar.

    Raises:
      ValueError: An unknown order.

    Example:
      >>> float(norm(jnp.array([[[3.0, -4.0]]]), "l2"))
      5.0
    """
    checks.one_of("norm", order, ("linf", "l2", "l1"))
    if order == "linf":
        return jnp.max(jnp.abs(perturbation))
    if order == "l2":
        return jnp.sqrt(jnp.sum(perturbation**2))
    return jnp.sum(jnp.abs(perturbation))


def project(perturbation: Array, epsilon: Array | float, order: str) -> Array:
    """The nearest point, in Euclidean distance, of the ball of radius epsilon around zero.

    Args:
      perturbation: [H, W, C].
      epsilon: Radius in pixel units, not negative.
      order: "linf" or "l2".

    Returns:
      [H, W, C].

    Raises:
      ValueError: An unknown order.
    """
    checks.one_of("norm", order, NORMS)
    if order == "linf":
        return jnp.clip(perturbation, -epsilon, epsilon)
    length = norm(perturbation, "l2")
    # where, not minimum of a quotient: a zero perturbation must not divide by zero.
    return perturbation * jnp.where(length > epsilon, epsilon / jnp.maximum(length, 1e-30), 1.0)


def steepest(gradient: Array, order: str) -> Array:
    """The direction of unit norm along which a linear function rises fastest.

    Args:
      gradient: [H, W, C].
      order: "linf" (its sign) or "l2" (itself, scaled to length one; zero stays zero).

    Returns:
      [H, W, C].

    Raises:
      ValueError: An unknown order.
    """
    checks.one_of("norm", order, NORMS)
    if order == "linf":
        return jnp.sign(gradient)
    # The largest magnitude is taken out first: the square of 1e-23 is zero in float32.
    scaled = gradient / jnp.maximum(jnp.max(jnp.abs(gradient)), 1e-30)
    return scaled / jnp.maximum(norm(scaled, "l2"), 1e-12)


def uniform_in_ball(
    key: Array, shape: tuple[int, ...], epsilon: Array | float, order: str
) -> Array:
    """A point drawn uniformly from the ball of radius epsilon around zero.

    In l2 the radius is epsilon * u^(1/d) for d values: epsilon * u would crowd the centre.

    Args:
      key: A PRNG key.
      shape: (H, W, C).
      epsilon: Radius in pixel units.
      order: "linf" or "l2".

    Returns:
      float32 [H, W, C].

    Raises:
      ValueError: An unknown order.
    """
    checks.one_of("norm", order, NORMS)
    if order == "linf":
        return jax.random.uniform(key, shape, jnp.float32, -1.0, 1.0) * epsilon
    key_direction, key_radius = jax.random.split(key)
    direction = steepest(jax.random.normal(key_direction, shape, jnp.float32), "l2")
    size = 1
    for extent in shape:
        size *= extent
    return direction * epsilon * jax.random.uniform(key_radius, (), jnp.float32) ** (1 / size)
