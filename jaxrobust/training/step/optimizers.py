"""Optimizers: functions from a learning rate to an optax transformation.

A step calls its optimizer with the rate of that step, which the schedule says. Every optimizer of optax
is such a function: `optax.lion`, or `functools.partial(optax.sgd, momentum=0.9)`. Those here are values
with names for a run's settings, and clip and decay besides. Their fields are given by name: the
learning rate, which optax has first, is the schedule's.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

from jaxrobust import checks
from jaxrobust.types import Array, PyTree

Optimizer = Callable[[Array | float], optax.GradientTransformation]
DecayedWeights = Literal["all", "kernels"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay, as `optax.adamw`.

    Attributes:
      weight_decay: Added to the step, at least 0.
      decayed_weights: What decays: "all" parameters, the default of PyTorch and optax, or the
        "kernels" only, which spares biases and the scales of normalisation.
      gradient_clip: The gradient's largest global l2 norm; None: not clipped.

    References:
      Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019,
      https://arxiv.org/abs/1711.05101 (algorithm 2)
    """

    weight_decay: float = 1e-4
    decayed_weights: DecayedWeights = "all"
    gradient_clip: float | None = None

    def __post_init__(self) -> None:
        _check(self)

    def __call__(self, learning_rate: Array | float) -> optax.GradientTransformation:
        """The transformation at this rate."""
        return optax.chain(
            *_clip(self),
            optax.scale_by_adam(),
            _decay(self),
            optax.scale_by_learning_rate(learning_rate),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam with weight decay added to the gradient, as PyTorch's `Adam`.

    Attributes:
      weight_decay: Added to the gradient, so that it passes through the moments; at least 0.
      decayed_weights: As `AdamW`.
      gradient_clip: As `AdamW`.
    """

    weight_decay: float = 1e-4
    decayed_weights: DecayedWeights = "all"
    gradient_clip: float | None = None

    def __post_init__(self) -> None:
        _check(self)

    def __call__(self, learning_rate: Array | float) -> optax.GradientTransformation:
        """The transformation at this rate."""
        return optax.chain(
            *_clip(self),
            _decay(self),
            optax.scale_by_adam(),
            optax.scale_by_learning_rate(learning_rate),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGD:
    """Gradient descent with momentum and weight decay, as PyTorch's `SGD`.

    Attributes:
      momentum: In [0, 1).
      nesterov: Whether the momentum is Nesterov's.
      weight_decay: Added to the gradient, so that it passes through the momentum; at least 0.
      decayed_weights: As `AdamW`.
      gradient_clip: As `AdamW`.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = SGD(momentum=0.0, weight_decay=0.0)(0.1)
      >>> weight, gradient = jnp.float32(1), jnp.float32(2)
      >>> update, state = optimizer.update(gradient, optimizer.init(weight), weight)
      >>> round(float(update), 3)
      -0.2
    """

    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    decayed_weights: DecayedWeights = "all"
    gradient_clip: float | None = None

    def __post_init__(self) -> None:
        checks.fraction("momentum", self.momentum)
        _check(self)

    def __call__(self, learning_rate: Array | float) -> optax.GradientTransformation:
        """The transformation at this rate."""
        return optax.chain(
            *_clip(self),
            _decay(self),
            optax.trace(self.momentum, self.nesterov),
            optax.scale_by_learning_rate(learning_rate),
        )


def check_optimizer(optimizer: Any) -> None:
    """Raises unless a value is an optimizer whose learning rate can change from step to step.

    Raises:
      TypeError: No function from a learning rate to an optax transformation.
      ValueError: One that keeps the rate in its state, where no schedule could change it.
    """
    if not callable(optimizer) or isinstance(optimizer, type):
        raise TypeError(
            "`optimizer` must be a function from a learning rate to an optax transformation, such "
            f"as SGD(), or optax.adam without its rate, got {optimizer!r}."
        )
    if type(optimizer).__module__ == __name__:
        return
    if not all(hasattr(optimizer(0.0), name) for name in ("init", "update")):
        raise TypeError(
            f"`optimizer` must return an optax transformation, got {optimizer(0.0)!r} of {optimizer!r}."
        )
    try:
        params = {"kernel": jax.ShapeDtypeStruct((2, 2), jnp.float32)}
        traced = jax.make_jaxpr(lambda rate, params: optimizer(rate).init(params))(0.0, params)
    except Exception:
        # What is made for parameters of certain names is not made for these.
        return
    follows = {id(traced.jaxpr.invars[0])}  # what is computed from the rate
    for equation in traced.jaxpr.eqns:
        if follows & set(map(id, equation.invars)):
            follows |= set(map(id, equation.outvars))
    if follows & set(map(id, traced.jaxpr.outvars)):
        raise ValueError(
            "`optimizer` must take its learning rate anew in every step, got one that keeps it in its "
            f"state, where the schedule could not change it: {optimizer!r}."
        )


def _check(optimizer: Any) -> None:
    checks.number("weight_decay", optimizer.weight_decay, minimum=0.0)
    checks.one_of("decayed_weights", optimizer.decayed_weights, get_args(DecayedWeights))
    if optimizer.gradient_clip is not None:
        checks.number("gradient_clip", optimizer.gradient_clip, above=0.0)


def _clip(optimizer: Any) -> list[optax.GradientTransformation]:
    clip = optimizer.gradient_clip
    return [] if clip is None else [optax.clip_by_global_norm(clip)]


def _decay(optimizer: Any) -> optax.GradientTransformation:
    mask = kernel_mask if optimizer.decayed_weights == "kernels" else None
    return optax.add_decayed_weights(optimizer.weight_decay, mask)


def kernel_mask(params: PyTree) -> PyTree:
    """True at the parameters called "kernel", the weights of convolutions and dense layers.

    Example:
      >>> kernel_mask({"conv": {"kernel": 1.0, "bias": 2.0}})
      {'conv': {'bias': False, 'kernel': True}}
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path[-1:], simple=True) == "kernel", params
    )
