"""Networks without their removed channels: as masks for training, and for real, in smaller arrays.

The two compute the same: a removed channel is masked wherever it is made (kernels, biases, and the
scale and bias of BatchNorm, which would otherwise revive it) and wherever it is read.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust.pruning import channels
from jaxrobust.pruning.masks import apply_masks, named_leaves
from jaxrobust.types import ChannelSpec, Group, Masks, PyTree

Keep = Mapping[Group, Sequence[int] | np.ndarray]


def filter_masks(params: PyTree, spec: ChannelSpec, keep: Keep) -> Masks:
    """Masks that silence the channels that are not kept, for training under them.

    The running statistics of BatchNorm need none: its scale and bias are masked.

    Args:
      params: Nested dicts of arrays, or whole variables, of which only parameters are masked.
      spec: {(collection, path, axis): ((group, size, repeat), ...)}.
      keep: {group: indices of the channels kept}; groups that it does not name stay whole.

    Returns:
      Masks: of the parameters' structure, True keeps the weight; what `training.fit` takes.

    Raises:
      ValueError: A spec that does not fit; groups or channels that it does not have.

    Example:
      >>> params = {"a": {"kernel": jnp.ones((1, 3))}, "b": {"kernel": jnp.ones((3, 1))}}
      >>> channels = (("width", 3, 1),)
      >>> spec = {("params", "a/kernel", 1): channels, ("params", "b/kernel", 0): channels}
      >>> filter_masks(params, spec, {"width": [0, 2]})["b"]["kernel"][:, 0].tolist()
      [True, False, True]
    """
    whole, of_params = channels.as_variables(params), channels.of_params(spec)
    channels.check_axes(of_params, whole)
    kept, axes = channels.check_keep("keep", spec, keep), channels.axes_by_path(of_params)
    masks = []
    for path, leaf in named_leaves(whole):
        mask: Any = np.ones(jnp.shape(leaf), bool)
        for axis, segments in axes.get(path, ()):
            removed = np.ones(mask.shape[axis], bool)
            removed[channels.kept_positions(segments, kept)] = False
            np.moveaxis(mask, axis, 0)[removed] = False
        masks.append(jnp.asarray(mask))
    tree = jax.tree.unflatten(jax.tree.structure(whole), masks)
    return tree if whole is params else tree["params"]


def kept_filters(masks: Masks, spec: ChannelSpec) -> dict[Group, np.ndarray]:
    """The channels of which masks keep anything: what `filter_masks` was given.

    Args:
      masks: The parameters' structure with boolean leaves.
      spec: {(collection, path, axis): ((group, size, repeat), ...)}.

    Returns:
      {group: int indices, ascending}.

    Raises:
      ValueError: A spec that does not fit; a group of which nothing is kept.
    """
    whole, of_params = channels.as_variables(masks), channels.of_params(spec)
    channels.check_axes(of_params, whole)
    alive = {group: np.zeros(size, bool) for group, size in channels.group_sizes(spec).items()}
    leaves = dict(named_leaves(whole))
    for (collection, path, axis), segments in of_params.items():
        leaf = np.moveaxis(np.asarray(leaves[f"{collection}/{path}"]), axis, 0)
        here: Any = leaf.reshape(len(leaf), -1).any(1)
        for group, positions in channels.spans(segments):
            if group is not None:
                alive[group] |= here[positions].any(0)
    keep = {group: np.flatnonzero(kept) for group, kept in alive.items()}
    return channels.check_keep("masks", spec, keep)


def shrink(
    variables: PyTree, spec: ChannelSpec, keep: Keep
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Takes the channels that are not kept out of a network.

    The result computes what the network under `filter_masks` does, where the spec is right
    (`check_spec`, `check_shrinking`: once, after writing one). It is of the same class, with the
    widths returned: `network.clone(**widths)`, or of the library's networks
    `models.create(name, num_classes, **widths)`.

    Args:
      variables: {"params": ..., "batch_stats": ...}, nested dicts of arrays.
      spec: {(collection, path, axis): ((group, size, repeat), ...)}.
      keep: {group: indices of the channels kept}; groups that it does not name stay whole.

    Returns:
      (smaller variables, widths): widths are constructor fields, {"widths": (8, 16), "stem_width": 8}.

    Raises:
      ValueError: A spec that does not fit, with the name of the axis; groups or channels that it does
        not have; a field of which it has some entries only.

    Example:
      >>> params = {"a": {"kernel": jnp.ones((1, 3))}, "b": {"kernel": jnp.ones((3, 1))}}
      >>> channels = (("width", 3, 1),)
      >>> spec = {("params", "a/kernel", 1): channels, ("params", "b/kernel", 0): channels}
      >>> small, widths = shrink({"params": params}, spec, {"width": [0, 2]})
      >>> small["params"]["b"]["kernel"].shape, widths
      ((2, 1), {'width': 2})
    """
    channels.check_axes(spec, variables)
    kept = channels.check_keep("keep", spec, keep)
    axes = channels.axes_by_path(spec)
    leaves = [_taken(leaf, axes.get(path, []), kept) for path, leaf in named_leaves(variables)]
    widths = channels.widths_of({group: len(indices) for group, indices in kept.items()})
    return jax.tree.unflatten(jax.tree.structure(variables), leaves), widths


