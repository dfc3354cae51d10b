"""Which layers bear pruning: one at a time, everything else whole."""

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

from jaxrobust.pruning.magnitude import layerwise_magnitude
from jaxrobust.pruning.masks import Kernels, apply_masks, check_sparsity, kernel_paths
from jaxrobust.types import Masks, Progress, PyTree


class SensitivityRow(TypedDict):
    """One network of the sweep, as it goes into result.json."""

    layer: str
    sparsity: float
    score: Any


def sensitivity(
    params: PyTree,
    sparsities: Sequence[float],
    score: Callable[[PyTree], Any],
    *,
    prune: Callable[..., Masks] = layerwise_magnitude,
    progress: Progress | None = None,
    kernels: Kernels = None,
) -> list[SensitivityRow]:
    """Prunes one layer at a time to each sparsity, and scores every network that results.

    Args:
      params: Nested dicts of arrays.
      sparsities: Each in [0, 1).
      score: Pruned parameters -> what to record, a JSON value. All have the shapes of `params`, so
        a compiled function with the parameters as arguments is compiled once.
      prune: (params, {path: sparsity}) -> masks; for random weights
        `functools.partial(random, key, scope="layer")`.
      progress: Called with (the layer, networks scored, all networks) after each.
      kernels: Which weights are kernels: None by their names, a function of (path, array), or kernels
        as `channel_groups` finds them. If given, `prune` is given them too, as `kernels=`.

    Returns:
      [{"layer", "sparsity", "score"}], layer by layer in the order of `kernel_paths`.

    Raises:
      TypeError: A sparsity that is no number.
      ValueError: A sparsity outside [0, 1), none, no kernels, or unknown ones; NaN weights.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"a": {"kernel": jnp.array([[1.0, 4.0]])}, "b": {"kernel": jnp.array([[2.0, 3.0]])}}
      >>> total = lambda p: float(p["a"]["kernel"].sum() + p["b"]["kernel"].sum())
      >>> [(row["layer"], row["score"]) for row in sensitivity(params, [0.5], total)]
      [('a/kernel', 9.0), ('b/kernel', 8.0)]

    References:
      Li, Kadav, Durdanovic, Samet, Graf, "Pruning Filters for Efficient ConvNets", ICLR 2017,
      section 3.2, https://arxiv.org/abs/1608.08710
    """
    targets = [check_sparsity("sparsities", sparsity) for sparsity in sparsities]
    paths = kernel_paths(params, kernels)
    options = {} if kernels is None else {"kernels": kernels}
    if not (targets and paths):
        raise ValueError(
            f"Needs `sparsities` and kernels in `params`, got {len(targets)} and {len(paths)}."
        )
    rows: list[SensitivityRow] = []
    for layer in paths:
        for sparsity in targets:
            pruned = apply_masks(params, prune(params, {layer: sparsity}, **options))
            rows.append({"layer": layer, "sparsity": sparsity, "score": score(pruned)})
            if progress is not None:
                progress(layer, len(rows), len(paths) * len(targets))
    return rows
