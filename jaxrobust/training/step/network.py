"""The network that a step trains: its function, its normalisation, and its passes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrobust import programs
from jaxrobust.types import Array, LogitsFn, PyTree

PRECISIONS = ("float32", "bfloat16")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """What a step computes with, beside the weights.

    Attributes:
      apply: A linen module's `apply`, called with `train`, `mutable` and `rngs` in training mode.
        Static: compiled code serves one.
      mean: [C] or a scalar, of pixel values in [0, 1]; subtracted first.
      std: [C] or a scalar; divides afterwards.
    """

    apply: Callable[..., Any] = dataclasses.field(metadata={"static": True})
    mean: Any = 0.0
    std: Any = 1.0

    def in_evaluation(self, params: PyTree, statistics: PyTree, precision: str) -> LogitsFn:
        """Images float32 [B, H, W, C] in [0, 1] -> logits float32 [B, K], without dropout.

        Args:
          params: What the network computes with.
          statistics: The running statistics of its normalisation layers, {} if it has none.
          precision: "float32", or "bfloat16": parameters, statistics and images are rounded to it.
        """
        variables = rounded(as_variables(params, statistics), precision)

        def logits_fn(images: Array) -> Array:
            normalised = (images - jnp.asarray(self.mean)) / jnp.asarray(self.std)
            logits = programs.fast(self.apply)(variables, rounded(normalised, precision))
            return logits.astype(jnp.float32)

        return logits_fn


@dataclasses.dataclass(frozen=True, eq=False)
class Passes:
    """Passes in training mode: each gives the logits, and the passes that come after it.

    What one pass changes, the running statistics, the next one finds changed, and each has a dropout of
    its own. An objective returns the passes that are left.

    Attributes:
      network: The network.
      params: What it computes with.
      statistics: The running statistics so far.
      key: A PRNG key, for dropout.
      precision: "float32", or "bfloat16": parameters and images are rounded to it first, so that
        activations and their gradients are of that type; the parameters that are updated, the
        statistics and the loss stay float32.
      number: How many passes there have been.

    Example:
      >>> import flax.linen as nn
      >>> class Mean(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, images, train=False):
      ...         return images.mean((1, 2))
      >>> forward = Passes(Network(Mean().apply), {}, {}, jax.random.key(0))
      >>> logits, forward = forward(jnp.ones((1, 2, 2, 2)))
      >>> logits.tolist(), forward.number
      ([[1.0, 1.0]], 1)
    """

    network: Network
    params: PyTree
    statistics: PyTree
    key: Array
    precision: str = "float32"
    number: Array | int = 0

    def __call__(self, images: Array) -> tuple[Array, "Passes"]:
        """Images float32 [B, H, W, C] in [0, 1] -> (logits float32 [B, K], the passes after)."""
        mean, std = (
            jnp.asarray(part, jnp.float32).reshape(1, 1, 1, -1)
            for part in (self.network.mean, self.network.std)
        )
        params, images = rounded((self.params, (images - mean) / std), self.precision)
        is_first = isinstance(self.number, int) and self.number == 0
        logits, updated = programs.fast(self.network.apply)(
            as_variables(params, self.statistics),
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": self.key if is_first else jax.random.fold_in(self.key, self.number)},
        )
        statistics = updated.get("batch_stats", self.statistics)
        after = dataclasses.replace(self, statistics=statistics, number=self.number + 1)
        return logits.astype(jnp.float32), after


def rounded(tree: PyTree, precision: str) -> PyTree:
    """A pytree of arrays in the type that passes are computed in."""
    if precision == "float32":
        return tree
    return jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(precision)), tree)


def as_variables(params: PyTree, statistics: PyTree) -> dict[str, PyTree]:
    """The collections of a linen module; no "batch_stats" if it has none."""
    return {"params": params} | ({"batch_stats": statistics} if statistics else {})
