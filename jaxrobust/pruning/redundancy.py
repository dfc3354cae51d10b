"""Greedy selection of filters, no two of which are close."""

import jax
import jax.numpy as jnp

from jaxrobust import compilation
from jaxrobust.types import Array

# Each round tries so many distances at once; three of them tell one in thirty thousand.
_CANDIDATES, _ROUNDS = 32, 3


@compilation.jit
def apart(filters: Array, count: Array | int) -> tuple[Array, Array]:
    """Selects `count` filters, any two of which are at least phi apart, for the largest phi found.

    Args:
      filters: float [D, F], one filter per column.
      count: The number of filters that stay, in [1, F]; may be traced.

    Returns:
      (bool [F], True for the filters that stay; phi, a scalar of at least 0). Phi is the largest
      distance at which the greedy choice by norm leaves enough filters, up to about 1 / 30,000 of the
      largest distance.

    Example:
      >>> stays, phi = apart(jnp.array([[3.0, 3.1, 0.0], [0.0, 0.1, 1.0]]), 2)
      >>> stays.tolist(), bool(phi > 3)
      ([False, True, True], True)
    """
    filters = filters.astype(jnp.float32)
    squares = jnp.sum(filters**2, axis=0)
    # Of equal ones those that come first go first.
    order = jnp.argsort(-squares[::-1], stable=True)
    order = filters.shape[1] - 1 - order
    filters, squares = filters[:, order], squares[order]
    products = jnp.matmul(filters.T, filters, precision=jax.lax.Precision.HIGHEST)
    distances = jnp.sqrt(jnp.maximum(squares[:, None] + squares[None] - 2 * products, 0.0))

    def search(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        tried = low + (high - low) * jnp.arange(_CANDIDATES + 1) / _CANDIDATES
        enough = jnp.sum(jax.vmap(lambda phi: _greedy(distances, phi))(tried), axis=1) >= count
        # The last is known not to leave enough, and the first to: 0 where no other does.
        best = jnp.max(jnp.where(enough.at[-1].set(False), jnp.arange(len(tried)), 0))
        return tried[best], tried[best + 1]

    largest = jnp.max(distances) * 1.001 + 1e-12
    phi, _ = jax.lax.fori_loop(0, _ROUNDS, search, (jnp.zeros_like(largest), largest))
    stays = _greedy(distances, phi)
    stays &= jnp.cumsum(stays) <= count
    return jnp.zeros_like(stays).at[order].set(stays), phi


def _greedy(distances: Array, phi: Array) -> Array:
    """Returns bool [F]: filters stay, in turn, if they are at least phi away from those that stay."""

    def one(index: Array, stays: Array) -> Array:
        near = stays & (distances[index] < phi) & (jnp.arange(len(stays)) != index)
        return stays.at[index].set(~jnp.any(near))

    return jax.lax.fori_loop(0, len(distances), one, jnp.zeros(len(distances), bool))
