"""The compiled programs of a run. Each is compiled once, ahead of time, for one shape of batch.

A second run that differs only in its seed, its data, its masks or the numbers of its attack reuses the
programs, because these are arguments.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import compilation
from jaxrobust.attacks import Attack
from jaxrobust.models import Classifier
from jaxrobust.training.run import devices
from jaxrobust.training.run.batches import DeviceData, batch_at, padded_batch_at, shuffled
from jaxrobust.training.run.plan import Given, Plan
from jaxrobust.training.step.adversaries import Metrics
from jaxrobust.training.step.eval_step import eval_step
from jaxrobust.training.step.state import TrainState
from jaxrobust.training.step.train_step import train_step
from jaxrobust.types import Array, PyTree

# Where they loop: calls cost nothing beside so many steps, a bar moves, and Ctrl-C waits a moment.
_STEPS_PER_CALL = 100


class Programs(NamedTuple):
    """The functions that the training loop calls.

    Attributes:
      order: Epoch (from 0) -> the order of its examples, int32 [N].
      train_batches: (state, totals, order, epoch from 0, count) -> (state, totals) after `count` more
        batches. It donates state and totals, which cannot be used afterwards.
      steps_per_epoch: The number of steps in an epoch, at least 1.
      steps_per_call: The largest `count`.
      replicate: Puts arrays on the devices of the state.
      evaluate: Variables -> sums over the validation set (`eval_step`); None without validation.
      update: The update of the compression: (state, order, epoch from 0 of the last step, steps so
        far) -> state. It donates the state. None without a compression.
      steps_per_update: The number of steps from one update to the next.
      kept: Epoch (from 0) -> its budget.
      finish: (state, epoch from 0) -> the variables to evaluate; None: those of the state.
    """

    order: Callable[[int], Array]
    train_batches: Callable[[TrainState, Metrics, Array, int, int], tuple[TrainState, Metrics]]
    steps_per_epoch: int
    steps_per_call: int
    replicate: Callable[[Any], Any]
    evaluate: Callable[[PyTree], Metrics] | None
    update: Callable[[TrainState, Array, int, int], TrainState] | None = None
    steps_per_update: int = 1
    kept: Callable[[int], float] | None = None
    finish: Callable[[TrainState, int], PyTree] | None = None


class GivenByEpoch(NamedTuple):
    """The arguments of the steps of each epoch.

    Attributes:
      given: ((first epoch, counted from 1; the arguments from that epoch on), ...), on the devices.
    """

    given: tuple[tuple[int, Given], ...]

    def at(self, epoch: int) -> Given:
        """Returns the arguments of an epoch, counted from 0."""
        return next(one for first, one in reversed(self.given) if first <= epoch + 1)

    def left(self, epoch: int) -> list[Given]:
        """Returns the arguments of this epoch, counted from 0, and all later ones."""
        following = [first for first, _ in self.given[1:]]
        return [
            one
            for (_, one), end in zip(self.given, [*following, None], strict=True)
            if end is None or end > epoch + 1
        ]


def _form(given: Given) -> Any:
    """Returns the part of an adversary that programs are compiled for: structure and shapes."""
    leaves, structure = jax.tree.flatten(given.adversary)
    return structure, tuple(leaf.shape for leaf in leaves)


def zero_totals() -> Metrics:
    """Returns the metrics before the first step: sums, except the last step's learning rate."""
    return {
        "loss": jnp.zeros((), jnp.float32),
        "correct": jnp.zeros((), jnp.int32),
        "gradient_norm": jnp.zeros((), jnp.float32),
        "learning_rate": jnp.zeros((), jnp.float32),
    }


def compile_programs(
    plan: Plan,
    stages: GivenByEpoch,
    epoch: int,
    state: TrainState,
    order_key: Array,
    evaluate: Callable[[PyTree], Metrics] | None,
) -> Programs:
    """Compiles the programs of the training steps.

    Args:
      plan: The settings that the programs are compiled for.
      stages: The arguments of each epoch. Stages that differ only in numbers share a program; past
        stages need none.
      epoch: The first epoch to come, counted from 0.
      state: A state; only its shapes are used.
      order_key: The PRNG key that is folded with the epoch to make its order.
      evaluate: The result of `compile_evaluation`, or None.
    """
    order = _order(order_key, jnp.int32(0), count=plan.num_examples)
    replicate = devices.replicated(plan.num_devices)
    looped = compilation.loops_are_fast()
    like = functools.partial(devices.shapes_of, num_devices=plan.num_devices)
    compiled: dict[Any, Any] = {}
    # Stages whose arguments have one form share a program: only shapes and static parts compile anew.
    for given in stages.left(epoch):
        if _form(given) not in compiled:
            compiled[_form(given)] = _train_batches.lower(  # type: ignore[attr-defined]
                *like((state, zero_totals(), order)),
                like(np.int32(0)),
                given,
                plan=plan,
                looped=looped,
            ).compile()

    def train_batches(
        state: TrainState, totals: Metrics, order: Array, epoch: int, count: int
    ) -> tuple[TrainState, Metrics]:
        given = stages.at(epoch)
        return compiled[_form(given)](state, totals, order, replicate(np.int32(count)), given)

    return Programs(
        order=lambda epoch: replicate(_order(order_key, jnp.int32(epoch), count=plan.num_examples)),
        train_batches=train_batches,
        steps_per_epoch=plan.steps_per_epoch,
        steps_per_call=_STEPS_PER_CALL if looped else 1,
        replicate=replicate,
        evaluate=evaluate,
    )


