"""Constraints: sets of compressed networks, with a projection onto each set.

A constraint determines which weights are zero, so that its projection is a mask: `masks(params, kept)`,
and then `apply_masks`. `kept` is the fraction of the weights that stay in the kernels that are not
excluded. It may be traced, so that another budget needs no recompilation. Among equal weights those
with lower indices are removed first.

    Irregular   the largest weights, of each kernel or of all together; the Euclidean projection
    Funnel      no layer is denser than the one before it; the Euclidean projection up to rounding
    Redundant   whole filters, no two of which are close; greedy
    NofM        n of every m neighbours, for which hardware is fast; the Euclidean projection

These are projections of the kernels. If a constraint knows the kernels of the program (`kernels=`; they
are found by `training.fit`), what scales and shifts a filter that has lost all its weights is removed
too (`with_followers`).
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import checks
from jaxrobust.pruning import funnel, redundancy
from jaxrobust.pruning.magnitude import SCOPES, keep_largest, not_excluded
from jaxrobust.pruning.masks import (
    Kernel,
    Kernels,
    axes_of,
    check_masks,
    followers_of,
    keep_all,
    kernels_of,
    named_leaves,
    with_leaves,
)
from jaxrobust.types import Array, Masks, PyTree


class Constraint(Protocol):
    """The interface of a set of compressed networks: a hashable frozen dataclass.

    Some filters may lose all their weights. If `masks` returns `with_followers(...)`, what scales and
    shifts such a filter goes with it, and ADMM draws both to 0, as everything that `masks` removes.
    `training.fit` fills a field `kernels` that is None; a constraint inside another needs its own.
    """

    def masks(self, params: PyTree, kept: Array | float, *, exclude: Sequence[str] = ()) -> Masks:
        """Returns the masks of the projection of the parameters onto the set.

        Args:
          params: Nested dicts of floating arrays.
          kept: The fraction of the weights that stay, in (0, 1], in the kernels that are not excluded.
            The count is exact for a Python number. A traced value is float32, and the count may then
            be off by one in kernels of more than four million weights.
          exclude: Path prefixes of kernels that are not compressed.

        Returns:
          Masks with the structure of the parameters, True for weights that stay. Biases and other
          parameters always stay, except for the followers of filters without weights.

        Raises:
          TypeError: `kept` is not a number, or a kernel has integers.
          ValueError: `kept` is out of range or the set cannot reach it; there are no kernels; weights
            are NaN; or a prefix matches no kernel.
        """


@dataclasses.dataclass(frozen=True)
class Irregular:
    """Irregular sparsity: the largest weights stay, at any positions.

    Attributes:
      scope: "layer" keeps the same fraction of every kernel. "global" compares all kernels together, so
        that some are denser than others.
      floor: The smallest number of weights that stay in a kernel (or all, if it has fewer), at least
        0; a kernel without weights would disconnect the network.
      kernels: The kernels, `channel_groups(...).kernels`. None: the names of the weights decide.

    Raises:
      TypeError, ValueError: A setting has the wrong type or is out of range.

    Example:
      >>> params = {"a": {"kernel": jnp.array([[1.0, -4.0]])}, "b": {"kernel": jnp.array([[5.0, 6.0]])}}
      >>> Irregular().masks(params, 0.5)["a"]["kernel"].tolist()
      [[False, True]]
      >>> Irregular("global", floor=0).masks(params, 0.5)["a"]["kernel"].tolist()
      [[False, False]]

    References:
      Zhang et al., "A Systematic DNN Weight Pruning Framework using Alternating Direction Method of
      Multipliers", ECCV 2018, equation 9, https://arxiv.org/abs/1804.03294
    """

    scope: str = "layer"
    floor: int = 1
    kernels: tuple[Kernel, ...] | None = dataclasses.field(default=None, metadata={"found": True})

    def __post_init__(self) -> None:
        checks.one_of("scope", self.scope, SCOPES)
        checks.integer("floor", self.floor, minimum=0)

    def masks(self, params: PyTree, kept: Array | float, *, exclude: Sequence[str] = ()) -> Masks:
        """Keeps round(kept * n) weights of each kernel, or of all together; see `Constraint.masks`."""
        kernels = checked_kernels(params, kept, exclude, self.kernels)
        groups = [[path] for path in kernels] if self.scope == "layer" else [list(kernels)]
        found: dict[str, Array] = {}
        for paths in groups:
            sizes = [kernels[path].size for path in paths]
            floors = sum(min(self.floor, size) for size in sizes)
            count = jnp.maximum(number_kept(kept, sum(sizes)), floors)
            scores = [jnp.abs(kernels[path]) for path in paths]
            if len(paths) > 1:
                scores = [_with_floor(score, self.floor) for score in scores]
            everything = [jnp.ones(score.shape, bool) for score in scores]
            found |= zip(paths, keep_largest(scores, everything, sum(sizes) - count), strict=True)
        return with_followers(params, found, self.kernels)


@dataclasses.dataclass(frozen=True)
class Funnel:
    """Densities that do not increase with depth: the largest weights of each layer stay.

    The total is exactly round(kept * n). Among all densities that do not increase with depth, those
    that keep the largest sum of squared weights are chosen (`funnel.counts`). This is the nearest
    network of the set, up to one or two weights per layer because of rounding.

    Attributes:
      order: Path prefixes in the order of depth, which together cover all kernels. Kernels that share a
        prefix are one layer, whose weights compete. None: the order in which the program uses its
        kernels, if `kernels` are given (`training.fit` gives them). Without `kernels`, the order of the
        numbers in the names, so that "block_10" comes after "block_9"; "stem" is first, other names
        without a number come last, and "head" at the very end.
      strict: Whether every layer must be less dense than the one before it, as in the thesis of
        Marshall (section 3.2.1), instead of at most as dense. If more weights stay than that allows, as
        before the budget falls, the order is not strict.
      shortcuts: If `order` is None: "block" makes a shortcut convolution one layer with the last
        convolution of its block, to which it is added; "layer" makes it a layer of its own.
      floor: The smallest number of weights that stay in every layer (or all, if it has fewer), at least
        0.
      kernels: The kernels in the order of their use, `channel_groups(...).kernels`. None: the
        names of the weights decide.

    Raises:
      TypeError, ValueError: A setting has the wrong type or is out of range.

    Example:
      >>> params = {f"block_{i}": {"kernel": jnp.array([[1.0, 2.0, 3.0, 4.0]]) + i} for i in (2, 10)}
      >>> masks = Funnel().masks(params, 0.5)
      >>> masks["block_2"]["kernel"].tolist(), masks["block_10"]["kernel"].tolist()
      ([[False, False, True, True]], [[False, False, True, True]])
    """

    order: tuple[str, ...] | None = None
    strict: bool = False
    shortcuts: str = "block"
    floor: int = 1
    kernels: tuple[Kernel, ...] | None = dataclasses.field(default=None, metadata={"found": True})

    def __post_init__(self) -> None:
        checks.one_of("shortcuts", self.shortcuts, ("block", "layer"))
        checks.integer("floor", self.floor, minimum=0)
        if self.order is not None and not isinstance(self.order, tuple):
            raise TypeError(f"`order` must be a tuple of path prefixes, got {self.order!r}.")

    def masks(self, params: PyTree, kept: Array | float, *, exclude: Sequence[str] = ()) -> Masks:
        """Returns the masks of the projection; see `Constraint.masks`."""
        kernels = checked_kernels(params, kept, exclude, self.kernels)
        layers = self.layers(tuple(kernels))
        scores = [[jnp.abs(kernels[path]) for path in paths] for paths in layers]
        total = number_kept(kept, sum(kernel.size for kernel in kernels.values()))
        counts = funnel.counts(
            [jnp.concatenate([jnp.ravel(score) for score in layer]) for layer in scores],
            total,
            floor=self.floor,
            strict=self.strict,
        )
        found: dict[str, Array] = {}
        for paths, layer, count in zip(layers, scores, counts, strict=True):
            everything = [jnp.ones(score.shape, bool) for score in layer]
            size = sum(score.size for score in layer)
            found |= zip(paths, keep_largest(layer, everything, size - count), strict=True)
        return with_followers(params, found, self.kernels)

    def layers(self, paths: tuple[str, ...]) -> list[list[str]]:
        """Returns the kernels of each layer, in the order of depth.

        Args:
          paths: The paths of the kernels.

        Raises:
          ValueError: `order` does not name all kernels, or a prefix in it matches none.

        Example:
          >>> Funnel().layers(("block_10/conv/kernel", "block_2/conv/kernel", "stem/kernel"))
          [['stem/kernel'], ['block_2/conv/kernel'], ['block_10/conv/kernel']]
        """
        if self.order is None:
            ordered = sorted(paths, key=_depth)
            if self.kernels is not None:
                use = [kernel.path.removeprefix("params/") for kernel in self.kernels]
                ordered = sorted(paths, key=lambda path: use.index(path.removeprefix("params/")))
            return _with_shortcuts(ordered) if self.shortcuts == "block" else [[p] for p in ordered]
        prefixes = [f"{prefix.strip('/')}/" for prefix in self.order]
        # The longest prefix decides: ("block_0", "block_0/conv_1") sets one kernel of a block apart.
        layer_of = {
            path: max((p for p in prefixes if f"{path}/".startswith(p)), key=len, default=None)
            for path in paths
        }
        unnamed = [path for path, prefix in layer_of.items() if prefix is None]
        unused = [p[:-1] for p in prefixes if p not in layer_of.values()]
        if unnamed or unused:
            raise ValueError(
                "`order` must name all kernels that are not excluded and nothing else; missing: "
                f"{', '.join(unnamed) or 'none'}; unknown: {', '.join(unused) or 'none'}."
            )
        return [[path for path in paths if layer_of[path] == prefix] for prefix in prefixes]


@dataclasses.dataclass(frozen=True)
class Redundant:
    """Whole filters, any two of which are at least a distance phi apart.

    Of the F filters of every kernel, round(kept * F) stay, but at least `floor`. Filters are visited by
    norm, the largest first, and stay if they are at least phi away from all that stay. Phi is the
    largest distance at which enough filters stay; of these the smallest are removed until the number is
    exact. The greedy result need not be the nearest network of the set, which is a hard problem (a
    maximum independent set).

    Attributes:
      floor: The smallest number of filters that stay in every kernel (or all, if it has fewer), at
        least 1.
      kernels: The kernels and the axes of their filters, `channel_groups(...).kernels`. None: the
        names of the weights decide, and filters are on the last axis, or the first of a "weight".

    Example:
      >>> kernel = jnp.array([[3.0, 3.1, 0.0], [0.0, 0.1, 1.0]])
      >>> Redundant().masks({"kernel": kernel}, 0.67)["kernel"].tolist()
      [[False, True, True], [False, True, True]]
    """

    floor: int = 1
    kernels: tuple[Kernel, ...] | None = dataclasses.field(default=None, metadata={"found": True})

    def __post_init__(self) -> None:
        checks.integer("floor", self.floor, minimum=1)

    def masks(self, params: PyTree, kept: Array | float, *, exclude: Sequence[str] = ()) -> Masks:
        """Returns masks of whole filters; see `Constraint.masks`."""
        found = {}
        for path, kernel in checked_kernels(params, kept, exclude, self.kernels).items():
            outputs = axes_of(self.kernels, path, kernel.ndim).outputs
            others = [axis for axis in range(kernel.ndim) if axis not in outputs]
            filters = kernel.transpose([*others, *outputs])
            width = math.prod(kernel.shape[axis] for axis in outputs)
            count = jnp.maximum(number_kept(kept, width), min(self.floor, width))
            stays, _ = redundancy.apart(filters.reshape(-1, width), count)
            mask = jnp.broadcast_to(stays, (filters.size // width, width)).reshape(filters.shape)
            found[path] = mask.transpose(np.argsort([*others, *outputs]))
        return with_followers(params, found, self.kernels)


@dataclasses.dataclass(frozen=True)
class NofM:
    """N:M sparsity: the n largest of every m neighbours along the axis of input channels stay.

    GPUs multiply such matrices (2 of 4) nearly twice as fast. If `kept` is above n / m, round(kept * m)
    of every m stay, so that a falling budget falls in steps. A remainder of fewer than m channels is a
    group of its own, of which n stay; a depthwise kernel, which has one input channel, is not pruned.

    Attributes:
      n: The number of weights that stay in each group, at least 1.
      m: The number of weights in a group, above n.
      kernels: The kernels and the axes of their inputs, `channel_groups(...).kernels` (`training.fit`
        gives them). None: the names of the weights decide. The input axis of a kernel of two or four
        axes is then the last but one, or the second of a "weight"; other kernels are refused.

    Raises:
      TypeError, ValueError: A setting has the wrong type or is out of range.

    Example:
      >>> kernel = jnp.array([[1.0], [-3.0], [2.0], [0.5]])
      >>> NofM(2, 4).masks({"kernel": kernel}, 0.5)["kernel"].ravel().tolist()
      [False, True, True, False]

    References:
      Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021, https://arxiv.org/abs/2104.08378
    """

    n: int = 2
    m: int = 4
    kernels: tuple[Kernel, ...] | None = dataclasses.field(default=None, metadata={"found": True})

    def __post_init__(self) -> None:
        checks.integer("n", self.n, minimum=1)
        checks.integer("m", self.m, minimum=self.n + 1)

    def masks(self, params: PyTree, kept: Array | float, *, exclude: Sequence[str] = ()) -> Masks:
        """Returns the masks of the projection; `kept` is at least n / m. See `Constraint.masks`."""
        kernels = checked_kernels(params, kept, exclude, self.kernels)
        if is_known(kept) and float(kept) < self.n / self.m - 1e-6:
            raise ValueError(
                f"`kept` must be at least {self.n}/{self.m} for {self.n} of {self.m}, got {kept}."
            )
        count = jnp.maximum(number_kept(kept, self.m), self.n)
        found = {}
        for path, kernel in kernels.items():
            if self.kernels is None and kernel.ndim not in (2, 4):
                raise ValueError(
                    f"`kernels` must say which axes {path} of shape {kernel.shape} reads: "
                    "`NofM(kernels=channel_groups(function, weights, images).kernels)`."
                )
            inputs = axes_of(self.kernels, path, kernel.ndim).inputs
            order = [*(axis for axis in range(kernel.ndim) if axis not in inputs), *inputs]
            rows = kernel.transpose(order).reshape(
                -1, math.prod(kernel.shape[axis] for axis in inputs)
            )
            mask = _largest_of_groups(rows, self.m, count)
            mask = mask.reshape([kernel.shape[axis] for axis in order])
            found[path] = mask.transpose(np.argsort(order))
        return with_leaves(keep_all(params), found)  # no filter loses all its weights


def open_kernels(
    params: PyTree, exclude: Sequence[str], kernels: Kernels = None
) -> dict[str, Array]:
    """Returns the kernels that are not excluded, by path; raises if there are none."""
    named = kernels_of(params, kernels)
    chosen = {path: jnp.asarray(named[path]) for path in not_excluded(named, exclude)}
    if not sum(kernel.size for kernel in chosen.values()):
        raise ValueError(
            "`params` must have kernels to prune that `exclude` does not name: arrays of two or more "
            "dimensions called 'kernel', 'weight' or 'w', or those that `kernels` names."
        )
    return chosen


def with_followers(params: PyTree, masks: Mapping[str, Array], kernels: Kernels = None) -> Masks:
    """Returns masks of all parameters, from masks of kernels.

    With a filter that loses all its weights go its scale and shift, `Kernel.followers`. Otherwise ADMM
    could not draw the filter to 0, because BatchNorm restores its size, and the smaller the filter, the
    larger its steps. A follower of several kernels goes if they all lose the filter; a kernel without a
    mask keeps everything.

    Args:
      params: Nested dicts of arrays.
      masks: Boolean masks of kernels, by path, True for weights that stay.
      kernels: The kernels, `channel_groups(...).kernels`. None: no followers are known, and none is
        removed.

    Returns:
      Masks with the structure of `params`; everything that is no follower of an empty filter and has
      no mask stays.

    Raises:
      TypeError: A mask is not boolean.
      ValueError: A path is not among the parameters; a mask has another shape; or a kernel has output
        axes that its mask does not have, or a follower of another length.

    Example:
      >>> from jaxrobust.pruning import Kernel
      >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
      >>> mask = jnp.array([[True, False, True], [True, False, False]])
      >>> known = (Kernel("kernel", (0,), (1,), followers=("bias",)),)
      >>> with_followers(params, {"kernel": mask}, known)["bias"].tolist()
      [True, False, True]
    """
    leaves = dict(named_leaves(params))
    if unknown := sorted(masks.keys() - leaves.keys()):
        raise ValueError(
            f"`masks` must have paths of the parameters, such as {next(iter(leaves), '')!r}, got "
            f"{unknown[0]!r}."
        )
    whole = with_leaves(keep_all(params), masks)
    check_masks(params, whole)
    found: dict[str, Array] = {}
    for path in leaves:
        for follower in followers_of(kernels, path, leaves):
            mask = masks.get(path, jnp.ones(jnp.shape(leaves[path]), bool))
            outputs = axes_of(kernels, path, mask.ndim).outputs
            stays = jnp.any(mask, axis=tuple(set(range(mask.ndim)) - set(outputs)))
            shape = jnp.shape(leaves[follower])
            if not outputs or stays.size != math.prod(shape):
                raise ValueError(
                    f"`kernels` must give {path} of shape {mask.shape} output axes of as many channels "
                    f"as its follower {follower} of shape {shape} has, got {outputs}."
                )
            found[follower] = found.get(follower, False) | stays.reshape(shape)
    return with_leaves(
        whole, {path: stays & masks.get(path, True) for path, stays in found.items()}
    )


def checked_kernels(
    params: PyTree, kept: Array | float, exclude: Sequence[str], kernels: Kernels = None
) -> dict[str, Array]:
    """Returns `open_kernels` of parameters, after the checks that `Constraint.masks` lists."""
    checks.number("kept", kept, above=0.0, maximum=1.0)
    if kernels is not None and (
        callable(kernels) or not all(isinstance(one, Kernel) for one in kernels)
    ):
        raise TypeError(
            f"`kernels` must be the kernels of `channel_groups(...)`, or None, got {kernels!r}."
        )
    found = open_kernels(params, exclude, kernels)
    for path, kernel in found.items():
        if not jnp.issubdtype(kernel.dtype, jnp.floating):
            raise TypeError(f"`params` must be floating point, got {kernel.dtype} at {path}.")
    if not checks.is_traced(found):
        broken = jax.device_get({p: jnp.any(jnp.isnan(k)) for p, k in found.items()})
        for path in (path for path, is_broken in broken.items() if is_broken):
            raise ValueError(
                f"`params` must not have NaN, which cannot be ranked, got one at {path}."
            )
    return found


def is_known(kept: Any) -> bool:
    """Whether `kept` is a Python number, which is exact, and not an array."""
    return isinstance(kept, int | float | np.number)


def number_kept(kept: Array | float, size: int) -> Array | int:
    """Returns round(kept * size) as an integer."""
    if is_known(kept):
        return round(float(kept) * size)
    return jnp.round(jnp.asarray(kept, jnp.float32) * size).astype(jnp.int32)


def _with_floor(scores: Array, floor: int) -> Array:
    """Returns the scores with the `floor` largest set to infinity."""
    if floor == 0:
        return scores
    flat = jnp.ravel(scores)
    _, largest = jax.lax.top_k(flat, min(floor, flat.size))
    return flat.at[largest].set(jnp.inf).reshape(scores.shape)


def _largest_of_groups(rows: Array, m: int, count: Array | int) -> Array:
    """Returns the mask of the `count` largest of every m along the second axis of rows [N, I]."""
    number, inputs = rows.shape
    short = -inputs % m
    # What fills the last group up is below every weight.
    scores = jnp.pad(jnp.abs(rows), [(0, 0), (0, short)], constant_values=-1)
    scores = scores.reshape(number, -1, m)
    mine, others = scores[..., :, None], scores[..., None, :]
    later = jnp.arange(m)[None, :] > jnp.arange(m)[:, None]
    ahead = jnp.sum((others > mine) | ((others == mine) & later), axis=-1)
    return (ahead < count).reshape(number, inputs + short)[:, :inputs]


def _depth(path: str) -> tuple[Any, ...]:
    """Returns a key that sorts paths by the numbers in their names, name by name."""
    keys = []
    for name in path.split("/"):
        numbers = tuple(int(digits) for digits in re.findall(r"\d+", name))
        rank = {"stem": -1, "head": 2}.get(name, 0 if numbers else 1)
        # "transition_1" is before "stage_1_layer_0": one number is less than the same and another.
        keys.append((rank, numbers, name))
    return tuple(keys)


def _with_shortcuts(paths: list[str]) -> list[list[str]]:
    """Returns a layer for each kernel, with a shortcut in the layer of its block's last kernel."""

    def block_of(path: str) -> str | None:
        names = path.split("/")
        return "/".join(names[: names.index("shortcut")]) if "shortcut" in names else None

    layers = [[path] for path in paths if block_of(path) is None]
    for path in paths:
        block = block_of(path)
        if block is None:
            continue
        of_block = [layer for layer in layers if layer[0].startswith(f"{block}/")]
        if of_block:
            of_block[-1].append(path)
        else:
            layers.append([path])
    return layers
