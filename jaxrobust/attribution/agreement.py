"""How alike two maps of an image are, and how far a map moved under an attack."""

import jax
import jax.numpy as jnp

from jaxrobust import compilation
from jaxrobust.attribution.arguments import checked_maps
from jaxrobust.types import Array


def rank_correlation(maps: Array, others: Array) -> Array:
    """Spearman's rank correlation between the pixels of two maps of each image.

    Equal pixels share the mean of their ranks.

    Args:
      maps: Floating [B, H, W].
      others: Floating [B, H, W].

    Returns:
      float32 [B] in [-1, 1]; NaN where it is undefined: a map is flat or holds a NaN.

    Raises:
      TypeError: Integer maps.
      ValueError: Shapes that are not the same [B, H, W].

    Example:
      >>> import jax.numpy as jnp
      >>> maps = jnp.array([[[0.1, 0.2], [0.3, 0.4]]])
      >>> rank_correlation(maps, maps**3).round(4).tolist()
      [1.0]
    """
    maps = checked_maps("maps", maps)
    return _rank_correlation(maps, checked_maps("others", others, maps.shape))


def map_shift(maps_before: Array, maps_after: Array) -> dict[str, Array]:
    """How far each image's map moved, for example from the clean image to the attacked one.

    Args:
      maps_before: Floating [B, H, W], signed or not.
      maps_after: Floating [B, H, W].

    Returns:
      {"cosine": float32 [B] in [-1, 1], of the maps as vectors, "rank_correlation": float32 [B] in
      [-1, 1], Spearman's, "centre_of_mass": float32 [B, 2], rows and columns in pixels that the centre
      of the absolute values moved down and right}. NaN is what is undefined, and only that: all three
      for a map that holds a NaN, cosine and centre for a map of zeros, the rank correlation for any
      flat map. Average with `jnp.nanmean` and state how many were defined.

    Raises:
      TypeError: Integer maps.
      ValueError: Shapes that are not the same [B, H, W].

    Example:
      >>> import jax.numpy as jnp
      >>> left, right = jnp.array([[[1.0, 0.0, 0.0]]]), jnp.array([[[0.0, 0.0, 1.0]]])
      >>> shift = map_shift(left, right)
      >>> shift["cosine"].tolist(), shift["centre_of_mass"].tolist()
      ([0.0], [[0.0, 2.0]])
    """
    before = checked_maps("maps_before", maps_before)
    return _map_shift(before, checked_maps("maps_after", maps_after, before.shape))


@compilation.jit
def _map_shift(before: Array, after: Array) -> dict[str, Array]:
    return {
        "cosine": jax.vmap(_cosine)(before, after),
        "rank_correlation": _rank_correlation(before, after),
        "centre_of_mass": jax.vmap(_centre)(after) - jax.vmap(_centre)(before),
    }


@compilation.jit
def _rank_correlation(maps: Array, others: Array) -> Array:
    return jax.vmap(lambda one, other: _cosine(_centred_ranks(one), _centred_ranks(other)))(
        maps, others
    )


def _centred_ranks(values: Array) -> Array:
    """Ranks minus their mean, which is (n + 1) / 2 however many are equal: exactly 0 if all are."""
    values = values.ravel()
    ordered = jnp.sort(values)
    below = jnp.searchsorted(ordered, values, side="left")
    up_to = jnp.searchsorted(ordered, values, side="right")
    ranks = (below + up_to - values.size).astype(jnp.float32) / 2
    return jnp.where(jnp.isnan(values).any(), jnp.nan, ranks)


def _cosine(one: Array, other: Array) -> Array:
    # Over their maxima first: squares of gradients may be too small for float32. 0 / 0 is NaN.
    one, other = (values / jnp.max(jnp.abs(values)) for values in (one, other))
    product = jnp.sum(one * other)
    return jnp.clip(product / jnp.sqrt(jnp.sum(one**2) * jnp.sum(other**2)), -1.0, 1.0)


def _centre(values: Array) -> Array:
    """Row and column of the centre of the absolute values: [2]."""
    mass = jnp.abs(values) / jnp.max(jnp.abs(values))
    rows, columns = (jnp.arange(length) for length in values.shape)
    return jnp.stack([jnp.sum(mass.sum(1) * rows), jnp.sum(mass.sum(0) * columns)]) / jnp.sum(mass)
