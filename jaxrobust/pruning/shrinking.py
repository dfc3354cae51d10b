"""Networks without their removed channels: as masks for training, and for real, in smaller arrays.

The two compute the same: a removed channel is masked wherever it is made (kernels, biases, and the
scale and bias of BatchNorm, which would otherwise revive it) and wherever it is read.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
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
    """Masks that silence the channels that are not kept, for training under them.

    Args:
      weights: What the groups were found for, or of linen variables the "params" alone. Of whole
        variables the running statistics stay as they are: scale and bias of BatchNorm are masked.
      groups: Of `channel_groups`.
      keep: {group: indices of the channels kept}; groups that it does not name stay whole.

    Returns:
      Masks: of the structure of `weights`, True keeps the weight; what `training.fit` takes.

    Raises:
      TypeError: No ChannelGroups.
      ValueError: Groups of another network; groups or channels that it does not have.

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


def kept_filters(masks: Masks, groups: ChannelGroups) -> dict[str, np.ndarray]:
    """The channels of which masks keep anything: what `filter_masks` was given.

    Args:
      masks: The structure of the weights, or of their "params", with boolean leaves.
      groups: Of `channel_groups`.

    Returns:
      {group: int indices, ascending}.

    Raises:
      TypeError: No ChannelGroups.
      ValueError: Groups of another network; a group of which nothing is kept.
    """
    where, leaves = located(groups, masks), dict(named_leaves(masks))
    alive = {group: np.zeros(size, bool) for group, size in groups.sizes.items()}
    for path, entries in where.items():
        if path.startswith(_STATISTICS):
            continue
        for on in entries:
            leaf: Any = np.moveaxis(np.asarray(leaves[path]), on.axis, 0)
            alive[on.group] |= leaf.reshape(len(leaf), -1).any(1)[on.indices].any(1)
    keep = {group: np.flatnonzero(kept) for group, kept in alive.items()}
    return check_keep("masks", groups, keep)


def shrink(weights: PyTree, groups: ChannelGroups, keep: Keep, *, check: bool = True) -> PyTree:
    """Takes the channels that are not kept out of a network.

    With the smaller weights the network computes what it does with its own under `filter_masks`; where
    a group is `coupled`, LayerNorm for example, means and variances are of the channels that are left.

    The weights alone get smaller. Code that reads its widths from its weights (most functions, nnx and
    equinox modules) takes them as they are. A linen module has its widths as attributes: of the
    library's networks `models.resized(network, weights)` is the module that fits; of your own set each
    layer to what `kept_filters` says is left. Attributes of nnx and equinox modules that say the old
    widths stay as they are.

    Args:
      weights: What the groups were found for: variables, a module, any pytree.
      groups: Of `channel_groups`.
      keep: {group: indices of the channels kept}; groups that it does not name stay whole.
      check: Whether the program of the smaller weights, where the function takes them, is read too,
        and where it looks different, compared on random images. False: for code
        whose numbers, of heads for example, you set afterwards.

    Returns:
      A pytree of the same structure with smaller arrays.

    Raises:
      TypeError: No ChannelGroups.
      ValueError: Groups of another network; groups or channels that it does not have; code that takes
        the smaller weights and reads them otherwise, because it holds a number of heads, say.

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
    entry = _read_otherwise(groups, small, kept) if check else None
    if entry is not None and _differs(weights, small, groups, kept):
        raise ValueError(
            "`keep` does not fit the code, which takes the smaller weights and reads axis "
            f"{entry[1]} of {entry[0]} otherwise: it holds a number of heads, groups or shares. Keep "
            "as many channels of each share; or set that number in the code, and give check=False."
        )
    return small


def _read_otherwise(
    groups: ChannelGroups, small: PyTree, kept: Mapping[str, np.ndarray]
) -> tuple[str, int] | None:
    """An axis on which the program of the smaller weights has other channels than those kept."""
    try:
        found = channel_groups(groups.function, small, groups.images)
    except Exception as error:
        # The code holds widths: linen modules are built anew, others are changed.
        if not isinstance(small, Mapping):
            warnings.warn(
                "The function does not take the smaller weights, because its code or the attributes of "
                f"its modules say the old widths: {str(error).splitlines()[0]} Set them, or keep those "
                "groups whole by `exclude`.",
                stacklevel=3,
            )
        return None
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
    """Whether the smaller network computes something else than the masked one, if that can be told."""
    shrunk = [name for name, one in kept.items() if len(one) < groups[name].size]
    if any(groups[name].coupled for name in shrunk):
        return False
    images = np.random.default_rng(0).uniform(size=groups.images.shape)
    images = jnp.asarray(images, groups.images.dtype)
    masked = groups.function(apply_masks(weights, filter_masks(weights, groups, kept)), images)
    difference = jnp.abs(masked - groups.function(small, images)).max()
    return not float(difference) <= 1e-3 * float(jnp.abs(masked).max())


def check_shrinking(
    function: Callable[[PyTree, Any], Any],
    weights: PyTree,
    groups: ChannelGroups,
    images: Any,
    *,
    rebuild: Callable[[PyTree], Callable[[PyTree, Any], Any]] | None = None,
    tolerance: float = 1e-3,
) -> None:
    """Raises unless a network computes the same, whichever of its channels are masked or taken out.

    Of every group in turn some of the channels go, at random. Groups that are `coupled` are left out:
    of those the two differ, as `shrink` says.

    Args:
      function: (weights, images) -> logits, as `channel_groups` was given it.
      weights: The network's; moved at random first, for initial biases and statistics tell nothing.
      groups: Of `channel_groups`.
      images: [B, H, W, C]; two are enough.
      rebuild: Smaller weights -> the function that takes them, where the code has widths of its own:
        `lambda small: models.resized(network, small).apply`. None: `function` takes them.
      tolerance: The largest difference of logits, as a share of the largest logit.

    Raises:
      TypeError: No ChannelGroups.
      ValueError: The two differ, or the network does not take smaller weights; the message names the
        group and its axes.

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
                f"Without some of {name!r} the network fails: {error} If its code has widths of its "
                f"own, `rebuild` must make it anew; the group is on {where}."
            ) from error
        # Compared by the largest logit: other scales say nothing of an untrained network.
        largest = jnp.maximum(jnp.abs(masked).max(), 1e-9)
        difference = float(jnp.abs(masked - shrunk).max() / largest)
        if not difference <= tolerance:
            raise ValueError(
                f"Without some of {name!r} the masked and the smaller network differ by "
                f"{100 * difference:.1f} % of the largest logit. The group is on {where}."
            )


