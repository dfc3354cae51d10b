"""What training changes, as one pytree."""

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
    """The state between two training steps: all that a run needs to go on.

    Attributes:
      step: int32 scalar, steps taken.
      params: The network's parameters.
      batch_stats: The running statistics of its normalisation layers; {} if it has none.
      opt_state: The optimizer's.
      learning_rate_scale: float32 scalar, by which the plateau schedule lowers the learning rate.
      average: What the averaging remembers: the average of `variables`; None without one.
      adversary: What the adversary remembers: the perturbation of `FreeReplays`; None of most.
      compression: What the method of compression remembers; None without one.
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
        """Parameters and running statistics, as the network's `apply` takes them."""
        return as_variables(self.params, self.batch_stats)

    @property
    def evaluated(self) -> dict[str, PyTree]:
        """The variables to evaluate, which are the average where one is kept.

        Under a compression, what its `finish` makes of them is the network.
        """
        return self.variables if self.average is None else self.average


def plain(tree: Any) -> Any:
    """Weights as training has them: nested dicts of arrays, of which none is narrower than float32.

    Args:
      tree: Variables or masks: dicts, FrozenDicts, boxed leaves (`nn.Partitioned`), arrays of any type;
        an nnx module or nnx.State, of which `nnx_modules.collections` are taken.
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
    """The state before the first step.

    The arrays are copied: a training loop donates its state, and must not take the caller's with
    it.

    Args:
      variables: {"params": ..., "batch_stats": ...}, as a linen module's `init` returns them, or an nnx
        module; narrower floats than float32 become that.
      recipe: Its optimizer, averaging, adversary and compression have memories.
      image_shape: (H, W, C) of the images as they come; needed by `FreeReplays`.
      key: A PRNG key, needed by a compression, which may begin at random.

    Returns:
      The state.

    Raises:
      TypeError: `variables` that are no dict.
      ValueError: `variables` without floating "params", or with collections other than these two; no
        `image_shape` or `key` where there has to be one.
    """
    variables = plain(variables)
    check_variables(variables)

    def copy(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)

    params, memory = variables["params"], None
    if recipe.compression is not None:
        if key is None:
            raise ValueError("`key` is needed by a compression.")
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
    """Raises unless these are collections that can be trained: as `create_state`."""
    if not isinstance(variables, Mapping):
        raise TypeError(
            '`variables`, or what `init` returns, must be {"params": ..., "batch_stats": ...}, got '
            f"{type(variables).__name__}."
        )
    if "params" not in variables or set(variables) - {"params", "batch_stats"}:
        raise ValueError(
            '`variables` must hold "params" and perhaps "batch_stats", '
            f"got {tuple(variables)}: other collections are not trained."
        )
    leaves = jax.tree.leaves(variables["params"])
    if not leaves or not all(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in leaves):
        raise ValueError(
            '`variables` must hold "params" that are floating, got '
            f"{sorted({str(jnp.result_type(leaf)) for leaf in leaves}) or 'none'}: what is trained of "
            "an nnx module is an nnx.Param, and nothing else; what counts is another nnx.Variable."
        )


def _adversary_memory(recipe: Recipe, image_shape: tuple[int, ...] | None) -> PyTree | None:
    adversary = as_adversary(recipe.at(1).adversary)
    if not jax.tree.leaves(jax.eval_shape(lambda: adversary.memory((1, 1, 1, 1)))):
        return None
    if image_shape is None:
        raise ValueError("`image_shape` is needed by an adversary that remembers a batch.")
    shape = (recipe.batch_size, *image_shape)
    if recipe.augmentation is not None:
        # Augmentation may change the size of the images.
        augmentation = recipe.augmentation
        images = jax.ShapeDtypeStruct(shape, jnp.float32)
        key = jax.eval_shape(lambda: as_key(jax.random.key(0)))
        shape = jax.eval_shape(lambda *given: augmentation(*given), key, images).shape
    return adversary.memory(shape)
