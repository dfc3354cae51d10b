"""The Classifier: a network, its weights and its normalisation as one function of images."""

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
    """A network with weights: images float32 [B, H, W, C] in [0, 1] -> logits float32 [B, K].

    It runs the network in evaluation mode. It is a pytree whose leaves are the weights, the mean and
    the standard deviation: a function that is compiled with a Classifier as its argument serves every
    pruned, fine-tuned or retrained variant of the network without recompilation.

    Attributes:
      apply_fn: A function (variables, normalised images) -> logits, for example the `apply` of a linen
        module made by `jaxrobust.models.create`. It is static: two Classifiers share compiled code if
        their functions are equal.
      variables: The pytree that `apply_fn` takes, {"params": ..., "batch_stats": ...}. Int8 kernels
        (`jaxrobust.pruning.quantize`) are converted to float32 inside the compiled program.
      mean: [C] or a scalar, subtracted from pixel values in [0, 1].
      std: [C] or a scalar, by which the difference is divided. With mean 0 and std 1 the network gets
        the pixels unchanged.

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

    def __repr__(self) -> str:
        number = sum(getattr(leaf, "size", 1) for leaf in jax.tree.leaves(self.variables))
        return f"Classifier({number:,} weights)"

    def __call__(self, images: Array) -> Array:
        """Returns logits [B, K] for floating images [B, H, W, C] in [0, 1].

        The logits have the type of the images: float32, except where a search uses another precision.

        Raises:
          TypeError: `apply_fn` is no function, or the images are integers: divide uint8 by 255 first.
          ValueError: The images are not [B, H, W, C].
        """
        if not callable(self.apply_fn):
            raise TypeError(
                "`apply_fn` must be a function (variables, images) -> logits, as in "
                f"Classifier(network.apply, variables), got {type(self.apply_fn).__name__}."
            )
        checks.float_images(images)
        images = jnp.asarray(images)  # numpy's float64 becomes float32, without jax's warning
        # An explicit float32: Python's floats would make another type of leaf than an array does.
        mean, std = (
            jnp.asarray(value, jnp.float32).reshape(1, 1, 1, -1) for value in (self.mean, self.std)
        )
        # In the images' type: a network whose weights are bfloat16 computes in bfloat16.
        normalised = ((images - mean) / std).astype(images.dtype)
        return self.apply_fn(dequantize(self.variables), normalised)
