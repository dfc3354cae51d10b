"""The conversation of many attacks with one classifier: vmapped questions, one evaluation for all.

Rows never mix: a NaN row or a padded row leaves the others as they are.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrobust import losses
from jaxrobust.attacks.attack import Attack, overrides
from jaxrobust.types import Array, Evaluation, LogitsFn, PyTree, Stochastic

_PULL_BACKS = 10  # of one evaluation at a time


def as_arrays(attack: Any) -> Any:
    """Any attack, or None, with float32 leaves: 8/255 and an array of it share compiled code."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), attack)


def per_image(attack: Attack, size: int) -> Attack:
    """The attack with float32 leaves [B]: one value of each hyper-parameter for every image.

    So 8/255, an array of it and different values for each image share compiled code.

    Args:
      attack: Its leaves are numbers, or arrays [B].
      size: B.

    Raises:
      ValueError: A leaf of another shape.
    """

    def spread(leaf: Any) -> Array:
        array = jnp.asarray(leaf, jnp.float32)
        if array.shape not in ((), (size,)):
            raise ValueError(
                f"A hyper-parameter of {type(attack).__name__} must be one number or one for each of "
                f"the {size} images, got shape {array.shape}."
            )
        return jnp.broadcast_to(array, (size,))

    return jax.tree.map(spread, attack)


def start(attack: Attack, keys: Array, images: Array, labels: Array, restart: Array) -> PyTree:
    """The states before the first step.

    Args:
      attack: From `per_image`.
      keys: PRNG keys [B], of the starts.
      images: floating [B, H, W, C] in [0, 1].
      labels: integer [B].
      restart: int32 scalar, or [B].
    """
    images, labels = images.astype(jnp.float32), labels.astype(jnp.int32)
    restarts = jnp.broadcast_to(restart, labels.shape)
    return jax.vmap(lambda one, *row: one.init(*row))(attack, keys, images, labels, restarts)


def ask(attack: Attack, states: PyTree) -> Array:
    """The points asked about, held inside [0, 1] whatever the attack does."""
    return jnp.clip(jax.vmap(lambda one, *row: one.ask(*row))(attack, states), 0.0, 1.0)


def evaluate(
    attack: Attack,
    logits_fn: LogitsFn,
    states: PyTree,
    keys: Array,
    with_gradient: bool = True,
    finished: Array | bool = False,
) -> tuple[Array, Evaluation]:
    """Asks every lane for a point and evaluates the classifier there, once for all lanes.

    Args:
      attack: Whose states these are.
      logits_fn: Images [B, H, W, C] -> logits [B, K]. For a `Stochastic` classifier logits, values
        and gradients are means over its samples.
      states: States of B lanes, stacked.
      keys: PRNG keys [B], for a classifier that answers at random.
      with_gradient: Whether to differentiate; for an attack with `uses_gradient = False` never,
        and zeros for a lane that does not want it.
      finished: bool [B], lanes whose answers nobody will hear.

    Returns:
      (points [B, H, W, C], Evaluation with float32 fields [B, ...]).
    """
    points = ask(attack, states)

    def objectives(points: Array, answer: LogitsFn) -> tuple[Array, Array]:
        # float32 whatever the classifier computes in: a state keeps the types that it began with.
        logits = answer(points).astype(jnp.float32)
        return jax.vmap(lambda one, *row: one.objective(*row))(attack, logits, states), logits

    def of(answer: LogitsFn) -> Evaluation:
        if not (with_gradient and attack.uses_gradient):
            values, logits = objectives(points, answer)
            return Evaluation(logits, values, None)
        values, pull_back, logits = jax.vjp(
            lambda points: objectives(points, answer), points, has_aux=True
        )
        pulled = functools.partial(_gradients, values, pull_back)
        if not overrides(attack, Attack.wants_gradient):
            return Evaluation(logits, values, pulled())
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(pulled))
        wanted = _wants_gradient(attack, states) & jnp.logical_not(finished)
        gradients = jax.lax.cond(jnp.any(wanted), pulled, lambda: nothing)
        gradients = where_rows(wanted, gradients, nothing)  # whatever the rows beside them want
        return Evaluation(logits, values, gradients)

    if not isinstance(logits_fn, Stochastic):
        return points, of(logits_fn)

    def sample(index: Array) -> Evaluation:
        return of(lambda points: logits_fn.sample(keys, index, points))

    samples = jax.lax.map(sample, jnp.arange(logits_fn.num_samples))
    return points, jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), samples)


