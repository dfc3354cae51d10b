"""Masks: which weights of a network stay, as booleans in the parameters' own structure.

What is pruned are kernels. Which weights are kernels can be said in three ways, everywhere by the
argument `kernels`: None goes by the name, leaves of two dimensions or more called "kernel" (flax),
"weight" (equinox) or "w" (haiku); a function of (path, array) chooses; and what a program uses as
kernels, `channel_groups(...).kernels`, goes by what the network does with its weights. All else,
biases and normalisation for example, stays whole.
"""

import collections
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import checks, programs
from jaxrobust.types import Masks, PyTree

_NAMES = ("kernel", "weight", "w")


class Kernel(NamedTuple):
    """A weight that activations are multiplied with and added up, and what its axes are.

    Attributes:
      path: Of the weight.
      inputs: Axes of the channels that it reads; () of a depthwise convolution.
      outputs: Axes of those that it makes.
    """

    path: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


Kernels: TypeAlias = Callable[[str, Any], bool] | Collection[Kernel | str] | None
"""Which weights are kernels: None by their names, a function of (path, array), or kernels or paths."""


def kernel_paths(params: PyTree, kernels: Kernels = None) -> tuple[str, ...]:
    """The kernels that can be pruned, in the order in which ties between their weights are broken.

    Args:
      params: A pytree of arrays: nested dicts, an nnx or equinox module or its state.
      kernels: Which weights they are: None by their names, a function of (path, array), or kernels as
        `channel_groups` finds them.

    Returns:
      Paths like "block_0/conv/kernel", in the order of `jax.tree.leaves`; () if there are none.

    Raises:
      ValueError: `kernels` name what `params` do not have.

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
    """The kernels by their paths, in the order of `jax.tree.leaves`."""
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
            f"`kernels` name {min(unknown)!r}, which the weights do not have; they have "
            f"{', '.join(leaves)}."
        )
    return {path: leaf for path, leaf in leaves.items() if path in named}


def keep_all(params: PyTree) -> Masks:
    """Masks that remove nothing."""
    return jax.tree.map(lambda leaf: jnp.ones(_shape(leaf), bool), params)


def apply_masks(params: PyTree, masks: Masks) -> PyTree:
    """Sets the removed weights to 0, whatever they were (NaN too).

    Args:
      params: Nested dicts of arrays.
      masks: Their structure and shapes, boolean; True keeps the weight.

    Returns:
      As `params`, of the same types.

    Raises:
      TypeError: Masks that are not boolean.
      ValueError: Masks of another structure or other shapes.

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
    """The leaves with their paths, in the order of `jax.tree.leaves`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = [("/".join(programs.words(path)), leaf) for path, leaf in leaves]
    if len(dict(named)) < len(named):
        paths = collections.Counter(path for path, _ in named)
        raise ValueError(
            f"Two weights have the path {paths.most_common(1)[0][0]!r}: a name with a slash stands for "
            "a path of names; rename one of them."
        )
    return named


def is_array(leaf: Any) -> bool:
    """Whether it has a shape and a type: an array, or what stands for one."""
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def _shape(leaf: Any) -> tuple[int, ...]:
    return tuple(leaf.shape) if is_array(leaf) else ()


def is_kernel(path: str, leaf: Any) -> bool:
    """Whether the leaf at this path is a kernel by its name."""
    return path.split("/")[-1] in _NAMES and jnp.ndim(leaf) >= 2


def axes_of(kernels: Kernels, path: str, rank: int) -> Kernel:
    """What a kernel reads and makes, as the program says or else by its name.

    A "weight" has its outputs first and its inputs second, as in equinox; others have them last.
    """
    for kernel in () if kernels is None or callable(kernels) else kernels:
        if isinstance(kernel, Kernel) and kernel.path in (path, f"params/{path}"):
            return kernel
    if path.split("/")[-1] == "weight":
        return Kernel(path, (1,), (0,))
    return Kernel(path, (rank - 2,), (rank - 1,))


def with_leaves(tree: PyTree, leaves: Mapping[str, Any]) -> PyTree:
    """The tree with other leaves at some paths."""
    named = [leaves.get(path, leaf) for path, leaf in named_leaves(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree), named)


def check_masks(params: PyTree, masks: Masks) -> None:
    """Raises unless the masks are boolean and of the structure and shapes of the parameters."""
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
            "`masks` must have the structure of the parameters; its containers, or what modules among "
            "them say of themselves, are others."
        )


def check_sparsity(name: str, value: Any) -> float:
    """The value as a float; raises unless it is a number in [0, 1) that is known while tracing."""
    checks.number(name, value)
    known = isinstance(value, int | float | np.number) or (
        isinstance(value, jax.Array | np.ndarray)
        and value.ndim == 0
        and value.dtype != bool
        and not isinstance(value, jax.core.Tracer)
    )
    if not known:
        raise TypeError(f"`{name}` must be a number, known while tracing, got {value!r}.")
    if not 0.0 <= float(value) < 1.0:
        raise ValueError(f"`{name}` must be in [0, 1), got {value}: it is a fraction.")
    return float(value)
