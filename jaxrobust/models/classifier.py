"""A network, its weights and its normalisation as one function from images to logits."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrobust import checks
from jaxrobust.types import Array, PyTree, dequantize


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """Images float32 [B, H, W, C] in [0, 1] -> logits float32 [B, K], in evaluation mode.

    A pytree whose leaves are the weights, the mean and the deviation. A function compiled with a
    Classifier as its argument therefore serves every pruned, fine-tuned or retrained variant of the
    network without compiling anew.

    Attributes:
      apply_fn: (variables, normalised images) -> logits, for example the `apply` of a linen module
        made by `jaxrobust.models.create`. Static: two Classifiers share compiled code if theirs are
        equal.
      variables: The pytree that apply_fn takes, {"params": ..., "batch_stats": ...}. Kernels in int8
        (`jaxrobust.pruning.quantize`) are multiplied out within the compiled program: apply_fn sees
        float32.
      mean: [C] or a scalar, of pixel values in [0, 1]; subtracted first.
      std: [C] or a scalar; divides afterwards. A Classifier with mean 0 and std 1 takes pixels as
        they are.

    Example:
      >>> import jax.numpy as jnp
      >>> double = Classifier(lambda variables, images: variables * images.sum((1, 2)), jnp.float32(2))
      >>> double(jnp.ones((1, 2, 2, 1))).tolist()
      [[8.0]]
    """

    apply_fn: Callable[..., Any] = dataclasses.field(metadata={"static": True})
    variables: PyTree
    mean: Any = 0.0
    std: Any = 1.0

    def __call__(self, images: Array) -> Array:
        """Images floating [B, H, W, C] in [0, 1] -> logits [B, K], both float32 but in a search.

        Raises:
          TypeError: Integer images: divide uint8 by 255 first.
          ValueError: Images that are not [B, H, W, C].
        """
        checks.float_images(images)
        # An explicit float32: Python's floats would make another type of leaf than an array does.
        mean, std = (
            jnp.asarray(value, jnp.float32).reshape(1, 1, 1, -1) for value in (self.mean, self.std)
        )
        # In the images' type: a network whose weights are bfloat16 computes in bfloat16.
        normalised = ((images - mean) / std).astype(images.dtype)
        return self.apply_fn(dequantize(self.variables), normalised)
