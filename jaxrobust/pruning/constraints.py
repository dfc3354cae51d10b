"""Sets of compressed networks, and the way from any network to the nearest one in such a set.

What a set asks for is which weights are zero, so its projection is a mask: `masks(params, kept)`, then
`apply_masks`. `kept` is the fraction of the weights that stay, of the kernels that are not excluded; it
may be traced, so that a budget that falls from epoch to epoch compiles nothing anew. Of equal weights
those that come first go first.

    Irregular   the largest weights, of every kernel or of all together: the Euclidean projection
    Funnel      no layer denser than the one before it: the Euclidean projection but for whole numbers
    Redundant   whole filters, of which no two are close: greedy
    NofM        n of every m neighbours, which hardware is fast with: the Euclidean projection
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import checks
from jaxrobust.pruning import funnel, redundancy
from jaxrobust.pruning.magnitude import SCOPES, keep_largest, not_excluded
from jaxrobust.pruning.masks import Kernel, Kernels, axes_of, keep_all, kernels_of, with_leaves
from jaxrobust.types import Array, Masks, PyTree


class Constraint(Protocol):
    """A set of compressed networks; a frozen dataclass that can be hashed."""

    def masks(self, params: PyTree, kept: Array | float, *, exclude: Sequence[str] = ()) -> Masks:
        """The weights that stay when the parameters are projected onto the set.

        Args:
          params: Nested dicts of floating arrays; masters are float32.
          kept: The fraction of the weights that stays, in (0, 1], of the kernels that are not
            excluded. Traced, it is a float32: of a kernel of more than four million weights the
            number kept may then be one off. A Python number is exact.
          exclude: Path prefixes of kernels that stay whole.

        Returns:
          Masks, of the parameters' structure, True for what stays: all of the biases and the like.

        Raises:
          TypeError: `kept` is no number, or kernels of integers.
          ValueError: `kept` out of range or out of the set's reach; no kernels; NaN weights; prefixes
            that match none.
        """


@dataclasses.dataclass(frozen=True)
class Irregular:
    """The largest weights, wherever they are.

    Attributes:
      scope: "layer": of every kernel the same fraction. "global": of all kernels together, so that
        some end up denser than others.
      floor: At least so many weights of every kernel stay, or all that it has: an empty kernel cuts
        the network in two. 0: none has to.
      kernels: What the program does with its weights, `channel_groups(...).kernels`: which of them are
        kernels. None: by their names.

    Raises:
      TypeError, ValueError: A setting of the wrong type or out of range.

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
        """As `Constraint.masks`: kept * n weights of each kernel, or of all together, rounded."""
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
        return with_leaves(keep_all(params), found)


@dataclasses.dataclass(frozen=True)
class Funnel:
    """The largest weights such that the density does not increase with depth.

    The total is exactly round(kept * n). Among all densities that do not increase, those that keep the
    most of the weights' squares are found (`funnel.counts`): the nearest network of the set, but that
    whole numbers of weights cost up to a weight or two per layer.

    Attributes:
      order: Path prefixes in the order of depth: kernels that share one are one layer, whose weights
        compete. Kernels that it does not name are an error. None: the order in which the program uses
        its kernels, if `kernels` say so (`training.fit` sees to that). Without `kernels` it is the
        order of the numbers in the names, so that "block_10" comes after "block_9"; "stem" is first,
        other names without a number are last, "head" the very last.
      shortcuts: Without `order`: "block", a shortcut convolution is one layer with its block's last
        convolution, to which it is added; "layer", it is one of its own.
      floor: At least so many weights of every layer stay, or all that it has.
      kernels: What the program does with its weights, `channel_groups(...).kernels`: which of them are
        kernels, and their order. None: by their names.

    Raises:
      TypeError, ValueError: A setting of the wrong type or out of range.

    Example:
      >>> params = {f"block_{i}": {"kernel": jnp.array([[1.0, 2.0, 3.0, 4.0]]) + i} for i in (2, 10)}
      >>> masks = Funnel().masks(params, 0.5)
      >>> masks["block_2"]["kernel"].tolist(), masks["block_10"]["kernel"].tolist()
      ([[False, False, True, True]], [[False, False, True, True]])
    """

    order: tuple[str, ...] | None = None
    shortcuts: str = "block"
    floor: int = 1
    kernels: tuple[Kernel, ...] | None = dataclasses.field(default=None, metadata={"found": True})

    def __post_init__(self) -> None:
        checks.one_of("shortcuts", self.shortcuts, ("block", "layer"))
        checks.integer("floor", self.floor, minimum=0)
        if self.order is not None and not isinstance(self.order, tuple):
            raise TypeError(f"`order` must be a tuple of path prefixes, got {self.order!r}.")

    def masks(self, params: PyTree, kept: Array | float, *, exclude: Sequence[str] = ()) -> Masks:
        """As `Constraint.masks`."""
        kernels = checked_kernels(params, kept, exclude, self.kernels)
        layers = self.layers(tuple(kernels))
        scores = [[jnp.abs(kernels[path]) for path in paths] for paths in layers]
        total = number_kept(kept, sum(kernel.size for kernel in kernels.values()))
        counts = funnel.counts(
            [jnp.concatenate([jnp.ravel(score) for score in layer]) for layer in scores],
            total,
            floor=self.floor,
        )
        found: dict[str, Array] = {}
        for paths, layer, count in zip(layers, scores, counts, strict=True):
            everything = [jnp.ones(score.shape, bool) for score in layer]
            size = sum(score.size for score in layer)
            found |= zip(paths, keep_largest(layer, everything, size - count), strict=True)
        return with_leaves(keep_all(params), found)

    def layers(self, paths: tuple[str, ...]) -> list[list[str]]:
        """The kernels in the order of depth, those of one layer together.

        Args:
          paths: Of the kernels.

        Raises:
          ValueError: `order` does not name them all, or names what is none.

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
                "`order` must name all kernels that are not excluded and nothing else; it lacks "
                f"{', '.join(unnamed) or 'none'} and names {', '.join(unused) or 'none'} besides."
            )
        return [[path for path in paths if layer_of[path] == prefix] for prefix in prefixes]


@dataclasses.dataclass(frozen=True)
class Redundant:
    """Whole filters, any two of a kernel at least phi apart.

    Of every kernel round(kept * F) of its F filters stay, at least `floor`. By norm, the largest first,
    a filter stays if it is at least phi away from all that stay; phi is the largest at which enough do,
    and of these the smallest go until the number is right. Greedy: not the nearest network of the set,
    which is a hard problem (a largest independent set).

    Attributes:
      floor: At least so many filters of every kernel stay, or all that it has.
      kernels: What the program does with its weights, `channel_groups(...).kernels`: which of them are
        kernels, and which axes their filters are on. None: by their names; filters are on the last
        axis, of a "weight" on the first.

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
        """As `Constraint.masks`, in whole filters."""
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
        return with_leaves(keep_all(params), found)


