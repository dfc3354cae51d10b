"""Where the channels of each network are: what `jaxrobust.pruning` needs to remove some of them.

A group of channels is called after the constructor field that holds their number, so that a network of
fewer channels is the same class with smaller numbers. Channels that are added up share a group (those
of a stage of residual blocks), as do those of a depthwise convolution and of what comes before it.
Images and classes are in no group.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from jaxrobust.models.convolutional import CNN, MLP, VGG, PhotoCNN, SimpleCNN
from jaxrobust.models.densely_connected import DenseNet
from jaxrobust.models.mobile import V2_BLOCKS, V2_STRIDES, MobileNetV1, MobileNetV2
from jaxrobust.models.residual import PreActResNet, ResNet, has_stem_shortcut
from jaxrobust.types import ChannelSpec, Group, PyTree

_Groups = tuple[Group, ...]


class _Layer(NamedTuple):
    """The groups on either side of a layer.

    Attributes:
      path: "block_0/conv".
      inputs: One after the other, those of a concatenation; () where they are not pruned, and for
        layers that have no such axis (BatchNorm, depthwise convolutions).
      outputs: () where they are not pruned.
      positions: How often a flatten repeats the inputs.
    """

    path: str
    inputs: _Groups
    outputs: _Groups
    positions: int = 1


def channel_spec(network: nn.Module, variables: PyTree) -> ChannelSpec:
    """Where the channels of a network of this library are, for every array that has any.

    Args:
      network: Of `create`, or of one of its classes.
      variables: {"params": ..., "batch_stats": ...} of this network, of which only shapes are read:
        `jax.eval_shape(network.init, key, image)` does.

    Returns:
      {(collection, path, axis): ((group, size, repeat), ...)}; see `jaxrobust.types.ChannelSpec`.

    Raises:
      TypeError: A module of another class: write its spec as docs/pruning.md shows.
      ValueError: Variables of another network; a `stem_width` of which the network's structure depends.

    Example:
      >>> import jax
      >>> from jaxrobust.models import create
      >>> network, image = create("mlp", widths=(6, 4)), jax.numpy.zeros((1, 2, 2, 3))
      >>> shapes = jax.eval_shape(network.init, jax.random.key(0), image)
      >>> spec = channel_spec(network, shapes)
      >>> spec["params", "block_1/dense/kernel", 0], spec["params", "block_1/dense/kernel", 1]
      (((('widths', 0), 6, 1),), ((('widths', 1), 4, 1),))
    """
    if type(network) not in _LAYERS:
        raise TypeError(
            f"`network` must be a network of jaxrobust.models, got {type(network).__name__}: write the "
            "spec of a module of your own as docs/pruning.md shows."
        )
    layers = list(_LAYERS[type(network)](network, variables))
    arrays = {layer.path: _arrays(variables, layer.path) for layer in layers}
    sizes = {
        group: arrays[layer.path]["params", "kernel"][-1]
        for layer in layers
        if ("params", "kernel") in arrays[layer.path]
        for group in layer.outputs
    }
    spec = {}
    for layer in layers:
        inputs = tuple((group, sizes[group], layer.positions) for group in layer.inputs)
        outputs = tuple((group, sizes[group], 1) for group in layer.outputs)
        for (collection, leaf), shape in arrays[layer.path].items():
            path = f"{layer.path}/{leaf}"
            if layer.inputs and leaf == "kernel":
                spec[collection, path, len(shape) - 2] = inputs
            if layer.outputs:
                spec[collection, path, len(shape) - 1] = outputs
    return spec


def _arrays(variables: PyTree, path: str) -> dict[tuple[str, str], tuple[int, ...]]:
    """The shapes of a layer's arrays by (collection, name)."""
    found: dict[tuple[str, str], tuple[int, ...]] = {}
    for collection, tree in variables.items():
        for part in path.split("/"):
            tree = tree.get(part, {}) if isinstance(tree, Mapping) else {}
        found |= {(collection, leaf): np.shape(array) for leaf, array in tree.items()}
    if not found:
        raise ValueError(f"`variables` have no layer {path!r}: they are of another network.")
    return found


def _conv_bn(path: str, inputs: _Groups, output: Group) -> list[_Layer]:
    return [_Layer(f"{path}/conv", inputs, (output,)), _norm(f"{path}/bn", output)]


def _norm(path: str, *channels: Group) -> _Layer:
    return _Layer(path, (), channels)


def _widths(network: Any) -> list[Group]:
    return [("widths", index) for index in range(len(network.widths))]


def _head(*inputs: Group) -> _Layer:
    return _Layer("head", inputs, ())


def _chain(groups: Sequence[Group], layer: str = "conv") -> Iterator[_Layer]:
    """block_0, block_1, ..., each with BatchNorm."""
    inputs: _Groups = ()
    for index, group in enumerate(groups):
        yield _Layer(f"block_{index}/{layer}", inputs, (group,))
        yield _norm(f"block_{index}/bn", group)
        inputs = (group,)


def _mlp(network: MLP, _: PyTree) -> list[_Layer]:
    groups = _widths(network)
    return [*_chain(groups, "dense"), _head(*groups[-1:])]


def _vgg(network: VGG, _: PyTree) -> list[_Layer]:
    groups = _widths(network)
    return [*_chain(groups), _head(groups[-1])]


def _cnn(network: CNN, _: PyTree) -> list[_Layer]:
    groups = _widths(network)
    return [*_chain(groups), _norm("head_bn", groups[-1]), _head(groups[-1])]


