"""Carlini and Wagner's l2 attack: the smallest perturbation, by gradient descent on a penalty.

In w with x = (tanh(w) + 1) / 2, which keeps x inside [0, 1], Adam descends

    ||x - x0||_2^2 + c max( z_y - max_(k != y) z_k + confidence, 0 )

(targeted: max( max_(k != t) z_k - z_t + confidence, 0 )), anew from x0 for every c. c starts at
`initial_constant`; where it fails it is multiplied by 10, and once it has succeeded the interval
between the largest that failed and the smallest that did not is halved.

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
      original: [H, W, C], the image after the way through tanh and back, as float32 has it.
      label: int32 scalar.
      start: [H, W, C], the image before tanh.
      w: [H, W, C], the point before tanh.
      first: [H, W, C], Adam's average of gradients.
      second: [H, W, C], Adam's average of their squares.
      step: int32, steps taken with this c.
      c: The weight of the penalty.
      low: The largest c that failed.
      high: The smallest c that succeeded; infinite before.
      fooled: Whether a point has with this c.
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
    """Carlini-Wagner, l2, minimal norm.

    Attributes:
      confidence: How much the logit must win by, not negative. Only points that win by as much decide
        about c; what is returned is the closest that fools.
      learning_rate: Of Adam, above 0.
      initial_constant: The first c, above 0.
      num_iterations: Steps for each c, at least 1.
      num_searches: How many c are tried, at least 1.
      targeted: Whether labels name the class to reach.
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
        """All steps with all c."""
        return self.num_iterations * self.num_searches

    def init(self, key: Array, image: Array, label: Array, restart: Array) -> State:
        """The image itself."""
        start, zero = before_tanh(image), jnp.zeros((), jnp.float32)
        nothing = jnp.zeros_like(start)
        return State(
            # Where nothing pushes, Adam must see a gradient of zero: it would blow up 1e-7.
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
        """The point of w."""
        return after_tanh(state.w)

    def objective(self, logits: Array, state: State) -> Array:
        """The penalty's negative: 0 where the class is won by the confidence."""
        won_by = losses.margin(logits, state.label, self.targeted)
        return jnp.minimum(won_by - self.confidence, 0.0)

    def tell(self, state: State, evaluation: Evaluation) -> State:
        """A step of Adam; after the last one the next c."""
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
    """The w with which a point of [0, 1] is (tanh(w) + 1) / 2; for 0 and 1, of one close to them."""
    return jnp.arctanh((2 * point - 1) * _INSIDE)


def after_tanh(w: Array) -> Array:
    """The point of w."""
    return (jnp.tanh(w) + 1) / 2


def through_tanh(gradient: Array, w: Array) -> Array:
    """A gradient by the point as one by w."""
    return gradient * (1 - jnp.tanh(w) ** 2) / 2


def adam(gradient: Array, first: Array, second: Array, step: Array) -> tuple[Array, Array, Array]:
    """A step of Adam for a learning rate of 1.

    Args:
      gradient: [H, W, C].
      first: The average of gradients, zeros at the start.
      second: The average of their squares, likewise.
      step: int32, 1 for the first step.

    Returns:
      (what to subtract, first, second).

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
