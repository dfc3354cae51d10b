"""What the weights of a network look like: a histogram with the zeros counted apart."""

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
    """Counts of a network's kernel weights in bins of one width, symmetric about 0.

    What pruning has set to 0 is counted apart: in a bin of its own it would stand a thousand times
    above all others, and hide that small weights are gone.

    Args:
      params: Nested dicts of arrays; their kernels are read (`jaxrobust.pruning.kernel_paths`).
      num_bins: Odd, at least 3: the middle one is around 0.
      limit: The bins reach from -limit to limit; weights beyond are in the outermost bins. None: the
        largest magnitude. Above 0.
      normalise: Whether the weights are first divided by the largest magnitude, so that they lie in
        [-1, 1]: networks of different scales compare then.
      exclude: Path prefixes of kernels that are left out; each must be of one at least.

    Returns:
      {"n": weights, "zeros": of them exactly 0, "middles": [num_bins], "counts": [num_bins] of those
      that are not 0, "std": of these as they are, None where there is none, "largest": the largest
      magnitude, "beyond": how many lie beyond the limit}. "std" and "largest" are never normalised.

    Raises:
      TypeError: Bins that are no integer, prefixes that are no sequence.
      ValueError: An even number of bins or fewer than 3, a limit that is not above 0, no kernels, a
        prefix of none, weights that are not finite.

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
        raise ValueError("`params` must have kernels that `exclude` does not leave out.")
    weights = np.concatenate([kernel.ravel() for kernel in kernels])
    if not np.isfinite(weights).all():
        raise ValueError("`params` must be finite.")
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
