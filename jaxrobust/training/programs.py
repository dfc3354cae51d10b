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
import numpy as np

from jaxrobust import compilation
from jaxrobust.attacks import conversation
from jaxrobust.models import Classifier
from jaxrobust.training import adversaries, sharing
from jaxrobust.training.adversaries import AttackSchedule, FreeReplays
from jaxrobust.training.compression import Compression
from jaxrobust.training.config import TrainConfig
from jaxrobust.training.data import Examples, batch_at, padded_batch_at, shuffled
from jaxrobust.training.objectives import Objective
from jaxrobust.training.optimizers import make_optimizer, make_schedule
from jaxrobust.training.state import TrainState
from jaxrobust.training.step import Augment, Metrics, eval_step, train_step
from jaxrobust.types import Array, Attack, Masks, PyTree

# Where they loop: calls cost nothing beside so many steps, a bar moves, and Ctrl-C waits a moment.
_STEPS_PER_CALL = 100


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
      num_devices: Of each process, that share each batch.
      compression: The method, whose `kept` does not matter, or None.
    """

    model: Itself
    augment: Itself
    config: TrainConfig
    num_examples: int
    num_devices: int
    compression: Compression | None = None

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
      validation_attack: On the validation images, or None.
    """

    mean: Any
    std: Any
    masks: Masks | None
    validation_attack: Attack | None


def make_plan(
    model: nn.Module,
    augment: Augment | None,
    config: TrainConfig,
    num_examples: int,
    digests: dict[str, str | None],
    num_devices: int,
    compression: Any = None,
) -> Plan:
    """The plan of a run; `digests` are of what "model" and "augment" compute."""
    if compression is not None:
        compression = dataclasses.replace(compression, kept=1.0)
    return Plan(
        Itself(model, digests["model"]),
        Itself(augment, digests["augment"]),
        dataclasses.replace(config, seed=0),
        num_examples,
        num_devices,
        compression,
    )


def make_constants(
    mean: Any,
    std: Any,
    masks: Masks | None,
    validation_attack: Attack | None,
) -> Constants:
    """The constants of a run, all of their leaves arrays."""
    return Constants(
        jnp.asarray(mean, jnp.float32),
        jnp.asarray(std, jnp.float32),
        jax.tree.map(jnp.asarray, masks),
        conversation.as_arrays(validation_attack),
    )


@functools.partial(compilation.jit, static_argnames="model")
def initial_variables(key: Array, image: Array, *, model: Itself) -> PyTree:
    """A network's initial variables."""
    return model.value.init(key, image)


class Programs(NamedTuple):
    """What the loop calls.

    Attributes:
      order: Epoch (from 0) -> the order of its examples, int32 [N].
      train_batches: (state, totals, order, epoch from 0, count) -> (state, totals) after so many
        batches more. Donates both: the arguments are gone afterwards.
      steps_per_call: The largest count.
      replicate: Puts arrays where the state is.
      evaluate: Variables -> sums over the validation set (`eval_step`); None without one.
      update: (state, order, epoch from 0 of the last step, steps so far) -> state, by the compression;
        donates the state. None without one.
      steps_per_update: Steps from one update to the next.
      kept: Epoch (from 0) -> its budget.
      finish: (state, epoch from 0) -> the variables to evaluate; None: the state says them.
    """

    order: Callable[[int], Array]
    train_batches: Callable[[TrainState, Metrics, Array, int, int], tuple[TrainState, Metrics]]
    steps_per_call: int
    replicate: Callable[[Any], Any]
    evaluate: Callable[[PyTree], Metrics] | None
    update: Callable[[TrainState, Array, int, int], TrainState] | None = None
    steps_per_update: int = 1
    kept: Callable[[int], float] | None = None
    finish: Callable[[TrainState, int], PyTree] | None = None


