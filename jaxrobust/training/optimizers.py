"""Optimizers and learning-rate schedules by name.

The learning rate is an argument of the optimizer's `update`, not a number inside it: the schedule
and the plateau can then change it without a new optimizer, and the log can say what it was.
"""

import jax
import jax.numpy as jnp
import optax

from jaxrobust.training.config import TrainConfig
from jaxrobust.types import Array, PyTree


def make_optimizer(config: TrainConfig) -> optax.GradientTransformationExtraArgs:
    """The optimizer that `config` names, with clipping and weight decay.

    Gradients are clipped first, then decay is added ("adam", "sgd": to the gradient, so that it
    passes through the moments; "adamw": to the step).

    Args:
      config: Its optimizer, weight_decay, decayed_weights, momentum, nesterov and gradient_clip.

    Returns:
      An optax transformation whose `update` takes `learning_rate`.

    References:
      Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019,
      https://arxiv.org/abs/1711.05101 (algorithm 2, both forms of decay).

    Example:
      >>> optimizer = make_optimizer(TrainConfig(optimizer="sgd", momentum=0.0, weight_decay=0.0))
      >>> weight, gradient = jnp.float32(1), jnp.float32(2)
      >>> state = optimizer.init(weight)
      >>> update, state = optimizer.update(gradient, state, weight, learning_rate=0.1)
      >>> round(float(update), 3)
      -0.2
    """
    parts: list[optax.GradientTransformation] = []
    if config.gradient_clip is not None:
        parts.append(optax.clip_by_global_norm(config.gradient_clip))
    mask = is_kernel if config.decayed_weights == "kernels" else None
    decay = optax.add_decayed_weights(config.weight_decay, mask)
    if config.optimizer == "adamw":
        parts += [optax.scale_by_adam(), decay]
    elif config.optimizer == "adam":
        parts += [decay, optax.scale_by_adam()]
    else:
        parts += [decay, optax.trace(config.momentum, config.nesterov)]
    return optax.chain(*parts, scale_by_given_learning_rate())


def scale_by_given_learning_rate() -> optax.GradientTransformationExtraArgs:
    """Multiplies by minus the `learning_rate` that `update` is given."""

    def update(
        updates: PyTree,
        state: optax.EmptyState,
        params: PyTree | None = None,
        *,
        learning_rate: Array | float,
        **_: object,
    ) -> tuple[PyTree, optax.EmptyState]:
        del params
        return jax.tree.map(lambda u: -learning_rate * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def is_kernel(params: PyTree) -> PyTree:
    """True at the parameters called "kernel", the weights of convolutions and dense layers.

    Example:
      >>> is_kernel({"conv": {"kernel": 1.0, "bias": 2.0}})
      {'conv': {'bias': False, 'kernel': True}}
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path[-1:], simple=True) == "kernel", params
    )


def make_schedule(config: TrainConfig, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate as a function of the step.

    The cosine moves every step, from the end of the warm-up, and reaches 0 at the end of training.
    The plateau schedule is constant here: it depends on results, so its factor is
    `TrainState.learning_rate_scale`.

    Args:
      config: Its schedule and learning_rate, num_epochs, warmup_epochs, milestones, step_factor.
      steps_per_epoch: At least 1.

    Returns:
      A function from the step (0 is the first) to the learning rate.

    References:
      Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017,
      https://arxiv.org/abs/1608.03983 (equation 5, without restarts).

    Example:
      >>> schedule = make_schedule(TrainConfig(schedule="cosine", num_epochs=4), steps_per_epoch=10)
      >>> [round(float(schedule(step)), 6) for step in (0, 20, 40)]
      [0.001, 0.0005, 0.0]
    """
    warmup = config.warmup_epochs * steps_per_epoch
    total = config.num_epochs * steps_per_epoch
    if config.schedule == "cosine":
        cosine = optax.cosine_decay_schedule(config.learning_rate, total - warmup)

        def main(step: Array) -> Array:
            return cosine(jnp.maximum(step - warmup, 0))

    elif config.schedule == "step":
        main = optax.piecewise_constant_schedule(
            config.learning_rate,
            {milestone * steps_per_epoch: config.step_factor for milestone in config.milestones},
        )
    else:
        main = optax.constant_schedule(config.learning_rate)
    if warmup == 0:
        return main
    # The first step is 1 / warmup of the full rate rather than a wasted step at 0.
    return lambda step: main(step) * jnp.minimum(1.0, (step + 1) / warmup)
