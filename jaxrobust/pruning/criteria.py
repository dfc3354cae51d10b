"""Criteria that score filters: by their size, their distance from others, or their effect on the loss.

The score of a channel is the sum over the kernels that make it, in all layers of its group: channels
that are added, and those of a depthwise convolution, are kept or removed together. A criterion is a
function and a row of `CRITERIA`; `filter_scores` also takes a `Criterion` that is not in the table.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrobust import checks
from jaxrobust.pruning.channel_groups import ChannelGroups
from jaxrobust.pruning.masks import named_leaves
from jaxrobust.pruning.placing import Keep, On, check_keep, located
from jaxrobust.types import Array, PyTree


class Filters(NamedTuple):
    """The filters of one kernel, in float64, so that rounding makes no ties.

    Attributes:
      weights: [size, N], the weights of each channel that the kernel makes.
      slopes: [size, N], the gradients with respect to the weights; None without gradients.
      norm: The number by which the scores are divided: the l2 norm of the kernel, or 1.
      there: bool [size], False for channels that have already been removed.
    """

    weights: np.ndarray
    slopes: np.ndarray | None
    norm: float
    there: np.ndarray


class Makers(NamedTuple):
    """The kernels that make the channels of one group.

    Attributes:
      size: The number of channels.
      kernels: The filters of each kernel that makes them.
      key: A PRNG key for the group; None if `filter_scores` was given no key.
    """

    size: int
    kernels: tuple[Filters, ...]
    key: Array | None


@dataclasses.dataclass(frozen=True)
class Criterion:
    """A criterion that scores the channels of a group.

    Attributes:
      score: A function from `Makers` to scores [size], of which the lowest are pruned first. `summed`
        makes it from a function of one kernel.
      needs: "gradients" or "key" if `filter_scores` must be given these; None: neither.
      normalises: Whether scores of a kernel can be divided by the l2 norm of the kernel.

    Example:
      >>> largest = Criterion(summed(lambda filters: np.abs(filters.weights).max(1)))
    """

    score: Callable[[Makers], Any]
    needs: str | None = None
    normalises: bool = True

    def __post_init__(self) -> None:
        if not callable(self.score):
            raise TypeError(f"`score` must be a function of Makers, got {self.score!r}.")
        checks.one_of("needs", self.needs, (None, "gradients", "key"))


def summed(function: Callable[[Filters], np.ndarray]) -> Callable[[Makers], np.ndarray]:
    """Makes a score that sums a function over the kernels of a group, each divided by its `norm`.

    Args:
      function: A function from the `Filters` of one kernel to scores [size].
    """

    @functools.wraps(function)  # so that its source and its name are found
    def score(makers: Makers) -> np.ndarray:
        total = np.zeros(makers.size)
        for filters in makers.kernels:
            total += function(filters) / filters.norm
        return total

    return score


def l1(filters: Filters) -> np.ndarray:
    """Scores a filter by sum |w|.

    References:
      Li, Kadav, Durdanovic, Samet, Graf, "Pruning Filters for Efficient ConvNets", ICLR 2017,
      https://arxiv.org/abs/1608.08710
    """
    return np.abs(filters.weights).sum(1)


def l2(filters: Filters) -> np.ndarray:
    """Scores a filter by the square root of sum w^2."""
    return np.linalg.norm(filters.weights, axis=1)


def geometric_median(filters: Filters) -> np.ndarray:
    """Scores a filter by sum ||w - F_j||_2 over the other filters F_j, which can replace it if small.

    References:
      He, Liu, Wang, Hu, Yang, "Filter Pruning via Geometric Median for Deep Neural Networks
      Acceleration", CVPR 2019, equation 4, https://arxiv.org/abs/1811.00250
    """
    weights = filters.weights
    squares = np.sum(weights**2, 1)
    distances = squares[:, None] + squares[None] - 2 * weights @ weights.T
    np.fill_diagonal(distances, 0.0)
    # A filter of zeros, which was removed, stands in for none.
    return np.sqrt(np.maximum(distances, 0.0))[:, filters.there].sum(1)


def taylor(filters: Filters) -> np.ndarray:
    """Scores a filter by |sum w g|, with gradients g: the first-order change of the loss without it.

    References:
      Molchanov, Mallya, Tyree, Frosio, Kautz, "Importance Estimation for Neural Network Pruning", CVPR
      2019, https://arxiv.org/abs/1906.10771 (the first-order importance of a group of weights is the
      square of sum w g; its root has the same order and adds up over layers)
    """
    assert filters.slopes is not None  # which `needs` says
    return np.abs(np.sum(filters.weights * filters.slopes, 1))


def uniform(makers: Makers) -> Array:
    """Scores each channel by a uniform random number in [0, 1), as a baseline for other criteria."""
    assert makers.key is not None  # which `needs` says
    return jax.random.uniform(makers.key, (makers.size,))


CRITERIA: dict[str, Criterion] = {
    "l1": Criterion(summed(l1)),
    "l2": Criterion(summed(l2)),
    "geometric_median": Criterion(summed(geometric_median)),
    "taylor": Criterion(summed(taylor), needs="gradients", normalises=False),
    "random": Criterion(uniform, needs="key", normalises=False),
}
"""The criteria that have a name, which `filter_scores` and `prune_filters` take in their place."""


def filter_scores(
    weights: PyTree,
    groups: ChannelGroups,
    criterion: str | Criterion = "l1",
    *,
    gradients: PyTree | None = None,
    key: Array | None = None,
    normalise: bool = False,
    keep: Keep | None = None,
) -> dict[str, np.ndarray]:
    """Scores every channel of a network; those with the lowest scores are pruned first.

    Args:
      weights: The weights for which the groups were found, or only the "params" of linen variables.
      groups: The result of `channel_groups`.
      criterion: A name in `CRITERIA`, "l1", "l2", "geometric_median", "taylor" or "random", or a
        `Criterion`.
      gradients: The gradients of a loss with respect to the weights, with their structure, which
        "taylor" needs. For whole variables, {"params": ...} is enough.
      key: A PRNG key, which "random" needs. Each group folds it with its position among the groups.
      normalise: Whether each kernel is first divided by its l2 norm, so that the scores of different
        layers can be compared under a global budget. Only for l1, l2 and geometric_median.
      keep: {group: kept channels} of an earlier pruning. Removed channels score 0 and are not compared
        with others. None: no channel has been removed.

    Returns:
      {group: float32 [size]}, on the host.

    Raises:
      TypeError: `groups` is not a ChannelGroups, or `criterion` is neither a name nor a `Criterion`.
      ValueError: The criterion is unknown, lacks its gradients or key, or returns scores of another
        shape; the groups are of another network; or weights or gradients are NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxrobust.pruning import channel_groups
      >>> kernel = jnp.array([[1.0, -3.0], [2.0, 0.0]])
      >>> weights = {"a": {"kernel": kernel}, "b": {"kernel": jnp.ones((2, 2))}}
      >>> logits = lambda weights, x: x.mean((1, 2)) @ weights["a"]["kernel"] @ weights["b"]["kernel"]
      >>> groups = channel_groups(logits, weights, jnp.ones((1, 4, 4, 2)))
      >>> filter_scores(weights, groups)["a"].tolist()
      [3.0, 3.0]
    """
    rule = chosen(criterion)
    said = repr(criterion) if isinstance(criterion, str) else "of your own"
    for name, value in (("gradients", gradients), ("key", key)):
        if (value is None) == (rule.needs == name):
            which = "needs" if value is None else "takes no"
            raise ValueError(f"`criterion` {said} {which} `{name}`.")
    if normalise and not rule.normalises:
        raise ValueError(f"`normalise` must be False for the criterion {said}.")
    where = located(groups, weights)
    # What was removed scores 0, whatever its weights are.
    kept = {} if keep is None else check_keep("keep", groups, keep)
    there = {
        group: np.isin(np.arange(size), kept.get(group, np.arange(size)))
        for group, size in groups.sizes.items()
    }
    kernels = _kernels(weights, where, gradients, there, normalise)
    scores = {}
    for index, (group, size) in enumerate(groups.sizes.items()):
        own = None if key is None else jax.random.fold_in(key, index)
        found = np.asarray(rule.score(Makers(size, tuple(kernels[group]), own)), np.float32)
        if found.shape != (size,):
            raise ValueError(
                f"`criterion` must return one score for each of the {size} channels of {group!r}, got "
                f"shape {found.shape}."
            )
        scores[group] = np.where(there[group], found, np.float32(0))
        if np.isnan(scores[group]).any():
            read = [
                part for f in kernels[group] for part in (f.weights, f.slopes) if part is not None
            ]
            if any(np.isnan(part).any() for part in read):
                raise ValueError(
                    f"`weights` and `gradients` must not have NaN, got one in the kernels of {group!r}."
                )
            raise ValueError(f"The scores of the criterion {said} have NaN for {group!r}.")
    return scores


def chosen(criterion: str | Criterion) -> Criterion:
    """The criterion of a name, or the one that is given."""
    if isinstance(criterion, Criterion):
        return criterion
    if not isinstance(criterion, str):
        raise TypeError(f"`criterion` must be a name or a Criterion, got {criterion!r}.")
    checks.one_of("criterion", criterion, tuple(CRITERIA))
    return CRITERIA[criterion]


def _kernels(
    weights: PyTree,
    where: dict[str, list[On]],
    gradients: PyTree | None,
    there: dict[str, np.ndarray],
    normalise: bool,
) -> dict[str, list[Filters]]:
    """Returns the kernels that make each group."""
    leaves = dict(named_leaves(weights))
    slopes = {} if gradients is None else dict(named_leaves(gradients))
    found: dict[str, list[Filters]] = {group: [] for group in there}
    for path, entries in where.items():
        for on in entries:
            if not on.is_made:
                continue
            if slopes and np.shape(slopes.get(path, 0.0)) != np.shape(leaves[path]):
                raise ValueError("`gradients` must have the structure and shapes of `weights`.")
            kernel = np.asarray(leaves[path], np.float64)
            norm = max(float(np.linalg.norm(kernel)), np.finfo(np.float64).tiny)
            theirs = _filters(slopes[path], on.axis, on.indices) if slopes else None
            own = _filters(kernel, on.axis, on.indices)
            filters = Filters(own, theirs, norm if normalise else 1.0, there[on.group])
            found[on.group].append(filters)
    return found


def _filters(kernel: Any, axis: int, indices: np.ndarray) -> np.ndarray:
    """Returns float64 [size, N]: the weights of each channel, at all its indices on the axis."""
    moved = np.moveaxis(np.asarray(kernel, np.float64), axis, 0)
    return moved[indices].reshape(len(indices), -1)
