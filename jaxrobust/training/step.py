"""One step of training and one of evaluation, as pure functions.

Nothing here is compiled or loops: `jax.jit(functools.partial(train_step, ...))` is for the caller,
and `jaxrobust.training.fit` is one.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrobust import losses
from jaxrobust.attacks import engine
from jaxrobust.models import Classifier
from jaxrobust.training.state import TrainState
from jaxrobust.types import Array, Attack, LogitsFn, Masks, PyTree

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
    attack: Attack | None = None,
    label_smoothing: float = 0.0,
    ema_decay: float | None = None,
    masks: Masks | None = None,
    penalty: Callable[[PyTree], Array] | None = None,
) -> tuple[TrainState, Metrics]:
    """Augments, attacks, and takes one step against the mean cross-entropy.

    The attack is made on the network in evaluation mode (running statistics, no dropout): that is
    the network an adversary will meet, and the objective is then a function of one image. The step
    itself is in training mode, on the adversarial images alone.

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
      attack: For adversarial training: its last point replaces each image.
      label_smoothing: Probability spread evenly over all classes, in [0, 1).
      ema_decay: Of `state.average`, in [0, 1); it starts low and grows as (1 + step) / (10 + step)
        up to this, so that the average soon forgets the initial weights. Needed if the state has
        one.
      masks: The parameters' structure with boolean leaves; where False, a parameter is set to 0.
      penalty: Added to the loss, parameters -> scalar. A `jax.tree_util.Partial` that is itself an
        argument of the compiled function may hold arrays that change.

    Returns:
      (The state after the step, {"loss": mean, "correct": int32 count, "gradient_norm": global l2
      norm before clipping, "learning_rate"}, all scalars). Loss and count are of the images trained
      on, in training mode, before the step.

    Raises:
      ValueError: A moving average in the state but no `ema_decay`, or the reverse; a targeted attack.

    References:
      Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018,
      https://arxiv.org/abs/1706.06083 (equation 2.1: training on the attack's last point).
    """
    if (state.average is None) != (ema_decay is None):
        raise ValueError("`ema_decay` and a state with a moving average need each other.")
    _check_attack(attack)
    images, labels = batch
    augment_key, attack_key, dropout_key = jax.random.split(key, 3)
    images = to_unit_range(images)
    if augment is not None:
        images = augment(augment_key, images)
    if attack is not None:
        classifier = Classifier(apply_fn, state.variables, mean, std)
        images = engine.craft(attack, attack_key, classifier, images, labels)
    normalised = (images - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)

    def loss_fn(params: PyTree) -> tuple[Array, tuple[Array, PyTree]]:
        logits, updated = apply_fn(
            state.variables | {"params": params},
            normalised,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        loss = jnp.mean(smoothed_cross_entropy(logits, labels, label_smoothing))
        if penalty is not None:
            loss = loss + penalty(params)
        return loss, (logits, updated.get("batch_stats", state.batch_stats))

    (loss, (logits, batch_stats)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
        state.params
    )
    learning_rate = schedule(state.step) * state.learning_rate_scale
    updates, opt_state = optax.with_extra_args_support(optimizer).update(
        gradients, state.opt_state, state.params, learning_rate=learning_rate
    )
    params = optax.apply_updates(state.params, updates)
    if masks is not None:
        params = jax.tree.map(lambda mask, leaf: jnp.where(mask, leaf, 0), masks, params)
    after = dataclasses.replace(
        state, step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state
    )
    if ema_decay is not None:
        decay = jnp.minimum(ema_decay, (1 + after.step) / (10 + after.step))
        # Statistics are averaged too: those of the last weights would not fit the averaged ones.
        average = jax.tree.map(
            lambda old, new: decay * old + (1 - decay) * new, state.average, after.variables
        )
        after = dataclasses.replace(after, average=average)
    metrics = {
        "loss": loss,
        "correct": jnp.sum(jnp.argmax(logits, -1) == labels, dtype=jnp.int32),
        "gradient_norm": optax.tree.norm(gradients),
        "learning_rate": jnp.asarray(learning_rate, jnp.float32),
    }
    return after, metrics


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
        _check_attack(attack)
        images = engine.craft(attack, key, logits_fn, images, labels)
    logits = logits_fn(images)
    loss = jax.vmap(losses.cross_entropy)(logits, labels)
    return {
        "loss": jnp.sum(jnp.where(valid, loss, 0.0)),
        "correct": jnp.sum(valid & (jnp.argmax(logits, -1) == labels), dtype=jnp.int32),
        "count": jnp.sum(valid, dtype=jnp.int32),
    }


def _check_attack(attack: Attack | None) -> None:
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


def smoothed_cross_entropy(logits: Array, labels: Array, smoothing: float = 0.0) -> Array:
    """Cross-entropy against (1 - smoothing) of the label and smoothing / K of every class.

    Args:
      logits: [B, K].
      labels: int [B].
      smoothing: In [0, 1).

    Returns:
      [B], in nats.

    References:
      Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016,
      https://arxiv.org/abs/1512.00567 (section 7).
    """
    label_loss = jax.vmap(losses.cross_entropy)(logits, labels)
    if smoothing == 0.0:
        return label_loss
    mean_loss = jax.nn.logsumexp(logits, -1) - jnp.mean(logits, -1)
    return (1 - smoothing) * label_loss + smoothing * mean_loss
