"""Norms of perturbations, and projections onto the balls around images.

Every function is for one perturbation [H, W, C]; use `jax.vmap` for a batch.
"""

import math

import jax
import jax.numpy as jnp

from jaxrobust import checks
from jaxrobust.types import Array

NORMS = ("linf", "l2", "l1")
"""The norms in which attacks measure perturbations."""


def norm(perturbation: Array, order: str) -> Array:
    """Computes the norm of one perturbation.

    Args:
      perturbation: [H, W, C] in pixel units.
      order: "linf" (the largest change of a value), "l2" or "l1".

    Returns:
      A scalar in pixel units.

    Raises:
      ValueError: `order` is unknown.

    Example:
      >>> float(norm(jnp.array([[[3.0, -4.0]]]), "l2"))
      5.0
    """
    checks.one_of("norm", order, NORMS)
    if order == "linf":
        return jnp.max(jnp.abs(perturbation))
    if order == "l2":
        return jnp.sqrt(jnp.sum(perturbation**2))
    return jnp.sum(jnp.abs(perturbation))


def project(perturbation: Array, image: Array, epsilon: Array | float, order: str) -> Array:
    """Projects a perturbation onto the ball of radius epsilon such that the image stays in [0, 1].

    For linf and l1 the result is the nearest such perturbation in Euclidean distance. For l2 it is the
    nearest perturbation in the ball, then clipped so that the image stays in [0, 1], as in every
    published l2 attack. Clipping never leaves the ball, because the image itself is in [0, 1].

    Args:
      perturbation: [H, W, C] in pixel units.
      image: [H, W, C] in [0, 1].
      epsilon: The radius in pixel units, not negative.
      order: "linf", "l2" or "l1".

    Returns:
      The projected perturbation, [H, W, C].

    Raises:
      ValueError: `order` is unknown.

    References:
      Croce, Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers", ICML
      2021, proposition 2.1 (l1), https://arxiv.org/abs/2103.01208
    """
    checks.one_of("norm", order, NORMS)
    if order == "linf":
        nearest = jnp.clip(perturbation, -epsilon, epsilon)
    elif order == "l2":
        length = norm(perturbation, "l2")
        # `where` instead of a minimum of quotients: a zero perturbation must not divide by zero.
        scale = jnp.where(length > epsilon, epsilon / jnp.maximum(length, 1e-30), 1.0)
        nearest = perturbation * scale
    else:
        nearest = _project_l1(perturbation, image, epsilon)
    return jnp.clip(image + nearest, 0.0, 1.0) - image


def _project_l1(perturbation: Array, image: Array, epsilon: Array | float) -> Array:
    """The nearest point of the l1 ball that keeps the image inside [0, 1].

    It is sign(p) * clip(|p| - threshold, 0, room), where room is how far each value can move, with the
    smallest threshold for which the l1 norm is at most epsilon. The norm is a piecewise linear function
    of the threshold: bisection finds the piece, and a division finds the threshold on that piece.
    """
    magnitude = jnp.abs(perturbation)
    room = jnp.where(perturbation > 0, 1.0 - image, image)

    def total(threshold: Array) -> Array:
        return jnp.sum(jnp.clip(magnitude - threshold, 0.0, room))

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = 0.5 * (low + high)
        too_long = total(middle) > epsilon
        return jnp.where(too_long, middle, low), jnp.where(too_long, high, middle)

    zero = jnp.zeros((), magnitude.dtype)
    low, high = jax.lax.fori_loop(0, 26, halve, (zero, jnp.max(magnitude)))
    middle = 0.5 * (low + high)
    moving = (magnitude > middle) & (magnitude - middle < room)
    fixed = jnp.sum(jnp.where(magnitude - middle >= room, room, 0.0))
    count = jnp.sum(moving).astype(magnitude.dtype)
    exact = (jnp.sum(jnp.where(moving, magnitude, 0.0)) + fixed - epsilon) / count
    # Rounding can put it outside of the bracket, where it belongs to another piece or to none.
    threshold = jnp.where((exact >= low) & (exact <= high), exact, high)
    threshold = jnp.where(total(zero) <= epsilon, 0.0, threshold)
    return jnp.sign(perturbation) * jnp.clip(magnitude - threshold, 0.0, room)


