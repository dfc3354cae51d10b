"""The networks by name."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import numpy as np

from jaxrobust import checks
from jaxrobust.models.convolutional import CNN, MLP, PhotoCNN, SimpleCNN
from jaxrobust.models.residual import ResNet

MODELS: dict[str, type[nn.Module]] = {
    "mlp": MLP,
    "cnn": CNN,
    "photo_cnn": PhotoCNN,
    "simple_cnn": SimpleCNN,
    "resnet_small": ResNet,
}


@functools.cache
def _create(name: str, num_classes: int, sizes: tuple[tuple[str, Any], ...]) -> nn.Module:
    # Without a parent even if a module that is being called asks: the object is shared.
    return MODELS[name](num_classes=num_classes, parent=None, **dict(sizes))


def create(name: str, num_classes: int = 10, **sizes: Any) -> nn.Module:
    """The network called `name`, without weights.

    The same arguments give the very same object, so code compiled for one Classifier of a network
    serves all of them. A module that calls it within its own `__call__` takes a `copy()` of it.

    Args:
      name: One of `MODELS`.
      num_classes: K, at least 2.
      **sizes: Constructor fields of the network, `widths` for all of them: see its class.

    Returns:
      A linen module: `module.init(key, images)["params"]`, `module.apply(variables, images)`.

    Raises:
      ValueError: An unknown name.
      TypeError: A size that this network does not have, or of the wrong type.

    Example:
      >>> create("cnn", widths=(8, 8, 16, 16, 32)).widths
      (8, 8, 16, 16, 32)
    """
    checks.one_of("name", name, tuple(MODELS))
    checks.integer("num_classes", num_classes, minimum=2)
    fields = [f.name for f in dataclasses.fields(MODELS[name]) if f.name not in _NOT_SIZES]
    for size in sizes:
        if size not in fields:
            raise TypeError(f"`{size}` is no size of {name!r}; it has {', '.join(fields)}.")
    frozen = {name: _size(name, value) for name, value in sizes.items()}
    return _create(name, num_classes, tuple(sorted(frozen.items())))


def _size(name: str, value: Any) -> int | tuple[int, ...]:
    if np.ndim(value) == 0:
        checks.integer(name, value, minimum=1)
        if name != "hidden_width":
            raise TypeError(f"`{name}` must be a sequence of integers, got {value!r}.")
        return int(value)
    for entry in value:
        checks.integer(name, entry, minimum=1)
    return tuple(int(entry) for entry in value)


_NOT_SIZES = ("num_classes", "parent", "name")
