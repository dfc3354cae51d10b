"""Optimizers: functions from a learning rate to an optax transformation.

A training step calls its optimizer with the learning rate that the schedule gives for that step. Every
optax optimizer is such a function: `optax.lion`, or `functools.partial(optax.sgd, momentum=0.9)`. The
optimizers here are frozen dataclasses, which a run can record in its settings; they also offer gradient
clipping and weight decay. Their fields are keyword-only, because the first argument of an optax
optimizer, the learning rate, comes from the schedule.
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
    """Adam with decoupled weight decay, like `optax.adamw`.

    Attributes:
      weight_decay: The coefficient of the weight decay, which is added to the step; at least 0.
      decayed_weights: The parameters that decay: "all", as in PyTorch and optax, or "kernels", which
        leaves out biases and the scales of normalisation layers.
      gradient_clip: The largest global l2 norm of the gradient, above 0; larger gradients are scaled
        down to it. None: no clipping.

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
    """Adam with weight decay added to the gradient, like PyTorch's `Adam`.

    Attributes:
      weight_decay: The coefficient of the l2 penalty, which is added to the gradient before the
        moments; at least 0.
      decayed_weights: The parameters that decay, "all" or "kernels"; see `AdamW`.
      gradient_clip: The largest global l2 norm of the gradient, above 0. None: no clipping.
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
    """Stochastic gradient descent with momentum and weight decay, like PyTorch's `SGD`.

    Attributes:
      momentum: The momentum, in [0, 1).
      nesterov: Whether to use Nesterov's momentum.
      weight_decay: The coefficient of the l2 penalty, which is added to the gradient before the
        momentum; at least 0.
      decayed_weights: The parameters that decay, "all" or "kernels"; see `AdamW`.
      gradient_clip: The largest global l2 norm of the gradient, above 0. None: no clipping.

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
      TypeError: It is not a function from a learning rate to an optax transformation.
      ValueError: It keeps the rate in its state, where the schedule could not change it.
    """
    if not callable(optimizer) or isinstance(optimizer, type):
        raise TypeError(
            "`optimizer` must be a function from a learning rate to an optax transformation, such "
            f"as SGD() or optax.adam (not optax.adam(rate)), got {optimizer!r}."
        )
    if type(optimizer).__module__ == __name__:
        return
    if not all(hasattr(optimizer(0.0), name) for name in ("init", "update")):
        raise TypeError(
            f"`optimizer` must return an optax transformation, got {optimizer(0.0)!r} from "
            f"{optimizer!r}."
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
            "`optimizer` must take a new learning rate in every step, got one that keeps the rate in "
            f"its state, where the schedule cannot change it: {optimizer!r}."
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
