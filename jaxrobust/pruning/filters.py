"""Filter pruning: removes the channels with the lowest scores, under an exact budget.

Filters that must be removed together are one channel of a group (see `channel_groups`). `sparsity` is
the fraction of the channels to remove: exactly round(sparsity * n) of n channels. Among equal scores
those with lower indices are removed first.

References:
  Li, Kadav, Durdanovic, Samet, Graf, "Pruning Filters for Efficient ConvNets", ICLR 2017,
  https://arxiv.org/abs/1608.08710
"""

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from jaxrobust import checks
from jaxrobust.pruning.channel_groups import ChannelGroups
from jaxrobust.pruning.criteria import Criterion, chosen, filter_scores
from jaxrobust.pruning.masks import check_sparsity
from jaxrobust.pruning.placing import Keep
from jaxrobust.pruning.shrinking import filter_masks, kept_filters
from jaxrobust.types import Masks, PyTree

SCOPES = ("layer", "global")

Scores = Mapping[str, Any]


def keep_filters(
    scores: Scores,
    sparsity: float | Mapping[str, float],
    *,
    scope: str = "layer",
    min_filters: int = 8,
    multiple_of: int = 1,
    exclude: Collection[str] = (),
    previous: Keep | None = None,
) -> dict[str, np.ndarray]:
    """Selects the channels to keep when those with the lowest scores are removed.

    Args:
      scores: {group: scores [size]}, from `filter_scores` or any other source.
      sparsity: The fraction of the channels to remove, in [0, 1); or, for "layer", {group: fraction},
        which leaves the other groups unpruned.
      scope: "layer" removes this fraction of every group, "global" of all groups together.
      min_filters: The smallest number of channels to keep in every group (or all, if it has fewer), at
        least 1.
      multiple_of: Every group keeps a multiple of this number, or all channels. The number to keep is
        rounded up, so that somewhat less is removed than `sparsity`.
      exclude: Groups that are not pruned. With "global", their channels still count in `sparsity`.
      previous: {group: kept channels} of an earlier pruning. What it removed stays removed, and counts
        towards `sparsity`.

    Returns:
      {group: int indices of the channels to keep, ascending}.

    Raises:
      TypeError: A sparsity is not a number.
      ValueError: A value is out of range; a group or the scope is unknown; scores are NaN;
        `min_filters` or `exclude` make the global sparsity impossible; or `previous` removed more.

    Example:
      >>> keep = keep_filters({"width": [3.0, 1.0, 2.0, 1.0]}, 0.5, min_filters=1)
      >>> keep["width"].tolist()
      [0, 2]
    """
    checks.one_of("scope", scope, SCOPES)
    checks.integer("min_filters", min_filters, minimum=1)
    checks.integer("multiple_of", multiple_of, minimum=1)
    # All is checked first: the scores, and every group that is named.
    values = {group: np.asarray(score, np.float32) for group, score in scores.items()}
    for group, score in values.items():
        if score.ndim != 1 or np.isnan(score).any():
            raise ValueError(f"`scores` must be [size], without NaN, got {score} for {group!r}.")
    _check_groups("exclude", exclude, values)
    gone = {group: np.zeros(len(score), bool) for group, score in values.items()}
    if previous is not None:
        _check_groups("previous", previous, values)
        for group, kept in previous.items():
            gone[group] = ~np.isin(np.arange(len(gone[group])), kept)

    # How many a group keeps, when its floor and multiple have their say.
    def allowed(size: int, kept: int) -> int:
        kept = max(kept, min_filters)
        return min(size, math.ceil(kept / multiple_of) * multiple_of)

    # Those that have gone already come first; of equal scores those with the lower index.
    sizes = {group: len(score) for group, score in values.items()}
    orders = {group: np.lexsort((score, ~gone[group])) for group, score in values.items()}
    if scope == "layer":
        counts = _counts_by_layer(sizes, sparsity, exclude)
    else:
        most = {
            group: 0 if group in exclude else size - allowed(size, 1)
            for group, size in sizes.items()
        }
        counts = _counts_together(values, gone, orders, most, sparsity)
    # What is rounded is what each group keeps, after its count is known.
    keep = {}
    for group, size in sizes.items():
        count = size - allowed(size, size - counts[group])
        if gone[group].sum() > count:
            raise ValueError(
                f"`sparsity` removes {count} of the {size} channels of {group!r}, but `previous` has "
                f"removed {gone[group].sum()}: a removed channel cannot be restored."
            )
        keep[group] = np.sort(orders[group][count:])
    return keep


