"""Maps the layers of PyTorch networks to the layers of this library.

The names are those of the implementations for CIFAR from which most published checkpoints come: for
wide_resnet that of the adversarial training literature, for the others the common collection of
networks for CIFAR-10; for "cnn", "simple_cnn" and "mlp" those of the Sports-10 reports.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from jaxrobust.models.residual import has_stem_shortcut


class Counterpart(NamedTuple):
    """A PyTorch layer and its counterpart.

    Attributes:
      theirs: The prefix of the PyTorch layer in the state dict, such as "features.0".
      ours: The path of the counterpart, such as "block_0/conv".
      kind: "conv", "dense" or "bn".
      bias: Whether a convolution has a bias.
      flattened: The shape (C, H, W) that PyTorch flattens before a dense layer; its rows are reordered
        to (H, W, C). None for other layers.
    """

    theirs: str
    ours: str
    kind: str
    bias: bool = True
    flattened: tuple[int, int, int] | None = None

    @property
    def leaves(self) -> list[tuple[str, str, str]]:
        """Returns (PyTorch's suffix, our collection, our leaf) for every array."""
        if self.kind == "bn":
            return [
                ("weight", "params", "scale"),
                ("bias", "params", "bias"),
                ("running_mean", "batch_stats", "mean"),
                ("running_var", "batch_stats", "var"),
            ]
        kernel = ("weight", "params", "kernel")
        return [kernel, ("bias", "params", "bias")] if self.bias else [kernel]


def _sequence(convolutions: list[int]) -> list[Counterpart]:
    """Maps a Sequential with biased convolutions at these positions, each followed by BatchNorm."""
    layers = []
    for index, place in enumerate(convolutions):
        layers.append(Counterpart(f"features.{place}", f"block_{index}/conv", "conv"))
        layers.append(Counterpart(f"features.{place + 1}", f"block_{index}/bn", "bn"))
    return layers


def _mlp() -> list[Counterpart]:
    layers = []
    for index in range(3):
        flattened = (3, 32, 32) if index == 0 else None
        place = 3 * index
        layers.append(
            Counterpart(f"layers.{place}", f"block_{index}/dense", "dense", flattened=flattened)
        )
        layers.append(Counterpart(f"layers.{place + 1}", f"block_{index}/bn", "bn"))
    return [*layers, Counterpart("layers.9", "head", "dense")]


def _conv(theirs: str, ours: str) -> Counterpart:
    return Counterpart(theirs, ours, "conv", bias=False)


def _conv_bn(conv: str, bn: str, ours: str) -> list[Counterpart]:
    return [_conv(conv, f"{ours}/conv"), Counterpart(bn, f"{ours}/bn", "bn")]


def _blocks(stage_sizes: tuple[int, ...], theirs: str) -> Iterator[tuple[int, int, str, str]]:
    """Yields (stage, block, their prefix, our name); `theirs` formats stage from 1, block from 0."""
    for stage, size in enumerate(stage_sizes):
        for block in range(size):
            prefix = theirs.format(stage=stage + 1, block=block)
            yield stage, block, prefix, f"stage_{stage}_block_{block}"


def _resnet(network: Any) -> list[Counterpart]:
    convolutions = 3 if network.bottleneck else 2
    layers = _conv_bn("conv1", "bn1", "stem")
    for stage, block, theirs, ours in _blocks(network.stage_sizes, "layer{stage}.{block}"):
        for index in range(convolutions):
            conv, bn = f"{theirs}.conv{index + 1}", f"{theirs}.bn{index + 1}"
            layers += _conv_bn(conv, bn, f"{ours}/conv_{index}")
        if block == 0 and (stage > 0 or has_stem_shortcut(network)):
            layers += _conv_bn(f"{theirs}.shortcut.0", f"{theirs}.shortcut.1", f"{ours}/shortcut")
    return [*layers, Counterpart("fc", "head", "dense")]


def _preact_resnet(network: Any, blocks: str, shortcut: str, final: str) -> list[Counterpart]:
    layers = [_conv("conv1", "stem")]
    for stage, block, theirs, ours in _blocks(network.stage_sizes, blocks):
        layers.append(Counterpart(f"{theirs}.bn1", f"{ours}/norm/bn", "bn"))
        layers += _conv_bn(f"{theirs}.conv1", f"{theirs}.bn2", f"{ours}/conv_0")
        layers.append(_conv(f"{theirs}.conv2", f"{ours}/conv_1"))
        if block == 0 and (stage > 0 or has_stem_shortcut(network)):
            layers.append(_conv(f"{theirs}.{shortcut}", f"{ours}/shortcut"))
    if network.final_norm:
        layers.append(Counterpart(final, "final/bn", "bn"))
    return [*layers, Counterpart("fc", "head", "dense")]


def _vgg(network: Any) -> list[Counterpart]:
    places, place = [], 0
    for size in network.stage_sizes:
        places += [place + 3 * index for index in range(size)]
        place += 3 * size + 1  # a convolution, BatchNorm and ReLU each, then the pooling
    return [*_sequence(places), Counterpart("classifier", "head", "dense")]


def _mobilenet_v1() -> list[Counterpart]:
    layers = _conv_bn("conv1", "bn1", "stem")
    for index in range(13):
        theirs, ours = f"layers.{index}", f"block_{index}"
        layers += _conv_bn(f"{theirs}.conv1", f"{theirs}.bn1", f"{ours}_depthwise")
        layers += _conv_bn(f"{theirs}.conv2", f"{theirs}.bn2", f"{ours}_pointwise")
    return [*layers, Counterpart("linear", "head", "dense")]


def _mobilenet_v2(stage_sizes: tuple[int, ...], shortcuts: tuple[int, ...]) -> list[Counterpart]:
    """Maps a MobileNetV2; `shortcuts` are the stages whose first block has a shortcut convolution."""
    layers = _conv_bn("conv1", "bn1", "stem")
    for index, (stage, block, _, ours) in enumerate(_blocks(stage_sizes, "")):
        theirs = f"layers.{index}"
        for number, name in enumerate(("expand", "depthwise", "project"), start=1):
            layers += _conv_bn(f"{theirs}.conv{number}", f"{theirs}.bn{number}", f"{ours}/{name}")
        if block == 0 and stage in shortcuts:
            layers += _conv_bn(f"{theirs}.shortcut.0", f"{theirs}.shortcut.1", f"{ours}/shortcut")
    return [*layers, *_conv_bn("conv2", "bn2", "last"), Counterpart("linear", "head", "dense")]


def _densenet(network: Any) -> list[Counterpart]:
    layers = [_conv("conv1", "stem")]
    for stage, size in enumerate(network.stage_sizes):
        if stage:
            layers.append(Counterpart(f"trans{stage}.bn", f"transition_{stage}_norm/bn", "bn"))
            layers.append(_conv(f"trans{stage}.conv", f"transition_{stage}"))
        for index in range(size):
            theirs, ours = f"dense{stage + 1}.{index}", f"stage_{stage}_layer_{index}"
            layers.append(Counterpart(f"{theirs}.bn1", f"{ours}/norm/bn", "bn"))
            layers += _conv_bn(f"{theirs}.conv1", f"{theirs}.bn2", f"{ours}/conv_0")
            layers.append(_conv(f"{theirs}.conv2", f"{ours}/conv_1"))
    return [*layers, Counterpart("bn", "final/bn", "bn"), Counterpart("linear", "head", "dense")]


def _cnn() -> list[Counterpart]:
    head = [
        Counterpart("classifier.2", "head_bn", "bn"),
        Counterpart("classifier.3", "head", "dense"),
    ]
    return [*_sequence([0, 3, 7, 10, 14]), *head]


def _simple_cnn(network: Any) -> list[Counterpart]:
    # Average pooling leaves 4x4 of an image of 32x32.
    hidden = Counterpart("classifier.1", "hidden", "dense", flattened=(network.widths[-1], 4, 4))
    return [*_sequence([0, 4, 8]), hidden, Counterpart("classifier.4", "head", "dense")]


_LAYOUTS: dict[str, Callable[[Any], list[Counterpart]]] = {
    "mlp": lambda network: _mlp(),
    "cnn": lambda network: _cnn(),
    "simple_cnn": _simple_cnn,
    **dict.fromkeys(("resnet_small", "resnet18", "resnet34", "resnet50"), _resnet),
    "preact_resnet18": lambda network: _preact_resnet(
        network, "layer{stage}.{block}", "shortcut.0", "bn"
    ),
    "wide_resnet": lambda network: _preact_resnet(
        network, "block{stage}.layer.{block}", "convShortcut", "bn1"
    ),
    "vgg19": _vgg,
    "mobilenet_v1": lambda network: _mobilenet_v1(),
    "mobilenet_v2": lambda network: _mobilenet_v2((1, 2, 3, 4, 3, 3, 1), shortcuts=(0, 1, 4, 6)),
    "densenet121": _densenet,
}
NAMES = tuple(_LAYOUTS)


def layout(name: str, network: Any) -> list[Counterpart]:
    """Returns the layers of a network, the head last.

    Args:
      name: One of `NAMES`.
      network: The result of `create(name, ...)`, which has the sizes.
    """
    return _LAYOUTS[name](network)
