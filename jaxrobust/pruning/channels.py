"""Channel specs: which axes of which arrays the channels of a network are on, and checks of that.

`jaxrobust.types.ChannelSpec` says how a spec is written. `jaxrobust.models.channel_spec` has those of
the library's networks; docs/pruning.md shows how to write one for a module of one's own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrobust.pruning.masks import named_leaves
from jaxrobust.types import ChannelSpec, Group, PyTree

Segments = Sequence[tuple[Group | None, int, int]]
Axes = list[tuple[int, Segments]]


def group_sizes(spec: ChannelSpec) -> dict[Group, int]:
    """How many channels each group has, in the order in which the spec names the groups.

    Args:
      spec: {(collection, path, axis): ((group, size, repeat), ...)}.

    Raises:
      ValueError: A group with two sizes, a size or repeat below 1.

    Example:
      >>> group_sizes({("params", "stem/kernel", 3): (("stem_width", 16, 1),)})
      {'stem_width': 16}
    """
    sizes: dict[Group, int] = {}
    for entry, segments in spec.items():
        if not all(isinstance(segment, Sequence) and len(segment) == 3 for segment in segments):
            raise ValueError(
                f"`spec` must have a tuple of segments (group, size, repeat) on {_named(entry)}, "
                f"((group, size, repeat),) where it is one, got {segments!r}."
            )
        for group, size, repeat in segments:
            if min(size, repeat) < 1:
                raise ValueError(
                    f"`spec` must have sizes and repeats of at least 1, got {(group, size, repeat)} on "
                    f"{_named(entry)}."
                )
            if group is not None and sizes.setdefault(group, size) != size:
                raise ValueError(
                    f"`spec` gives {group!r} {sizes[group]} channels, and {size} on {_named(entry)}."
                )
    return sizes


def check_spec(spec: ChannelSpec, shapes_of: Callable[..., PyTree]) -> None:
    """Raises unless the spec names exactly the axes that the network's widths change.

    Every width is raised by one in turn; nothing is computed. Once, after writing a spec: what it
    leaves out, `shrink` would leave as large as it is.

    Args:
      spec: {(collection, path, axis): ((group, size, repeat), ...)}.
      shapes_of: Constructor fields, named as the groups are -> the network's variables, or their
        shapes: `lambda **widths: jax.eval_shape(Network(**widths).init, key, images)`.

    Raises:
      ValueError: The spec is wrong; the message names the axis or the array.

    Example:
      >>> spec = {("params", "kernel", 1): (("width", 3, 1),)}
      >>> check_spec(spec, lambda width: {"params": {"kernel": jnp.ones((4, width))}})
      >>> check_spec(spec, lambda width: {"params": {"kernel": jnp.ones((width, width))}})
      Traceback (most recent call last):
        ...
      ValueError: Raising 'width' by one changes axis 0 of params/kernel by 1, `spec` says by 0.
    """
    sizes = group_sizes(spec)
    widths = widths_of(sizes)
    try:
        before = shapes_of(**widths)
    except Exception as error:  # of a network of which nothing is known
        raise ValueError(
            f"The network cannot be built with {widths}, which `spec` says it has; groups are called "
            "after fields of its constructor."
        ) from error
    check_axes(spec, before)
    shapes = {path: np.shape(leaf) for path, leaf in named_leaves(before)}
    for group in sizes:
        wider = sizes | {group: sizes[group] + 1}
        try:
            after = shapes_of(**widths_of(wider))
        except Exception as error:
            raise ValueError(
                f"With {group!r} raised by one to {wider[group]} the network cannot be built; channels "
                "that are added up share one group and one field."
            ) from error
        raised = {path: np.shape(leaf) for path, leaf in named_leaves(after)}
        if raised.keys() != shapes.keys():
            path = min(raised.keys() ^ shapes.keys())
            raise ValueError(
                f"Raising {group!r} by one {'adds' if path in raised else 'removes'} {path}: which "
                "arrays there are must not depend on widths."
            )
        _check_changes(spec, group, shapes, raised)


def _check_changes(
    spec: ChannelSpec,
    group: Group,
    before: Mapping[str, tuple[int, ...]],
    after: Mapping[str, tuple[int, ...]],
) -> None:
    for path, shape in before.items():
        if len(shape) != len(after[path]):
            raise ValueError(f"Raising {group!r} by one changes how many axes {path} has.")
        collection, _, name = path.partition("/")
        for axis, (old, new) in enumerate(zip(shape, after[path], strict=True)):
            segments = spec.get((collection, name, axis), ())
            declared = sum(repeat for segment, _, repeat in segments if segment == group)
            if new - old != declared:
                raise ValueError(
                    f"Raising {group!r} by one changes axis {axis} of {path} by {new - old}, `spec` "
                    f"says by {declared}."
                )


def check_axes(spec: ChannelSpec, variables: PyTree) -> None:
    """Raises unless every axis that the spec names is there and as long as it says."""
    group_sizes(spec)
    shapes = {path: jnp.shape(leaf) for path, leaf in named_leaves(variables)}
    for entry, segments in spec.items():
        collection, path, axis = entry
        shape = shapes.get(f"{collection}/{path}")
        if shape is None or not 0 <= axis < len(shape):
            raise ValueError(
                f"`spec` names {_named(entry)}, which the variables do not have; "
                + (f"it is of shape {shape}." if shape else f"they have {', '.join(shapes)}.")
            )
        length = sum(size * repeat for _, size, repeat in segments)
        if length != shape[axis]:
            raise ValueError(
                f"`spec` has {length} channels on {_named(entry)}, which is {shape[axis]} long."
            )


def of_params(spec: ChannelSpec) -> ChannelSpec:
    """What the spec says of the parameters alone."""
    return {entry: segments for entry, segments in spec.items() if entry[0] == "params"}


def as_variables(tree: PyTree) -> PyTree:
    """The tree itself where it is whole variables, {"params": tree} where it is parameters."""
    return tree if isinstance(tree, Mapping) and "params" in tree else {"params": tree}


def axes_by_path(spec: ChannelSpec) -> dict[str, Axes]:
    """The axes of each array by its path within the variables, "params/stem/kernel"."""
    found: dict[str, Axes] = {}
    for (collection, path, axis), segments in spec.items():
        found.setdefault(f"{collection}/{path}", []).append((axis, segments))
    return found


def spans(segments: Segments) -> Iterator[tuple[Group | None, np.ndarray]]:
    """(group, positions int [repeat, size] on the axis) of each segment."""
    start = 0
    for group, size, repeat in segments:
        yield group, start + np.arange(repeat * size).reshape(repeat, size)
        start += repeat * size


def kept_positions(segments: Segments, keep: Mapping[Group, np.ndarray]) -> np.ndarray:
    """The positions on an axis that stay, ascending; `keep` has every group."""
    kept = [
        positions if group is None else positions[:, keep[group]]
        for group, positions in spans(segments)
    ]
    return np.concatenate([positions.ravel() for positions in kept])


def check_keep(
    name: str, spec: ChannelSpec, keep: Mapping[Group, Sequence[int] | np.ndarray]
) -> dict[Group, np.ndarray]:
    """The channels kept of every group, ascending: of groups that are not named, all.

    Raises:
      ValueError: Unknown groups; channels out of range, twice, or none at all.
    """
    sizes = group_sizes(spec)
    unknown = [group for group in keep if group not in sizes]
    if unknown:
        raise ValueError(
            f"`{name}` names {', '.join(map(repr, unknown))}; the groups are "
            f"{', '.join(map(repr, sizes))}."
        )
    checked = {}
    for group, size in sizes.items():
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


def widths_of(sizes: Mapping[Group, int]) -> dict[str, Any]:
    """Constructor fields from the sizes of the groups that are called after them.

    Raises:
      ValueError: A field of which the spec has some entries and not others.
    """
    widths: dict[str, Any] = {}
    for group, size in sizes.items():
        if isinstance(group, str):
            widths[group] = size
        else:
            widths.setdefault(group[0], {})[group[1]] = size
    for field, entries in widths.items():
        if isinstance(entries, dict):
            missing = set(range(len(entries))) - set(entries)
            if missing:
                raise ValueError(
                    f"`spec` has {len(entries)} entries of {field!r} but not the one of index "
                    f"{min(missing)}: it must have all, those that are not to be pruned too."
                )
            widths[field] = tuple(entries[index] for index in range(len(entries)))
    return widths


def _named(entry: tuple[str, str, int]) -> str:
    return f"axis {entry[2]} of {entry[0]}/{entry[1]}"