def _photo_cnn(network: PhotoCNN, _: PyTree) -> list[_Layer]:
    stem, *groups = _widths(network)
    first, *others = _chain(groups)
    first = first._replace(inputs=(stem,))
    last = _norm("head_bn", groups[-1])
    return [*_conv_bn("stem", (), stem), first, *others, last, _head(groups[-1])]


def _simple_cnn(network: SimpleCNN, variables: PyTree) -> list[_Layer]:
    groups = _widths(network)
    rows = np.shape(variables["params"]["hidden"]["kernel"])[0]
    positions = rows // network.widths[-1]
    hidden = _Layer("hidden", (groups[-1],), ("hidden_width",), positions)
    return [*_chain(groups), hidden, _head("hidden_width")]


def _stem(network: ResNet | PreActResNet) -> Group:
    """The group of the stem: that of the first stage where its channels are added to theirs."""
    if network.stem_width is None:
        return "stem_width" if network.stem_shortcut else ("widths", 0)
    if not network.stem_shortcut:
        # Smaller widths would otherwise change whether there is a convolution.
        remedy = "give `stem_shortcut=True`" if has_stem_shortcut(network) else "leave it None"
        raise ValueError(
            f"`stem_width` of {network.stem_width} decides by its size whether the first block has a "
            f"shortcut convolution; {remedy}: the same network, whatever is pruned."
        )
    return "stem_width"


def _resnet(network: ResNet, _: PyTree) -> Iterator[_Layer]:
    before = _stem(network)
    yield from _conv_bn("stem", (), before)
    per_block = 2 if network.bottleneck else 1
    for stage, block, name, number in _blocks(network.stage_sizes):
        output = ("widths", stage)
        through: list[Group] = [
            ("inner_widths", per_block * number + index) for index in range(per_block)
        ]
        groups = [before, *through, output]
        for index, (inputs, outputs) in enumerate(itertools.pairwise(groups)):
            yield from _conv_bn(f"{name}/conv_{index}", (inputs,), outputs)
        if block == 0 and (stage > 0 or has_stem_shortcut(network)):
            yield from _conv_bn(f"{name}/shortcut", (before,), output)
        before = output
    yield _head(before)


def _preact_resnet(network: PreActResNet, _: PyTree) -> Iterator[_Layer]:
    before = _stem(network)
    yield _Layer("stem", (), (before,))
    for stage, block, name, number in _blocks(network.stage_sizes):
        output, inner = ("widths", stage), ("inner_widths", number)
        yield _norm(f"{name}/norm/bn", before)
        yield from _conv_bn(f"{name}/conv_0", (before,), inner)
        yield _Layer(f"{name}/conv_1", (inner,), (output,))
        if block == 0 and (stage > 0 or has_stem_shortcut(network)):
            yield _Layer(f"{name}/shortcut", (before,), (output,))
        before = output
    if network.final_norm:
        yield _norm("final/bn", before)
    yield _head(before)


def _blocks(stage_sizes: Sequence[int]) -> Iterator[tuple[int, int, str, int]]:
    """(stage, block in the stage, name, number among all blocks)."""
    number = 0
    for stage, size in enumerate(stage_sizes):
        for block in range(size):
            yield stage, block, f"stage_{stage}_block_{block}", number
            number += 1


def _mobilenet_v1(network: MobileNetV1, _: PyTree) -> Iterator[_Layer]:
    before, *groups = _widths(network)
    yield from _conv_bn("stem", (), before)
    for index, group in enumerate(groups):
        yield from _conv_bn(f"block_{index}_depthwise", (), before)
        yield from _conv_bn(f"block_{index}_pointwise", (before,), group)
        before = group
    yield _head(before)


def _mobilenet_v2(network: MobileNetV2, variables: PyTree) -> Iterator[_Layer]:
    before, *stages, last = _widths(network)
    yield from _conv_bn("stem", (), before)
    for stage, block, name, number in _blocks(V2_BLOCKS):
        output, inner = stages[stage], ("inner_widths", number)
        yield from _conv_bn(f"{name}/expand", (before,), inner)
        yield from _conv_bn(f"{name}/depthwise", (), inner)
        yield from _conv_bn(f"{name}/project", (inner,), output)
        if block == 0 and V2_STRIDES[stage] == 1:
            yield from _conv_bn(f"{name}/shortcut", (before,), output)
        before = output
    yield from _conv_bn("last", (before,), last)
    yield _head(last)


def _densenet(network: DenseNet, _: PyTree) -> Iterator[_Layer]:
    channels: _Groups = ("stem_width",)
    yield _Layer("stem", (), channels)
    number = 0
    for stage, size in enumerate(network.stage_sizes):
        if stage:
            transition = ("transition_widths", stage - 1)
            yield _norm(f"transition_{stage}_norm/bn", *channels)
            yield _Layer(f"transition_{stage}", channels, (transition,))
            channels = (transition,)
        for layer in range(size):
            name = f"stage_{stage}_layer_{layer}"
            inner, new = ("inner_widths", number), ("widths", number)
            yield _norm(f"{name}/norm/bn", *channels)
            yield from _conv_bn(f"{name}/conv_0", channels, inner)
            yield _Layer(f"{name}/conv_1", (inner,), (new,))
            channels = (new, *channels)
            number += 1
    yield _norm("final/bn", *channels)
    yield _head(*channels)


_LAYERS: dict[type[nn.Module], Callable[[Any, PyTree], Any]] = {
    MLP: _mlp,
    CNN: _cnn,
    PhotoCNN: _photo_cnn,
    SimpleCNN: _simple_cnn,
    VGG: _vgg,
    ResNet: _resnet,
    PreActResNet: _preact_resnet,
    MobileNetV1: _mobilenet_v1,
    MobileNetV2: _mobilenet_v2,
    DenseNet: _densenet,
}
