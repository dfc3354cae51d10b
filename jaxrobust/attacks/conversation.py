"""Questions of many attacks to one classifier: vmapped methods, and one evaluation for all.

Rows never mix: a NaN row or a padded row does not affect the others.
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
    """Converts an attack's leaves to float32, so that 8/255 and an array of it share compiled code."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), attack)


def per_image(attack: Attack, size: int) -> Attack:
    """Converts an attack's leaves to float32 [B]: one value of each hyper-parameter for every image.

    Thereby 8/255, an array of it and different values for each image share compiled code.

    Args:
      attack: An attack whose leaves are numbers or arrays [B].
      size: The number of images, B.

    Returns:
      The attack with float32 leaves [B].

    Raises:
      ValueError: A leaf has another shape.
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
    """Returns the states before the first step, stacked.

    Args:
      attack: The attack, as `per_image` returns it.
      keys: PRNG keys [B] of the starts.
      images: floating point [B, H, W, C] in [0, 1].
      labels: int [B].
      restart: int32 scalar or [B], the number of the restart.
    """
    images, labels = images.astype(jnp.float32), labels.astype(jnp.int32)
    restarts = jnp.broadcast_to(restart, labels.shape)
    return jax.vmap(lambda one, *row: one.init(*row))(attack, keys, images, labels, restarts)


def ask(attack: Attack, states: PyTree) -> Array:
    """Returns the points to ask about, [B, H, W, C], clipped to [0, 1] whatever the attack does."""
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
      attack: The attack, as `per_image` returns it.
      logits_fn: Images [B, H, W, C] -> logits [B, K]. For a `Stochastic` classifier, logits, values
        and gradients are means over its samples.
      states: The states of B lanes, stacked.
      keys: PRNG keys [B], for a classifier whose answers are random.
      with_gradient: Whether to differentiate. An attack with `uses_gradient = False` is never
        differentiated, and a lane that does not want a gradient gets zeros.
      finished: bool [B], the lanes whose answers are not used.

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
    """Counts what an evaluation cost for each image.

    Args:
      attack: The attack, as `per_image` returns it.
      logits_fn: The classifier that was evaluated.
      states: The states before the answer, stacked.
      evaluation: The answer.

    Returns:
      (the number of images that the classifier evaluated, the number of gradients: one for all images,
      or int32 [B]).
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
    """Says which of the states have nothing more to ask, bool [B]."""
    return jax.vmap(lambda one, *row: one.done(*row))(attack, states)


def tell(attack: Attack, states: PyTree, evaluation: Evaluation) -> PyTree:
    """Returns the states after an answer, with the same types as before."""

    def same_type(new: Array, old: Array) -> Array:
        return new if new.dtype == old.dtype else new.astype(old.dtype)

    following = jax.vmap(lambda one, *row: one.tell(*row))(attack, states, evaluation)
    return jax.tree.map(same_type, following, states)


def answer_keys(keys: Array, step: Array) -> Array:
    """Makes the keys of a random classifier's answers, from the keys [B] and the step: one or [B]."""

    def fold(key: Array, step: Array) -> Array:
        # The first number keeps them apart from what the attack itself draws.
        return jax.random.fold_in(jax.random.fold_in(key, 0xE07), step)

    return jax.vmap(fold)(keys, jnp.broadcast_to(step, keys.shape))


def where_rows(condition: Array, first: PyTree, second: PyTree) -> PyTree:
    """Chooses rows of the first tree where the condition [B] holds, and of the second elsewhere."""

    def choose(a: Array, b: Array) -> Array:
        return jnp.where(condition.reshape(condition.shape + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, first, second)


def finite_gradient(evaluation: Evaluation) -> Array:
    """Returns the gradient with NaN and infinities replaced by zeros, so that no point becomes NaN.

    Args:
      evaluation: An evaluation of an attack that uses gradients.

    Returns:
      An array of the gradient's shape.
    """
    assert evaluation.gradient is not None  # the engine differentiates where `uses_gradient` is set
    return jnp.where(jnp.isfinite(evaluation.gradient), evaluation.gradient, 0.0)


def ranked_class(logits: Array, label: Array, rank: Array) -> Array:
    """Returns the class at a rank among the classes other than the label, sorted by logits.

    Args:
      logits: [K].
      label: The class that is left out.
      rank: An integer, 0 for the most likely other class. Beyond the last class it starts from the
        front again. Masked classes (`jaxrobust.losses.is_possible`) are left out.

    Returns:
      The class, an int32 scalar.

    Example:
      >>> int(ranked_class(jnp.array([3.0, 1.0, 2.0]), 0, 1))
      1
    """
    others = jnp.where(jnp.arange(logits.shape[0]) == label, -jnp.inf, logits)
    order = jnp.argsort(-others, stable=True)
    count = jnp.maximum(jnp.sum(losses.is_possible(others)), 1)
    return order[rank % count].astype(jnp.int32)