@functools.partial(compilation.jit, static_argnames="count")
def _order(key: Array, epoch: Array, *, count: int) -> Array:
    return shuffled(key, epoch, count)


@functools.partial(compilation.jit, static_argnames=("plan", "looped"), donate_argnums=(0, 1))
def _train_batches(
    state: TrainState,
    totals: Metrics,
    order: Array,
    count: Array,
    given: Given,
    *,
    plan: Plan,
    looped: bool,
) -> tuple[TrainState, Metrics]:
    """Trains on `count` batches, or on one where loops are slow."""
    if not looped:
        return _step(state, totals, order, given, plan)

    def body(_: Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
        return _step(*carry, order, given, plan)

    done = jax.lax.fori_loop(0, count, body, (state, totals))
    # What a loop carries is laid out anew: its body's word is not enough.
    return devices.constrained(done, plan.num_devices, devices.WHOLE)


def _step(
    state: TrainState, totals: Metrics, order: Array, given: Given, plan: Plan
) -> tuple[TrainState, Metrics]:
    state, metrics = train_step(
        state,
        batch_of(state.step, order, given.examples, plan),
        jax.random.fold_in(given.key, state.step),
        network=plan.network(given),
        recipe=plan.recipe(given),
        steps_per_epoch=plan.steps_per_epoch,
        masks=given.masks,
    )
    sums = {name: totals[name] + metrics[name] for name in totals}
    sums["learning_rate"] = metrics["learning_rate"]
    return devices.constrained((state, sums), plan.num_devices, devices.WHOLE)


def batch_of(step: Array, order: Array, examples: DeviceData, plan: Plan) -> DeviceData:
    """Returns the batch of a step, with its rows divided among the devices."""
    batch = batch_at(examples, order, step % plan.steps_per_epoch, plan.batch_size)
    return devices.constrained(batch, plan.num_devices, devices.ROWS)


@functools.partial(compilation.jit, static_argnames="plan")
def _evaluate_batch(
    variables: PyTree,
    totals: Metrics,
    index: Array,
    given: Given,
    attack: Attack | None,
    *,
    plan: Plan,
) -> Metrics:
    batch, valid = padded_batch_at(given.examples, index, plan.batch_size)
    batch, valid = devices.constrained((batch, valid), plan.num_devices, devices.ROWS)
    # The same key in every epoch: figures are compared between epochs, so luck is held fixed.
    key = jax.random.fold_in(given.key, index)
    classifier = Classifier(plan.network(given).logits, variables, given.mean, given.std)
    sums = eval_step(classifier, batch, valid, attack=attack, key=key)
    sums = jax.tree.map(jnp.add, totals, sums)
    return devices.constrained(sums, plan.num_devices, devices.WHOLE)


def compile_evaluation(
    plan: Plan, given: Given, attack: Attack | None, state: TrainState
) -> Callable[[PyTree], Metrics]:
    """Compiles `Programs.evaluate` for a state of these shapes.

    Args:
      plan: The settings that the program is compiled for.
      given: The arguments without an adversary, with the validation set, on the devices.
      attack: The attack on the validation images, with its numbers as arrays on the devices, or None.
      state: A state; only its shapes are used.
    """
    replicate = devices.replicated(plan.num_devices)
    zeros = replicate(
        {
            "loss": jnp.zeros((), jnp.float32),
            "correct": jnp.zeros((), jnp.int32),
            "count": jnp.zeros((), jnp.int32),
        }
    )
    like = functools.partial(devices.shapes_of, num_devices=plan.num_devices)
    compiled: Any = _evaluate_batch.lower(  # type: ignore[attr-defined]
        like(state.evaluated), zeros, like(np.int32(0)), given, attack, plan=plan
    ).compile()

    def evaluate(variables: PyTree) -> Metrics:
        totals = zeros
        for index in range(-(-given.examples.labels.shape[0] // plan.batch_size)):
            totals = compiled(variables, totals, replicate(np.int32(index)), given, attack)
        return totals

    return evaluate
