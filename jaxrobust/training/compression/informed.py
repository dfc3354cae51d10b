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
    "head", those of the constraint's kernels are excluded that the program uses first or last of all; a
    network of at most two kernels excludes none.

    Args:
      method: A `Compression`.
      network: The network that is trained.
      variables: Its variables, as arrays or shapes.
      image_shape: (H, W, C) of the images.
    """
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    groups = pruning.channel_groups(network.logits, variables, images)
    params, changes = variables["params"], dict[str, Any]()
    constraint: Any = getattr(method, "constraint", None)
    called = pruning.kernel_paths(params)
    used = [one._replace(path=one.path.removeprefix("params/")) for one in groups.kernels]
    if getattr(constraint, "kernels", None) is None:
        used = [one for one in used if one.path in called]
    if getattr(constraint, "kernels", ()) is None:
        # What is called a kernel and is not used as one is compressed too, unless it is a scale.
        other = {path.removeprefix("params/") for one in used for path in one.followers}
        other |= {one.path for one in used}
        idle = [Kernel(path, (), ()) for path in called if path not in other]
        constraint = dataclasses.replace(constraint, kernels=(*used, *idle))
        changes["constraint"] = constraint
    is_named = prefixes(params, None) or prefixes(params, None, constraint)
    if getattr(method, "exclude", ()) is None and len(used) > 2 and not is_named:
        chosen = pruning.kernel_paths(params, getattr(constraint, "kernels", None))
        ends = (used[0].path, used[-1].path)
        changes["exclude"] = tuple(path for path in ends if path in chosen)
    return dataclasses.replace(method, **changes)
