"""The training state: everything that training changes, as one pytree."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import meta

from jaxrobust.training.compression.method import kept_at
from jaxrobust.training.step import nnx_modules
from jaxrobust.training.step.adversaries import as_adversary
from jaxrobust.training.step.network import as_variables
from jaxrobust.training.step.recipe import Recipe
from jaxrobust.types import Array, PyTree, as_key


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class TrainState:
    """The state between two training steps, from which a run can be resumed.

    Attributes:
      step: int32 scalar, the number of steps taken.
      params: The parameters of the network.
      batch_stats: The running statistics of the normalisation layers; {} if there are none.
      opt_state: The state of the optimizer.
      learning_rate_scale: float32 scalar by which the learning rate is multiplied; `Plateau` lowers it.
      average: The average of `variables`; None if the recipe has no averaging.
      adversary: The memory of the adversary, such as the perturbation of `FreeReplays`; None if it has
        none.
      compression: The memory of the compression method; None if the recipe has no compression.
    """

    step: Array
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    learning_rate_scale: Array
    average: PyTree | None = None
    adversary: PyTree | None = None
    compression: PyTree | None = None

    @property
    def variables(self) -> dict[str, PyTree]:
        """The parameters and running statistics, as the network's `apply` takes them."""
        return as_variables(self.params, self.batch_stats)

    @property
    def evaluated(self) -> dict[str, PyTree]:
        """The variables to evaluate: the average if there is one.

        With a compression, its `finish` turns them into the compressed network.
        """
        return self.variables if self.average is None else self.average


def plain(tree: Any) -> Any:
    """Converts weights or masks to nested dicts of arrays, with floats of at least float32.

    Args:
      tree: Nested dicts or FrozenDicts of arrays of any type, whose leaves may be boxed
        (`nn.Partitioned`); or an nnx module or nnx.State, whose `nnx_modules.collections` are taken.
    """

    def opened(tree: Any) -> Any:
        if nnx_modules.is_nnx(tree):
            return opened(nnx_modules.collections(tree))
        if isinstance(tree, Mapping):
            return {
                name: opened(child).get(name, {}) if nnx_modules.is_nnx(child) else opened(child)
                for name, child in tree.items()
            }
        return tree

    def widened(leaf: Any) -> Any:
        is_narrow = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        is_narrow = is_narrow and jnp.result_type(leaf).itemsize < 4
        return jnp.asarray(leaf, jnp.float32) if is_narrow else leaf

    return jax.tree.map(widened, opened(meta.unbox(tree)))


def create_state(
    variables: Any,
    recipe: Recipe,
    *,
    image_shape: tuple[int, ...] | None = None,
    key: Array | None = None,
) -> TrainState:
    """Creates the training state before the first step.

    The arrays are copied, so that a training loop may donate the state without losing the caller's
    arrays.

    Args:
      variables: {"params": ..., "batch_stats": ...}, as a linen module's `init` returns them, or an nnx
        module. Floats narrower than float32 are converted to float32.
      recipe: The recipe. Its optimizer, averaging, adversary and compression each have a part of the
        state.
      image_shape: (H, W, C) of the images before augmentation; `FreeReplays` needs it.
      key: A PRNG key, which a compression needs.

    Raises:
      TypeError: `variables` is not a dict or an nnx module.
      ValueError: `variables` has no floating "params" or has collections other than these two; or an
        `image_shape` or a `key` is needed and missing.
    """
    variables = plain(variables)
    check_variables(variables)

    def copy(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)

    params, memory = variables["params"], None
    if recipe.compression is not None:
        if key is None:
            raise ValueError("`recipe.compression` needs a PRNG key: give `key`.")
        params, memory = recipe.compression.start(
            as_key(key), params, kept_at(recipe.compression, 0)
        )
    params, batch_stats = copy(params), copy(variables.get("batch_stats", {}))
    average = None
    if recipe.averaging is not None:
        average = recipe.averaging.start(as_variables(params, batch_stats))
    # Memories are copied too: some begin as the parameters themselves.
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=copy(recipe.optimizer(0.0).init(params)),
        learning_rate_scale=jnp.ones((), jnp.float32),
        average=copy(average),
        adversary=copy(_adversary_memory(recipe, image_shape)),
        compression=copy(memory),
    )


def check_variables(variables: Any) -> None:
    """Raises unless these are collections that `create_state` can train."""
    if not isinstance(variables, Mapping):
        raise TypeError(
            '`variables`, or what `init` returns, must be {"params": ..., "batch_stats": ...}, got '
            f"{type(variables).__name__}."
        )
    if "params" not in variables or set(variables) - {"params", "batch_stats"}:
        raise ValueError(
            '`variables` must hold "params" and may hold "batch_stats", '
            f"got {tuple(variables)}: other collections cannot be trained."
        )
    leaves = jax.tree.leaves(variables["params"])
    if not leaves or not all(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in leaves):
        raise ValueError(
            '`variables` must hold "params" that are floating, got '
            f"{sorted({str(jnp.result_type(leaf)) for leaf in leaves}) or 'none'}. Of an nnx module, "
            "every nnx.Param is trained and nothing else: make a counter another nnx.Variable."
        )


def _adversary_memory(recipe: Recipe, image_shape: tuple[int, ...] | None) -> PyTree | None:
    adversary = as_adversary(recipe.at(1).adversary)
    if not jax.tree.leaves(jax.eval_shape(lambda: adversary.memory((1, 1, 1, 1)))):
        return None
    if image_shape is None:
        raise ValueError("`recipe.adversary` remembers a batch: give `image_shape`, (H, W, C).")
    shape = (recipe.batch_size, *image_shape)
    if recipe.augmentation is not None:
        # Augmentation may change the size of the images.
        augmentation = recipe.augmentation
        images = jax.ShapeDtypeStruct(shape, jnp.float32)
        key = jax.eval_shape(lambda: as_key(jax.random.key(0)))
        shape = jax.eval_shape(lambda *given: augmentation(*given), key, images).shape
    return adversary.memory(shape)