def _gradients(values: Array, pull_back: Callable[[Array], tuple[Array]]) -> Array:
    """Every row's gradient of its own value, or [B, k, ...] of its k values."""
    if values.ndim == 1:
        return pull_back(jnp.ones_like(values))[0]
    # [B, k] objectives: one pull-back for each of the k, all rows at once; a few of the k at a time,
    # because each needs as much memory as a gradient.
    basis = jnp.eye(values.shape[1], dtype=values.dtype)
    by_objective = jax.lax.map(
        lambda row: pull_back(jnp.broadcast_to(row, values.shape))[0],
        basis,
        batch_size=min(len(basis), _PULL_BACKS),
    )
    return jnp.moveaxis(by_objective, 0, 1)


def cost(
    attack: Attack, logits_fn: LogitsFn, states: PyTree, evaluation: Evaluation
) -> tuple[int, Array | int]:
    """What an evaluation took for each image.

    Args:
      attack: Whose states these are.
      logits_fn: That was asked.
      states: Before the answer.
      evaluation: The answer.

    Returns:
      (images shown to the classifier, gradients: one number for all images or int32 [B]).
    """
    samples = logits_fn.num_samples if isinstance(logits_fn, Stochastic) else 1
    if evaluation.gradient is None:
        return samples, 0
    gradients = samples * (evaluation.value.shape[1] if evaluation.value.ndim == 2 else 1)
    if not overrides(attack, Attack.wants_gradient):
        return samples, gradients
    return samples, gradients * _wants_gradient(attack, states).astype(jnp.int32)


def _wants_gradient(attack: Attack, states: PyTree) -> Array:
    return jax.vmap(lambda one, *row: one.wants_gradient(*row))(attack, states)


def done(attack: Attack, states: PyTree) -> Array:
    """Which of the states have nothing more to ask, bool [B]."""
    return jax.vmap(lambda one, *row: one.done(*row))(attack, states)


def tell(attack: Attack, states: PyTree, evaluation: Evaluation) -> PyTree:
    """The states after an answer, of the types that they had before."""

    def same_type(new: Array, old: Array) -> Array:
        return new if new.dtype == old.dtype else new.astype(old.dtype)

    following = jax.vmap(lambda one, *row: one.tell(*row))(attack, states, evaluation)
    return jax.tree.map(same_type, following, states)


def answer_keys(keys: Array, step: Array) -> Array:
    """Keys of a stochastic classifier's answers: of the starts [B], at one step or at steps [B]."""

    def fold(key: Array, step: Array) -> Array:
        # The first number keeps them apart from what the attack itself draws.
        return jax.random.fold_in(jax.random.fold_in(key, 0xE07), step)

    return jax.vmap(fold)(keys, jnp.broadcast_to(step, keys.shape))


def where_rows(condition: Array, first: PyTree, second: PyTree) -> PyTree:
    """Rows of the first tree where the condition [B] holds, else of the second."""

    def choose(a: Array, b: Array) -> Array:
        return jnp.where(condition.reshape(condition.shape + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, first, second)


def finite_gradient(evaluation: Evaluation) -> Array:
    """The gradient with zeros for NaN and infinities: one in a point would be the end of its row.

    Args:
      evaluation: Of an attack that uses gradients.

    Returns:
      Of the gradient's shape.
    """
    assert evaluation.gradient is not None  # the engine differentiates where `uses_gradient` is set
    return jnp.where(jnp.isfinite(evaluation.gradient), evaluation.gradient, 0.0)


def ranked_class(logits: Array, label: Array, rank: Array) -> Array:
    """The other class that is at a place of the ranking by logits.

    Args:
      logits: [K].
      label: The class that is left out.
      rank: 0 for the most likely of the others; beyond the last it counts from the front again. Masked
        classes (`jaxrobust.losses.is_possible`) are none of them.

    Returns:
      int32 scalar.

    Example:
      >>> int(ranked_class(jnp.array([3.0, 1.0, 2.0]), 0, 1))
      1
    """
    others = jnp.where(jnp.arange(logits.shape[0]) == label, -jnp.inf, logits)
    order = jnp.argsort(-others, stable=True)
    count = jnp.maximum(jnp.sum(losses.is_possible(others)), 1)
    return order[rank % count].astype(jnp.int32)
