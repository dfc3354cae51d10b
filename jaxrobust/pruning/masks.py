"""Masks: booleans with the structure of the parameters, True for weights that stay.

Only kernels are pruned; biases and normalisation, for instance, are not, except that constraints that
know the kernels remove the `followers` of a filter that loses all its weights. The argument `kernels`
says which weights are kernels. None goes by the name: arrays of two or more dimensions called "kernel"
(flax), "weight" (equinox) or "w" (haiku). A function of (path, array) returns whether an array is a
kernel. `channel_groups(...).kernels` are the weights that the program uses as kernels.
"""

import collections
import itertools
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import checks, programs
from jaxrobust.types import Masks, PyTree

_NAMES = ("kernel", "weight", "w")


class Kernel(NamedTuple):
    """A kernel, such as the weight of a convolution or dense layer, and the meaning of its axes.

    Attributes:
      path: The path of the weight.
      inputs: The axes of the channels that it reads; () for a depthwise convolution.
      outputs: The axes of the channels that it makes.
      is_first: Whether the images reach it without another kernel on the way.
      is_strided: Whether it is a convolution with a stride above 1.
      followers: The paths of the vectors, such as BatchNorm's scale and bias, that scale or shift its
        output channels, one number for each, and nothing else. Other axes of a vector have the length
        1. A kernel has none whose output is first added to another, joined, split or pooled, or
        normalised by statistics of the images themselves, as GroupNorm does, or that makes channels
        along several axes; nor has a grouped convolution, or a kernel before one.
    """

    path: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    is_first: bool = False
    is_strided: bool = False
    followers: tuple[str, ...] = ()


Kernels: TypeAlias = Callable[[str, Any], bool] | Collection[Kernel | str] | None
"""Which weights are kernels: None (by name), a function of (path, array), or kernels or paths."""


def kernel_paths(params: PyTree, kernels: Kernels = None) -> tuple[str, ...]:
    """Returns the paths of the kernels that can be pruned.

    Their order also decides between equal weights: those that come first are removed first.

    Args:
      params: A pytree of arrays: nested dicts, an nnx or equinox module or its state.
      kernels: Which weights are kernels: the kernels that `channel_groups` finds, or a function of
        (path, array). None: the names of the weights decide.

    Returns:
      Paths like "block_0/conv/kernel", in the order of `jax.tree.leaves`; () if there are none.

    Raises:
      ValueError: `kernels` names a weight that `params` does not have.

    Example:
      >>> import jax.numpy as jnp
      >>> kernel_paths({"head": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}})
      ('head/kernel',)
      >>> table = {"embedding": jnp.ones((9, 4)), "scale": jnp.ones(4)}
      >>> kernel_paths(table, lambda path, array: path == "embedding")
      ('embedding',)
    """
    return tuple(kernels_of(params, kernels))


def kernels_of(params: PyTree, kernels: Kernels = None) -> dict[str, Any]:
    """Returns the kernels by path, in the order of `jax.tree.leaves`."""
    leaves = {path: leaf for path, leaf in named_leaves(params) if is_array(leaf)}
    if kernels is None or callable(kernels):
        chosen = is_kernel if kernels is None else kernels
        return {path: leaf for path, leaf in leaves.items() if chosen(path, leaf)}
    paths = {getattr(one, "path", one) for one in kernels}
    # What was found for whole variables serves their parameters too.
    named = {path for path in leaves if path in paths or f"params/{path}" in paths}
    unknown = paths - named - {f"params/{path}" for path in named}
    if unknown:
        raise ValueError(
            f"`kernels` must name weights of the network, got {min(unknown)!r}; the weights are "
            f"{', '.join(leaves)}."
        )
    return {path: leaf for path, leaf in leaves.items() if path in named}


def keep_all(params: PyTree) -> Masks:
    """Returns masks that remove nothing."""
    return jax.tree.map(lambda leaf: jnp.ones(_shape(leaf), bool), params)


def apply_masks(params: PyTree, masks: Masks) -> PyTree:
    """Sets the removed weights to 0, even if they are NaN.

    Args:
      params: Nested dicts of arrays.
      masks: Boolean masks with the structure and shapes of `params`, True for weights that stay.

    Returns:
      The masked parameters, with the structure and types of `params`.

    Raises:
      TypeError: The masks are not boolean.
      ValueError: The masks have another structure or other shapes.

    Example:
      >>> import jax.numpy as jnp
      >>> apply_masks({"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([True, False])})["w"].tolist()
      [1.0, 0.0]
    """
    check_masks(params, masks)

    def masked(leaf: Any, mask: Any) -> Any:
        # Keys of random numbers and functions, which modules have among their leaves, are no weights.
        if not is_array(leaf) or jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
            return leaf
        return jnp.where(mask, leaf, jnp.zeros((), jnp.result_type(leaf)))

    return jax.tree.map(masked, params, masks)


