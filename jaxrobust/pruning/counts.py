"""How sparse a network is: by layer, over all kernels, and over all its parameters."""

from typing import Any, TypedDict

import jax
import jax.numpy as jnp

from jaxrobust.pruning.masks import Kernels, check_masks, is_array, kernels_of
from jaxrobust.types import Masks, PyTree, QuantizedKernel


class LayerSparsity(TypedDict):
    """Of one kernel: its weights, those that are kept, and the fraction removed."""

    size: int
    kept: int
    sparsity: float


class ParameterCounts(TypedDict):
    """Of all parameters, biases and normalisation included."""

    size: int
    nonzero: int


def layer_sparsity(
    params: PyTree, masks: Masks | None = None, *, kernels: Kernels = None
) -> dict[str, LayerSparsity]:
    """The sparsity of every kernel.

    Args:
      params: Nested dicts of arrays or `QuantizedKernel`.
      masks: Of the parameters' structure, before they were quantised or after: what they remove
        counts. None: the zeros of `params` do.
      kernels: Which weights are kernels: None by their names, a function of (path, array), or kernels
        as `channel_groups` finds them.

    Returns:
      {"block_0/conv/kernel": {"size", "kept", "sparsity"}}.

    Raises:
      TypeError: Masks that are not boolean.
      ValueError: No kernels, or unknown ones; masks of another structure or other shapes.

    Example:
      >>> import jax.numpy as jnp
      >>> layer_sparsity({"head": {"kernel": jnp.array([[0.0, 2.0]])}})
      {'head/kernel': {'size': 2, 'kept': 1, 'sparsity': 0.5}}
    """
    counted = _without_scales(params)
    if masks is not None:
        masks = _without_scales(masks)
        check_masks(counted, masks)
        counted = masks
    found = {path: leaf for path, leaf in kernels_of(counted, kernels).items() if leaf.size}
    if not found:
        raise ValueError(
            "`params` has no kernels: leaves of two dimensions or more called 'kernel', 'weight' or "
            "'w'; `kernels` may name others."
        )
    return {
        path: {
            "size": found[path].size,
            "kept": kept,
            "sparsity": (found[path].size - kept) / found[path].size,
        }
        for path, kept in zip(found, _nonzero(list(found.values())), strict=True)
    }


def sparsity_of(tree: PyTree, *, kernels: Kernels = None) -> float:
    """The fraction of all kernel weights that is removed.

    Args:
      tree: Parameters, of which zeros count as removed, or masks.
      kernels: Which weights are kernels: None by their names, a function of (path, array), or kernels
        as `channel_groups` finds them.

    Returns:
      In [0, 1].

    Raises:
      ValueError: No kernels, or unknown ones.

    Example:
      >>> import jax.numpy as jnp
      >>> sparsity_of({"kernel": jnp.array([[0.0, 2.0, 1.0, 3.0]]), "bias": jnp.zeros(4)})
      0.25
    """
    layers = layer_sparsity(tree, kernels=kernels).values()
    size = sum(layer["size"] for layer in layers)
    return (size - sum(layer["kept"] for layer in layers)) / size


def parameter_counts(params: PyTree) -> ParameterCounts:
    """How many parameters there are, and how many are not zero.

    Args:
      params: Nested dicts of arrays or `QuantizedKernel`, whose scales are not counted. Without
        running statistics: those are no parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> parameter_counts({"kernel": jnp.array([[0.0, 2.0]]), "bias": jnp.ones(2)})
      {'size': 4, 'nonzero': 3}
    """
    leaves = [leaf for leaf in jax.tree.leaves(_without_scales(params)) if _is_parameter(leaf)]
    return {"size": sum(int(jnp.size(leaf)) for leaf in leaves), "nonzero": sum(_nonzero(leaves))}


def _is_parameter(leaf: Any) -> bool:
    """Modules have functions and keys of random numbers among their leaves."""
    return is_array(leaf) and not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended)


def _without_scales(tree: PyTree) -> PyTree:
    """The tree with the values alone of each `QuantizedKernel`, in its place."""
    return jax.tree.map(
        lambda leaf: leaf.values if isinstance(leaf, QuantizedKernel) else leaf,
        tree,
        is_leaf=lambda node: isinstance(node, QuantizedKernel),
    )


def _nonzero(leaves: list[Any]) -> list[int]:
    """How many of each are not zero, all fetched from the device at once."""
    return [int(count) for count in jax.device_get([jnp.count_nonzero(leaf) for leaf in leaves])]
