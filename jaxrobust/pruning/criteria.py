"""What a filter is worth: its size, its distance from the others, or what the loss makes of it.

A channel's score is the sum over the kernels that make it, of every layer of its group: channels that
are added up, and those of a depthwise convolution, stay or go by one decision.
"""

from typing import Any

import jax
import numpy as np

from jaxrobust import checks
from jaxrobust.pruning.channel_groups import ChannelGroups
from jaxrobust.pruning.masks import named_leaves
from jaxrobust.pruning.placing import Keep, check_keep, located
from jaxrobust.types import Array, PyTree

CRITERIA = ("l1", "l2", "geometric_median", "taylor", "random")


def filter_scores(
    weights: PyTree,
    groups: ChannelGroups,
    criterion: str = "l1",
    *,
    gradients: PyTree | None = None,
    key: Array | None = None,
    normalise: bool = False,
    keep: Keep | None = None,
) -> dict[str, np.ndarray]:
    """What each channel is worth, on the host.

    With w the weights of one filter (a kernel's, for one channel that it makes) and F_j the other
    filters of its kernel:

        l1                sum |w|
        l2                sqrt(sum w^2)
        geometric_median  sum_j ||w - F_j||_2, small for a filter that the others can stand in for
        taylor            |sum w g|, how much the loss changes to first order without the filter; g
                          are `gradients`
        random            uniform in [0, 1): what a criterion has to beat

    Args:
      weights: What the groups were found for, or of linen variables the "params" alone.
      groups: Of `channel_groups`; the kernels that make a group are those of its program.
      criterion: One of `CRITERIA`.
      gradients: Of a loss by the weights, of their structure; for "taylor". Of whole variables
        {"params": ...} is enough.
      key: A PRNG key; for "random".
      normalise: Whether each kernel is first divided by its l2 norm, so that layers compare under one
        budget for all. Only for l1, l2 and geometric_median; the others compare as they are.
      keep: {group: channels kept} of an earlier pruning. Those that it removed score 0 and are no F_j:
        a filter of zeros stands in for none. None: all channels are there.

    Returns:
      {group: float32 [size]}; higher is worth more.

    Raises:
      TypeError: No ChannelGroups.
      ValueError: An unknown criterion or one without what it needs; groups of another network; NaN
        weights or gradients.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust.pruning import channel_groups
      >>> kernel = jnp.array([[1.0, -3.0], [2.0, 0.0]])
      >>> weights = {"a": {"kernel": kernel}, "b": {"kernel": jnp.ones((2, 2))}}
      >>> logits = lambda weights, x: x.mean((1, 2)) @ weights["a"]["kernel"] @ weights["b"]["kernel"]
      >>> groups = channel_groups(logits, weights, jnp.ones((1, 4, 4, 2)))
      >>> filter_scores(weights, groups)["a"].tolist()
      [3.0, 3.0]

    References:
      He, Liu, Wang, Hu, Yang, "Filter Pruning via Geometric Median for Deep Neural Networks
      Acceleration", CVPR 2019, equation 4, https://arxiv.org/abs/1811.00250
      Molchanov, Mallya, Tyree, Frosio, Kautz, "Importance Estimation for Neural Network Pruning", CVPR
      2019, https://arxiv.org/abs/1906.10771 (the first-order importance of a group of weights is the
      square of sum w g; its root has the same order and adds up over layers)
    """
    checks.one_of("criterion", criterion, CRITERIA)
    for name, value, needed_by in (("gradients", gradients, "taylor"), ("key", key, "random")):
        if (value is None) == (criterion == needed_by):
            raise ValueError(
                f"`{name}` and the criterion {needed_by!r} need each other, got "
                f"{'no' if value is None else 'some'} `{name}` with the criterion {criterion!r}."
            )
    if normalise and criterion in ("taylor", "random"):
        raise ValueError(f"`normalise` goes without the criterion {criterion!r}.")
    makers = _makers(weights, groups, gradients)
    kept = {} if keep is None else check_keep("keep", groups, keep)
    scores = {}
    for index, (group, size) in enumerate(groups.sizes.items()):
        there = np.isin(np.arange(size), kept.get(group, np.arange(size)))
        total: Any = np.zeros(size)
        if key is not None:
            total = jax.random.uniform(jax.random.fold_in(key, index), (size,))
        else:
            for filters, slopes, norm in makers[group]:
                total += _score(criterion, filters, slopes, there) / (norm if normalise else 1.0)
        scores[group] = np.where(there, np.asarray(total, np.float32), np.float32(0))
        if np.isnan(scores[group]).any():
            raise ValueError(f"The kernels of {group!r} or their `gradients` have NaN.")
    return scores


# Filters [size, weights of each], their gradients, and the l2 norm of the kernel they are from.
_Maker = tuple[np.ndarray, np.ndarray | None, float]


def _makers(
    weights: PyTree, groups: ChannelGroups, gradients: PyTree | None
) -> dict[str, list[_Maker]]:
    """The kernels that make each group."""
    leaves = dict(named_leaves(weights))
    slopes = {} if gradients is None else dict(named_leaves(gradients))
    found: dict[str, list[_Maker]] = {group: [] for group in groups}
    for path, entries in located(groups, weights).items():
        for on in entries:
            if not on.is_made:
                continue
            if slopes and np.shape(slopes.get(path, 0.0)) != np.shape(leaves[path]):
                raise ValueError("`gradients` must have the structure and shapes of `weights`.")
            # In float64, so that ties are those of the weights and not of rounding.
            kernel = np.asarray(leaves[path], np.float64)
            norm = max(float(np.linalg.norm(kernel)), np.finfo(np.float64).tiny)
            theirs = _filters(slopes[path], on.axis, on.indices) if slopes else None
            found[on.group].append((_filters(kernel, on.axis, on.indices), theirs, norm))
    return found


def _filters(kernel: Any, axis: int, indices: np.ndarray) -> np.ndarray:
    """Float64 [size, N]: the weights of each channel, those of all its places on the axis."""
    moved = np.moveaxis(np.asarray(kernel, np.float64), axis, 0)
    return moved[indices].reshape(len(indices), -1)


def _score(
    criterion: str, filters: np.ndarray, slopes: np.ndarray | None, there: np.ndarray
) -> np.ndarray:
    """[size], of filters [size, N]; `there` [size] says which of them have not been removed."""
    if criterion == "l1":
        return np.abs(filters).sum(1)
    if criterion == "l2":
        return np.linalg.norm(filters, axis=1)
    if criterion == "taylor":
        return np.abs(np.sum(filters * slopes, 1))
    squares = np.sum(filters**2, 1)
    distances = squares[:, None] + squares[None] - 2 * filters @ filters.T
    np.fill_diagonal(distances, 0.0)
    return np.sqrt(np.maximum(distances, 0.0))[:, there].sum(1)
