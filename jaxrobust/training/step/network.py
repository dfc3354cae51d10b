"""The network that a step trains: its function, its normalisation and its forward passes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxrobust import programs
from jaxrobust.training.step import nnx_modules
from jaxrobust.types import Array, LogitsFn, PyTree

PRECISIONS = ("float32", "bfloat16")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A network without its weights: the function, and the normalisation of its images.

    Attributes:
      model: A linen module; an nnx module, of which everything but the variables is kept; or, for any
        other library, a pair of functions (init, apply).
        init(key, images) returns the variables {"params": ..., "batch_stats": ...}; "batch_stats" is
        the state that forward passes change, and may be missing.
        apply(variables, images, train, rngs) returns (logits [B, K], the new "batch_stats" or {} if
        there are none). `images` are normalised, `train` is a bool, and `rngs` is {"dropout": a PRNG
        key} in training and {} otherwise.
        The model is static: another one is compiled anew.
      mean: [C] or a scalar, subtracted from pixel values in [0, 1].
      std: [C] or a scalar, above 0, by which the difference is divided.

    Raises:
      TypeError: `model` is none of these.
    """

    model: Any = dataclasses.field(metadata={"static": True})
    mean: Any = 0.0
    std: Any = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", _without_variables(self.model))

    def init(self, key: Array, images: Array) -> PyTree:
        """Returns initial variables. An nnx module has its own: pass it to `create_state` instead."""
        init = self.model[0] if isinstance(self.model, tuple) else self.model.init
        return init(key, images)

    def apply(
        self, variables: PyTree, images: Array, train: bool, rngs: Mapping[str, Array]
    ) -> tuple[Array, PyTree]:
        """Returns (logits [B, K], the new "batch_stats") for normalised images [B, H, W, C].

        Raises:
          TypeError: The `apply` of a pair does not return two values.
          ValueError: The new state has another structure or other shapes than the old.
        """
        before = variables.get("batch_stats", {})
        if isinstance(self.model, nnx_modules.NnxFunction):
            returned = self.model.apply(variables, images, train, rngs)
        elif isinstance(self.model, tuple):
            returned = self.model[1](variables, images, train, rngs)
        elif not train:
            return self.model.apply(variables, images), before
        else:
            logits, updated = self.model.apply(
                variables, images, train=True, mutable=["batch_stats"], rngs=rngs
            )
            returned = logits, updated.get("batch_stats", before)
        return _checked(returned, before if train else None)

    def logits(self, variables: PyTree, images: Array) -> Array:
        """Returns logits [B, K] for normalised images [B, H, W, C], in evaluation mode."""
        return self.apply(variables, images, False, {})[0]

    def in_evaluation(self, params: PyTree, statistics: PyTree, precision: str) -> LogitsFn:
        """Returns the function from images [B, H, W, C] in [0, 1] to logits float32 [B, K].

        It runs the network in evaluation mode: with running statistics and without dropout.

        Args:
          params: The parameters.
          statistics: The running statistics of the normalisation layers; {} if there are none.
          precision: "float32", or "bfloat16": parameters, statistics and images are rounded to it.
        """
        variables = rounded(as_variables(params, statistics), precision)

        def logits_fn(images: Array) -> Array:
            normalised = (images - jnp.asarray(self.mean)) / jnp.asarray(self.std)
            logits = programs.fast(self.logits)(variables, rounded(normalised, precision))
            return logits.astype(jnp.float32)

        return logits_fn