def check_shrinking(
    spec: ChannelSpec,
    build: Callable[..., Callable[[PyTree, Any], Any]],
    variables: PyTree,
    images: Any,
    *,
    tolerance: float = 1e-3,
) -> None:
    """Raises unless a network computes the same, whichever of its channels are masked or taken out.

    `check_spec` compares lengths; this computes, and so finds segments in a wrong order, the channels
    of a flatten taken for its positions, and layers that normalise channels together, whose zeros a
    smaller network lacks. Of every group in turn half of the channels go, at random.

    Args:
      spec: {(collection, path, axis): ((group, size, repeat), ...)}.
      build: Constructor fields, named as the groups are -> (variables, images) -> logits:
        `lambda **widths: Network(**widths).apply`.
      variables: The network's; moved at random first, for initial biases and statistics tell nothing.
      images: [B, H, W, C]; two are enough.
      tolerance: The largest difference of logits, as a share of the largest logit.

    Raises:
      ValueError: The two differ; the message names the group and its axes.

    Example:
      >>> build = lambda width: lambda variables, x: (x @ variables["params"]["kernel"]).sum(1)
      >>> spec = {("params", "kernel", 1): (("width", 4, 1),)}
      >>> check_shrinking(spec, build, {"params": {"kernel": jnp.ones((3, 4))}}, jnp.ones((2, 3)))
    """
    generator = np.random.default_rng(0)

    def moved(leaf: Any) -> Any:  # upwards, so that variances stay above 0
        scale = 0.1 + 0.1 * float(np.abs(leaf).mean())
        return jnp.asarray(leaf + scale * np.abs(generator.normal(size=np.shape(leaf))), leaf.dtype)

    variables = jax.tree.map(moved, variables)
    sizes = channels.group_sizes(spec)
    apply = build(**channels.widths_of(sizes))
    for group, size in sizes.items():
        if size == 1:
            continue
        keep = {group: np.sort(generator.choice(size, (size + 1) // 2, replace=False))}
        masks = filter_masks(variables["params"], spec, keep)
        masked = apply({**variables, "params": apply_masks(variables["params"], masks)}, images)
        small, widths = shrink(variables, spec, keep)
        try:
            shrunk = build(**widths)(small, images)
        except Exception as error:  # of a network of which nothing is known
            raise ValueError(f"Without half of {group!r} the network fails: {error}") from error
        difference = float(
            jnp.abs(masked - shrunk).max() / jnp.maximum(jnp.abs(masked).max(), 1e-9)
        )
        if not difference <= tolerance:
            named = ", ".join(
                f"axis {axis} of {collection}/{path}"
                for (collection, path, axis), segments in spec.items()
                if any(segment == group for segment, _, _ in segments)
            )
            raise ValueError(
                f"Without half of {group!r} the masked and the smaller network differ by "
                f"{100 * difference:.1f} % of the largest logit. Look at the order of the segments and "
                f"at sizes and repeats on {named}, and for a layer that normalises channels together."
            )


def shrink_state(state: PyTree, variables: PyTree, spec: ChannelSpec, keep: Keep) -> PyTree:
    """Shrinks all that goes with a network: a training state, an optimizer's, an average, masks.

    An array in `state` belongs to the array of `variables` whose path its own path ends with.

    Args:
      state: Any pytree that holds trees with the paths of the parameters or statistics, such as
        `training.TrainState` or the state of an optax optimizer. What belongs to no array of
        `variables`, and scalars, stay as they are.
      variables: The network's before it is shrunk, {"params": ..., "batch_stats": ...}.
      spec: {(collection, path, axis): ((group, size, repeat), ...)}.
      keep: As `shrink` was given it.

    Returns:
      As `state`.

    Raises:
      ValueError: As `shrink`; an array of another shape than the network's at its path, as optimizers
        with factored moments keep them: make their state anew.

    Example:
      >>> variables = {"params": {"kernel": jnp.ones((1, 3))}}
      >>> spec = {("params", "kernel", 1): (("width", 3, 1),)}
      >>> momentum = (jnp.int32(7), {"trace": {"kernel": jnp.arange(3.0)[None]}})
      >>> step, moved = shrink_state(momentum, variables, spec, {"width": [0, 2]})
      >>> moved["trace"]["kernel"].tolist()
      [[0.0, 2.0]]
    """
    channels.check_axes(spec, variables)
    kept, axes = channels.check_keep("keep", spec, keep), channels.axes_by_path(spec)
    shapes = {path: jnp.shape(leaf) for path, leaf in named_leaves(variables)}
    # By their paths within their collection too, parameters before all others.
    owners = {path.partition("/")[2]: path for path in shapes}
    owners |= {path.partition("/")[2]: path for path in shapes if path.startswith("params/")}
    owners |= {path: path for path in shapes}
    leaves = []
    for path, leaf in named_leaves(state):
        owner = _owner(path, owners)
        if owner in axes and jnp.ndim(leaf):
            if jnp.shape(leaf) != shapes[owner]:
                raise ValueError(
                    f"`state` has shape {jnp.shape(leaf)} at {path}, where the network has "
                    f"{shapes[owner]}: it cannot be shrunk; make it anew for the smaller network."
                )
            leaf = _taken(leaf, axes[owner], kept)
        leaves.append(leaf)
    return jax.tree.unflatten(jax.tree.structure(state), leaves)


def _owner(path: str, owners: Mapping[str, str]) -> str | None:
    """By the longest end of the path that is an array's, which tells a/kernel from b/a/kernel."""
    parts = path.split("/")
    ends = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((owners[end] for end in ends if end in owners), None)


def _taken(leaf: Any, axes: channels.Axes, kept: Mapping[Group, np.ndarray]) -> Any:
    """On the host: XLA would compile a program for every shape."""
    for axis, segments in axes:
        positions = channels.kept_positions(segments, kept)
        if len(positions) < leaf.shape[axis]:
            leaf = np.take(np.asarray(leaf), positions, axis)
    return jnp.asarray(leaf)