@dataclasses.dataclass(frozen=True)
class NofM:
    """The n largest of every m neighbours along the axis of input channels.

    GPUs multiply such matrices (2 of 4) nearly twice as fast. While `kept` is above n / m it is
    round(kept * m) of them, so that a falling budget falls in steps. A remainder of fewer than m
    channels is a group of its own, of which n stay: a depthwise kernel, of one input channel, stays
    whole.

    Attributes:
      n: At least 1.
      m: Above n.
      kernels: What the program does with its weights, `channel_groups(...).kernels`: which of them are
        kernels, and which axes they read (`training.fit` sees to that). None: by their names; of two
        or four axes, a dense layer's or a convolution's, the last but one is read, of a "weight" the
        second, and others are refused.

    Raises:
      TypeError, ValueError: A setting of the wrong type or out of range.

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
        """As `Constraint.masks`; `kept` of at least n / m."""
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
        return with_leaves(keep_all(params), found)


def open_kernels(
    params: PyTree, exclude: Sequence[str], kernels: Kernels = None
) -> dict[str, Array]:
    """The kernels that are not excluded, by path, of parameters or masks; raises if there are none."""
    named = kernels_of(params, kernels)
    chosen = {path: jnp.asarray(named[path]) for path in not_excluded(named, exclude)}
    if not sum(kernel.size for kernel in chosen.values()):
        raise ValueError(
            "`params` has no kernels to prune: leaves of two dimensions or more called 'kernel', "
            "'weight' or 'w', without those that `exclude` names; `kernels` may name others."
        )
    return chosen


def checked_kernels(
    params: PyTree, kept: Array | float, exclude: Sequence[str], kernels: Kernels = None
) -> dict[str, Array]:
    """`open_kernels` of parameters; checks them and `kept` as `Constraint.masks` says."""
    checks.number("kept", kept, above=0.0, maximum=1.0)
    found = open_kernels(params, exclude, kernels)
    for path, kernel in found.items():
        if not jnp.issubdtype(kernel.dtype, jnp.floating):
            raise TypeError(f"`params` must be floating point, got {kernel.dtype} at {path}.")
    if not checks.is_traced(found):
        broken = jax.device_get({p: jnp.any(jnp.isnan(k)) for p, k in found.items()})
        for path in (path for path, is_broken in broken.items() if is_broken):
            raise ValueError(f"`params` has NaN at {path}, which is neither small nor large.")
    return found


def is_known(kept: Any) -> bool:
    """Whether `kept` is a number of the host, which is exact, rather than an array."""
    return isinstance(kept, int | float | np.number)


def number_kept(kept: Array | float, size: int) -> Array | int:
    """round(kept * size), as an integer."""
    if is_known(kept):
        return round(float(kept) * size)
    return jnp.round(jnp.asarray(kept, jnp.float32) * size).astype(jnp.int32)


def _with_floor(scores: Array, floor: int) -> Array:
    """The scores with the `floor` largest of them infinite."""
    if floor == 0:
        return scores
    flat = jnp.ravel(scores)
    _, largest = jax.lax.top_k(flat, min(floor, flat.size))
    return flat.at[largest].set(jnp.inf).reshape(scores.shape)


def _largest_of_groups(rows: Array, m: int, count: Array | int) -> Array:
    """The mask of rows [N, I] with the `count` largest of every m along I."""
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
    """A key that sorts paths by the numbers in their names, component by component."""
    keys = []
    for name in path.split("/"):
        numbers = tuple(int(digits) for digits in re.findall(r"\d+", name))
        rank = {"stem": -1, "head": 2}.get(name, 0 if numbers else 1)
        # "transition_1" is before "stage_1_layer_0": one number is less than the same and another.
        keys.append((rank, numbers, name))
    return tuple(keys)


def _with_shortcuts(paths: list[str]) -> list[list[str]]:
    """One layer for each kernel, but a shortcut is put with the last other kernel of its block."""

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
