"""Sensitivity of the layers to pruning, one layer at a time."""

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

from jaxrobust.pruning.magnitude import layerwise_magnitude
from jaxrobust.pruning.masks import Kernels, apply_masks, check_sparsity, kernel_paths
from jaxrobust.types import Masks, Progress, PyTree


class SensitivityRow(TypedDict):
    """One network of the sweep, in the form of result.json."""

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
    """Prunes one layer at a time to each sparsity, and scores every resulting network.

    Args:
      params: Nested dicts of arrays.
      sparsities: The sparsities, each in [0, 1), at least one.
      score: A function from pruned parameters to the JSON value to record. All have the shapes of
        `params`, so that a compiled function of the parameters is compiled only once.
      prune: A function (params, {path: sparsity}) -> masks. For random weights use
        `functools.partial(random, key, scope="layer")`.
      progress: A function that is called with (networks scored, all networks) after each network, or
        None.
      kernels: Which weights are kernels: the kernels that `channel_groups` finds, or a function of
        (path, array). None: the names of the weights decide. If given, they are passed to
        `prune` as `kernels=`.

    Returns:
      A list of {"layer": the path of the kernel, "sparsity": its sparsity, "score": the score}, layer
      by layer in the order of `kernel_paths`.

    Raises:
      TypeError: A sparsity is not a number.
      ValueError: A sparsity is outside [0, 1) or there is none; there are no kernels or `kernels` are
        unknown; or weights are NaN.

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
            "There must be at least one of `sparsities` and one kernel in `params`, got "
            f"{len(targets)} and {len(paths)}."
        )
    rows: list[SensitivityRow] = []
    for layer in paths:
        for sparsity in targets:
            pruned = apply_masks(params, prune(params, {layer: sparsity}, **options))
            rows.append({"layer": layer, "sparsity": sparsity, "score": score(pruned)})
            if progress is not None:
                progress(layer, len(rows), len(paths) * len(targets))
    return rows
