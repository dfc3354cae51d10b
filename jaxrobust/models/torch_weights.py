"""Converts the weights of PyTorch networks."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import checks
from jaxrobust.models.torch_layouts import NAMES, Counterpart, layout
from jaxrobust.models.zoo import create
from jaxrobust.types import PyTree

# Other names of the same layers: of torchvision's residual networks, and of the last layer.
_ALIASES = {".downsample.": ".shortcut."}
_HEADS = ("fc", "linear")
_WRAPPER = "module."  # of networks that were trained on several devices
# Layers that wide residual networks carry along and never call.
_UNUSED = "sub_block1."


def from_torch(name: str, state_dict: Mapping[str, Any], **sizes: Any) -> PyTree:
    """Converts a PyTorch state dict into variables for `create(name, ...)`.

    Convolutions go from OIHW to HWIO, dense layers are transposed, and BatchNorm's weight, bias and
    running statistics become scale, bias, mean and var. `num_batches_tracked` is left out. The names
    must be those of `jaxrobust.models.torch_layouts`: of the networks for CIFAR from which most
    checkpoints come. `downsample` is accepted for `shortcut`, `linear` for `fc`, and the prefix
    `module.` for all.

    Weights do not determine everything. Pre-activation networks exist with `raw_shortcut` (the networks
    of N-FGSM, Wong2020Fast and Andriushchenko2020Understanding) and without it (Rice2020Overfitting,
    and most others called PreAct-18). The wrong choice gives other logits without an error, so compare
    the accuracy with the published one.

    Args:
      name: A network of `MODELS` except "photo_cnn", for images of 32x32x3 and any number of classes.
      state_dict: The arrays by their PyTorch names (numpy arrays, or anything that numpy can read).
      **sizes: Arguments of `create` that differ from the published sizes: `stage_sizes=(5, 5, 5)` for
        a wide_resnet of depth 34, `final_norm=False` for a preact_resnet18 without BatchNorm at the
        end.

    Returns:
      {"params": ..., "batch_stats": ...}, float32.

    Raises:
      ValueError: The name is unknown, or entries or shapes of the state dict do not match; the message
        lists all of them.
    """
    checks.one_of("name", name, NAMES)
    layers = layout(name, create(name, **sizes))
    # By the names that the layouts have, without what has no counterpart.
    arrays = {
        _renamed(key, layers[-1].theirs): np.asarray(value)
        for key, value in state_dict.items()
        if not key.endswith("num_batches_tracked")
    }
    arrays = {key: value for key, value in arrays.items() if not key.startswith(_UNUSED)}
    expected = _expected(name, sizes, arrays.get(f"{layers[-1].theirs}.weight"))
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    # All that does not fit is collected, for one message.
    problems, seen = [], set()
    for layer in layers:
        for suffix, collection, leaf in layer.leaves:
            key, path = f"{layer.theirs}.{suffix}", (collection, *layer.ours.split("/"), leaf)
            seen.add(key)
            if key not in arrays:
                problems.append(f"missing {key}")
                continue
            value = _converted(arrays[key], layer)
            if value.shape != expected[path]:
                problems.append(
                    f"{key} of shape {arrays[key].shape} becomes {'/'.join(path)} of shape "
                    f"{value.shape}, expected {expected[path]}"
                )
            _place(variables, path, value)
    problems += [f"unexpected {key}" for key in sorted(set(arrays) - seen)]
    if problems:
        raise ValueError(
            f"`state_dict` does not match {name!r}; {len(problems)} problems:\n  "
            + "\n  ".join(problems)
        )
    return {collection: tree for collection, tree in variables.items() if tree}


def _renamed(key: str, head: str) -> str:
    """Renames a key of a state dict to the name in the layouts."""
    key = key.removeprefix(_WRAPPER)
    for theirs, ours in _ALIASES.items():
        key = key.replace(theirs, ours)
    layer, _, leaf = key.partition(".")
    return f"{head}.{leaf}" if layer in _HEADS and head in _HEADS else key


def _expected(
    name: str, sizes: Mapping[str, Any], head: np.ndarray | None
) -> dict[tuple[str, ...], tuple]:
    """Returns the shapes of our leaves by path; the number of classes is that of the head."""
    num_classes = 10 if head is None or head.ndim != 2 or len(head) < 2 else len(head)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(create(name, num_classes, **sizes).init, jax.random.key(0), images)
    return {
        tuple(entry.key for entry in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }


def _converted(array: np.ndarray, layer: Counterpart) -> jnp.ndarray:
    if array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
    elif array.ndim == 2:
        if layer.flattened and array.shape[1] == np.prod(layer.flattened):
            array = array.reshape(-1, *layer.flattened).transpose(0, 2, 3, 1)
            array = array.reshape(array.shape[0], -1)
        array = array.T
    return jnp.asarray(array, jnp.float32)


def _place(tree: dict[str, Any], path: tuple[str, ...], value: jnp.ndarray) -> None:
    *parents, leaf = path
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[leaf] = value
