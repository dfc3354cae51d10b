"""What training changes, as one pytree."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrobust.types import Array, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class TrainState:
    """The state between two training steps: all that a run needs to go on.

    Attributes:
      step: int32 scalar, steps taken.
      params: The network's parameters.
      batch_stats: The running statistics of its normalisation layers; {} if it has none.
      opt_state: The optimizer's.
      learning_rate_scale: float32 scalar, by which the plateau schedule lowers the learning rate.
      average: The moving average of `variables`; None where none is kept.
      perturbation: float32 [B, H, W, C], that of `FreeReplays`; None for any other training.
      compression: The memory of a method that compresses while training; None without one.
    """

    step: Array
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    learning_rate_scale: Array
    average: PyTree | None = None
    perturbation: Array | None = None
    compression: PyTree | None = None

    @property
    def variables(self) -> dict[str, PyTree]:
        """Parameters and running statistics, as the network's `apply` takes them."""
        return as_variables(self.params, self.batch_stats)

    @property
    def evaluated(self) -> dict[str, PyTree]:
        """The variables to evaluate: the average where one is kept.

        Under a compression, what its `finish` makes of them is the network.
        """
        return self.variables if self.average is None else self.average


def as_variables(params: PyTree, batch_stats: PyTree) -> dict[str, PyTree]:
    """The collections of a linen module; no "batch_stats" if it has none."""
    return {"params": params} | ({"batch_stats": batch_stats} if batch_stats else {})


def create_state(
    variables: Any,
    optimizer: optax.GradientTransformation,
    *,
    average: bool = False,
    perturbed: tuple[int, ...] | None = None,
    compression: PyTree | None = None,
) -> TrainState:
    """The state before the first step.

    The arrays are copied: a training loop donates its state, and must not take the caller's with
    it.

    Args:
      variables: {"params": ..., "batch_stats": ...}, as a linen module's `init` returns them.
      optimizer: For its initial state.
      average: Whether to keep a moving average of the variables.
      perturbed: The shape [B, H, W, C] of a batch as it is trained on, for `FreeReplays`.
      compression: The memory of a compression, as its `start` returns it beside the parameters.

    Returns:
      The state.

    Raises:
      ValueError: `variables` without "params", or with collections other than these two.
    """
    if "params" not in variables or set(variables) - {"params", "batch_stats"}:
        raise ValueError(
            '`variables` must hold "params" and perhaps "batch_stats", '
            f"got {tuple(variables)}: other collections are not trained."
        )

    def copy(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)

    params = copy(variables["params"])
    batch_stats = copy(variables.get("batch_stats", {}))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        learning_rate_scale=jnp.ones((), jnp.float32),
        average=copy(as_variables(params, batch_stats)) if average else None,
        perturbation=None if perturbed is None else jnp.zeros(perturbed, jnp.float32),
        compression=copy(compression),
    )
