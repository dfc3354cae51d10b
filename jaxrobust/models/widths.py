"""Adapts a network of the library to weights from which channels have been removed."""

from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from jaxrobust.models.convolutional import CNN, MLP, VGG, PhotoCNN, SimpleCNN
from jaxrobust.models.densely_connected import DenseNet
from jaxrobust.models.mobile import V2_BLOCKS, MobileNetV1, MobileNetV2
from jaxrobust.models.residual import PreActResNet, ResNet, has_stem_shortcut
from jaxrobust.types import PyTree


def resized(network: nn.Module, variables: PyTree) -> nn.Module:
    """Returns the network with as many channels in each layer as its weights have.

    Args:
      network: A network of `create`, or a module of one of its classes.
      variables: The {"params": ..., "batch_stats": ...} of the network, after `pruning.shrink`.

    Returns:
      A module of the same class with the widths of the weights.

    Raises:
      TypeError: The module is of another class: set its attributes to the widths of the weights
        yourself.
      ValueError: The variables are of another network.

    Example:
      >>> import jax
      >>> from jaxrobust.models import create
      >>> network, image = create("mlp", widths=(6, 4)), jax.numpy.zeros((1, 2, 2, 3))
      >>> shapes = jax.eval_shape(network.init, jax.random.key(0), image)
      >>> resized(create("mlp", widths=(9, 9)), shapes).widths
      (6, 4)
    """
    if type(network) not in _WIDTHS:
        raise TypeError(
            f"`network` must be a network of jaxrobust.models, got {type(network).__name__}: create "
            "your own module with the widths of the smaller weights yourself."
        )
    found: dict[str, Any] = {}
    for name, paths in _WIDTHS[type(network)](network).items():
        if isinstance(paths, str):
            found[name] = _width(variables, paths)
        else:
            found[name] = tuple(_width(variables, path) for path in paths)
    if isinstance(network, ResNet | PreActResNet):
        # Equal widths would otherwise say that there is no such convolution.
        found["stem_shortcut"] = has_stem_shortcut(network)
        if network.stem_width is not None and not found["stem_shortcut"]:
            found["stem_width"] = found["widths"][0]
    return network.clone(**found)


def _width(variables: PyTree, path: str) -> int:
    tree = variables.get("params", variables)
    for part in (*path.split("/"), "kernel"):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    if tree is None:
        raise ValueError(
            f"`variables` must be those of `network`, which has a layer {path!r}; they have none."
        )
    return int(np.shape(tree)[-1])


Layers = Mapping[str, str | Iterable[str]]
"""For each field, the layer or layers that have its widths."""


def _blocks(widths: Iterable[int], layer: str = "conv") -> list[str]:
    return [f"block_{index}/{layer}" for index, _ in enumerate(widths)]


def _places(stage_sizes: Iterable[int], word: str = "block") -> list[tuple[int, str]]:
    """Returns (index of the block in its stage, name) of all blocks."""
    return [
        (block, f"stage_{stage}_{word}_{block}")
        for stage, size in enumerate(stage_sizes)
        for block in range(size)
    ]


def _resnet(network: ResNet | PreActResNet) -> Layers:
    is_plain = isinstance(network, ResNet)
    through = 2 if is_plain and network.bottleneck else 1
    end = "/conv" if is_plain else ""
    places = _places(network.stage_sizes)
    layers: dict[str, str | Iterable[str]] = {
        "widths": [f"{name}/conv_{through}{end}" for block, name in places if block == 0],
        "inner_widths": [f"{name}/conv_{i}/conv" for _, name in places for i in range(through)],
    }
    if has_stem_shortcut(network):
        layers["stem_width"] = f"stem{end}"
    return layers


def _mobilenet_v2(network: MobileNetV2) -> Layers:
    places = _places(V2_BLOCKS)
    stages = [f"{name}/project/conv" for block, name in places if block == 0]
    return {
        "widths": ["stem/conv", *stages, "last/conv"],
        "inner_widths": [f"{name}/expand/conv" for _, name in places],
    }


def _densenet(network: DenseNet) -> Layers:
    places = _places(network.stage_sizes, "layer")
    return {
        "stem_width": "stem",
        "widths": [f"{name}/conv_1" for _, name in places],
        "inner_widths": [f"{name}/conv_0/conv" for _, name in places],
        "transition_widths": [
            f"transition_{stage}" for stage in range(1, len(network.stage_sizes))
        ],
    }


_WIDTHS: dict[type[nn.Module], Any] = {
    MLP: lambda network: {"widths": _blocks(network.widths, "dense")},
    CNN: lambda network: {"widths": _blocks(network.widths)},
    PhotoCNN: lambda network: {"widths": ["stem/conv", *_blocks(network.widths[1:])]},
    SimpleCNN: lambda network: {"widths": _blocks(network.widths), "hidden_width": "hidden"},
    VGG: lambda network: {"widths": _blocks(network.widths)},
    ResNet: _resnet,
    PreActResNet: _resnet,
    MobileNetV1: lambda network: {
        "widths": [
            "stem/conv",
            *(f"block_{index}_pointwise/conv" for index, _ in enumerate(network.widths[1:])),
        ]
    },
    MobileNetV2: _mobilenet_v2,
    DenseNet: _densenet,
}
