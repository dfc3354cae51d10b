"""One step of training and one of evaluation, as pure functions.

Nothing here is compiled or loops: `jax.jit(functools.partial(train_step, ...))` is for the caller,
and `jaxrobust.training.fit` is one.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrobust import checks, compilation, losses, programs
from jaxrobust.training import adversaries
from jaxrobust.training.adversaries import AttackSchedule, FreeReplays
from jaxrobust.training.compression import Compression
from jaxrobust.training.objectives import (
    COMPUTE_TYPES,
    LOSSES,
    Forward,
    Objective,
    make_forward,
    rounded,
    weight_perturbation,
)
from jaxrobust.training.state import TrainState, as_variables
from jaxrobust.types import Array, Attack, LogitsFn, Masks, PyTree, as_key

Augment = Callable[[Array, Array], Array]
"""(key, images float32 [B, H, W, C] in [0, 1]) -> images of the same kind, of any size."""

Metrics = dict[str, Array]


def train_step(
    state: TrainState,
    batch: tuple[Array, Array],
    key: Array,
    *,
    apply_fn: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    mean: Any = 0.0,
    std: Any = 1.0,
    augment: Augment | None = None,
    attack: Attack | FreeReplays | None = None,
    attack_scale: Array | None = None,
    objective: Objective = Objective(),  # noqa: B008 (it cannot be changed)
    awp_gamma: Array | float | None = None,
    compute_type: str = "float32",
    ema_decay: float | None = None,
    masks: Masks | None = None,
    penalty: Callable[[PyTree], Array] | None = None,
    compression: Compression | None = None,
) -> tuple[TrainState, Metrics]:
    """Augments, attacks, and takes one step down the objective.

    The attack is made on the network in evaluation mode (running statistics, no dropout): that is
    the network an adversary will meet, and the objective is then a function of one image. The step
    itself is in training mode. (FreeReplays alone takes its gradient from the training pass.)

    Args:
      state: Before the step.
      batch: (images [B, H, W, C], uint8 or floating in [0, 1]; labels int [B]).
      key: A PRNG key for augmentation, attack and dropout.
      apply_fn: A linen module's `apply`, called with `train`, `mutable` and `rngs`.
      optimizer: Any optax transformation; one of `make_optimizer` is given the learning rate.
      schedule: From the step to the learning rate.
      mean: [C] or a scalar, of pixel values in [0, 1].
      std: [C] or a scalar.
      augment: Applied to the images first.
      attack: For adversarial training: its last point takes the place of each image. With
        `FreeReplays` the step is repeated on the batch, and the state holds the perturbation.
      attack_scale: A scalar in [0, 1] that multiplies the attack's epsilon and step size; None: 1.
      objective: The loss. "trades" and a natural weight compare clean with adversarial images.
      awp_gamma: Of adversarial weight perturbation, a scalar of at least 0: the gradient is taken
        where the weights are this share of their length up the loss. None: it is left out.
      compute_type: "float32", or "bfloat16" for the training passes (`make_forward`) and the attack.
      ema_decay: Of `state.average`, in [0, 1); it starts low and grows as (1 + step) / (10 + step)
        up to this, so that the average soon forgets the initial weights. Needed if the state has
        one.
      masks: The parameters' structure with boolean leaves; where False, a parameter is set to 0.
      penalty: Added to the loss, parameters -> scalar. A `jax.tree_util.Partial` that is itself an
        argument of the compiled function may hold arrays that change.
      compression: Says what the network computes with, given the parameters and
        `state.compression`, and adds its penalty to the loss. Its updates are for the caller,
        between steps.

    Returns:
      (The state after the step, {"loss": mean, "correct": int32 count, "gradient_norm": global l2
      norm before clipping, "learning_rate"}, all scalars). Loss and count are of the images trained
      on, in training mode, before the step (of FreeReplays: before the last replay); the loss is
      with `penalty` and without that of `compression`.

    Raises:
      ValueError: A moving average in the state but no `ema_decay`, or the reverse; likewise for a
        perturbation and FreeReplays, a memory and `compression`; a targeted attack; an objective
        that needs one and has none.
    """
    if (state.average is None) != (ema_decay is None):
        raise ValueError("`ema_decay` and a state with a moving average need each other.")
    is_free = isinstance(attack, FreeReplays)
    if (state.perturbation is not None) != is_free:
        raise ValueError("FreeReplays and a state with a perturbation need each other.")
    if (state.compression is None) != (compression is None):
        raise ValueError("`compression` and a state with its memory need each other.")
    prepared = _prepared(
        batch, key, apply_fn, mean, std, augment, attack, attack_scale, objective, compute_type
    )
    images, labels, attack, forward, craft = prepared
    learning_rate = schedule(state.step) * state.learning_rate_scale

    def network(params: PyTree) -> PyTree:
        if compression is None:
            return params
        return compression.effective(params, state.compression)

    def descend(
        state: TrainState, adversarial: Array, first_pass: Array | int = 0
    ) -> tuple[TrainState, Metrics, Array]:
        """A step of the optimizer; also the gradient by the adversarial images."""

        def attacked(params: PyTree, adversarial: Array) -> tuple[Array, tuple[Array, PyTree]]:
            return objective(
                forward, network(params), state.batch_stats, images, adversarial, labels, first_pass
            )

        def loss(params: PyTree, adversarial: Array) -> tuple[Array, tuple[Array, Array, PyTree]]:
            value, parts = attacked(params, adversarial)
            if penalty is not None:
                value = value + penalty(params)
            if compression is None:
                return value, (value, *parts)
            # In the log is the loss without what ties the weights: it says what the network can do.
            return value + compression.penalty(params, state.compression), (value, *parts)

        def perturbed(params: PyTree, gamma: Array) -> PyTree:
            uphill = jax.grad(attacked, has_aux=True)(params, adversarial)[0]
            added = _masked(weight_perturbation(params, uphill, gamma), masks)
            return jax.tree.map(jnp.add, params, added)

        params = state.params
        if awp_gamma is not None:
            # Before its warm-up is over it shall not cost its pass.
            gamma = jnp.asarray(awp_gamma, jnp.float32)
            params = jax.lax.cond(gamma > 0, perturbed, lambda same, _: same, params, gamma)
        (_, (value, logits, batch_stats)), (gradients, by_image) = jax.value_and_grad(
            loss, (0, 1), has_aux=True
        )(params, adversarial)
        updates, opt_state = optax.with_extra_args_support(optimizer).update(
            gradients, state.opt_state, state.params, learning_rate=learning_rate
        )
        params = _masked(optax.apply_updates(state.params, updates), masks)
        after = dataclasses.replace(
            state, params=params, batch_stats=batch_stats, opt_state=opt_state
        )
        metrics = {
            "loss": value,
            "correct": jnp.sum(jnp.argmax(logits, -1) == labels, dtype=jnp.int32),
            "gradient_norm": optax.tree.norm(gradients),
            "learning_rate": jnp.asarray(learning_rate, jnp.float32),
        }
        return after, metrics, by_image

    if isinstance(attack, FreeReplays):
        after, metrics = _replayed(state, images, attack, descend)
    else:
        adversarial = craft(network(state.params), state.batch_stats)
        after, metrics, _ = descend(state, adversarial)
    after = dataclasses.replace(after, step=state.step + 1)
    if ema_decay is not None:
        decay = jnp.minimum(ema_decay, (1 + after.step) / (10 + after.step))
        # Statistics are averaged too: those of the last weights would not fit the averaged ones.
        average = jax.tree.map(
            lambda old, new: decay * old + (1 - decay) * new, state.average, after.variables
        )
        after = dataclasses.replace(after, average=average)
    return after, metrics


def network_gradients(
    state: TrainState,
    batch: tuple[Array, Array],
    key: Array,
    *,
    apply_fn: Callable[..., Any],
    mean: Any = 0.0,
    std: Any = 1.0,
    augment: Augment | None = None,
    attack: Attack | FreeReplays | None = None,
    attack_scale: Array | None = None,
    objective: Objective = Objective(),  # noqa: B008 (it cannot be changed)
    compute_type: str = "float32",
    compression: Compression,
) -> PyTree:
    """The gradient of the objective by what the network computes with, weights at 0 included.

    Args:
      state: With the compression's memory; it is not changed.
      batch: As `train_step`, and all that follows.
      key: As `train_step`.
      apply_fn: As `train_step`.
      mean: As `train_step`.
      std: As `train_step`.
      augment: As `train_step`.
      attack: As `train_step`.
      attack_scale: As `train_step`.
      objective: As `train_step`.
      compute_type: As `train_step`.
      compression: As `train_step`.

    Returns:
      Of the parameters' structure.
    """
    prepared = _prepared(
        batch, key, apply_fn, mean, std, augment, attack, attack_scale, objective, compute_type
    )
    params = compression.effective(state.params, state.compression)
    if isinstance(attack, FreeReplays):
        adversarial = jnp.clip(prepared.images + jnp.asarray(state.perturbation), 0.0, 1.0)
    else:
        adversarial = prepared.craft(params, state.batch_stats)

    def loss(params: PyTree) -> tuple[Array, Any]:
        return objective(
            prepared.forward,
            params,
            state.batch_stats,
            prepared.images,
            adversarial,
            prepared.labels,
        )

    return jax.grad(loss, has_aux=True)(params)[0]


class _Prepared(NamedTuple):
    """A batch and what a step does with it.

    Attributes:
      images: Augmented, float32.
      labels: As they came.
      attack: Scaled, or None.
      forward: A pass in training mode.
      craft: (what the network computes with, running statistics) -> adversarial images.
    """

    images: Array
    labels: Array
    attack: Any
    forward: Forward
    craft: Callable[[PyTree, PyTree], Array]


def _prepared(
    batch: tuple[Array, Array],
    key: Array,
    apply_fn: Callable[..., Any],
    mean: Any,
    std: Any,
    augment: Augment | None,
    attack: Any,
    attack_scale: Array | None,
    objective: Objective,
    compute_type: str,
) -> _Prepared:
    checks.one_of("compute_type", compute_type, COMPUTE_TYPES)
    check_objective(objective, attack)
    images, labels = batch
    augment_key, attack_key, dropout_key = jax.random.split(as_key(key), 3)
    images = to_unit_range(images)
    if augment is not None:
        images = augment(augment_key, images)
    if attack is not None and attack_scale is not None:
        attack = adversaries.scaled(attack, attack_scale)

    def craft(params: PyTree, batch_stats: PyTree) -> Array:
        if attack is None:
            return images
        variables = rounded(as_variables(params, batch_stats), compute_type)

        def logits_fn(points: Array) -> Array:
            points = rounded((points - jnp.asarray(mean)) / jnp.asarray(std), compute_type)
            return programs.fast(apply_fn)(variables, points).astype(jnp.float32)

        return adversaries.craft(attack, attack_key, logits_fn, images, labels)

    forward = make_forward(apply_fn, mean, std, dropout_key, compute_type)
    return _Prepared(images, labels, attack, forward, craft)


def _replayed(
    state: TrainState,
    images: Array,
    attack: FreeReplays,
    descend: Callable[[TrainState, Array, Array], tuple[TrainState, Metrics, Array]],
) -> tuple[TrainState, Metrics]:
    """Steps on one batch, between which the perturbation takes one as well."""

    def replay(
        carry: tuple[TrainState, Array], number: Array
    ) -> tuple[tuple[TrainState, Array], Metrics]:
        state, perturbation = carry
        perturbed = jnp.clip(images + perturbation, 0.0, 1.0)
        state, metrics, by_image = descend(state, perturbed, number)
        moved = perturbation + attack.epsilon * jnp.sign(by_image)
        return (state, jnp.clip(moved, -attack.epsilon, attack.epsilon)), metrics

    start: Any = (state, state.perturbation)
    (state, perturbation), metrics = jax.lax.scan(
        replay,
        start,
        jnp.arange(attack.num_replays),
        unroll=not compilation.loops_are_fast(),
    )
    state = dataclasses.replace(state, perturbation=perturbation)
    return state, jax.tree.map(lambda values: values[-1], metrics)


def check_objective(objective: Objective, attack: Attack | FreeReplays | None) -> None:
    """Checks that an objective and an attack fit each other.

    Raises:
      ValueError: An unknown loss, a targeted attack, no attack for an objective that compares with
        one, or free training with such an objective.
    """
    checks.one_of("loss", objective.loss, LOSSES)
    check_untargeted(attack)
    compares = objective.loss == "trades" or objective.natural_weight > 0
    if compares and (attack is None or isinstance(attack, FreeReplays)):
        raise ValueError(
            '`attack` is needed by loss "trades" and by `natural_weight`, and must not be FreeReplays, '
            f"got {attack}."
        )


def eval_step(
    logits_fn: LogitsFn,
    batch: tuple[Array, Array],
    valid: Array | None = None,
    *,
    attack: Attack | None = None,
    key: Array | None = None,
) -> Metrics:
    """Sums over a batch of what validation reports.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K], such as a Classifier.
      batch: (images [B, H, W, C], uint8 or floating in [0, 1]; labels int [B]).
      valid: bool [B]; rows that are False (padding) do not count. None: all count.
      attack: Its last point replaces each image.
      key: A PRNG key, needed by the attack.

    Returns:
      {"loss": sum of the cross-entropies, "correct": int32 count, "count": int32}, scalars.

    Raises:
      ValueError: An attack without a key; a targeted attack.

    Example:
      >>> batch = jnp.zeros((2, 1, 1, 1), jnp.uint8), jnp.array([0, 1])
      >>> {k: round(float(v), 3) for k, v in eval_step(lambda x: jnp.zeros((2, 2)), batch).items()}
      {'loss': 1.386, 'correct': 1.0, 'count': 2.0}
    """
    images, labels = batch
    if valid is None:
        valid = jnp.ones(labels.shape, bool)
    images = to_unit_range(images)
    if attack is not None:
        if key is None:
            raise ValueError("`key` is needed by `attack`.")
        check_untargeted(attack)
        if isinstance(attack, FreeReplays):
            raise ValueError("FreeReplays is a way to train; to evaluate, take PGD.")
        images = adversaries.craft(attack, key, logits_fn, images, labels)
    logits = logits_fn(images)
    loss = jax.vmap(losses.cross_entropy)(logits, labels)
    return {
        "loss": jnp.sum(jnp.where(valid, loss, 0.0)),
        "correct": jnp.sum(valid & (jnp.argmax(logits, -1) == labels), dtype=jnp.int32),
        "count": jnp.sum(valid, dtype=jnp.int32),
    }


def _masked(tree: PyTree, masks: Masks | None) -> PyTree:
    if masks is None:
        return tree
    return jax.tree.map(lambda mask, leaf: jnp.where(mask, leaf, 0), masks, tree)


def check_untargeted(attack: Any) -> None:
    """Raises ValueError for an attack that is aimed at the labels, and for several in one."""
    if isinstance(attack, AttackSchedule):
        raise ValueError("`attack` must be one attack; an AttackSchedule is for `fit`.")
    if getattr(attack, "targeted", False):
        raise ValueError(
            "`attack` must be untargeted: aimed at the true labels, it would make the task easier."
        )


def to_unit_range(images: Array) -> Array:
    """Images as float32 in [0, 1]: uint8 is divided by 255, floating point is taken as it is.

    Raises:
      TypeError: Any other type.
    """
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"`images` must be uint8 or floating point, got {images.dtype}.")
    return images.astype(jnp.float32)
