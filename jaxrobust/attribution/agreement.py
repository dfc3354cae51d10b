"""Comparisons of two maps of an image, for example before and after an attack."""

import jax
import jax.numpy as jnp

from jaxrobust import compilation
from jaxrobust.attribution.arguments import checked_maps
from jaxrobust.types import Array


def rank_correlation(maps: Array, others: Array) -> Array:
    """Computes Spearman's rank correlation between two maps of each image.

    Equal pixels share the mean of their ranks.

    Args:
      maps: floating point [B, H, W].
      others: floating point [B, H, W].

    Returns:
      float32 [B] in [-1, 1]; NaN if a map is constant or holds a NaN.

    Raises:
      TypeError: The maps are not of floating point.
      ValueError: The maps do not have the same shape [B, H, W].

    Example:
      >>> import jax.numpy as jnp
      >>> maps = jnp.array([[[0.1, 0.2], [0.3, 0.4]]])
      >>> rank_correlation(maps, maps**3).round(4).tolist()
      [1.0]
    """
    maps = checked_maps("maps", maps)
    return _rank_correlation(maps, checked_maps("others", others, maps.shape))


def map_shift(maps_before: Array, maps_after: Array) -> dict[str, Array]:
    """Measures how far each image's map has changed, for example under an attack.

    Args:
      maps_before: floating point [B, H, W], signed or not.
      maps_after: floating point [B, H, W].

    Returns:
      {"cosine": float32 [B] in [-1, 1], the cosine between the maps as vectors, "rank_correlation":
      float32 [B] in [-1, 1], Spearman's, "centre_of_mass": float32 [B, 2], by how many pixels the
      centre of the absolute values has moved down and to the right}.

      Undefined values are NaN: all three for a map with a NaN, cosine and centre for a map of zeros,
      and the rank correlation for a constant map. Average with `jnp.nanmean`, and report how many
      values were defined.

    Raises:
      TypeError: The maps are not of floating point.
      ValueError: The maps do not have the same shape [B, H, W].

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
    """The row and column of the centre of the absolute values, [2]."""
    mass = jnp.abs(values) / jnp.max(jnp.abs(values))
    rows, columns = (jnp.arange(length) for length in values.shape)
    return jnp.stack([jnp.sum(mass.sum(1) * rows), jnp.sum(mass.sum(0) * columns)]) / jnp.sum(mass)
