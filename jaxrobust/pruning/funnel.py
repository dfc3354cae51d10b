"""The numbers of weights that layers keep if the density must not increase with depth.

Let s_l(d) be the squared weight of layer l at density d, when its weights are added from the largest to
the smallest. A network of densities d_1 >= d_2 >= ... keeps sum_l n_l int_0^{d_l} s_l, and the nearest
network keeps the most. For a given price per weight, each level of density can be decided by itself:
the first j layers reach it, for the j with the largest sum_{l <= j} n_l (s_l(d) - price). As s_l falls
with d, these decisions are nested. The price is the one at which the total is exact. (Isotonic
regression of the densities of a single threshold does not give the nearest network.)
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import compilation
from jaxrobust.types import Array

# Levels of density that are told apart where there are more weights than this.
_MAX_LEVELS = 4096


@functools.partial(compilation.jit, static_argnames=("floor", "strict"))
def counts(
    layers: list[Array], total: Array | int, floor: int = 1, *, strict: bool = False
) -> list[Array]:
    """Returns the number of weights that each layer keeps, so that the sum of squares is largest.

    The densities are optimal as real numbers. The counts are these rounded down, raised where a deeper
    layer would be denser, and corrected weight by weight, the cheapest first, until the total is exact.

    Args:
      layers: The weights of the layers, floating [n_l], in the order of depth.
      total: The number of weights that stay; may be traced.
      floor: The smallest number of weights that stay in every layer (or all, if it has fewer).
      strict: Whether every layer must be less dense than the one before it. If more weights stay than
        such densities allow, as when all stay, the order is not strict.

    Returns:
      int32 scalars k_l with k_1 / n_1 >= k_2 / n_2 >= ..., which sum to `total`, or to more if the
      least possible densities alone are more.

    Raises:
      ValueError: `strict`, and the layers are too many or too small for densities that all differ.

    Example:
      >>> [int(k) for k in counts([jnp.array([1.0, 2.0]), jnp.array([5.0, 4.0, 3.0, 0.1])], 3)]
      [1, 2]
    """
    squares = [jnp.sort(jnp.square(jnp.ravel(layer)))[::-1] for layer in layers]
    sizes = np.array([layer.size for layer in layers])
    densities = _best_densities(squares, sizes, total)
    # A number that is whole but for rounding is meant.
    start = jnp.floor(densities * sizes + 1e-3).astype(jnp.int32)
    smallest, largest = np.minimum(floor, sizes), sizes
    found = _mended(start, squares, sizes, (smallest, largest), total, _as_dense)
    if strict:
        ends = _strict_ends(smallest.tolist(), sizes.tolist())
        falling = _mended(start, squares, sizes, ends, total, _denser)
        found = jnp.where(total > int(ends[1].sum()), found, falling)
    return list(found)


def _strict_ends(smallest: list[int], sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the fewest and the most weights of each layer whose densities fall strictly."""
    least, most = smallest[-1:], sizes[:1]
    for size, other, floor in zip(sizes[-2::-1], sizes[:0:-1], smallest[-2::-1], strict=True):
        least.append(max(floor, least[-1] * size // other + 1))
    for size, other in zip(sizes[1:], sizes, strict=False):
        most.append(-(-most[-1] * size // other) - 1)
    if any(few > many for few, many in zip(least[::-1], most, strict=True)):
        raise ValueError(
            f"`strict` needs layers with enough weights for {len(sizes)} densities that all differ, "
            f"got layers of {', '.join(map(str, sizes))} weights with a floor of {max(smallest)}: "
            "lower `floor`, or let small layers share a prefix of `order`."
        )
    return np.array(least[::-1]), np.array(most)


def _best_densities(squares: list[Array], sizes: np.ndarray, total: Array | int) -> Array:
    """Returns float32 [L], the optimal densities, which do not increase and sum to the total."""
    edges = np.linspace(0.0, 1.0, _MAX_LEVELS + 1)
    if sizes.sum() <= _MAX_LEVELS:
        edges = np.unique(np.concatenate([np.arange(size + 1) / size for size in sizes]))
    widths, middles = np.diff(edges), (edges[1:] + edges[:-1]) / 2
    reached = [
        square[np.minimum((size * middles).astype(np.int64), size - 1)]
        for square, size in zip(squares, sizes, strict=True)
    ]
    worth = jnp.stack(reached).astype(jnp.float32)
    weights = jnp.asarray(sizes, jnp.float32)

    def at(price_bits: Array) -> Array:
        price = jax.lax.bitcast_convert_type(jnp.maximum(price_bits, 0), jnp.float32)
        # Below all of them there is the price at which everything stays, zeros too.
        price = jnp.where(price_bits < 0, -1.0, price)
        sums = jnp.cumsum(weights[:, None] * (worth - price), axis=0)
        sums = jnp.concatenate([jnp.zeros_like(sums[:1]), sums])
        depth = jnp.argmax(sums, axis=0)
        return (depth[None] > jnp.arange(len(sizes))[:, None]) @ jnp.asarray(widths, jnp.float32)

    # Bisection over floats by their bits, which are in the same order: exact in 32 steps.
    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = low + (high - low) // 2
        enough = jnp.sum(at(middle) * weights) >= total
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    most = jax.lax.bitcast_convert_type(jnp.max(worth), jnp.int32) + 1
    low, high = jax.lax.fori_loop(0, 32, halve, (jnp.full_like(most, -1), most))
    # At the price in between both are best, and so is every mixture.
    more, less = at(low), at(high)
    above, below = jnp.sum(more * weights), jnp.sum(less * weights)
    share = jnp.clip((total - below) / jnp.maximum(above - below, 1e-9), 0.0, 1.0)
    return less + share * (more - less)


def _mended(
    start: Array,
    squares: list[Array],
    sizes: np.ndarray,
    ends: tuple[np.ndarray, np.ndarray],
    total: Array | int,
    above: Callable[[Array, np.ndarray, Array, np.ndarray], Array],
) -> Array:
    """Returns counts near `start` that are a funnel, within `ends`, with the total.

    Where a layer is not `above` the next one, it is raised. Then the total is corrected one weight at a
    time, where it keeps the funnel and costs the least.
    """
    smallest, largest = (jnp.asarray(end, jnp.int32) for end in ends)

    def too_few(kept: Array) -> Array:
        return jnp.append(~above(kept[:-1], sizes[:-1], kept[1:], sizes[1:]), False)

    kept = jax.lax.while_loop(
        lambda kept: jnp.any(too_few(kept)),
        lambda kept: kept + too_few(kept),
        jnp.clip(start, smallest, largest),
    )

    def worth(index: Array) -> Array:
        return jnp.stack(
            [
                square[jnp.clip(i, 0, len(square) - 1)]
                for i, square in zip(index, squares, strict=True)
            ]
        )

    def choices(kept: Array) -> tuple[Array, Array]:
        """Returns where a weight may be added, and where one may be removed."""
        more = jnp.append(True, above(kept[:-1], sizes[:-1], kept[1:] + 1, sizes[1:]))
        less = jnp.append(above(kept[:-1] - 1, sizes[:-1], kept[1:], sizes[1:]), True)
        return more & (kept < largest), less & (kept > smallest)

    # Until the total is right, or no weight can come or go.
    def goes_on(kept: Array) -> Array:
        more, less = choices(kept)
        missing = total - jnp.sum(kept)
        return ((missing > 0) & jnp.any(more)) | ((missing < 0) & jnp.any(less))

    def one(kept: Array) -> Array:
        more, less = choices(kept)
        # The largest that is not kept comes, or the smallest that is kept goes.
        grow = jnp.argmax(jnp.where(more, worth(kept), -1.0))
        shrink = jnp.argmin(jnp.where(less, worth(kept - 1), jnp.inf))
        grows = jnp.sum(kept) < total
        return kept.at[jnp.where(grows, grow, shrink)].add(jnp.where(grows, 1, -1))

    return jax.lax.while_loop(goes_on, one, kept)


def _as_dense(kept: Array, sizes: np.ndarray, others: Array, their_sizes: np.ndarray) -> Array:
    """Whether kept / sizes >= others / their_sizes, exactly: the products may need 64 bits."""
    high, low = _product(kept, their_sizes)
    their_high, their_low = _product(others, sizes)
    return (high > their_high) | ((high == their_high) & (low >= their_low))


def _denser(kept: Array, sizes: np.ndarray, others: Array, their_sizes: np.ndarray) -> Array:
    """Whether kept / sizes > others / their_sizes, exactly."""
    return ~_as_dense(others, their_sizes, kept, sizes)


def _product(left: Array, right: np.ndarray) -> tuple[Array, Array]:
    """Multiplies integers in [0, 2^31), and returns two words of 32 bits."""
    a, b = left.astype(jnp.uint32), jnp.asarray(right, jnp.uint32)
    a_high, a_low, b_high, b_low = a >> 16, a & 0xFFFF, b >> 16, b & 0xFFFF
    # Each part is below 2^31, so their sum fits.
    middle = a_high * b_low + a_low * b_high
    low = a_low * b_low
    total = low + (middle << 16)
    return a_high * b_high + (middle >> 16) + (total < low).astype(jnp.uint32), total