@dataclasses.dataclass(frozen=True, eq=False)
class Passes:
    """Forward passes in training mode: `logits, forward = forward(images)`.

    Each pass returns the logits and a new `Passes` for the next pass, with the running statistics that
    the pass has updated. Each pass has its own dropout. An objective returns the last `Passes`.

    Attributes:
      network: The network.
      params: The parameters.
      statistics: The running statistics so far.
      key: A PRNG key for dropout.
      precision: "float32", or "bfloat16": parameters and images are rounded to it first, so that
        activations and their gradients are of that type; the parameters that are updated, the
        statistics and the loss stay float32.
      number: The number of passes so far.

    Example:
      >>> import flax.linen as nn
      >>> class Mean(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, images, train=False):
      ...         return images.mean((1, 2))
      >>> forward = Passes(Network(Mean()), {}, {}, jax.random.key(0))
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
        """Returns (logits float32 [B, K], the next `Passes`) for images [B, H, W, C] in [0, 1]."""
        mean, std = (
            jnp.asarray(part, jnp.float32).reshape(1, 1, 1, -1)
            for part in (self.network.mean, self.network.std)
        )
        params, images = rounded((self.params, (images - mean) / std), self.precision)
        is_first = isinstance(self.number, int) and self.number == 0
        key = self.key if is_first else jax.random.fold_in(self.key, self.number)
        logits, statistics = programs.fast(self.network.apply)(
            as_variables(params, self.statistics), images, True, {"dropout": key}
        )
        # Of the types that they had: what is rounded computes rounded statistics, and a constant is
        # no array.
        statistics = jax.tree.map(
            lambda old, new: jnp.asarray(new, old.dtype), self.statistics, statistics
        )
        after = dataclasses.replace(self, statistics=statistics, number=self.number + 1)
        return logits.astype(jnp.float32), after


def rounded(tree: PyTree, precision: str) -> PyTree:
    """Casts the floating arrays of a pytree to a precision; integers stay as they are."""
    if precision == "float32":
        return tree
    return jax.tree.map(
        lambda leaf: leaf.astype(jnp.dtype(precision)) if is_floating(leaf) else leaf, tree
    )


def is_floating(leaf: Any) -> bool:
    """Whether an array has a floating type."""
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def as_variables(params: PyTree, statistics: PyTree) -> dict[str, PyTree]:
    """Returns the collections of a linen module, without "batch_stats" if it has none."""
    return {"params": params} | ({"batch_stats": statistics} if statistics else {})


def with_variables(model: Any, variables: PyTree) -> Any:
    """Puts weights into a model, and sets it to evaluation mode.

    Args:
      model: A linen module, an nnx module, or a pair of functions (init, apply); see `Network`.
      variables: The {"params": ..., "batch_stats": ...} of the model.

    Returns:
      A function from normalised images [B, H, W, C] to logits [B, K]. For an nnx module it is a new
      module of the same class; for a linen module it is `jax.tree_util.Partial(model.apply,
      variables)`, and for a pair it is a Partial of its `apply`.

    Example:
      >>> pair = lambda key, images: {}, lambda v, images, train, rngs: (images @ v["params"], {})
      >>> with_variables(pair, {"params": jnp.eye(2)})(jnp.ones((1, 2))).tolist()
      [[1.0, 1.0]]
    """
    if nnx_modules.is_nnx(model):
        return nnx_modules.with_variables(model, variables)
    apply: Any = Network(model).logits if isinstance(model, tuple) else model.apply
    return jax.tree_util.Partial(apply, variables)


def _without_variables(model: Any) -> Any:
    """The part of a model that compiled code depends on. Raises unless it is a model."""
    if isinstance(model, nnx_modules.NnxFunction):
        return model
    if not isinstance(model, type):
        if nnx_modules.is_nnx(model) and callable(model):
            return nnx_modules.NnxFunction.of(model)
        is_pair = isinstance(model, tuple) and len(model) == 2 and all(map(callable, model))
        if is_pair or (hasattr(model, "init") and hasattr(model, "apply")):
            return model
    shown = repr(model) if isinstance(model, type | tuple) else type(model).__name__
    hint = f"; {model.__name__} is a class: make one of it" if isinstance(model, type) else ""
    raise TypeError(
        "`model` must be a linen module, such as models.create('simple_cnn'), an nnx module that can "
        f"be called, or a pair of functions (init, apply), got {shown}{hint}."
    )


def _checked(returned: Any, before: PyTree | None) -> tuple[Array, PyTree]:
    """Returns (logits, state) after checking what `apply` returned."""
    words = "`apply(variables, images, train, rngs)` must return (logits, the new state)"
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise TypeError(
            f"{words}, got {type(returned).__name__}; without a state, return `logits, {{}}`."
        )
    logits, after = returned
    if before is None:
        return logits, after
    had, has = (
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): jnp.shape(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (before, after)
    )
    if had != has or str(jax.tree.structure(before)) != str(jax.tree.structure(after)):
        raise ValueError(
            f"{words}, with the structure and shapes of variables['batch_stats'], {had}, got {has}."
        )
    return logits, after
