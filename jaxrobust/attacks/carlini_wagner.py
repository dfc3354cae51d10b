"""Carlini and Wagner's l2 attack: looks for the smallest perturbation by descent on a penalty.

In w with x = (tanh(w) + 1) / 2, which keeps x inside [0, 1], Adam minimises

    ||x - x0||_2^2 + c max( z_y - max_(k != y) z_k + confidence, 0 )

(targeted: max( max_(k != t) z_k - z_t + confidence, 0 )), and starts again from x0 for every c. The
first c is `initial_constant`. A c that fails is multiplied by 10; once one has succeeded, the interval
between the largest c that failed and the smallest that succeeded is halved.

References:
  Carlini, Wagner, "Towards Evaluating the Robustness of Neural Networks", S&P 2017, sections V and
  VI.A, https://arxiv.org/abs/1608.04644
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxrobust import checks, losses
from jaxrobust.attacks import conversation, settings
from jaxrobust.attacks.attack import Attack
from jaxrobust.types import Array, Evaluation

_INSIDE = 0.999999  # atanh of 1 is infinite
_B1, _B2, _ADAM_EPSILON = 0.9, 0.999, 1e-8


class State(NamedTuple):
    """One image under attack.

    Attributes:
      original: [H, W, C], the clean image after the change of variables and back in float32.
      label: int32 scalar.
      start: [H, W, C], the image before tanh.
      w: [H, W, C], the point before tanh.
      first: [H, W, C], Adam's average of gradients.
      second: [H, W, C], Adam's average of their squares.
      step: int32, the steps taken with the current c.
      c: The weight of the penalty.
      low: The largest c that failed; 0 at first.
      high: The smallest c that succeeded; infinite at first.
      fooled: Whether a point has fooled with the current c.
    """

    original: Array
    label: Array
    start: Array
    w: Array
    first: Array
    second: Array
    step: Array
    c: Array
    low: Array
    high: Array
    fooled: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CarliniWagner(Attack):
    """Carlini-Wagner attack that looks for the smallest l2 perturbation.

    Attributes:
      confidence: By how much another logit must exceed the label's for a c to have succeeded, not
        negative. The closest point that fools is returned, whatever its confidence.
      learning_rate: The learning rate of Adam, above 0.
      initial_constant: The first c, the weight of the penalty, above 0.
      num_iterations: How many steps to take for each c, at least 1.
      num_searches: How many values of c to try, at least 1.
      targeted: Whether the labels are the classes to reach.
    """

    confidence: float = 0.0
    learning_rate: float = 0.01
    initial_constant: float = 1e-3
    num_iterations: int = settings.static(1000)
    num_searches: int = settings.static(9)
    targeted: bool = settings.static(False)

    norm: ClassVar[str] = "l2"
    num_restarts: ClassVar[int] = 1
    keep: ClassVar[str] = "closest"
    uses_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.number("confidence", self.confidence, minimum=0.0)
        checks.number("learning_rate", self.learning_rate, above=0.0)
        checks.number("initial_constant", self.initial_constant, above=0.0)
        checks.integer("num_iterations", self.num_iterations, minimum=1)
        checks.integer("num_searches", self.num_searches, minimum=1)

    @property
    def num_steps(self) -> int:
        """The number of steps with all values of c together."""
        return self.num_iterations * self.num_searches

    def init(self, key: Array, image: Array, label: Array, restart: Array) -> State:
        """Starts at the image itself."""
        start, zero = before_tanh(image), jnp.zeros((), jnp.float32)
        nothing = jnp.zeros_like(start)
        return State(
            # At the start Adam must see a gradient of exactly zero, because it would magnify 1e-7.
            original=after_tanh(start),
            label=label,
            start=start,
            w=start,
            first=nothing,
            second=nothing,
            step=jnp.int32(0),
            c=zero + self.initial_constant,
            low=zero,
            high=zero + jnp.inf,
            fooled=jnp.zeros((), bool),
        )

    def ask(self, state: State) -> Array:
        """Asks about the point of w."""
        return after_tanh(state.w)

    def objective(self, logits: Array, state: State) -> Array:
        """Returns the negative penalty, which is 0 once the confidence is reached."""
        won_by = losses.margin(logits, state.label, self.targeted)
        return jnp.minimum(won_by - self.confidence, 0.0)

    def tell(self, state: State, evaluation: Evaluation) -> State:
        """Takes a step of Adam; after the last step for this c, starts with the next c."""
        change = 2 * (after_tanh(state.w) - state.original)
        by_point = change - state.c * conversation.finite_gradient(evaluation)
        step = state.step + 1
        move, first, second = adam(through_tanh(by_point, state.w), state.first, state.second, step)
        # More than the confidence: a tie fools nobody.
        won = losses.margin(evaluation.logits, state.label, self.targeted) > self.confidence
        moved = state._replace(
            w=state.w - self.learning_rate * move,
            first=first,
            second=second,
            step=step,
            fooled=state.fooled | won,
        )
        searched = self._next_constant(moved)
        over = step >= self.num_iterations
        return jax.tree.map(lambda a, b: jnp.where(over, a, b), searched, moved)

    def _next_constant(self, state: State) -> State:
        high = jnp.where(state.fooled, jnp.minimum(state.c, state.high), state.high)
        low = jnp.where(state.fooled, state.low, jnp.maximum(state.c, state.low))
        c = jnp.where(jnp.isinf(high), state.c * 10, (low + high) / 2)
        nothing = jnp.zeros_like(state.start)
        return state._replace(
            w=state.start,
            first=nothing,
            second=nothing,
            step=jnp.zeros_like(state.step),
            c=c,
            low=low,
            high=high,
            fooled=jnp.zeros_like(state.fooled),
        )


def before_tanh(point: Array) -> Array:
    """Returns the w for which (tanh(w) + 1) / 2 is the point; 0 and 1 are first moved inwards a bit."""
    return jnp.arctanh((2 * point - 1) * _INSIDE)


def after_tanh(w: Array) -> Array:
    """Returns the point in [0, 1] of w, (tanh(w) + 1) / 2."""
    return (jnp.tanh(w) + 1) / 2


def through_tanh(gradient: Array, w: Array) -> Array:
    """Turns a gradient with respect to the point into one with respect to w."""
    return gradient * (1 - jnp.tanh(w) ** 2) / 2


def adam(gradient: Array, first: Array, second: Array, step: Array) -> tuple[Array, Array, Array]:
    """Computes a step of Adam for a learning rate of 1.

    Args:
      gradient: [H, W, C].
      first: [H, W, C], the average of gradients; zeros at the start.
      second: [H, W, C], the average of squared gradients; zeros at the start.
      step: int32, 1 for the first step.

    Returns:
      (the step to subtract, the new `first`, the new `second`).

    References:
      Kingma, Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, algorithm 1,
      https://arxiv.org/abs/1412.6980
    """
    first = _B1 * first + (1 - _B1) * gradient
    second = _B2 * second + (1 - _B2) * gradient**2
    count = step.astype(jnp.float32)
    mean = first / (1 - _B1**count)
    deviation = jnp.sqrt(second / (1 - _B2**count))
    return mean / (deviation + _ADAM_EPSILON), first, second
