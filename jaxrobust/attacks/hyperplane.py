"""The nearest point of a hyperplane inside [0, 1]: what FAB and DeepFool step to."""

import jax
import jax.numpy as jnp

from jaxrobust import checks, norms
from jaxrobust.types import Array

_CLOSE = (
    1e-6  # of t: a step as small leaves as small a share of the distance, which is all of float32
)
_NEWTON_STEPS = 12  # 10 are enough for 3,072 values whose sizes span six decades


def project(point: Array, normal: Array, height: Array, order: str) -> Array:
    """Computes the smallest change in a norm that moves a point onto a hyperplane within [0, 1].

    The hyperplane is the set of x with w . x = b. With height = w . point - b and w turned so that it
    points away from the hyperplane, the change is -sign(w) s, where

        linf  s = min(t, room),         l2  s = min(t |w|, room),

    room is how far each value can move within [0, 1], and t solves sum(|w| s) = |height|. That sum is
    concave and piecewise linear in t, so Newton's method from 0 never passes the solution. In l1 the
    values with the largest |w| move as far as they can, one after the other. If the hyperplane does not
    meet the box, every value moves as far towards it as it can.

    Args:
      point: [H, W, C] in [0, 1].
      normal: [H, W, C], the vector w.
      height: A scalar, w . point - b. It is given instead of b, because b is mostly the difference of
        two large sums, which float32 holds badly.
      order: "linf", "l2" or "l1".

    Returns:
      The change, [H, W, C].

    Raises:
      ValueError: `order` is unknown.

    References:
      Croce, Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack",
      ICML 2020, equation 4 and appendix A, https://arxiv.org/abs/1907.02044
    """
    checks.one_of("norm", order, norms.NORMS)
    # Scaled to a largest value of 1: the square of 1e-23 is zero in float32.
    scale = jnp.maximum(jnp.max(jnp.abs(normal)), 1e-30)
    weights = normal / scale * jnp.sign(height)  # downhill is towards the hyperplane
    slope, distance = jnp.abs(weights), jnp.abs(height) / scale
    room = jnp.where(weights > 0, point, 1.0 - point)
    room = jnp.where(weights == 0, 0.0, room)
    if order == "l1":
        return -jnp.sign(weights) * _largest_first(slope, room, distance)
    rate = jnp.ones_like(slope) if order == "linf" else slope

    def newton(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        step, t, _ = carry
        moving = t * rate < room
        rise = jnp.sum(jnp.where(moving, slope * rate, 0.0))
        left = distance - jnp.sum(slope * jnp.minimum(t * rate, room))
        more = jnp.where(rise > 0, jnp.maximum(left, 0.0) / jnp.maximum(rise, 1e-30), 0.0)
        return step + 1, t + more, more > _CLOSE * t

    def goes_on(carry: tuple[Array, Array, Array]) -> Array:
        step, _, moved = carry
        return moved & (step < _NEWTON_STEPS)

    nothing = (jnp.int32(0), jnp.zeros((), point.dtype), jnp.ones((), bool))
    t = jax.lax.while_loop(goes_on, newton, nothing)[1]
    unreachable = jnp.sum(slope * room) <= distance
    size = jnp.where(unreachable, room, jnp.minimum(t * rate, room))
    return -jnp.sign(weights) * size


def _largest_first(slope: Array, room: Array, distance: Array) -> Array:
    order = jnp.argsort(-slope.ravel())
    gains = (slope * room).ravel()[order]
    before = jnp.cumsum(gains) - gains
    share = jnp.clip((distance - before) / jnp.maximum(gains, 1e-30), 0.0, 1.0)
    moved = jnp.zeros(slope.size, slope.dtype).at[order].set(share)
    return moved.reshape(slope.shape) * room
