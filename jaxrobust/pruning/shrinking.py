"""Removal of channels from a network: with masks for training, or by making its arrays smaller.

Both compute the same. A removed channel is masked wherever it is made (in kernels, biases, and the
scale and bias of BatchNorm, which would otherwise restore it) and wherever it is read.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust.pruning.channel_groups import ChannelGroups, channel_groups
from jaxrobust.pruning.masks import apply_masks, is_array, keep_all, named_leaves, with_leaves
from jaxrobust.pruning.placing import Keep, On, check_keep, located, stays
from jaxrobust.types import Masks, PyTree

_STATISTICS = "batch_stats/"  # of linen variables; they are as they are


def filter_masks(weights: PyTree, groups: ChannelGroups, keep: Keep) -> Masks:
    """Returns masks that set the channels that are not kept to 0, for training.

    Args:
      weights: The weights for which the groups were found, or only the "params" of linen variables. In
        whole variables the running statistics are not masked, but the scale and bias of BatchNorm are.
      groups: The result of `channel_groups`.
      keep: {group: indices of the kept channels}; groups that it does not name are not pruned.

    Returns:
      Masks with the structure of `weights`, True for weights that stay, which `training.fit` takes.

    Raises:
      TypeError: `groups` is not a ChannelGroups.
      ValueError: The groups are of another network, or `keep` names unknown groups or channels.

    Example:
      >>> from jaxrobust.pruning import channel_groups
      >>> weights = {"a": {"kernel": jnp.ones((1, 3))}, "b": {"kernel": jnp.ones((3, 2))}}
      >>> logits = lambda weights, x: x.mean((1, 2)) @ weights["a"]["kernel"] @ weights["b"]["kernel"]
      >>> groups = channel_groups(logits, weights, jnp.ones((1, 2, 2, 1)))
      >>> filter_masks(weights, groups, {"a": [0, 2]})["b"]["kernel"][:, 0].tolist()
      [True, False, True]
    """
    where, kept = located(groups, weights), check_keep("keep", groups, keep)
    found = {}
    for path, leaf in named_leaves(weights):
        if path not in where or path.startswith(_STATISTICS):
            continue
        mask: Any = np.ones(leaf.shape, bool)
        for axis, entries in _by_axis(where[path]).items():
            np.moveaxis(mask, axis, 0)[~stays(leaf.shape[axis], entries, kept)] = False
        found[path] = jnp.asarray(mask)
    return with_leaves(keep_all(weights), found)


def kept_filters(
    masks: Masks, groups: ChannelGroups, weights: PyTree | None = None
) -> dict[str, np.ndarray]:
    """Returns the channels that masks keep, the inverse of `filter_masks`.

    A channel is kept if the masks keep any of its weights. Masks of whole filters, as those of
    `Redundant`, keep the weights that read a channel. So with `weights` a channel goes too if all
    kernels that make it have lost the whole filter, or a depthwise one has, and if it has no effect.
    This is tried out on random images, with the weights and with others in their place: without the
    channel, and with other numbers in the kernels that read it, the logits must be the same. Behind a
    sigmoid, for example, they are not, because it makes 0.5 of 0, and the channel stays. So do all
    channels of `coupled` groups, in which the number of channels counts, and one channel of each group.

    Args:
      masks: Boolean masks with the structure of the weights, or of their "params".
      groups: The result of `channel_groups`. The network is tried out on as many images as it has.
      weights: The weights for which the groups were found, whole variables for instance. None: a
        channel goes only if the masks remove all of its weights.

    Returns:
      {group: int indices of the kept channels, ascending}.

    Raises:
      TypeError: `groups` is not a ChannelGroups.
      ValueError: The groups are of another network, `weights` are not those for which they were found,
        or nothing is kept of a group.
    """
    where, leaves = located(groups, masks), dict(named_leaves(masks))
    known = {kernel.path.removeprefix("params/"): kernel for kernel in groups.kernels}
    alive = {group: np.zeros(size, bool) for group, size in groups.sizes.items()}
    # Channels that a kernel makes from others, and those that a depthwise kernel has lost.
    made = {group: np.zeros(size, bool) for group, size in groups.sizes.items()}
    cut = {group: np.zeros(size, bool) for group, size in groups.sizes.items()}
    for path, entries in where.items():
        if path.startswith(_STATISTICS):
            continue
        for on in entries:
            leaf: Any = np.moveaxis(np.asarray(leaves[path]), on.axis, 0)
            left = leaf.reshape(len(leaf), -1).any(1)[on.indices].any(1)
            alive[on.group] |= left
            kernel = known.get(path.removeprefix("params/"))
            if on.is_made and kernel is not None and kernel.inputs:
                made[on.group] |= left
            elif on.is_made and kernel is not None:
                cut[on.group] |= ~left
    if weights is not None:
        tried = [
            (group, int(channel))
            for group, one in alive.items()
            if not groups[group].coupled
            for channel in np.flatnonzero(one & (~made[group] | cut[group]))
        ]
        silent = _silent(masks, groups, weights, tried)
        for group, one in alive.items():
            first = np.flatnonzero(one)[:1]  # a layer without channels would not be one
            one[[channel for name, channel in silent if name == group]] = False
            one[first] |= not one.any()
    keep = {group: np.flatnonzero(kept) for group, kept in alive.items()}
    return check_keep("masks", groups, keep)


def _silent(
    masks: Masks, groups: ChannelGroups, weights: PyTree, tried: Sequence[tuple[str, int]]
) -> list[tuple[str, int]]:
    """Returns those of the tried channels, (group, channel), without effect on the masked network."""
    where, leaves = located(groups, weights), dict(named_leaves(weights))
    if missing := groups.shapes.keys() - leaves.keys():
        raise ValueError(
            "`weights` must be those for which the groups were found, such as whole variables, got "
            f"some without {min(missing)}."
        )
    prefix = "" if any(path in leaves for path, _ in named_leaves(masks)) else "params/"
    given = {f"{prefix}{path}": mask for path, mask in named_leaves(masks)}
    masked = {
        path: jnp.where(given.get(path, True), leaf, 0)
        for path, leaf in leaves.items()
        if is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)
    }
    kernels, generator = [kernel.path for kernel in groups.kernels], np.random.default_rng(0)

    def other(path: str) -> Any:
        """Returns other weights of the same size, 0 where they are masked."""
        size = float(jnp.sqrt(jnp.mean(jnp.square(masked[path])))) or 1.0
        drawn = size * generator.normal(size=masked[path].shape)
        return jnp.where(given.get(path, True), drawn, 0).astype(masked[path].dtype)

    images = _random_images(groups)
    logits = jax.jit(lambda some, images: groups.function(with_leaves(weights, some), images))
    # With other weights too, because a channel that lives can be 0 on a few random images.
    networks = [masked, masked | {path: other(path) for path in kernels}]
    before = [np.asarray(logits(network, images)) for network in networks]

    def rows(channels: Sequence[tuple[str, int]], *, read: bool) -> Iterator[tuple[str, On, Any]]:
        """Yields the places of channels, or only those in kernels that read them: path, place, rows."""
        for path in masked:
            for on in where.get(path, ()):
                numbers = [channel for group, channel in channels if group == on.group]
                reads = path in kernels and not on.is_made
                if numbers and (reads if read else not path.startswith(_STATISTICS)):
                    yield path, on, on.indices[numbers].reshape(-1)

    def has_effect(channels: Sequence[tuple[str, int]]) -> bool:
        for network, expected in zip(networks, before, strict=True):
            removed, read_anew = dict(network), dict(network)
            for path, on, some in rows([*gone, *channels], read=False):
                removed[path] = _with_rows(removed[path], on.axis, some)
            for path, on, some in rows(channels, read=True):
                read_anew[path] = _with_rows(read_anew[path], on.axis, some, generator)
            for changed in (removed, read_anew):
                moved = np.abs(np.asarray(logits(changed, images)) - expected)
                if not (moved <= 1e-6 * np.abs(expected)).all():  # also if it is not a number
                    return True
        return False

    def settle(channels: Sequence[tuple[str, int]]) -> None:
        # All at once, which is enough where none has an effect; otherwise in two halves.
        if not channels or not has_effect(channels):
            gone.extend(channels)
        elif len(channels) > 1:
            middle = len(channels) // 2
            settle(channels[:middle])
            settle(channels[middle:])

    gone: list[tuple[str, int]] = []
    settle(tried)
    return gone


def _with_rows(
    leaf: Any, axis: int, rows: np.ndarray, generator: np.random.Generator | None = None
) -> Any:
    """Returns an array with 0, or with random numbers, at some indices of an axis."""
    changed = np.moveaxis(np.array(leaf), axis, 0)
    changed[rows] = 0 if generator is None else generator.normal(size=changed[rows].shape)
    return jnp.asarray(np.moveaxis(changed, 0, axis))


def _random_images(groups: ChannelGroups) -> Any:
    """Returns random images of the shape and type for which the groups were found."""
    generator, (shape, dtype) = np.random.default_rng(0), (groups.images.shape, groups.images.dtype)
    if jnp.issubdtype(dtype, jnp.integer):
        return jnp.asarray(generator.integers(0, 256, shape), dtype)
    return jnp.asarray(generator.uniform(size=shape), dtype)


def shrink(weights: PyTree, groups: ChannelGroups, keep: Keep, *, check: bool = True) -> PyTree:
    """Removes the channels that are not kept from the weights of a network.

    With the smaller weights the network computes the same as with its masked weights (`filter_masks`).
    `coupled` groups are the exception: the means and variances of LayerNorm, for example, are then
    those of the remaining channels.

    Only the weights become smaller. Code that reads its widths from its weights (functions, nnx and
    equinox modules) can use them directly. A linen module has its widths as attributes: for networks
    of this library `models.resized(network, weights)` returns the matching module; for your own, set
    the width of each layer to the number of channels in `keep`. Attributes of nnx and equinox modules
    that hold the old widths are not changed.

    Args:
      weights: The weights for which the groups were found: variables, a module, or any pytree.
      groups: The result of `channel_groups`.
      keep: {group: indices of the kept channels}; groups that it does not name are not pruned.
      check: Whether to verify that the code reads the smaller weights correctly, if it accepts them:
        the outputs are compared with those of the masked weights on random images. False: for code with
        fixed numbers, such as the number of heads, that you change afterwards.

    Returns:
      A pytree of the same structure with smaller arrays.

    Raises:
      TypeError: `groups` is not a ChannelGroups.
      ValueError: The groups are of another network; `keep` names unknown groups or channels; or the
        code reads the smaller weights differently, for example because of a fixed number of heads.

    Example:
      >>> from jaxrobust.pruning import channel_groups
      >>> weights = {"a": {"kernel": jnp.ones((1, 3))}, "b": {"kernel": jnp.ones((3, 2))}}
      >>> logits = lambda weights, x: x.mean((1, 2)) @ weights["a"]["kernel"] @ weights["b"]["kernel"]
      >>> groups = channel_groups(logits, weights, jnp.ones((1, 2, 2, 1)))
      >>> small = shrink(weights, groups, {"a": [0, 2]})
      >>> small["b"]["kernel"].shape, logits(small, jnp.ones((1, 2, 2, 1))).shape
      ((2, 2), (1, 2))
    """
    where, kept = located(groups, weights), check_keep("keep", groups, keep)
    leaves = [
        _taken(leaf, where[path], kept) if path in where else leaf
        for path, leaf in named_leaves(weights)
    ]
    small = jax.tree.unflatten(jax.tree.structure(weights), leaves)
    found = _groups_of(groups, small) if check else None
    if found is not None and _differs(weights, small, groups, kept):
        if (entry := _read_otherwise(groups, found, kept)) is None:
            raise ValueError(
                "`keep` does not match the code, which gives other logits with the smaller weights: it "
                "uses a width as a number, for example to scale by it. Exclude the groups of this "
                "width from pruning; or change the code, and give check=False."
            )
        raise ValueError(
            f"`keep` does not match the code, which reads axis {entry[1]} of {entry[0]} differently "
            "with the smaller weights: it has a fixed number of heads, groups or parts. Keep the same "
            "number of channels of each part; or change that number in the code, and give check=False."
        )
    return small


def _groups_of(groups: ChannelGroups, small: PyTree) -> ChannelGroups | None:
    """Returns the groups of the smaller weights; None if the code does not accept them."""
    try:
        return channel_groups(groups.function, small, groups.images)
    except Exception as error:
        # The code holds widths: linen modules are built anew, others are changed.
        if not isinstance(small, Mapping):
            warnings.warn(
                "The function does not accept the smaller weights, because its code or attributes of "
                f"its modules have the old widths: {str(error).splitlines()[0]} Change these, or "
                "exclude those groups from pruning.",
                stacklevel=3,
            )
        return None


def _read_otherwise(
    groups: ChannelGroups, found: ChannelGroups, kept: Mapping[str, np.ndarray]
) -> tuple[str, int] | None:
    """Returns an axis on which the program of the smaller weights has other channels than kept."""
    # Where the kept channels must be found again.
    where: dict[tuple[str, int], list[On]] = {}
    for name, group in groups.items():
        for place in group.places:
            on = On(place.axis, name, place.indices, place.is_made)
            where.setdefault((place.path, place.axis), []).append(on)
    moved = {
        entry: np.cumsum(stays(groups.shapes[entry[0]][entry[1]], entries, kept)) - 1
        for entry, entries in where.items()
    }
    expected: dict[tuple[str, int, int], frozenset] = {}
    for name, group in groups.items():
        for channel in kept[name]:
            unit = frozenset(
                (place.path, place.axis, int(index))
                for place in group.places
                for index in moved[place.path, place.axis][place.indices[channel]]
            )
            expected |= dict.fromkeys(unit, unit)
    # And where they were found.
    for group in found.values():
        for channel in range(group.size):
            unit = frozenset(
                (place.path, place.axis, int(index))
                for place in group.places
                for index in place.indices[channel]
            )
            for entry in unit:
                if expected.get(entry, unit) != unit:
                    return entry[:2]
    return None


def _differs(
    weights: PyTree, small: PyTree, groups: ChannelGroups, kept: Mapping[str, np.ndarray]
) -> bool:
    """Whether the smaller network differs from the masked one; False for coupled groups."""
    shrunk = [name for name, one in kept.items() if len(one) < groups[name].size]
    if any(groups[name].coupled for name in shrunk):
        return False
    images = _random_images(groups)
    masked = groups.function(apply_masks(weights, filter_masks(weights, groups, kept)), images)
    there = jnp.isfinite(masked)  # a network that has no numbers itself cannot be compared
    largest = jnp.abs(jnp.where(there, masked, 0.0)).max()
    difference = jnp.abs(masked - groups.function(small, images))
    return not bool(jnp.where(there, difference <= 1e-3 * largest, True).all())


def check_shrinking(
    function: Callable[[PyTree, Any], Any],
    weights: PyTree,
    groups: ChannelGroups,
    images: Any,
    *,
    rebuild: Callable[[PyTree], Callable[[PyTree, Any], Any]] | None = None,
    tolerance: float = 1e-3,
) -> None:
    """Raises unless a network computes the same with masked channels as with removed ones.

    Random channels of one group at a time are masked and removed. `coupled` groups are left out,
    because the two differ for them (see `shrink`).

    Args:
      function: The function (weights, images) -> logits that was given to `channel_groups`.
      weights: The weights of the network. They are perturbed at random first, because initial biases
        and statistics would hide errors.
      groups: The result of `channel_groups`.
      images: Images [B, H, W, C]; two are enough.
      rebuild: A function from smaller weights to the function that takes them, if the code has fixed
        widths: `lambda small: models.resized(network, small).apply`. None: `function` takes them.
      tolerance: The largest difference of logits, relative to the largest logit.

    Raises:
      TypeError: `groups` is not a ChannelGroups.
      ValueError: The outputs differ, or the network does not accept smaller weights; the message names
        the group and its axes.

    Example:
      >>> from jaxrobust.pruning import channel_groups
      >>> weights = {"a": {"kernel": jnp.ones((1, 4))}, "b": {"kernel": jnp.ones((4, 2))}}
      >>> logits = lambda weights, x: x.mean((1, 2)) @ weights["a"]["kernel"] @ weights["b"]["kernel"]
      >>> images = jnp.ones((2, 2, 2, 1))
      >>> check_shrinking(logits, weights, channel_groups(logits, weights, images), images)
    """
    generator = np.random.default_rng(0)

    def moved(leaf: Any) -> Any:  # upwards, so that variances stay above 0
        if not is_array(leaf) or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        scale = 0.1 + 0.1 * float(np.abs(leaf).mean())
        return jnp.asarray(leaf + scale * np.abs(generator.normal(size=np.shape(leaf))), leaf.dtype)

    weights = jax.tree.map(moved, weights)
    for name, group in groups.items():
        if group.size == 1 or group.coupled:
            continue
        count = generator.integers(1, group.size)
        keep = {name: np.sort(generator.choice(group.size, count, replace=False))}
        # Some of the group's channels, masked and taken out.
        masked = function(apply_masks(weights, filter_masks(weights, groups, keep)), images)
        small = shrink(weights, groups, keep, check=False)
        where = ", ".join(f"axis {place.axis} of {place.path}" for place in group.places)
        try:
            shrunk = (function if rebuild is None else rebuild(small))(small, images)
        except Exception as error:  # of a network of which nothing is known
            raise ValueError(
                f"The network fails without some channels of {name!r}: {error} If its code has fixed "
                f"widths, give `rebuild`. The group is on {where}."
            ) from error
        # Compared by the largest logit: other scales say nothing of an untrained network.
        largest = jnp.maximum(jnp.abs(masked).max(), 1e-9)
        difference = float(jnp.abs(masked - shrunk).max() / largest)
        if not difference <= tolerance:
            raise ValueError(
                f"Without some channels of {name!r} the masked and the smaller network differ by "
                f"{100 * difference:.1f} % of the largest logit. The group is on {where}."
            )


def shrink_state(state: PyTree, weights: PyTree, groups: ChannelGroups, keep: Keep) -> PyTree:
    """Shrinks a state that belongs to a network, such as a training or optimizer state or masks.

    An array in `state` belongs to the array of `weights` whose path is the end of its own path.

    Args:
      state: A pytree with trees like the parameters or statistics inside, such as
        `training.TrainState` or the state of an optax optimizer. Scalars, and arrays that belong to no
        array of `weights`, are not changed.
      weights: The weights before `shrink`.
      groups: The result of `channel_groups`.
      keep: {group: indices of the kept channels}, as given to `shrink`.

    Returns:
      The state with smaller arrays, with the same structure.

    Raises:
      ValueError: `shrink` would raise, or an array has another shape than the array of the network at
        its path, as in optimizers with factored moments: create their state anew.

    Example:
      >>> from jaxrobust.pruning import channel_groups
      >>> weights = {"a": {"kernel": jnp.ones((1, 3))}, "b": {"kernel": jnp.ones((3, 2))}}
      >>> logits = lambda weights, x: x.mean((1, 2)) @ weights["a"]["kernel"] @ weights["b"]["kernel"]
      >>> groups = channel_groups(logits, weights, jnp.ones((1, 2, 2, 1)))
      >>> momentum = (jnp.int32(7), {"trace": {"a": {"kernel": jnp.arange(3.0)[None]}}})
      >>> step, moved = shrink_state(momentum, weights, groups, {"a": [0, 2]})
      >>> moved["trace"]["a"]["kernel"].tolist()
      [[0.0, 2.0]]
    """
    where, kept = located(groups, weights), check_keep("keep", groups, keep)
    shapes = {path: leaf.shape for path, leaf in named_leaves(weights) if is_array(leaf)}
    # By their paths within their collection too, parameters before all others.
    owners = {path: path for path in shapes}
    if isinstance(weights, Mapping) and "params" in weights:
        inner = {path.partition("/")[2]: path for path in shapes}
        inner |= {path.partition("/")[2]: path for path in shapes if path.startswith("params/")}
        owners = inner | owners
    leaves = []
    for path, leaf in named_leaves(state):
        owner = _owner(path, owners)
        if owner in where and jnp.ndim(leaf):
            if jnp.shape(leaf) != shapes[owner]:
                raise ValueError(
                    f"`state` must have the shapes of the network, {shapes[owner]} at {path}, got "
                    f"{jnp.shape(leaf)}: create the state anew for the smaller network."
                )
            leaf = _taken(leaf, where[owner], kept)
        leaves.append(leaf)
    return jax.tree.unflatten(jax.tree.structure(state), leaves)


def _owner(path: str, owners: Mapping[str, str]) -> str | None:
    """Finds the owner by the longest matching end of the path, to tell a/kernel from b/a/kernel."""
    parts = path.split("/")
    ends = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((owners[end] for end in ends if end in owners), None)


def _by_axis(entries: Sequence[On]) -> dict[int, list[On]]:
    found: dict[int, list[On]] = {}
    for on in entries:
        found.setdefault(on.axis, []).append(on)
    return found


def _taken(leaf: Any, entries: Sequence[On], kept: Mapping[str, np.ndarray]) -> Any:
    """Takes the kept channels on the host, because XLA would compile a program for every shape."""
    for axis, on in _by_axis(entries).items():
        there = stays(leaf.shape[axis], on, kept)
        if not there.all():
            leaf = np.compress(there, np.asarray(leaf), axis)
    return jnp.asarray(leaf)