def shrink_state(state: PyTree, weights: PyTree, groups: ChannelGroups, keep: Keep) -> PyTree:
    """Shrinks all that goes with a network: a training state, an optimizer's, an average, masks.

    An array in `state` belongs to the array of `weights` whose path its own path ends with.

    Args:
      state: Any pytree that holds trees with the paths of the parameters or statistics, such as
        `training.TrainState` or the state of an optax optimizer. What belongs to no array of
        `weights`, and scalars, stay as they are.
      weights: The network's before it is shrunk, as `shrink` was given them.
      groups: Of `channel_groups`.
      keep: As `shrink` was given it.

    Returns:
      As `state`.

    Raises:
      ValueError: As `shrink`; an array of another shape than the network's at its path, as optimizers
        with factored moments keep them: make their state anew.

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
                    f"`state` has shape {jnp.shape(leaf)} at {path}, where the network has "
                    f"{shapes[owner]}: it cannot be shrunk; make it anew for the smaller network."
                )
            leaf = _taken(leaf, where[owner], kept)
        leaves.append(leaf)
    return jax.tree.unflatten(jax.tree.structure(state), leaves)


def _owner(path: str, owners: Mapping[str, str]) -> str | None:
    """By the longest end of the path that is an array's, which tells a/kernel from b/a/kernel."""
    parts = path.split("/")
    ends = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((owners[end] for end in ends if end in owners), None)


def _by_axis(entries: Sequence[On]) -> dict[int, list[On]]:
    found: dict[int, list[On]] = {}
    for on in entries:
        found.setdefault(on.axis, []).append(on)
    return found


def _taken(leaf: Any, entries: Sequence[On], kept: Mapping[str, np.ndarray]) -> Any:
    """On the host: XLA would compile a program for every shape."""
    for axis, on in _by_axis(entries).items():
        there = stays(leaf.shape[axis], on, kept)
        if not there.all():
            leaf = np.compress(there, np.asarray(leaf), axis)
    return jnp.asarray(leaf)