def prune_filters(
    weights: PyTree,
    sparsity: float | Mapping[str, float],
    groups: ChannelGroups,
    *,
    masks: Masks | None = None,
    criterion: str | Criterion = "l1",
    scope: str = "layer",
    min_filters: int = 8,
    multiple_of: int = 1,
) -> Masks:
    """Scores the channels of a network, and returns masks that remove those with the lowest scores.

    It calls `filter_scores`, `keep_filters` and `filter_masks`. Call these yourself for criteria that
    need gradients or a key, for normalised scores, or to exclude groups.

    Args:
      weights: The weights for which the groups were found, or only the "params" of linen variables.
      sparsity: The fraction of the channels to remove, in [0, 1); or, for "layer", {group: fraction}.
      groups: The result of `channel_groups`.
      masks: Masks of an earlier pruning by this function. What they remove stays removed, and counts
        towards `sparsity`.
      criterion: A name in `CRITERIA` or a `Criterion` that needs neither gradients nor a key.
      scope: "layer" removes the fraction from every group, "global" from all groups together.
      min_filters: The smallest number of channels to keep in every group (or all, if it has fewer).
      multiple_of: Every group keeps a multiple of this number, or all channels.

    Returns:
      Masks with the structure of `weights`. `kept_filters(masks, groups)` returns the channels that are
      left. To prune filters with `iterative`, pass `functools.partial(prune_filters, groups=groups)` as
      its `prune`.

    Raises:
      TypeError, ValueError: `filter_scores` or `keep_filters` raises it.
    """
    if (needs := chosen(criterion).needs) is not None:
        raise ValueError(
            f"`criterion` must need nothing besides the weights, got one that needs `{needs}`: call "
            f"filter_scores(..., {needs}=...), keep_filters and filter_masks one after the other."
        )
    previous = None if masks is None else kept_filters(masks, groups)
    scores = filter_scores(weights, groups, criterion, keep=previous)
    keep = keep_filters(
        scores,
        sparsity,
        scope=scope,
        min_filters=min_filters,
        multiple_of=multiple_of,
        previous=previous,
    )
    return filter_masks(weights, groups, keep)


def _check_groups(name: str, groups: Collection[Any], known: Mapping[str, Any]) -> None:
    if isinstance(groups, str):
        raise TypeError(f"`{name}` must be a sequence of groups, got {groups!r}.")
    unknown = [group for group in groups if group not in known]
    if unknown:
        raise ValueError(
            f"`{name}` must name groups of the network, got {', '.join(map(repr, unknown))}; the "
            f"groups are {', '.join(map(repr, known))}."
        )


def _counts_by_layer(
    sizes: Mapping[str, int], sparsity: float | Mapping[str, float], exclude: Collection[str]
) -> dict[str, int]:
    """Returns the number of channels to remove from each group, before rounding."""
    if isinstance(sparsity, Mapping):
        _check_groups("sparsity", sparsity, sizes)
        named = {g: check_sparsity(f"sparsity[{g!r}]", value) for g, value in sparsity.items()}
    else:
        named = dict.fromkeys(sizes, check_sparsity("sparsity", sparsity))
    return {
        group: 0 if group in exclude else round(named.get(group, 0.0) * size)
        for group, size in sizes.items()
    }


def _counts_together(
    values: Mapping[str, np.ndarray],
    gone: Mapping[str, np.ndarray],
    orders: Mapping[str, np.ndarray],
    most: Mapping[str, int],
    sparsity: float | Mapping[str, float],
) -> dict[str, int]:
    """Returns the number of channels to remove from each group when all groups compete."""
    if isinstance(sparsity, Mapping):
        raise ValueError("`sparsity` must be a number with `scope='global'`, got a mapping.")
    total = sum(map(len, values.values()))
    count = round(check_sparsity("sparsity", sparsity) * total)
    reachable = sum(most.values())
    if count > reachable:
        raise ValueError(
            f"`sparsity` must be at most {reachable / total}, got {sparsity}: `min_filters`, "
            f"`multiple_of` and `exclude` keep {total - reachable} of the {total} channels."
        )
    groups = np.repeat(np.arange(len(values)), [most[group] for group in values])
    first = [orders[group][: most[group]] for group in values]
    score = np.concatenate([values[g][places] for g, places in zip(values, first, strict=True)])
    alive = np.concatenate([~gone[g][places] for g, places in zip(values, first, strict=True)])
    lowest = np.lexsort((score, alive))[:count]
    removed = np.bincount(groups[lowest], minlength=len(values))
    return dict(zip(values, map(int, removed), strict=True))
