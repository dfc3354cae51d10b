"""The sparsity of a network: of each layer, of all kernels, and of all parameters."""

from typing import Any, TypedDict

import jax
import jax.numpy as jnp

from jaxrobust.pruning.masks import Kernels, check_masks, is_array, kernels_of
from jaxrobust.types import Masks, PyTree, QuantizedKernel


class LayerSparsity(TypedDict):
    """The sparsity of one kernel: its weights, those that are kept, and the fraction removed."""

    size: int
    kept: int
    sparsity: float


class ParameterCounts(TypedDict):
    """The number of all parameters, biases and normalisation included, and of those not 0."""

    size: int
    nonzero: int


def layer_sparsity(
    params: PyTree, masks: Masks | None = None, *, kernels: Kernels = None
) -> dict[str, LayerSparsity]:
    """Returns the sparsity of every kernel.

    Args:
      params: Nested dicts of arrays or `QuantizedKernel`.
      masks: Boolean masks with the structure of the parameters, before or after quantisation; the
        weights that they remove are counted. None: the zeros of `params` are counted.
      kernels: Which weights are kernels: the kernels that `channel_groups` finds, or a function of
        (path, array). None: the names of the weights decide.

    Returns:
      {"size": its weights, "kept": those that stay, "sparsity": the fraction removed} for each kernel,
      by paths like "block_0/conv/kernel".

    Raises:
      TypeError: The masks are not boolean.
      ValueError: There are no kernels, `kernels` are unknown, or the masks have another structure or
        other shapes.

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
            "`params` must have kernels: arrays of two or more dimensions called 'kernel', 'weight' or "
            "'w', or those that `kernels` names."
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
    """Returns the fraction of all kernel weights that is removed, in [0, 1].

    Args:
      tree: Parameters, whose zeros count as removed, or boolean masks.
      kernels: Which weights are kernels: the kernels that `channel_groups` finds, or a function of
        (path, array). None: the names of the weights decide.

    Raises:
      ValueError: There are no kernels, or `kernels` are unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> sparsity_of({"kernel": jnp.array([[0.0, 2.0, 1.0, 3.0]]), "bias": jnp.zeros(4)})
      0.25
    """
    layers = layer_sparsity(tree, kernels=kernels).values()
    size = sum(layer["size"] for layer in layers)
    return (size - sum(layer["kept"] for layer in layers)) / size


def parameter_counts(params: PyTree) -> ParameterCounts:
    """Returns the number of parameters, "size", and the number that is not 0, "nonzero".

    Args:
      params: Nested dicts of arrays or `QuantizedKernel`, whose scales are not counted. Leave out the
        running statistics, which are not parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> parameter_counts({"kernel": jnp.array([[0.0, 2.0]]), "bias": jnp.ones(2)})
      {'size': 4, 'nonzero': 3}
    """
    leaves = [leaf for leaf in jax.tree.leaves(_without_scales(params)) if _is_parameter(leaf)]
    return {"size": sum(int(jnp.size(leaf)) for leaf in leaves), "nonzero": sum(_nonzero(leaves))}


def _is_parameter(leaf: Any) -> bool:
    """Whether a leaf is a parameter; modules have functions and PRNG keys among their leaves."""
    return is_array(leaf) and not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended)


def _without_scales(tree: PyTree) -> PyTree:
    """Replaces each `QuantizedKernel` in a tree by its values."""
    return jax.tree.map(
        lambda leaf: leaf.values if isinstance(leaf, QuantizedKernel) else leaf,
        tree,
        is_leaf=lambda node: isinstance(node, QuantizedKernel),
    )


def _nonzero(leaves: list[Any]) -> list[int]:
    """Returns how many elements of each leaf are not 0, fetched from the device at once."""
    return [int(count) for count in jax.device_get([jnp.count_nonzero(leaf) for leaf in leaves])]
