"""Locates channel groups on the arrays of a tree, and the channels that stay."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxrobust.pruning.channel_groups import ChannelGroups
from jaxrobust.pruning.masks import is_array, named_leaves
from jaxrobust.types import PyTree

Keep = Mapping[str, Sequence[int] | np.ndarray]


class On(NamedTuple):
    """A group on an axis of an array.

    Attributes:
      axis: The axis of the array.
      group: The name of the group.
      indices: int [size, repeat], the indices of each channel on that axis.
      is_made: Whether it is the output axis of a kernel.
    """

    axis: int
    group: str
    indices: np.ndarray
    is_made: bool


def located(groups: ChannelGroups, tree: PyTree) -> dict[str, list[On]]:
    """Locates the groups on the arrays of a tree, by path.

    Args:
      groups: The groups of the weights, or of variables whose "params" the tree is.
      tree: Weights, or masks with their structure.

    Raises:
      TypeError: `groups` is not a ChannelGroups.
      ValueError: The weights are of another network.
    """
    if not isinstance(groups, ChannelGroups):
        raise TypeError(
            "`groups` must be the ChannelGroups of the network, from `channel_groups(function, "
            f"weights, example)`, got {type(groups).__name__}."
        )
    shapes = {path: tuple(leaf.shape) for path, leaf in named_leaves(tree) if is_array(leaf)}
    prefix = "" if any(path in groups.shapes for path in shapes) else "params/"
    known = {path.removeprefix(prefix): shape for path, shape in groups.shapes.items()}
    for path, shape in shapes.items():
        if path not in known and not shape:
            continue  # of what is no array, masks have a single True
        if known.get(path) != shape:
            raise ValueError(
                f"`groups` must be of this network, which has shape {shape} at {path}, got groups of "
                f"one with {known.get(path, 'no array')}."
            )
    found: dict[str, list[On]] = {}
    for name, group in groups.items():
        for place in group.places:
            on = On(place.axis, name, place.indices, place.is_made)
            found.setdefault(place.path.removeprefix(prefix), []).append(on)
    return {path: entries for path, entries in found.items() if path in shapes}


def check_keep(name: str, groups: ChannelGroups, keep: Keep) -> dict[str, np.ndarray]:
    """Returns the kept channels of every group, ascending: all channels of groups that are not named.

    Raises:
      ValueError: A group is unknown; or its channels are out of range, repeated, or none.
    """
    unknown = [group for group in keep if group not in groups]
    if unknown:
        raise ValueError(
            f"`{name}` must name groups of the network, got {', '.join(map(repr, unknown))}; the "
            f"groups are {', '.join(map(repr, groups))}."
        )
    checked = {}
    for group, size in groups.sizes.items():
        kept = np.sort(np.asarray(keep.get(group, np.arange(size))))
        inside = (
            kept.ndim == 1
            and kept.size > 0
            and np.issubdtype(kept.dtype, np.integer)
            and kept[0] >= 0
            and kept[-1] < size
            and len(np.unique(kept)) == len(kept)
        )
        if not inside:
            raise ValueError(
                f"`{name}` must list at least one of the channels 0 .. {size - 1} of {group!r}, each "
                f"once, got {keep[group]!r}."
            )
        checked[group] = kept
    return checked


def stays(length: int, entries: Sequence[On], kept: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns which indices of an axis stay, bool [length]; `kept` has every group."""
    found = np.ones(length, bool)
    for on in entries:
        found[on.indices] = False
        found[on.indices[kept[on.group]]] = True
    return found