def steepest(gradient: Array, order: str) -> Array:
    """Computes the direction of unit norm along which a linear function rises fastest.

    Args:
      gradient: [H, W, C], the gradient of the function.
      order: "linf" gives the sign of the gradient; "l2" gives the gradient scaled to l2 norm one, where
        zero stays zero; "l1" gives the signs of the largest hundredth of its values, scaled to l1 norm
        one, because the exact l1 direction would move a single value.

    Returns:
      The direction, [H, W, C].

    Raises:
      ValueError: `order` is unknown.

    References:
      Tramer, Boneh, "Adversarial Training and Robustness for Multiple Perturbations", NeurIPS 2019,
      section 4 (the sparse l1 step), https://arxiv.org/abs/1904.13000
    """
    checks.one_of("norm", order, NORMS)
    if order == "linf":
        return jnp.sign(gradient)
    if order == "l1":
        return sparse_signs(gradient, 0.01)
    # The largest magnitude is taken out first: the square of 1e-23 is zero in float32.
    scaled = gradient / jnp.maximum(jnp.max(jnp.abs(gradient)), 1e-30)
    return scaled / jnp.maximum(norm(scaled, "l2"), 1e-12)


def sparse_signs(gradient: Array, share: Array | float) -> Array:
    """Keeps the signs of the largest values of a gradient, scaled to l1 norm one.

    Args:
      gradient: [H, W, C].
      share: The share of the values to keep, in (0, 1]. At least one value is kept.

    Returns:
      The scaled signs, [H, W, C]; zeros for a gradient of zeros.
    """
    magnitude = jnp.abs(gradient)
    position = jnp.clip(jnp.floor((1.0 - share) * gradient.size), 0, gradient.size - 1)
    least = jnp.sort(magnitude.ravel())[position.astype(jnp.int32)]
    signs = jnp.where(magnitude >= least, jnp.sign(gradient), 0.0)
    return signs / jnp.maximum(jnp.sum(jnp.abs(signs)), 1.0)


def uniform_in_ball(
    key: Array, shape: tuple[int, ...], epsilon: Array | float, order: str
) -> Array:
    """Draws a point uniformly from the ball of radius epsilon around zero.

    For l2 and d values the point has length epsilon * u^(1/d) with u uniform in [0, 1), because
    epsilon * u would crowd the centre. For l1 the point is made of d + 1 exponential numbers: the first
    d, with random signs, are divided by the sum of all.

    Args:
      key: A PRNG key.
      shape: (H, W, C).
      epsilon: The radius in pixel units, not negative.
      order: "linf", "l2" or "l1".

    Returns:
      The point, float32 [H, W, C].

    Raises:
      ValueError: `order` is unknown.
    """
    checks.one_of("norm", order, NORMS)
    if order == "linf":
        return jax.random.uniform(key, shape, jnp.float32, -1.0, 1.0) * epsilon
    if order == "l1":
        size = math.prod(shape)
        key_size, key_sign = jax.random.split(key)
        sizes = jax.random.exponential(key_size, (size + 1,), jnp.float32)
        signs = jax.random.rademacher(key_sign, shape, jnp.float32)
        return (sizes[:-1] / jnp.sum(sizes)).reshape(shape) * signs * epsilon
    key_direction, key_radius = jax.random.split(key)
    direction = steepest(jax.random.normal(key_direction, shape, jnp.float32), "l2")
    radius = jax.random.uniform(key_radius, (), jnp.float32) ** (1 / math.prod(shape))
    return direction * epsilon * radius
