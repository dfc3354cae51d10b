"""A histogram of the weights of a network, with zeros counted separately."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrobust import checks, pruning
from jaxrobust.pruning.magnitude import not_excluded
from jaxrobust.pruning.masks import named_leaves
from jaxrobust.types import PyTree


def weight_histogram(
    params: PyTree,
    num_bins: int = 61,
    *,
    limit: float | None = None,
    normalise: bool = False,
    exclude: Sequence[str] = (),
) -> dict[str, Any]:
    """Counts a network's kernel weights in bins of equal width, symmetric about 0.

    Weights that are exactly 0, such as pruned ones, are counted separately, because their bin would
    dwarf all others and hide that small weights are gone.

    Args:
      params: Nested dicts of arrays, whose kernels are counted (`jaxrobust.pruning.kernel_paths`).
      num_bins: The number of bins, odd and at least 3; the middle one is around 0.
      limit: The bins reach from -limit to limit, above 0. Weights beyond it are in the outermost bins.
        By default it is the largest magnitude.
      normalise: Whether to divide the weights by the largest magnitude first, so that networks of
        different scales can be compared.
      exclude: Path prefixes of kernels to leave out; each must match at least one kernel.

    Returns:
      {"n": the number of weights, "zeros": how many are exactly 0, "middles": the middles of the bins
      [num_bins], "counts": the counts of the other weights [num_bins], "std": their standard deviation,
      or None if there are none, "largest": the largest magnitude, "beyond": how many lie beyond the
      limit}. "std" and "largest" are not normalised.

    Raises:
      TypeError: The number of bins is not an integer, or `exclude` is not a sequence.
      ValueError: The number of bins is even or below 3, the limit is not above 0, there are no kernels,
        a prefix matches no kernel, or a weight is not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.array([[0.0, 0.0], [0.1, -1.0], [0.9, 0.0]])}
      >>> found = weight_histogram(params, 3)
      >>> found["zeros"], found["counts"], [round(m, 2) for m in found["middles"]]
      (3, [1, 1, 1], [-0.67, 0.0, 0.67])
    """
    checks.integer("num_bins", num_bins, minimum=3)
    if num_bins % 2 == 0:
        raise ValueError(f"`num_bins` must be odd, for a bin around 0, got {num_bins}.")
    if limit is not None:
        checks.number("limit", limit, above=0.0)
    paths = set(not_excluded(dict.fromkeys(pruning.kernel_paths(params)), exclude))
    kernels = [np.asarray(leaf, np.float64) for p, leaf in named_leaves(params) if p in paths]
    if not kernels:
        raise ValueError(
            "`params` must have at least one kernel that `exclude` does not leave out, got none."
        )
    weights = np.concatenate([kernel.ravel() for kernel in kernels])
    if not np.isfinite(weights).all():
        raise ValueError("`params` must be finite, got NaN or infinity in a kernel.")
    # Zeros are counted apart: pruned weights would stand above all others.
    kept = weights[weights != 0]
    largest = float(np.abs(kept).max()) if len(kept) else 0.0
    scaled = kept / largest if normalise and largest else kept
    reach = float(limit or (1.0 if normalise else largest) or 1.0)
    counts, _ = np.histogram(np.clip(scaled, -reach, reach), num_bins, (-reach, reach))
    return {
        "n": len(weights),
        "zeros": len(weights) - len(kept),
        # From whole numbers, so that the middle one is 0.
        "middles": (reach * np.arange(1 - num_bins, num_bins, 2) / num_bins).tolist(),
        "counts": counts.tolist(),
        "std": float(kept.std()) if len(kept) else None,
        "largest": largest,
        "beyond": int((np.abs(scaled) > reach).sum()),
    }
