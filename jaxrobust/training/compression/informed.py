"""Adapts a compression method to the network before the first step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxrobust import pruning
from jaxrobust.pruning import Kernel
from jaxrobust.training.compression.method import prefixes
from jaxrobust.training.step.network import Network
from jaxrobust.types import PyTree


def informed(method: Any, network: Network, variables: PyTree, image_shape: tuple[int, ...]) -> Any:
    """Returns the method with the kernels of its constraint and its excluded layers filled in.

    The order and the axes of the kernels are read from the network's program. A constraint that has
    `kernels` keeps them, and so does a method that has an `exclude`. If no kernel is called "stem" or
    "head", the first and the last kernel that the program uses are excluded; a network of at most two
    kernels excludes none.

    Args:
      method: A `Compression`.
      network: The network that is trained.
      variables: Its variables, as arrays or shapes.
      image_shape: (H, W, C) of the images.
    """
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    groups = pruning.channel_groups(network.logits, variables, images)
    used = [one._replace(path=one.path.removeprefix("params/")) for one in groups.kernels]
    chosen = pruning.kernel_paths(variables["params"])
    named = [one for one in used if one.path in chosen]
    idle = [Kernel(p, (), ()) for p in chosen if p not in {one.path for one in named}]
    changes: dict[str, Any] = {}
    constraint: Any = getattr(method, "constraint", None)
    if getattr(constraint, "kernels", ()) is None:
        changes["constraint"] = dataclasses.replace(constraint, kernels=(*named, *idle))
    is_unnamed = getattr(method, "exclude", ()) is None and not prefixes(variables["params"], None)
    if is_unnamed and len(named) > 2:
        changes["exclude"] = (named[0].path, named[-1].path)
    return dataclasses.replace(method, **changes)
