"""The compiled programs of a run. Each is compiled once, ahead of time, for one shape of batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrobust import compilation
from jaxrobust.models import Classifier
from jaxrobust.training.data import Examples, batch_at, padded_batch_at, shuffled
from jaxrobust.training.state import TrainState
from jaxrobust.training.step import Metrics, eval_step
from jaxrobust.types import Array, Attack, PyTree


class Programs(NamedTuple):
    """What the loop calls.

    Attributes:
      order: Epoch (from 0) -> the order of its examples, int32 [N].
      train_batch: (state, totals, order) -> (state, totals) after the next batch. Donates both: the
        arguments are gone afterwards.
      evaluate: Variables -> sums over the validation set (`eval_step`); None without one.
    """

    order: Callable[[int], Array]
    train_batch: Callable[[TrainState, Metrics, Array], tuple[TrainState, Metrics]]
    evaluate: Callable[[PyTree], Metrics] | None


def zero_totals() -> Metrics:
    """The metrics of no step: sums, but for the learning rate, which is the last step's."""
    return {
        "loss": jnp.zeros((), jnp.float32),
        "correct": jnp.zeros((), jnp.int32),
        "gradient_norm": jnp.zeros((), jnp.float32),
        "learning_rate": jnp.zeros((), jnp.float32),
    }


def compile_programs(
    step: Callable[[TrainState, tuple[Array, Array], Array], tuple[TrainState, Metrics]],
    classify: Callable[[PyTree], Classifier],
    state: TrainState,
    train: Examples,
    validation: Examples | None,
    batch_size: int,
    order_key: Array,
    step_key: Array,
    validation_attack: Attack | None = None,
) -> Programs:
    """Compiles what the loop needs.

    Args:
      step: (state, batch, key) -> (state, metrics), `train_step` with its settings.
      classify: From variables to the function that validation evaluates.
      state: For its shapes alone.
      train: The training set.
      validation: The validation set.
      batch_size: At most the size of `train`.
      order_key: Folded with the epoch for its order.
      step_key: Folded with the step for whatever is random in it.
      validation_attack: For the validation images.
    """
    count = train.labels.shape[0]
    steps_per_epoch = count // batch_size

    def train_batch(
        state: TrainState, totals: Metrics, order: Array, examples: Examples, key: Array
    ) -> tuple[TrainState, Metrics]:
        batch = batch_at(examples, order, state.step % steps_per_epoch, batch_size)
        state, metrics = step(state, batch, jax.random.fold_in(key, state.step))
        sums = {name: totals[name] + metrics[name] for name in totals}
        return state, sums | {"learning_rate": metrics["learning_rate"]}

    order = compilation.jit(lambda key, epoch: shuffled(key, epoch, count))
    example_order = order(order_key, jnp.int32(0))
    compiled_train = (
        compilation.jit(train_batch, donate_argnums=(0, 1))
        .lower(state, zero_totals(), example_order, train, step_key)  # type: ignore[attr-defined]
        .compile()
    )
    return Programs(
        order=lambda epoch: order(order_key, jnp.int32(epoch)),
        train_batch=lambda state, totals, order: compiled_train(
            state, totals, order, train, step_key
        ),
        evaluate=_compile_evaluation(
            classify, state, validation, batch_size, validation_attack, step_key
        ),
    )


def _compile_evaluation(
    classify: Callable[[PyTree], Classifier],
    state: TrainState,
    examples: Examples | None,
    batch_size: int,
    attack: Attack | None,
    key: Array,
) -> Callable[[PyTree], Metrics] | None:
    if examples is None:
        return None

    def evaluate_batch(
        variables: PyTree, totals: Metrics, index: Array, examples: Examples, key: Array
    ) -> Metrics:
        batch, valid = padded_batch_at(examples, index, batch_size)
        # The same key in every epoch: figures are compared between epochs, so luck is held fixed.
        key = jax.random.fold_in(key, index)
        sums = eval_step(classify(variables), batch, valid, attack=attack, key=key)
        return jax.tree.map(jnp.add, totals, sums)

    zeros = {
        "loss": jnp.zeros((), jnp.float32),
        "correct": jnp.zeros((), jnp.int32),
        "count": jnp.zeros((), jnp.int32),
    }
    compiled: Any = (
        compilation.jit(evaluate_batch)
        .lower(state.evaluated, zeros, jnp.int32(0), examples, key)  # type: ignore[attr-defined]
        .compile()
    )

    def evaluate(variables: PyTree) -> Metrics:
        totals = zeros
        for index in range(-(-examples.labels.shape[0] // batch_size)):
            totals = compiled(variables, totals, jnp.int32(index), examples, key)
        return totals

    return evaluate