def _form(attack: Any) -> Any:
    """What a program is compiled for of an attack."""
    return jax.tree.structure(attack), tuple(leaf.shape for leaf in jax.tree.leaves(attack))


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
    attack: Attack | FreeReplays | AttackSchedule | None,
    epoch: int,
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
      attack: On the training images, or None. Attacks of a schedule that differ in numbers alone
        share a program; those of stages that are over need none.
      epoch: The first one to come, from 0.
      state: For its shapes alone.
      train: The training set.
      validation: The validation set.
      order_key: Folded with the epoch for its order.
      step_key: Folded with the step for whatever is random in it.
    """
    order = _order(order_key, jnp.int32(0), count=plan.num_examples)
    replicate = sharing.replicated(plan.num_devices)
    train, step_key, constants = replicate((train, step_key, constants))
    looped = compilation.loops_are_fast()
    like = functools.partial(sharing.shapes_of, num_devices=plan.num_devices)
    stages = [
        (first, replicate(conversation.as_arrays(one)))
        for first, one in adversaries.stages_of(attack)
    ]
    compiled: dict[Any, Any] = {}
    for following, (_, one) in zip(
        [*(first for first, _ in stages[1:]), None], stages, strict=True
    ):
        is_over = following is not None and following <= epoch + 1
        if is_over or _form(one) in compiled:
            continue
        compiled[_form(one)] = _train_batches.lower(  # type: ignore[attr-defined]
            *like((state, zero_totals(), order)),
            train,
            step_key,
            constants,
            one,
            like(np.int32(0)),
            plan=plan,
            looped=looped,
        ).compile()

    def train_batches(
        state: TrainState, totals: Metrics, order: Array, epoch: int, count: int
    ) -> tuple[TrainState, Metrics]:
        now = next(one for first, one in reversed(stages) if first <= epoch + 1)
        program, number = compiled[_form(now)], replicate(np.int32(count))
        return program(state, totals, order, train, step_key, constants, now, number)

    return Programs(
        order=lambda epoch: replicate(_order(order_key, jnp.int32(epoch), count=plan.num_examples)),
        train_batches=train_batches,
        steps_per_call=_STEPS_PER_CALL if looped else 1,
        replicate=replicate,
        evaluate=compile_evaluation(plan, constants, state, validation, step_key),
    )


@functools.partial(compilation.jit, static_argnames="count")
def _order(key: Array, epoch: Array, *, count: int) -> Array:
    return shuffled(key, epoch, count)


@functools.partial(compilation.jit, static_argnames=("plan", "looped"), donate_argnums=(0, 1))
def _train_batches(
    state: TrainState,
    totals: Metrics,
    order: Array,
    examples: Examples,
    key: Array,
    constants: Constants,
    attack: Attack | FreeReplays | None,
    count: Array,
    *,
    plan: Plan,
    looped: bool,
) -> tuple[TrainState, Metrics]:
    """`count` batches, or one where loops are slow."""
    if not looped:
        return _step(state, totals, order, examples, key, constants, attack, plan)

    def body(_: Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
        return _step(*carry, order, examples, key, constants, attack, plan)

    done = jax.lax.fori_loop(0, count, body, (state, totals))
    # What a loop carries is laid out anew: its body's word is not enough.
    return sharing.constrained(done, plan.num_devices, sharing.WHOLE)


def _step(
    state: TrainState,
    totals: Metrics,
    order: Array,
    examples: Examples,
    key: Array,
    constants: Constants,
    attack: Attack | FreeReplays | None,
    plan: Plan,
) -> tuple[TrainState, Metrics]:
    config = plan.config
    state, metrics = train_step(
        state,
        batch_of(state.step, order, examples, plan),
        jax.random.fold_in(key, state.step),
        optimizer=make_optimizer(config),
        schedule=make_schedule(config, plan.steps_per_epoch),
        awp_gamma=_awp_gamma(state.step, config, plan.steps_per_epoch),
        ema_decay=config.ema_decay,
        masks=constants.masks,
        **objective_arguments(state.step, constants, attack, plan),
    )
    sums = {name: totals[name] + metrics[name] for name in totals}
    sums["learning_rate"] = metrics["learning_rate"]
    return sharing.constrained((state, sums), plan.num_devices, sharing.WHOLE)


def batch_of(step: Array, order: Array, examples: Examples, plan: Plan) -> Examples:
    """The batch of a step, its rows shared by the devices."""
    batch = batch_at(examples, order, step % plan.steps_per_epoch, plan.config.batch_size)
    return sharing.constrained(batch, plan.num_devices, sharing.ROWS)


def objective_arguments(
    step: Array, constants: Constants, attack: Attack | FreeReplays | None, plan: Plan
) -> dict[str, Any]:
    """What `train_step` and `network_gradients` have in common."""
    config = plan.config
    return {
        "apply_fn": plan.model.value.apply,
        "mean": constants.mean,
        "std": constants.std,
        "augment": plan.augment.value,
        "attack": attack,
        "attack_scale": _ramp(step, config.attack_warmup_epochs * plan.steps_per_epoch),
        "objective": objective_of(config),
        "compute_type": config.compute_type,
        "compression": plan.compression,
    }


def objective_of(config: TrainConfig) -> Objective:
    """The objective that a run's settings name."""
    return Objective(config.loss, config.natural_weight, config.trades_beta, config.label_smoothing)


def _ramp(step: Array, num_steps: int) -> Array | None:
    """What the attack is scaled by; the first step is 1 / num_steps rather than a wasted one at 0."""
    return None if num_steps == 0 else jnp.minimum(1.0, (step + 1) / num_steps)


def _awp_gamma(step: Array, config: TrainConfig, steps_per_epoch: int) -> Array | None:
    if config.awp_gamma == 0:
        return None
    return jnp.where(step < config.awp_warmup_epochs * steps_per_epoch, 0.0, config.awp_gamma)


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
    batch, valid = sharing.constrained((batch, valid), plan.num_devices, sharing.ROWS)
    # The same key in every epoch: figures are compared between epochs, so luck is held fixed.
    key = jax.random.fold_in(key, index)
    apply_fn: Any = plan.model.value.apply
    classifier = Classifier(apply_fn, variables, constants.mean, constants.std)
    sums = eval_step(classifier, batch, valid, attack=constants.validation_attack, key=key)
    sums = jax.tree.map(jnp.add, totals, sums)
    return sharing.constrained(sums, plan.num_devices, sharing.WHOLE)


def compile_evaluation(
    plan: Plan, constants: Constants, state: TrainState, examples: Examples | None, key: Array
) -> Callable[[PyTree], Metrics] | None:
    """`Programs.evaluate` for a state of these shapes."""
    if examples is None:
        return None
    replicate = sharing.replicated(plan.num_devices)
    key, constants = replicate((key, constants))
    zeros = replicate(
        {
            "loss": jnp.zeros((), jnp.float32),
            "correct": jnp.zeros((), jnp.int32),
            "count": jnp.zeros((), jnp.int32),
        }
    )
    examples = replicate(examples)
    like = functools.partial(sharing.shapes_of, num_devices=plan.num_devices)
    compiled: Any = _evaluate_batch.lower(  # type: ignore[attr-defined]
        like(state.evaluated), zeros, like(np.int32(0)), examples, key, constants, plan=plan
    ).compile()

    def evaluate(variables: PyTree) -> Metrics:
        totals = zeros
        for index in range(-(-examples.labels.shape[0] // plan.config.batch_size)):
            number = replicate(np.int32(index))
            totals = compiled(variables, totals, number, examples, key, constants)
        return totals

    return evaluate
