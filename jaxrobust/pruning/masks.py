"""Masks: which weights of a network stay, as booleans in the parameters' own structure.

What can be pruned are the kernels of convolutions and dense layers: leaves of two dimensions or more
whose last path key is "kernel". Biases and normalisation stay whole. Leaves are told by their path,
never by the class of their layer, so any parameters in nested dicts will do.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import checks
from jaxrobust.types import Masks, PyTree


def kernel_paths(params: PyTree) -> tuple[str, ...]:
    """The kernels that can be pruned, in the order in which ties between their weights are broken.

    Args:
      params: Nested dicts of arrays.

    Returns:
      Paths like "block_0/conv/kernel", in the order of `jax.tree.leaves`; () if there are none.

    Example:
      >>> import jax.numpy as jnp
      >>> kernel_paths({"head": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}})
      ('head/kernel',)
    """
    return tuple(path for path, leaf in named_leaves(params) if is_kernel(path, leaf))


def keep_all(params: PyTree) -> Masks:
    """Masks that remove nothing."""
    return jax.tree.map(lambda leaf: jnp.ones(jnp.shape(leaf), bool), params)


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
    return jax.tree.map(
        lambda leaf, mask: jnp.where(mask, leaf, jnp.zeros((), jnp.result_type(leaf))),
        params,
        masks,
    )


def named_leaves(tree: PyTree) -> list[tuple[str, Any]]:
    """The leaves with their paths, in the order of `jax.tree.leaves`."""
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def is_kernel(path: str, leaf: Any) -> bool:
    """Whether the leaf at this path can be pruned."""
    return path.split("/")[-1] == "kernel" and jnp.ndim(leaf) >= 2


def with_leaves(tree: PyTree, leaves: Mapping[str, Any]) -> PyTree:
    """The tree with other leaves at some paths."""
    named = [leaves.get(path, leaf) for path, leaf in named_leaves(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree), named)


def check_masks(params: PyTree, masks: Masks) -> None:
    """Raises unless the masks are boolean and of the structure and shapes of the parameters."""
    ours, theirs = dict(named_leaves(params)), dict(named_leaves(masks))
    structure: Any = jax.tree.structure(params)
    if jax.tree.structure(masks) != structure:
        # None is no leaf, so a None among the masks is a missing one.
        missing, extra = sorted(ours.keys() - theirs.keys()), sorted(theirs.keys() - ours.keys())
        named = [
            f"{len(names)} {word} ({names[0]})"
            for names, word in ((missing, "missing"), (extra, "unexpected"))
            if names
        ]
        raise ValueError(
            "`masks` must have the structure of the parameters, with a boolean array for each: "
            f"{' and '.join(named) or 'its containers are of other types'}."
        )
    for path, mask in theirs.items():
        if jnp.result_type(mask) != jnp.bool_:
            raise TypeError(f"`masks` must be boolean, got {jnp.result_type(mask)} at {path}.")
        if jnp.shape(mask) != jnp.shape(ours[path]):
            raise ValueError(
                f"`masks` must have the shapes of the parameters, got {jnp.shape(mask)} for "
                f"{jnp.shape(ours[path])} at {path}."
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
