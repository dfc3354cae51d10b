"""Pruning of weights: the smallest ones of the whole network or of every layer, or random ones.

`sparsity` is the fraction of the weights of the kernels to remove: exactly round(sparsity * n) of n
weights. Among equal weights those with lower indices are removed first.

References:
  Han, Pool, Tran, Dally, "Learning both Weights and Connections for Efficient Neural Networks",
  NeurIPS 2015, section 3, https://arxiv.org/abs/1506.02626
  Gale, Elsen, Hooker, "The State of Sparsity in Deep Neural Networks", 2019,
  https://arxiv.org/abs/1902.09574 (random pruning as the control)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import checks, compilation
from jaxrobust.pruning.masks import (
    Kernels,
    check_masks,
    check_sparsity,
    keep_all,
    kernels_of,
    named_leaves,
)
from jaxrobust.types import Array, Masks, PyTree

SCOPES = ("global", "layer")


def global_magnitude(
    params: PyTree,
    sparsity: float,
    *,
    masks: Masks | None = None,
    exclude: Sequence[str] = (),
    kernels: Kernels = None,
) -> Masks:
    """Removes the smallest weights of all kernels together, with one threshold for the network.

    It can be compiled and vmapped: `sparsity` and `exclude` are static, `params` and `masks` arrays.

    Args:
      params: Nested dicts of arrays.
      sparsity: The fraction of all kernel weights to remove, in [0, 1).
      masks: The masks of an earlier pruning. What they remove stays removed, and counts towards
        `sparsity`.
      exclude: Path prefixes ("head", "block_0/conv") of kernels that are not pruned. `sparsity` is
        still a fraction of the weights of all kernels, so that more is removed from the others.
      kernels: Which weights are kernels: the kernels that `channel_groups` finds, or a function of
        (path, array). None: the names of the weights decide.

    Returns:
      Masks with the structure of the parameters, True for weights that stay. Biases and other
      parameters keep the masks that they had, or stay.

    Raises:
      TypeError: The sparsity is not a number, or a kernel has integers.
      ValueError: The sparsity is outside [0, 1), or too high because of `exclude`, or lower than that
        of `masks`; weights are NaN; there are no kernels; a prefix matches none; or the masks have
        another structure.

    Example:
      >>> import jax.numpy as jnp
      >>> kernels = jnp.array([[1.0, -4.0]]), jnp.array([[-2.0, 3.0]])
      >>> params = {"a": {"kernel": kernels[0]}, "b": {"kernel": kernels[1]}}
      >>> masks = global_magnitude(params, 0.5)
      >>> masks["a"]["kernel"].tolist(), masks["b"]["kernel"].tolist()
      ([[False, True]], [[False, True]])
    """
    scores = _magnitudes(params, kernels)
    return _select("params", scores, sparsity, "global", masks, exclude, kernels)


def layerwise_magnitude(
    params: PyTree,
    sparsity: float | Mapping[str, float],
    *,
    masks: Masks | None = None,
    exclude: Sequence[str] = (),
    kernels: Kernels = None,
) -> Masks:
    """Removes the smallest weights of every kernel: the same fraction of each, or a given fraction.

    Args:
      params: Nested dicts of arrays.
      sparsity: The fraction of weights to remove of each kernel, in [0, 1); or {path: fraction}, with
        the paths of `kernel_paths`, which leaves the other kernels unpruned.
      masks: The masks of an earlier pruning. What they remove stays removed, and counts towards
        `sparsity`.
      exclude: Path prefixes of kernels that are not pruned. A single `sparsity` is still a fraction of
        the weights of all kernels, so that more is removed from each of the others.
      kernels: Which weights are kernels: the kernels that `channel_groups` finds, or a function of
        (path, array). None: the names of the weights decide.

    Returns:
      Masks with the structure of the parameters, True for weights that stay. The count of each kernel
      is rounded by itself, so that the total is exact up to half a weight per kernel.

    Raises:
      TypeError: A sparsity is not a number, or a kernel has integers.
      ValueError: `global_magnitude` would raise, or a mapping names a path that is not a kernel.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"a": {"kernel": jnp.ones((1, 2))}, "b": {"kernel": jnp.array([[5.0, 6.0]])}}
      >>> layerwise_magnitude(params, 0.5)["b"]["kernel"].tolist()
      [[False, True]]
    """
    scores = _magnitudes(params, kernels)
    return _select("params", scores, sparsity, "layer", masks, exclude, kernels)


def random(
    key: Array,
    params: PyTree,
    sparsity: float | Mapping[str, float],
    *,
    scope: str = "global",
    masks: Masks | None = None,
    exclude: Sequence[str] = (),
    kernels: Kernels = None,
) -> Masks:
    """Removes random weights, as a baseline for other criteria.

    Args:
      key: A PRNG key. With the same key, a higher sparsity removes a superset.
      params: Nested dicts of arrays; only the shapes matter.
      sparsity: The fraction of the weights to remove, in [0, 1); or, for "layer", {path: fraction}.
      scope: "global" draws from all kernels together, "layer" from each kernel by itself.
      masks: The masks of an earlier pruning. What they remove stays removed, and counts towards
        `sparsity`.
      exclude: Path prefixes of kernels that are not pruned.
      kernels: Which weights are kernels: the kernels that `channel_groups` finds, or a function of
        (path, array). None: the names of the weights decide.

    Returns:
      Masks with the structure of the parameters, True for weights that stay.

    Raises:
      TypeError: A sparsity is not a number.
      ValueError: `global_magnitude` would raise, or the scope is unknown.
    """
    chosen = kernels_of(params, kernels)
    scores = [
        jax.random.uniform(jax.random.fold_in(key, index), jnp.shape(leaf))
        if path in chosen
        else leaf
        for index, (path, leaf) in enumerate(named_leaves(params))
    ]
    scored = jax.tree.unflatten(jax.tree.structure(params), scores)
    return _select("params", scored, sparsity, scope, masks, exclude, kernels)


def masks_from_scores(
    scores: PyTree,
    sparsity: float | Mapping[str, float],
    *,
    scope: str = "global",
    masks: Masks | None = None,
    exclude: Sequence[str] = (),
    kernels: Kernels = None,
) -> Masks:
    """Removes the weights with the lowest scores, by any criterion.

    Args:
      scores: Floating scores with the structure and shapes of the parameters. Only those of kernels are
        read.
      sparsity: The fraction of the weights to remove, in [0, 1); or, for "layer", {path: fraction}.
      scope: "global" compares all kernels together, "layer" each kernel by itself.
      masks: The masks of an earlier pruning. What they remove stays removed, and counts towards
        `sparsity`.
      exclude: Path prefixes of kernels that are not pruned.
      kernels: Which weights are kernels: the kernels that `channel_groups` finds, or a function of
        (path, array). None: the names of the weights decide.

    Returns:
      Masks with the structure of the parameters, True for weights that stay.

    Raises:
      TypeError: A sparsity is not a number, or the scores are integers.
      ValueError: `global_magnitude` would raise, or the scope is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> weight, gradient = jnp.array([[3.0, 1.0]]), jnp.array([[0.1, 1.0]])
      >>> taylor = {"kernel": jnp.abs(weight * gradient)}
      >>> masks_from_scores(taylor, 0.5)["kernel"].tolist()
      [[False, True]]
    """
    return _select("scores", scores, sparsity, scope, masks, exclude, kernels)


def _magnitudes(params: PyTree, kernels: Kernels) -> PyTree:
    chosen = kernels_of(params, kernels)
    scores = [jnp.abs(leaf) if path in chosen else leaf for path, leaf in named_leaves(params)]
    return jax.tree.unflatten(jax.tree.structure(params), scores)


def _select(
    name: str,
    scores: PyTree,
    sparsity: float | Mapping[str, float],
    scope: str,
    masks: Masks | None,
    exclude: Sequence[str],
    which: Kernels,
) -> Masks:
    checks.one_of("scope", scope, SCOPES)
    kernels = kernels_of(scores, which)
    if not sum(kernel.size for kernel in kernels.values()):
        raise ValueError(
            f"`{name}` must have kernels to prune: arrays of two or more dimensions called 'kernel', "
            "'weight' or 'w', or those that `kernels` names."
        )
    for path, kernel in kernels.items():
        # Integers would be compared as float32, which takes large ones that differ for equal.
        if not jnp.issubdtype(kernel.dtype, jnp.floating):
            raise TypeError(f"`{name}` must be floating point, got {kernel.dtype} at {path}.")
    if masks is None:
        masks = keep_all(scores)
    else:
        check_masks(scores, masks)
    previous = dict(named_leaves(masks))
    open_paths = not_excluded(kernels, exclude)
    if isinstance(sparsity, Mapping):
        groups = _groups_of_mapping(kernels, sparsity, scope, exclude)
    else:
        groups = _groups(kernels, open_paths, check_sparsity("sparsity", sparsity), scope)
    if not checks.is_traced(scores, masks):
        _check_values(name, kernels, previous, groups, set(kernels) - set(open_paths))
    pruned = dict(previous)
    for paths, count in groups:
        pruned |= zip(
            paths,
            keep_largest([kernels[p] for p in paths], [previous[p] for p in paths], count),
            strict=True,
        )
    return jax.tree.unflatten(jax.tree.structure(scores), list(pruned.values()))


# Kernels that are compared with each other, and how many of their weights go.
_Groups = list[tuple[list[str], int]]


def _groups(kernels: Mapping[str, Any], paths: list[str], sparsity: float, scope: str) -> _Groups:
    total = sum(kernel.size for kernel in kernels.values())
    reachable = sum(kernels[path].size for path in paths)
    count = round(sparsity * total)
    if count > reachable:
        raise ValueError(
            f"`sparsity` must be at most {reachable / total}, got {sparsity}: `exclude` keeps "
            f"{total - reachable} of the {total} kernel weights."
        )
    if scope == "global":
        return [(paths, count)] if paths else []
    fraction = min(sparsity * total / reachable, 1.0) if paths else 0.0
    return [([path], round(fraction * kernels[path].size)) for path in paths]


def _groups_of_mapping(
    kernels: Mapping[str, Any], sparsity: Mapping[str, float], scope: str, exclude: Sequence[str]
) -> _Groups:
    if scope != "layer" or exclude:
        raise ValueError(
            "`sparsity` may be a mapping only with `scope='layer'` and without `exclude`: it names the "
            "kernels to prune."
        )
    unknown = sorted(map(str, set(sparsity) - set(kernels)))
    if unknown:
        raise ValueError(
            f"`sparsity` must name kernels, got {', '.join(unknown)}; the kernels are "
            f"{', '.join(kernels)}."
        )
    return [
        ([path], round(check_sparsity(f"sparsity[{path!r}]", value) * kernels[path].size))
        for path, value in sparsity.items()
    ]


def not_excluded(kernels: Mapping[str, Any], exclude: Sequence[str]) -> list[str]:
    """Returns the kernels that match no prefix of `exclude`; raises for a prefix that matches none."""
    if isinstance(exclude, str):
        raise TypeError(f"`exclude` must be a sequence of path prefixes, got {exclude!r}.")
    prefixes = [f"{prefix.strip('/')}/" for prefix in exclude]
    for prefix in prefixes:
        # A misspelt prefix would prune silently what was to be kept.
        if not any(f"{path}/".startswith(prefix) for path in kernels):
            raise ValueError(
                f"`exclude` must be prefixes of the paths of kernels, got {prefix[:-1]!r}; the kernels "
                f"are {', '.join(kernels)}."
            )
    return [path for path in kernels if not f"{path}/".startswith(tuple(prefixes))]


def _check_values(
    name: str,
    kernels: Mapping[str, Any],
    previous: Mapping[str, Any],
    groups: _Groups,
    excluded: set[str],
) -> None:
    # One transfer for all kernels: each would wait for the device by itself.
    broken, removed = jax.device_get(
        (
            {path: jnp.any(jnp.isnan(kernel)) for path, kernel in kernels.items()},
            {path: jnp.sum(~jnp.asarray(previous[path])) for path in kernels},
        )
    )
    for path in kernels:
        if broken[path]:
            raise ValueError(
                f"`{name}` must not have NaN, which cannot be ranked, got one at {path}."
            )
    for path in excluded:
        if removed[path]:
            raise ValueError(
                f"`masks` must not remove weights of {path}, because `exclude` names it."
            )
    for paths, count in groups:
        already, size = sum(removed[p] for p in paths), sum(kernels[p].size for p in paths)
        if already > count:
            where = paths[0] if len(paths) == 1 else "the kernels"
            raise ValueError(
                f"`sparsity` removes {count} of {size} weights of {where}, but `masks` already remove "
                f"{already}: a removed weight cannot be restored."
            )


@compilation.jit
def keep_largest(scores: list[Array], previous: list[Array], count: Array | int) -> list[Array]:
    """Returns masks that remove the `count` lowest scores of several kernels together.

    Args:
      scores: The scores of the kernels, floating, of any shapes.
      previous: Boolean masks of the same shapes; what they remove is removed first.
      count: The number of weights to remove. It may be traced, so that another one needs no
        recompilation.
    """
    dtype = jnp.promote_types(jnp.result_type(*scores), jnp.float32)
    keys = jnp.concatenate(
        [
            _ordered(jnp.asarray(score, dtype), mask).ravel()
            for score, mask in zip(scores, previous, strict=True)
        ]
    )
    threshold = jnp.sort(keys)[jnp.maximum(count - 1, 0)]
    below, at = keys < threshold, keys == threshold
    # Of those at the threshold only the first go, as many as are missing.
    removed = below | (at & (jnp.cumsum(at) <= count - jnp.sum(below)))
    ends = np.cumsum([score.size for score in scores])
    parts = jnp.split(~removed, ends[:-1])
    return [part.reshape(score.shape) for part, score in zip(parts, scores, strict=True)]


def _ordered(scores: Array, mask: Array) -> Array:
    """Returns integers in the order of the scores, the smallest where the mask is False.

    On a CPU integers sort six times as fast as floats, and denormal numbers differ from 0.
    """
    kind = jnp.int32 if scores.dtype == jnp.float32 else jnp.int64
    bits, smallest = jax.lax.bitcast_convert_type(scores, kind), jnp.iinfo(kind).min
    # The bits of negative floats ascend away from 0; -0.0, whose bits are `smallest`, becomes 0.
    keys = jnp.where(bits < 0, smallest - bits, bits)
    return jnp.where(mask, keys, smallest)
