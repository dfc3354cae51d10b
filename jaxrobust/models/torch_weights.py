"""Weights of PyTorch networks as variables of ours."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import checks
from jaxrobust.models.zoo import create
from jaxrobust.types import PyTree


class Layer(NamedTuple):
    """Where one PyTorch layer goes.

    Attributes:
      theirs: Its prefix in the state dict, "features.0".
      ours: The path of ours, "block_0/conv".
      kind: "conv", "dense" or "bn".
      bias: Whether a convolution has one.
      flattened: For a dense layer behind a flatten of [C, H, W], that shape: its rows are put into
        the order [H, W, C].
    """

    theirs: str
    ours: str
    kind: str
    bias: bool = True
    flattened: tuple[int, int, int] | None = None


def _sequence(convolutions: list[int]) -> list[Layer]:
    """A Sequential of convolutions with bias at these places, BatchNorm right after each."""
    layers = []
    for index, place in enumerate(convolutions):
        layers.append(Layer(f"features.{place}", f"block_{index}/conv", "conv"))
        layers.append(Layer(f"features.{place + 1}", f"block_{index}/bn", "bn"))
    return layers


def _mlp() -> list[Layer]:
    layers = []
    for index in range(3):
        flattened = (3, 32, 32) if index == 0 else None
        place = 3 * index
        layers.append(
            Layer(f"layers.{place}", f"block_{index}/dense", "dense", flattened=flattened)
        )
        layers.append(Layer(f"layers.{place + 1}", f"block_{index}/bn", "bn"))
    return [*layers, Layer("layers.9", "head", "dense")]


def _conv_bn(conv: str, bn: str, ours: str) -> list[Layer]:
    return [Layer(conv, f"{ours}/conv", "conv", bias=False), Layer(bn, f"{ours}/bn", "bn")]


def _resnet(stage_sizes: tuple[int, ...]) -> list[Layer]:
    layers = _conv_bn("conv1", "bn1", "stem")
    for stage, size in enumerate(stage_sizes):
        for block in range(size):
            theirs, ours = f"layer{stage + 1}.{block}", f"stage_{stage}_block_{block}"
            layers += _conv_bn(f"{theirs}.conv1", f"{theirs}.bn1", f"{ours}/conv_0")
            layers += _conv_bn(f"{theirs}.conv2", f"{theirs}.bn2", f"{ours}/conv_1")
            if stage > 0 and block == 0:
                layers += _conv_bn(
                    f"{theirs}.shortcut.0", f"{theirs}.shortcut.1", f"{ours}/shortcut"
                )
    return [*layers, Layer("fc", "head", "dense")]


LAYOUTS: dict[str, list[Layer]] = {
    "mlp": _mlp(),
    "cnn": [
        *_sequence([0, 3, 7, 10, 14]),
        Layer("classifier.2", "head_bn", "bn"),
        Layer("classifier.3", "head", "dense"),
    ],
    "simple_cnn": [
        *_sequence([0, 4, 8]),
        Layer("classifier.1", "hidden", "dense", flattened=(128, 4, 4)),
        Layer("classifier.4", "head", "dense"),
    ],
    "resnet_small": _resnet((2, 2, 2)),
}


def from_torch(name: str, state_dict: Mapping[str, Any]) -> PyTree:
    """Converts a PyTorch state dict into variables for `create(name, ...)`.

    Convolutions go from OIHW to HWIO, dense layers are transposed, BatchNorm's weight, bias and
    running statistics become scale, bias, mean and var. `num_batches_tracked` is left out. The
    layouts expected are those of `jaxrobust.models.torch_weights.LAYOUTS`: Sequentials `features` and
    `classifier` for "cnn" and "simple_cnn", a Sequential `layers` for "mlp", torchvision-style
    `conv1`, `layer1.0.conv1`, `fc` with `shortcut` for "resnet_small".

    Args:
      name: "mlp", "cnn", "simple_cnn" or "resnet_small", of default sizes for images of 32x32x3; any
        number of classes.
      state_dict: PyTorch's names to arrays (numpy, or anything that numpy can read).

    Returns:
      {"params": ..., "batch_stats": ...}, float32.

    Raises:
      ValueError: An unknown name, or a state dict whose entries or shapes do not fit; the message
        lists all of them.
    """
    checks.one_of("name", name, tuple(LAYOUTS))
    arrays = {
        key: np.asarray(value)
        for key, value in state_dict.items()
        if not key.endswith("num_batches_tracked")
    }
    expected = _expected(name, arrays)
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    problems, seen = [], set()
    for layer in LAYOUTS[name]:
        for suffix, collection, leaf in _leaves(layer):
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
            f"The state dict does not fit {name!r}; {len(problems)} problems:\n  "
            + "\n  ".join(problems)
        )
    return {collection: tree for collection, tree in variables.items() if tree}


def _expected(name: str, arrays: Mapping[str, np.ndarray]) -> dict[tuple[str, ...], tuple]:
    """The shape of each of our leaves by its path; the number of classes is read off the head."""
    head = arrays.get(f"{LAYOUTS[name][-1].theirs}.weight")
    num_classes = 10 if head is None or head.ndim != 2 or len(head) < 2 else len(head)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(create(name, num_classes).init, jax.random.key(0), images)
    return {
        tuple(entry.key for entry in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }


def _leaves(layer: Layer) -> list[tuple[str, str, str]]:
    """(PyTorch's suffix, our collection, our leaf) of every array of a layer."""
    if layer.kind == "bn":
        return [
            ("weight", "params", "scale"),
            ("bias", "params", "bias"),
            ("running_mean", "batch_stats", "mean"),
            ("running_var", "batch_stats", "var"),
        ]
    kernel = ("weight", "params", "kernel")
    return [kernel, ("bias", "params", "bias")] if layer.bias else [kernel]


def _converted(array: np.ndarray, layer: Layer) -> jnp.ndarray:
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