def named_leaves(tree: PyTree) -> list[tuple[str, Any]]:
    """Returns the leaves with their paths, in the order of `jax.tree.leaves`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = [("/".join(programs.words(path)), leaf) for path, leaf in leaves]
    if len(dict(named)) < len(named):
        paths = collections.Counter(path for path, _ in named)
        raise ValueError(
            "Weights must have different paths, got two with the path "
            f"{paths.most_common(1)[0][0]!r}: a slash separates names, so rename one of them."
        )
    return named


def is_array(leaf: Any) -> bool:
    """Whether a leaf has a shape and a type: an array, or a description of one."""
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def _shape(leaf: Any) -> tuple[int, ...]:
    return tuple(leaf.shape) if is_array(leaf) else ()


def is_kernel(path: str, leaf: Any) -> bool:
    """Whether the leaf at this path is a kernel by its name."""
    return path.split("/")[-1] in _NAMES and jnp.ndim(leaf) >= 2


def followers_of(kernels: Kernels, path: str, leaves: Collection[str]) -> list[str]:
    """Returns the paths of the followers of a kernel that are among the leaves of a tree."""
    known = _known(kernels, path)
    # What was found for whole variables serves their parameters too.
    names = [(one, one.removeprefix("params/")) for one in (known.followers if known else ())]
    return [name for both in names for name in dict.fromkeys(both) if name in leaves]


def axes_of(kernels: Kernels, path: str, rank: int) -> Kernel:
    """Returns the input and output axes of a kernel, from the program or else by its name.

    A "weight" has its outputs first and its inputs second, as in equinox; other kernels end with their
    inputs and outputs.
    """
    if (known := _known(kernels, path)) is not None:
        axes = known.inputs, known.outputs
        if not all(-rank <= axis < rank for axis in itertools.chain(*axes)):
            raise ValueError(
                f"`kernels` must give axes of {path}, which has {rank} axes, got inputs {axes[0]} and "
                f"outputs {axes[1]}."
            )
        inputs, outputs = (tuple(axis % rank for axis in some) for some in axes)
        return known._replace(inputs=inputs, outputs=outputs)
    if path.split("/")[-1] == "weight":
        return Kernel(path, (1,), (0,))
    return Kernel(path, (rank - 2,), (rank - 1,))


def _known(kernels: Kernels, path: str) -> Kernel | None:
    for kernel in () if kernels is None or callable(kernels) else kernels:
        if isinstance(kernel, Kernel) and kernel.path in (path, f"params/{path}"):
            return kernel
    return None


def with_leaves(tree: PyTree, leaves: Mapping[str, Any]) -> PyTree:
    """Returns the tree with other leaves at some paths."""
    named = [leaves.get(path, leaf) for path, leaf in named_leaves(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree), named)


def check_masks(params: PyTree, masks: Masks) -> None:
    """Raises unless the masks are boolean and have the structure and shapes of the parameters."""
    ours, theirs = dict(named_leaves(params)), dict(named_leaves(masks))
    structure: Any = jax.tree.structure(params)
    if jax.tree.structure(masks) != structure and ours.keys() != theirs.keys():
        # None is no leaf, so a None among the masks is a missing one.
        missing, extra = sorted(ours.keys() - theirs.keys()), sorted(theirs.keys() - ours.keys())
        named = [
            f"{len(names)} {word} ({names[0]})"
            for names, word in ((missing, "missing"), (extra, "unexpected"))
            if names
        ]
        raise ValueError(
            "`masks` must have the structure of the parameters, with a boolean array for each: "
            f"{' and '.join(named)}."
        )
    for path, mask in theirs.items():
        if jnp.result_type(mask) != jnp.bool_:
            raise TypeError(f"`masks` must be boolean, got {jnp.result_type(mask)} at {path}.")
        if jnp.shape(mask) != _shape(ours[path]):
            raise ValueError(
                f"`masks` must have the shapes of the parameters, got {jnp.shape(mask)} for "
                f"{_shape(ours[path])} at {path}."
            )
    if jax.tree.structure(masks) != structure:
        raise ValueError(
            "`masks` must have the structure of the parameters; the containers, or static fields of "
            "modules among them, differ."
        )


def check_sparsity(name: str, value: Any) -> float:
    """Returns the value as a float; raises unless it is a number in [0, 1) that is not traced."""
    checks.number(name, value)
    known = isinstance(value, int | float | np.number) or (
        isinstance(value, jax.Array | np.ndarray)
        and value.ndim == 0
        and value.dtype != bool
        and not isinstance(value, jax.core.Tracer)
    )
    if not known:
        raise TypeError(f"`{name}` must be a number that is not traced, got {value!r}.")
    if not 0.0 <= float(value) < 1.0:
        raise ValueError(f"`{name}` must be a fraction in [0, 1), got {value}.")
    return float(value)
