"""The alternating direction method of multipliers, as pure functions of any pytree of weights.

It minimises f(theta) over a set that is given only by its projection. Theta is trained freely and is
pulled towards a copy theta' that lies in the set. With the scaled dual U = u / rho:

    theta   minimises f(theta) + <u, theta - theta'> + rho / 2 ||theta - theta'||^2      (`penalty`)
    U      <- U + theta - theta'                                                         (`updated`)
    theta' <- Proj(theta + U)

in this order (Marshall, algorithm 1). Boyd et al. and Ye et al. update theta' before the dual, which
differs only in one update when rho or the set changes.

References:
  Boyd et al., "Distributed Optimization and Statistical Learning via the Alternating Direction
  Method of Multipliers", 2011, sections 3.1.1 (the scaled form), 3.4.1 (rho that varies: the scaled
  dual must be rescaled) and 9 (sets that are not convex),
  https://web.stanford.edu/~boyd/papers/pdf/admm_distr_stats.pdf
  Ye et al., "Adversarial Robustness vs. Model Compression, or Both?", ICCV 2019,
  https://arxiv.org/abs/1903.12561
  Marshall, "Robust Convolutional Neural Networks with Resource Constraints", master's thesis,
  Université Grenoble Alpes
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrobust.types import Array, PyTree

Project = Callable[[PyTree], PyTree]
"""A function from weights to the nearest weights in the set, with the same structure."""


class Multipliers(NamedTuple):
    """The auxiliary variables of ADMM, all float32.

    Attributes:
      auxiliary: theta', the weights in the set, with the structure of the weights.
      dual: U, the scaled dual, with the structure of the weights.
      rho: The penalty parameter, a scalar.
    """

    auxiliary: PyTree
    dual: PyTree
    rho: Array


def started(weights: PyTree, project: Project, rho: Array | float) -> Multipliers:
    """Returns the initial variables: theta' = Proj(theta), and a dual of 0."""
    weights = _float32(weights)
    return Multipliers(
        _float32(project(weights)),
        jax.tree.map(jnp.zeros_like, weights),
        jnp.asarray(rho, jnp.float32),
    )


def penalty(weights: PyTree, multipliers: Multipliers) -> Array:
    """Computes <u, theta - theta'> + rho / 2 ||theta - theta'||^2, a scalar, with u = rho U.

    Example:
      >>> held = Multipliers({"w": jnp.array([1.0])}, {"w": jnp.array([0.5])}, jnp.float32(2.0))
      >>> float(penalty({"w": jnp.array([4.0])}, held))
      12.0
    """

    def of_one(weight: Array, auxiliary: Array, dual: Array) -> Array:
        apart = weight.astype(jnp.float32) - auxiliary
        return jnp.sum(apart * (dual + 0.5 * apart))

    parts = jax.tree.map(of_one, weights, multipliers.auxiliary, multipliers.dual)
    return multipliers.rho * sum(jax.tree.leaves(parts), jnp.float32(0.0))


def updated(
    weights: PyTree,
    multipliers: Multipliers,
    project: Project,
    *,
    growth: float = 1.0,
    largest_rho: float | None = None,
    rescale: bool = True,
) -> Multipliers:
    """Updates the dual, and then theta' by the projection.

    Args:
      weights: theta, after training steps on the penalised loss.
      multipliers: The variables before the update.
      project: The projection onto the set, which may be smaller than before.
      growth: The factor by which rho is multiplied, at least 1.
      largest_rho: The largest rho, at least the present one; None: no limit.
      rescale: Whether to divide the scaled dual by the growth of rho, which keeps u. False is as in the
        official code of Ye et al., where u grows with rho.

    Returns:
      The variables after the update.

    Example:
      >>> held = Multipliers(jnp.array([1.0]), jnp.array([0.0]), jnp.float32(1.0))
      >>> after = updated(jnp.array([3.0]), held, jnp.round, growth=2.0)
      >>> float(after.dual[0]), float(after.auxiliary[0]), float(after.rho)
      (1.0, 4.0, 2.0)
    """
    weights = _float32(weights)
    dual = jax.tree.map(
        lambda u, weight, auxiliary: u + weight - auxiliary,
        multipliers.dual,
        weights,
        multipliers.auxiliary,
    )
    rho = multipliers.rho * growth
    if largest_rho is not None:
        rho = jnp.minimum(rho, largest_rho)
    if rescale:
        dual = jax.tree.map(lambda u: u * (multipliers.rho / rho), dual)
    auxiliary = project(jax.tree.map(jnp.add, weights, dual))
    return Multipliers(_float32(auxiliary), dual, rho)


def residual(weights: PyTree, multipliers: Multipliers) -> Array:
    """Returns ||theta - theta'|| / ||theta||, a scalar, which is 0 if the weights are in the set."""
    apart = jax.tree.map(jnp.subtract, _float32(weights), multipliers.auxiliary)
    return length(apart) / jnp.maximum(length(weights), 1e-12)


def dual_norm(multipliers: Multipliers) -> Array:
    """Returns ||u|| = rho ||U||, a scalar."""
    return multipliers.rho * length(multipliers.dual)


def length(tree: PyTree) -> Array:
    """Returns the l2 norm of all leaves together."""
    squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, jnp.float32(0.0)))


def _float32(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)
