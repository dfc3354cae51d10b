"""The compiled programs of a run. Each is compiled once, ahead of time, for one shape of batch.

A second run that differs in its seed, its data, its masks or the numbers of its attack alone finds them
compiled: what such runs differ by is an argument.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrobust import compilation
from jaxrobust.attacks import conversation
from jaxrobust.models import Classifier
from jaxrobust.training.config import TrainConfig
from jaxrobust.training.data import Examples, batch_at, padded_batch_at, shuffled
from jaxrobust.training.optimizers import make_optimizer, make_schedule
from jaxrobust.training.state import TrainState
from jaxrobust.training.step import Augment, Metrics, eval_step, train_step
from jaxrobust.types import Array, Attack, Masks, PyTree


class Itself:
    """A value that compiled code depends on: equal to itself alone, so that any value will do.

    Attributes:
      value: Of a class that need not be hashable.
      digest: Of what it computes, which a value that can change may change.
    """

    def __init__(self, value: Any, digest: str | None):
        self.value, self.digest = value, digest

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Itself):
            return False
        return self.value is other.value and self.digest == other.digest

    def __hash__(self) -> int:
        return hash((id(self.value), self.digest))


class Plan(NamedTuple):
    """What the programs of a run are compiled for.

    Attributes:
      model: The network.
      augment: Of the training images, or None.
      config: The settings, whose seed does not matter.
      num_examples: Of the training set.
    """

    model: Itself
    augment: Itself
    config: TrainConfig
    num_examples: int

    @property
    def steps_per_epoch(self) -> int:
        """How many batches fill an epoch."""
        return self.num_examples // self.config.batch_size


class Constants(NamedTuple):
    """What stays the same for a run, as arguments of its programs.

    Attributes:
      mean: [C] or a scalar, of pixel values in [0, 1].
      std: [C] or a scalar.
      masks: The parameters' structure with boolean leaves, or None.
      attack: On the training images, or None.
      validation_attack: On the validation images, or None.
    """

    mean: Any
    std: Any
    masks: Masks | None
    attack: Attack | None
    validation_attack: Attack | None


def make_plan(
    model: nn.Module,
    augment: Augment | None,
    config: TrainConfig,
    num_examples: int,
    digests: dict[str, str | None],
) -> Plan:
    """The plan of a run; `digests` are of what "model" and "augment" compute."""
    return Plan(
        Itself(model, digests["model"]),
        Itself(augment, digests["augment"]),
        dataclasses.replace(config, seed=0),
        num_examples,
    )


def make_constants(
    mean: Any,
    std: Any,
    masks: Masks | None,
    attack: Attack | None,
    validation_attack: Attack | None,
) -> Constants:
    """The constants of a run, all of their leaves arrays."""
    return Constants(
        jnp.asarray(mean, jnp.float32),
        jnp.asarray(std, jnp.float32),
        jax.tree.map(jnp.asarray, masks),
        None if attack is None else conversation.as_arrays(attack),
        None if validation_attack is None else conversation.as_arrays(validation_attack),
    )


@functools.partial(compilation.jit, static_argnames="model")
def initial_variables(key: Array, image: Array, *, model: Itself) -> PyTree:
    """A network's initial variables."""
    return model.value.init(key, image)


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
    plan: Plan,
    constants: Constants,
    state: TrainState,
    train: Examples,
    validation: Examples | None,
    order_key: Array,
    step_key: Array,
) -> Programs:
    """Compiles what the loop needs.

    Args:
      plan: What to compile.
      constants: Of the run.
      state: For its shapes alone.
      train: The training set.
      validation: The validation set.
      order_key: Folded with the epoch for its order.
      step_key: Folded with the step for whatever is random in it.
    """
    order = _order(order_key, jnp.int32(0), count=plan.num_examples)
    compiled: Any = _train_batch.lower(  # type: ignore[attr-defined]
        state, zero_totals(), order, train, step_key, constants, plan=plan
    ).compile()
    return Programs(
        order=lambda epoch: _order(order_key, jnp.int32(epoch), count=plan.num_examples),
        train_batch=lambda state, totals, order: compiled(
            state, totals, order, train, step_key, constants
        ),
        evaluate=_compile_evaluation(plan, constants, state, validation, step_key),
    )


@functools.partial(compilation.jit, static_argnames="count")
def _order(key: Array, epoch: Array, *, count: int) -> Array:
    return shuffled(key, epoch, count)


@functools.partial(compilation.jit, static_argnames="plan", donate_argnums=(0, 1))
def _train_batch(
    state: TrainState,
    totals: Metrics,
    order: Array,
    examples: Examples,
    key: Array,
    constants: Constants,
    *,
    plan: Plan,
) -> tuple[TrainState, Metrics]:
    config = plan.config
    batch = batch_at(examples, order, state.step % plan.steps_per_epoch, config.batch_size)
    state, metrics = train_step(
        state,
        batch,
        jax.random.fold_in(key, state.step),
        apply_fn=plan.model.value.apply,
        optimizer=make_optimizer(config),
        schedule=make_schedule(config, plan.steps_per_epoch),
        mean=constants.mean,
        std=constants.std,
        augment=plan.augment.value,
        attack=constants.attack,
        label_smoothing=config.label_smoothing,
        ema_decay=config.ema_decay,
        masks=constants.masks,
    )
    sums = {name: totals[name] + metrics[name] for name in totals}
    return state, sums | {"learning_rate": metrics["learning_rate"]}


@functools.partial(compilation.jit, static_argnames="plan")
def _evaluate_batch(
    variables: PyTree,
    totals: Metrics,
    index: Array,
    examples: Examples,
    key: Array,
    constants: Constants,
    *,
    plan: Plan,
) -> Metrics:
    batch, valid = padded_batch_at(examples, index, plan.config.batch_size)
    # The same key in every epoch: figures are compared between epochs, so luck is held fixed.
    key = jax.random.fold_in(key, index)
    apply_fn: Any = plan.model.value.apply
    classifier = Classifier(apply_fn, variables, constants.mean, constants.std)
    sums = eval_step(classifier, batch, valid, attack=constants.validation_attack, key=key)
    return jax.tree.map(jnp.add, totals, sums)


def _compile_evaluation(
    plan: Plan, constants: Constants, state: TrainState, examples: Examples | None, key: Array
) -> Callable[[PyTree], Metrics] | None:
    if examples is None:
        return None
    zeros = {
        "loss": jnp.zeros((), jnp.float32),
        "correct": jnp.zeros((), jnp.int32),
        "count": jnp.zeros((), jnp.int32),
    }
    compiled: Any = _evaluate_batch.lower(  # type: ignore[attr-defined]
        state.evaluated, zeros, jnp.int32(0), examples, key, constants, plan=plan
    ).compile()

    def evaluate(variables: PyTree) -> Metrics:
        totals = zeros
        for index in range(-(-examples.labels.shape[0] // plan.config.batch_size)):
            totals = compiled(variables, totals, jnp.int32(index), examples, key, constants)
        return totals

    return evaluate
