"""Creates networks by name.

A network is a class and a row of `MODELS`; the annotated fields of the class are its sizes.
"""

import dataclasses
import functools
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import flax.linen as nn
import numpy as np

from jaxrobust import checks
from jaxrobust.models.convolutional import CNN, MLP, VGG, PhotoCNN, SimpleCNN
from jaxrobust.models.densely_connected import DenseNet
from jaxrobust.models.mobile import MobileNetV1, MobileNetV2
from jaxrobust.models.residual import PreActResNet, ResNet

_FOUR = (64, 128, 256, 512)

MODELS: dict[str, nn.Module] = {
    "mlp": MLP(),
    "cnn": CNN(),
    "photo_cnn": PhotoCNN(),
    "simple_cnn": SimpleCNN(),
    "resnet_small": ResNet(),
    "resnet18": ResNet(stage_sizes=(2, 2, 2, 2), widths=_FOUR),
    "resnet34": ResNet(stage_sizes=(3, 4, 6, 3), widths=_FOUR),
    "resnet50": ResNet(
        stage_sizes=(3, 4, 6, 3),
        widths=(256, 512, 1024, 2048),
        stem_width=64,
        stem_shortcut=True,
        bottleneck=True,
    ),
    "preact_resnet18": PreActResNet(),
    "wide_resnet": PreActResNet(
        stage_sizes=(4, 4, 4), widths=(160, 320, 640), stem_width=16, stem_shortcut=True
    ),
    "vgg19": VGG(),
    "mobilenet_v1": MobileNetV1(),
    "mobilenet_v2": MobileNetV2(),
    "densenet121": DenseNet(),
}
"""The networks in their published sizes, for ten classes. `wide_resnet` is WRN-28-10."""


@functools.cache
def _create(name: str, num_classes: int, sizes: tuple[tuple[str, Any], ...]) -> nn.Module:
    # Without a parent even if a module that is being called asks: the object is shared.
    return MODELS[name].clone(num_classes=num_classes, parent=None, **dict(sizes))


def create(name: str, num_classes: int = 10, **sizes: Any) -> nn.Module:
    """Creates a network by its name, without weights.

    The same arguments return the same object, so that code that is compiled for one Classifier of a
    network serves all of them. A module that uses the network within its own `__call__` must take a
    `copy()` of it.

    Args:
      name: One of `MODELS`.
      num_classes: The number of classes K, at least 2.
      **sizes: Fields of the network's class, such as `widths`, which all of them have.

    Returns:
      A linen module: use `module.init(key, images)` and `module.apply(variables, images)`.

    Raises:
      ValueError: The name is unknown.
      TypeError: The network has no such size, or a size has the wrong type.

    Example:
      >>> create("cnn", widths=(8, 8, 16, 16, 32)).widths
      (8, 8, 16, 16, 32)
    """
    checks.one_of("name", name, tuple(MODELS))
    checks.integer("num_classes", num_classes, minimum=2)
    prototype: Any = MODELS[name]
    kinds = _kinds(prototype)
    for size in sizes:
        if size not in kinds:
            raise TypeError(f"{name!r} has no size `{size}`; its sizes are {', '.join(kinds)}.")
    frozen = {size: _size(size, value, kinds[size]) for size, value in sizes.items()}
    return _create(name, num_classes, tuple(sorted(frozen.items())))


def arguments_of(network: Any) -> dict[str, Any] | None:
    """Returns the arguments with which `create` makes a network, without those at their defaults.

    Returns:
      {"name": ..., "num_classes": ..., **sizes}; None for a network that `create` cannot make.

    Example:
      >>> arguments_of(create("resnet18", num_classes=100))
      {'name': 'resnet18', 'num_classes': 100}
    """
    found: dict[str, Any] | None = None
    for name, prototype in MODELS.items():
        if type(network) is not type(prototype):
            continue
        sizes = {size: getattr(network, size) for size in _kinds(prototype)}
        sizes = {f: tuple(size) if isinstance(size, list) else size for f, size in sizes.items()}
        sizes = {f: size for f, size in sizes.items() if size != getattr(prototype, f)}
        arguments = {"name": name, "num_classes": network.num_classes, **sizes}
        if found is None or len(arguments) < len(found):
            found = arguments
    if found is None:
        return None
    try:
        create(**found)
    except (TypeError, ValueError):  # sizes that it refuses
        return None
    return found


def _kinds(network: nn.Module) -> dict[str, frozenset[Any]]:
    """Returns the sizes of a network, and the types that its class allows for each."""
    # A union has its members as arguments; a sequence of integers is one type.
    kinds = get_type_hints(type(network))
    return {
        field.name: frozenset(
            get_args(kinds[field.name])
            if get_origin(kinds[field.name]) in (Union, UnionType)
            else [kinds[field.name]]
        )
        for field in dataclasses.fields(network)
        if field.name not in ("num_classes", "parent", "name")
    }


def _size(name: str, value: Any, kinds: frozenset[Any]) -> Any:
    """Checks a size, and returns it in hashable form."""
    if value is None and NoneType in kinds:
        return None
    if bool in kinds:
        checks.one_of(name, value, (True, False))
        return value
    if int in kinds:
        checks.integer(name, value, minimum=1)
        return int(value)
    if np.ndim(value) == 0:
        raise TypeError(f"`{name}` must be a sequence of integers, got {value!r}.")
    for entry in value:
        checks.integer(name, entry, minimum=1)
    return tuple(int(entry) for entry in value)
