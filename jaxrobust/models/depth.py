"""The order in which a network makes its layers, which sorted names do not tell."""

from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrobust.types import Array


def layer_order(model: nn.Module, image_shape: tuple[int, int, int]) -> tuple[str, ...]:
    """The paths of a network's kernels in the order in which it makes them: from the image on.

    Args:
      model: A linen module, `model(images)`.
      image_shape: (H, W, C).

    Returns:
      Paths like "block_0/conv/kernel", as `pruning.kernel_paths` has them in another order. What stands
      side by side, a shortcut and what it passes, comes in the order of the code.

    Example:
      >>> from jaxrobust import models
      >>> layer_order(models.create("mlp", widths=(8, 8)), (2, 2, 1))
      ('block_0/dense/kernel', 'block_1/dense/kernel', 'head/kernel')
    """
    found: list[str] = []

    def init(key: Array, image: Array) -> None:
        # Before jax sorts the names: it does when a function returns them.
        found.extend(_kernels(model.init(key, image)["params"]))

    jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, *image_shape)))
    return tuple(found)


def _kernels(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _kernels(value, f"{prefix}{name}/")
        elif name == "kernel" and value.ndim >= 2:
            yield prefix + name
