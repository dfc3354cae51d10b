"""Which filters go: whole channels, those with the lowest scores, under an exact budget.

What must stay or go together is one channel of a group (`channel_groups` finds them). `sparsity` is
the fraction of the channels that is removed; n channels lose exactly round(sparsity * n), of equal
scores those that come first.

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
    """The channels to keep when those with the lowest scores go.

    Args:
      scores: {group: [size]}, higher is worth more; of `filter_scores`, or any other.
      sparsity: The fraction of the channels to remove, in [0, 1); or, for "layer", {group: fraction},
        which leaves other groups as they are.
      scope: "layer" removes this fraction of every group, "global" of all groups together.
      min_filters: Of every group at least so many are kept, or all that it has.
      multiple_of: Every group keeps a multiple of this, or all: what it would keep is rounded up, so
        somewhat less is removed than asked for.
      exclude: Groups to keep whole. With "global", `sparsity` is of all channels all the same.
      previous: {group: channels kept} of an earlier pruning; what it removed stays removed, and counts.

    Returns:
      {group: int indices, ascending}.

    Raises:
      TypeError: A sparsity that is no number.
      ValueError: Out of range, unknown groups or scope, NaN scores; a global sparsity that
        `min_filters` or `exclude` keep out of reach; `previous` that removed more.

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
            raise ValueError(f"`scores` must be [size] without NaN, got {score} for {group!r}.")
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
                f"`previous` has removed {gone[group].sum()} of the {size} channels of {group!r}, and "
                f"{count} are to be removed: a removed channel is not revived."
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
    """Removes the channels with the lowest scores: scores, channels to keep and masks in one call.

    For scores that need gradients or a key, or that are normalised, and for groups to exclude, call the
    three: `filter_scores`, `keep_filters` and `filter_masks`.

    Args:
      weights: What the groups were found for, or of linen variables the "params" alone.
      sparsity: As `keep_filters`.
      groups: Of `channel_groups`.
      masks: Of an earlier pruning by this function: what they remove stays removed, and counts.
      criterion: As `filter_scores`, one that needs nothing besides.
      scope: As `keep_filters`, like the next two.
      min_filters: Of every group at least so many are kept, or all that it has.
      multiple_of: Every group keeps a multiple of this, or all.

    Returns:
      Masks, of the structure of `weights`. `kept_filters(masks, groups)` says which channels are left;
      with `functools.partial(prune_filters, groups=groups)` as its `prune`, `iterative` prunes filters.

    Raises:
      TypeError, ValueError: As `filter_scores` and `keep_filters`.
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
            f"`{name}` names {', '.join(map(repr, unknown))}; the groups are "
            f"{', '.join(map(repr, known))}."
        )


def _counts_by_layer(
    sizes: Mapping[str, int], sparsity: float | Mapping[str, float], exclude: Collection[str]
) -> dict[str, int]:
    """How many channels go of each group, before anything is rounded."""
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
    """How many channels go of each group when those of all groups compete."""
    if isinstance(sparsity, Mapping):
        raise ValueError("A mapping as `sparsity` goes with `scope='layer'`.")
    total = sum(map(len, values.values()))
    count = round(check_sparsity("sparsity", sparsity) * total)
    reachable = sum(most.values())
    if count > reachable:
        raise ValueError(
            f"`sparsity` {sparsity} cannot be reached: `min_filters`, `multiple_of` and `exclude` keep "
            f"{total - reachable} of the {total} channels; the largest reachable is "
            f"{reachable / total}."
        )
    groups = np.repeat(np.arange(len(values)), [most[group] for group in values])
    first = [orders[group][: most[group]] for group in values]
    score = np.concatenate([values[g][places] for g, places in zip(values, first, strict=True)])
    alive = np.concatenate([~gone[g][places] for g, places in zip(values, first, strict=True)])
    lowest = np.lexsort((score, alive))[:count]
    removed = np.bincount(groups[lowest], minlength=len(values))
    return dict(zip(values, map(int, removed), strict=True))
