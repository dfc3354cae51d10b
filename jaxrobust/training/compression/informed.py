"""What a method of compression learns from the network's program before the first step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxrobust import pruning
from jaxrobust.pruning import Kernel
from jaxrobust.training.compression.method import STEM_AND_CLASSIFIER, prefixes
from jaxrobust.training.step.network import Network
from jaxrobust.types import PyTree


def informed(method: Any, network: Network, variables: PyTree, image_shape: tuple[int, ...]) -> Any:
    """The method, with the order and the axes of kernels, and with its stem and its classifier.

    A constraint with `kernels` of its own keeps them, as does a method with an `exclude`. The stem is
    what is called "stem", or else the first kernel that the program uses; the classifier is what is
    called "head", or else the last one. Of two kernels or fewer only names count.

    Args:
      method: A `Compression`.
      network: What is trained.
      variables: Its variables; shapes are enough.
      image_shape: (H, W, C).
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
    if getattr(method, "exclude", ()) is None and len(named) > 2:
        known = prefixes(variables["params"], None)
        ends = zip(STEM_AND_CLASSIFIER, (named[0].path, named[-1].path), strict=True)
        exclude = tuple(name if name in known else path for name, path in ends)
        if exclude != STEM_AND_CLASSIFIER:
            changes["exclude"] = exclude
    return dataclasses.replace(method, **changes)
