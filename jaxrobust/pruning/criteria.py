"""What a filter is worth: its size, its distance from the others, or what the loss makes of it.

A channel's score is the sum over the kernels that make it, of every layer of its group: channels that
are added up, and those of a depthwise convolution, stay or go by one decision.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import checks
from jaxrobust.pruning import channels
from jaxrobust.pruning.masks import is_kernel, named_leaves
from jaxrobust.types import Array, ChannelSpec, Group, PyTree

CRITERIA = ("l1", "l2", "geometric_median", "taylor", "random")


def filter_scores(
    params: PyTree,
    spec: ChannelSpec,
    criterion: str = "l1",
    *,
    gradients: PyTree | None = None,
    key: Array | None = None,
    normalise: bool = False,
    keep: Mapping[Group, Any] | None = None,
) -> dict[Group, np.ndarray]:
    """What each channel is worth, on the host.

    With w the weights of one filter (a kernel's, for one channel of its last axis) and F_j the other
    filters of its kernel:

        l1                sum |w|
        l2                sqrt(sum w^2)
        geometric_median  sum_j ||w - F_j||_2, small for a filter that the others can stand in for
        taylor            |sum w g|, how much the loss changes to first order without the filter; g
                          are `gradients`
        random            uniform in [0, 1): what a criterion has to beat

    Args:
      params: Nested dicts of arrays, or whole variables.
      spec: {(collection, path, axis): ((group, size, repeat), ...)}.
      criterion: One of `CRITERIA`.
      gradients: Of a loss by the parameters, of their structure; for "taylor".
      key: A PRNG key; for "random".
      normalise: Whether each kernel is first divided by its l2 norm, so that layers compare under one
        budget for all. Only for l1, l2 and geometric_median; the others compare as they are.
      keep: {group: channels kept} of an earlier pruning. Those that it removed score 0 and are no F_j:
        a filter of zeros stands in for none. None: all channels are there.

    Returns:
      {group: float32 [size]}, in the order of the spec; higher is worth more.

    Raises:
      ValueError: An unknown criterion or one without what it needs; a group that no kernel makes; a
        spec that does not fit; NaN weights or gradients.

    Example:
      >>> params = {"kernel": jnp.array([[1.0, -3.0], [2.0, 0.0]])}
      >>> spec = {("params", "kernel", 1): (("width", 2, 1),)}
      >>> filter_scores(params, spec)["width"].tolist()
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
    makers = _makers(params, spec, gradients)
    kept = {} if keep is None else channels.check_keep("keep", spec, keep)
    scores = {}
    for index, (group, size) in enumerate(channels.group_sizes(spec).items()):
        if group not in makers:
            raise ValueError(
                f"No kernel makes {group!r}: `spec` has it on the last axis of no parameter of two "
                "dimensions or more that is called 'kernel'."
            )
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
    params: PyTree, spec: ChannelSpec, gradients: PyTree | None
) -> dict[Group, list[_Maker]]:
    """The kernels that make each group: those that have it on their last axis."""
    of_params = channels.of_params(spec)
    channels.check_axes(of_params, channels.as_variables(params))
    weights = _parameters(params)
    slopes = {} if gradients is None else _parameters(gradients)
    if slopes and _shapes(slopes) != _shapes(weights):
        raise ValueError("`gradients` must have the structure and shapes of `params`.")
    found: dict[Group, list[_Maker]] = {}
    for (_, path, axis), segments in of_params.items():
        kernel = weights[path]
        if not is_kernel(path, kernel) or axis != jnp.ndim(kernel) - 1:
            continue
        # In float64, so that ties are those of the weights and not of rounding.
        filters = _filters(kernel)
        sloping = _filters(slopes[path]) if slopes else None
        norm = max(float(np.linalg.norm(filters)), np.finfo(np.float64).tiny)
        for group, positions in channels.spans(segments):
            if group is not None:
                theirs = None if sloping is None else _of_channels(sloping, positions)
                maker = (_of_channels(filters, positions), theirs, norm)
                found.setdefault(group, []).append(maker)
    return found


def _shapes(leaves: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {path: jnp.shape(leaf) for path, leaf in leaves.items()}


def _filters(kernel: Any) -> np.ndarray:
    """[..., C_out] -> float64 [C_out, N]."""
    return np.asarray(kernel, np.float64).reshape(-1, np.shape(kernel)[-1]).T


def _of_channels(filters: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The filters of a segment [size, N], joined where a channel has several places on the axis."""
    return filters[positions].swapaxes(0, 1).reshape(positions.shape[1], -1)


def _parameters(tree: PyTree) -> dict[str, Any]:
    return dict(named_leaves(channels.as_variables(tree)["params"]))


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
