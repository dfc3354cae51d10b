"""Groups of channels: which indices of which weights must be removed together.

They are found by evaluating the program of a network on labels instead of numbers (`labels.py`,
`label_rules.py`). Channels that are added, multiplied or read together are tied, so that residual sums,
concatenations, depthwise and grouped convolutions, flattens and attention heads need no specification.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrobust import compilation, programs
from jaxrobust.pruning.label_reader import Reader
from jaxrobust.pruning.labels import Labelled, Units, along_axis, fixed_value
from jaxrobust.pruning.masks import Kernel, is_array, named_leaves
from jaxrobust.types import PyTree


class Place(NamedTuple):
    """The indices of the channels of a group on one axis of one weight.

    Attributes:
      path: The path of the weight, such as "params/stem/conv/kernel".
      axis: The axis of the weight.
      indices: int [size, repeat], the indices of each channel; after a flatten, a channel has one for
        each position.
      is_made: Whether it is the output axis of a kernel, which makes the channels.
    """

    path: str
    axis: int
    indices: np.ndarray
    is_made: bool


class ChannelGroup(NamedTuple):
    """Channels that can be removed independently, each at all its places at once.

    Attributes:
      size: The number of channels. For grouped convolutions a "channel" is one channel of every group,
        for attention it is a head.
      places: All axes on which the channels are.
      coupled: What is computed from all of them together, for example the mean of LayerNorm. It differs
        between masked channels, which still count, and removed ones. "" if there is no such operation.
    """

    size: int
    places: tuple[Place, ...]
    coupled: str


class ChannelGroups(Mapping[str, ChannelGroup]):
    """The channel groups of a network by name; `print` shows them as a table.

    A group has the name of the first layer that makes its channels.

    Attributes:
      kernels: The kernels, in the order in which the program uses them.
      shapes: The shapes of all weights, by path.
      refused: The reason why an axis of a kernel has no channels that can be pruned, by (path, axis).
      function: The function that was read, (weights, images) -> logits.
      images: The shape and type of the images with which it was read.
    """

    def __init__(
        self,
        groups: Mapping[str, ChannelGroup],
        kernels: Sequence[Kernel],
        shapes: Mapping[str, tuple[int, ...]],
        refused: Mapping[tuple[str, int], str],
        function: Callable[[PyTree, Any], Any],
        images: jax.ShapeDtypeStruct,
    ) -> None:
        self.function, self.images = function, images
        self._groups, self.kernels = dict(groups), tuple(kernels)
        self.shapes, self.refused = dict(shapes), dict(refused)

    def __getitem__(self, name: str) -> ChannelGroup:
        return self._groups[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)

    def __repr__(self) -> str:
        return f"ChannelGroups({', '.join(f'{name}: {one.size}' for name, one in self.items())})"

    def __str__(self) -> str:
        lines = []
        for name, group in self.items():
            made = [place for place in group.places if place.is_made]
            where = ", ".join(f"{place.path} axis {place.axis}" for place in made)
            lines.append(f"{name}: {group.size} channels, made by {where}")
            if group.coupled:
                lines.append(f"    {group.coupled}")
        lines += [
            f"not pruned: axis {axis} of {path}: {why}"
            for (path, axis), why in self.refused.items()
        ]
        return "\n".join(lines)

    @property
    def sizes(self) -> dict[str, int]:
        """The number of channels of each group."""
        return {name: group.size for name, group in self.items()}

    @property
    def first_layers(self) -> tuple[str, ...]:
        """The groups of which a first layer makes channels: it reads the images themselves."""
        return self._made_by({kernel.path for kernel in self.kernels if kernel.is_first})

    @property
    def downsampling_layers(self) -> tuple[str, ...]:
        """The groups of which a convolution with a stride above 1 makes channels."""
        return self._made_by({kernel.path for kernel in self.kernels if kernel.is_strided})

    def _made_by(self, paths: set[str]) -> tuple[str, ...]:
        """Returns the names of the groups whose channels are made by any of these weights."""
        return tuple(
            name
            for name, group in self.items()
            if any(place.is_made and place.path in paths for place in group.places)
        )


def channel_groups(
    function: Callable[[PyTree, Any], Any], weights: PyTree, example: Any
) -> ChannelGroups:
    """Finds the channel groups of any network from its program; the network is not evaluated.

    Args:
      function: A function (weights, images [B, H, W, C]) -> logits [B, K], in evaluation mode: the
        `apply` of a linen module, or `lambda model, images: model(images)` for an nnx or equinox
        module.
      weights: The pytree of weights that it takes: variables, parameters or a module, as arrays or
        shapes.
      example: Images [B, H, W, C], or a `jax.ShapeDtypeStruct`; only the shape matters.

    Returns:
      The groups by name, for `filter_scores`, `prune_filters`, `filter_masks` and `shrink`.

    Raises:
      TypeError: The function cannot be called or traced.
      ValueError: `weights` is an nnx module in training mode.

    Example:
      >>> import jax.numpy as jnp
      >>> def logits(weights, images):
      ...     hidden = jax.nn.relu(images.mean((1, 2)) @ weights["hidden"]["kernel"])
      ...     return hidden @ weights["head"]["kernel"]
      >>> weights = {"hidden": {"kernel": jnp.ones((3, 8))}, "head": {"kernel": jnp.ones((8, 2))}}
      >>> groups = channel_groups(logits, weights, jnp.ones((1, 4, 4, 3)))
      >>> print(groups)
      hidden: 8 channels, made by hidden/kernel axis 1
      not pruned: axis 0 of hidden/kernel: an axis of the images
      not pruned: axis 1 of head/kernel: the logits
    """
    compilation.check_callable(function, "function")
    if hasattr(function, "apply_fn") and hasattr(function, "variables"):
        raise TypeError(
            "`function` must take (weights, images), got a Classifier, which has its weights inside: "
            "give its `apply_fn`, and its `variables` as the weights."
        )
    _check_mode(weights)
    leaves, structure = jax.tree.flatten(weights)
    places = [place for place, leaf in enumerate(leaves) if is_array(leaf)]
    given = [jax.ShapeDtypeStruct(leaves[at].shape, leaves[at].dtype) for at in places]
    # numpy's float64 is float32 to jax, without a warning at each use.
    image = jax.ShapeDtypeStruct(example.shape, jax.dtypes.canonicalize_dtype(example.dtype))

    def of_leaves(arrays: Sequence[Any], images: Any) -> Any:
        filled = list(leaves)
        for place, array in zip(places, arrays, strict=True):
            filled[place] = array
        return function(jax.tree.unflatten(structure, filled), images)

    # The program is read on labels: one for each index of each axis of each weight.
    program = programs.explained(programs.trace, of_leaves, given, image)
    units = Units()
    labels = [[units.new(length) for length in leaf.shape] for leaf in given]
    values = [
        Labelled(
            leaf.shape,
            tuple(along_axis(one, axis, len(axes)) for axis, one in enumerate(axes)),
            sources=frozenset([number]),
            silencers=frozenset([number]),
        )
        for number, (leaf, axes) in enumerate(zip(given, labels, strict=True))
    ]
    _tie_shared(units, [leaves[place] for place in places], labels)
    reader = Reader(units, program)
    images = fixed_value(image.shape, "an axis of the images", has_images=True)
    images = images._replace(is_raw=True)
    steps = program.code.steps
    for result in reader.run(steps, iter(reader.arrays), [*values, images]):
        for one in result.labels:
            units.refuse(one.array, "the logits")
    used = [variable in steps.uses for variable in steps.inputs[: len(given)]]
    names = named_leaves(weights)
    paths = [names[place][0] for place in places]
    return _Found(units, paths, labels, used).groups(function, image)


def _check_mode(weights: Any) -> None:
    """Raises for an nnx module in training mode, whose dropout and batch statistics hide channels."""
    nnx = sys.modules.get("flax.nnx")  # where it is not loaded, nothing is a module of it
    if nnx is None or not isinstance(weights, nnx.Module):
        return
    for path, module in nnx.iter_modules(weights):
        modes = [getattr(module, name, None) for name in ("use_running_average", "deterministic")]
        if any(mode is False for mode in modes):
            raise ValueError(
                "`weights` must be a module in evaluation mode, got training mode at "
                f"{'/'.join(map(str, path)) or 'its root'}: call `model.eval()` first."
            )


def _tie_shared(
    units: Units, arrays: Sequence[Any], labels: Sequence[Sequence[np.ndarray]]
) -> None:
    """Ties an array that is in the tree twice, which is one weight."""
    first: dict[int, int] = {}
    for number, array in enumerate(arrays):
        known = first.setdefault(id(array), number) if isinstance(array, jax.Array) else number
        if known == number:
            continue
        for one, other in zip(labels[known], labels[number], strict=True):
            units.tie(one, other)
        # What reads it at one of its paths is not all that reads it.
        units.readings |= {known: {-1}, number: {-1}}


class _Found:
    """The results of reading the labels. Each axis of each weight has a number.

    Attributes:
      axes: The (weight, axis) of each number.
      owner: The number of the axis of each label; -1 for label 0.
      first: The first label of each number.
      roots: The unit of each label.
      roles: For each kernel, in the order of use, (the axes that it reads, the axes that it makes).
      is_first: The weights from which first kernels are computed.
      is_strided: The weights from which kernels of convolutions with a stride are computed.
      followers: For each kernel, the vectors that scale or shift the channels it makes, and no others.
    """

    def __init__(
        self,
        units: Units,
        paths: Sequence[str],
        labels: Sequence[Sequence[np.ndarray]],
        used: Sequence[bool],
    ) -> None:
        self.paths, self.used = paths, used
        self.axes = [(leaf, axis) for leaf, ids in enumerate(labels) for axis in range(len(ids))]
        lengths = [len(ids) for of_leaf in labels for ids in of_leaf]
        self.shapes = [tuple(map(len, ids)) for ids in labels]
        self.first = np.concatenate([[1], 1 + np.cumsum(lengths)]).astype(np.int64)
        self.owner = np.repeat(np.arange(-1, len(lengths)), [1, *lengths])
        self.roots = units.of(np.arange(len(self.owner)))
        self.refused, self.coupled = self._reasons(units.refused), self._reasons(units.coupled)
        self.roles = self._roles(units)
        self.is_first = frozenset[int]().union(*(u.sources for u in units.uses if u.is_first))
        self.is_strided = frozenset[int]().union(*(u.sources for u in units.uses if u.is_strided))
        self.followers = self._followers(units)

    def _reasons(self, facts: Sequence[tuple[np.ndarray, str]]) -> dict[int, str]:
        """Returns the first reason for each unit."""
        found: dict[int, str] = {}
        for ids, why in facts:
            for root in np.unique(self.roots[ids]).tolist():
                found.setdefault(root, why)
        return found

    def _roles(self, units: Units) -> dict[int, tuple[set[int], set[int]]]:
        """Finds roles by the labels on a kernel, and by the units of what it is computed from."""
        found: dict[int, tuple[set[int], set[int]]] = {}
        for use in units.uses:
            wide = [leaf for leaf in sorted(use.sources) if len(self.shapes[leaf]) > 1]
            for leaf in wide:
                roles = found.setdefault(leaf, (set(), set()))
                for role, arrays in enumerate((use.read, use.made)):
                    roles[role].update(self._shown(leaf, arrays) - roles[1 - role])
        return {leaf: roles for leaf, roles in found.items() if roles[0] | roles[1]}

    def _shown(self, leaf: int, arrays: Sequence[np.ndarray]) -> set[int]:
        """Returns the axes of a weight that labels of a kernel stand for, or else tied labels."""
        numbers = {number for number, (owner, _) in enumerate(self.axes) if owner == leaf}
        ids = np.concatenate([*arrays, np.zeros(0, np.int64)])
        shown = numbers.intersection(self.owner[ids].tolist())
        if not shown:
            tied = set(self.roots[ids].tolist())
            shown = {number for number in numbers if self.roots[self.first[number]] in tied}
        return {self.axes[number][1] for number in shown}

    def _followers(self, units: Units) -> dict[int, list[int]]:
        """Finds the vectors that nothing but the result of one kernel is scaled or shifted by."""
        found: dict[int, list[int]] = {leaf: [] for leaf in self.roles}
        first = dict(zip(self.axes, self.first.tolist(), strict=False))
        for vector, shape in enumerate(self.shapes):
            uses = units.readings.get(vector, {-1})
            long = [axis for axis, length in enumerate(shape) if length > 1]
            if len(long) != 1 or -1 in uses:
                continue
            sources = frozenset[int]().union(*(units.uses[use].sources for use in uses))
            kernels = [leaf for leaf in sources if leaf in self.roles]
            if len(kernels) != 1 or len(self.roles[kernels[0]][1]) != 1:
                continue
            (leaf,), (axis,) = kernels, self.roles[kernels[0]][1]
            # A kernel that is also used transposed makes channels along its other axis there.
            is_alone = sum(leaf in use.sources for use in units.uses) == 1
            made = [self._shown(leaf, units.uses[use].made) for use in uses]
            if any(axes != {axis} for axes in made) and not is_alone:
                continue
            width = self.shapes[leaf][axis]
            # Its places are those of the kernel's channels, in the same order.
            ours, theirs = (
                self.roots[first[key] + np.arange(length)]
                for key, length in (((leaf, axis), width), ((vector, long[0]), shape[long[0]]))
            )
            if len(np.unique(ours)) == width and np.array_equal(ours, theirs):
                found[leaf].append(vector)
        return found

    def _numbers(self, role: int) -> set[int]:
        """Returns the axes that kernels read (role 0) or make (role 1)."""
        axes = {(leaf, axis) for leaf, roles in self.roles.items() for axis in roles[role]}
        return {number for number, axis in enumerate(self.axes) if axis in axes}

    def groups(
        self, function: Callable[[PyTree, Any], Any], images: jax.ShapeDtypeStruct
    ) -> ChannelGroups:
        """Groups the units that are on the same axes, equally often on each."""
        read, made = self._numbers(0), self._numbers(1)
        use = {leaf: place for place, leaf in enumerate(self.roles)}
        found: list[tuple[int, int, ChannelGroup]] = []
        for (on, times, why), units in self._members(read, made).items():
            # One channel alone cannot go.
            if len(units) == 1:
                self.refused[int(self.roots[units[0][0]])] = "all of it is one channel"
                continue
            makers = sorted(made.intersection(on), key=lambda number: use[self.axes[number][0]])
            # Where each channel is on each axis, in the order of the first kernel that makes them.
            table = np.stack(units)  # labels ascend, and so are in the order of `on`
            columns = np.split(table, np.cumsum(times)[:-1], axis=1)
            order = np.argsort(columns[on.index(makers[0])].min(1), kind="stable")
            by_number = dict(zip(on, columns, strict=True))
            places = tuple(
                Place(
                    self.paths[self.axes[number][0]],
                    self.axes[number][1],
                    by_number[number][order] - self.first[number],
                    number in made,
                )
                for number in (*makers, *(number for number in on if number not in makers))
            )
            group = ChannelGroup(len(units), places, why)
            found.append((use[self.axes[makers[0]][0]], makers[0], group))
        # They are called after the layers that make them, in the order in which these are used.
        named: dict[str, ChannelGroup] = {}
        for _, maker, group in sorted(found, key=lambda one: one[:2]):
            layer, number = _layer(self.paths[self.axes[maker][0]]), 1
            name = layer
            while name in named:  # several groups of one layer, of which each has a part
                number += 1
                name = f"{layer}/{number}"
            named[name] = group
        kernels = [
            Kernel(
                self.paths[leaf],
                tuple(sorted(inputs)),
                tuple(sorted(outputs)),
                leaf in self.is_first,
                leaf in self.is_strided,
                tuple(sorted(self.paths[one] for one in self.followers[leaf])),
            )
            for leaf, (inputs, outputs) in self.roles.items()
        ]
        shapes = dict(zip(self.paths, self.shapes, strict=True))
        refused = self._reasons_of_axes(named)
        return ChannelGroups(named, kernels, shapes, refused, function, images)

    def _members(
        self, read: set[int], made: set[int]
    ) -> dict[tuple[tuple[int, ...], tuple[int, ...], str], list[np.ndarray]]:
        """Returns the labels of each prunable unit by (axes, number on each, what couples it)."""
        order = np.argsort(self.roots[1:], kind="stable") + 1
        starts = np.flatnonzero(np.diff(self.roots[order], prepend=-1))
        found: dict[tuple, list[np.ndarray]] = {}
        for ids in np.split(order, starts[1:]):
            root = int(self.roots[ids[0]])
            if root in self.refused:
                continue
            on, times = (part.tolist() for part in np.unique(self.owner[ids], return_counts=True))
            if made.isdisjoint(on) or read.isdisjoint(on):
                self.refused[root] = "it is not both made by a kernel and read by one"
                continue
            key = (tuple(on), tuple(times), self.coupled.get(root, ""))
            found.setdefault(key, []).append(ids)
        return found

    def _reasons_of_axes(self, groups: Mapping[str, ChannelGroup]) -> dict[tuple[str, int], str]:
        """Returns why axes of kernels, and of unused weights, are in no group."""
        there = {(place.path, place.axis) for one in groups.values() for place in one.places}
        found = {}
        use = {leaf: place for place, leaf in enumerate(self.roles)}
        in_order = sorted(enumerate(self.axes), key=lambda one: use.get(one[1][0], len(use)))
        for number, (leaf, axis) in in_order:
            inputs, outputs = self.roles.get(leaf, (set(), set()))
            entry, root = (self.paths[leaf], axis), int(self.roots[self.first[number]])
            if not self.used[leaf]:
                found[entry] = "the function does not use it"
            elif axis in inputs | outputs and entry not in there:
                found[entry] = self.refused.get(root, "nothing is known of it")
        return found


def _layer(path: str) -> str:
    """Returns the layer of a weight: its path without the last name."""
    words = path.removeprefix("params/").split("/")
    return "/".join(words[:-1] or words)
