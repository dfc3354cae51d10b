"""Carlini and Wagner's linf attack: it lowers a limit on the change of every value while it succeeds.

In w with x = (tanh(w) + 1) / 2, Adam descends

    c max( z_y - max_(k != y) z_k + confidence, 0 ) + sum_i max( |x_i - x0_i| - tau, 0 )

(the targeted form is as in the l2 attack). Once x fools and no value has changed by more than tau, tau
becomes 0.9 of the largest change and the descent goes on from x. After `num_iterations` without success
c is doubled. The attack ends when c is above 20, tau is at most 1 / 256, or all steps are taken.

The constants are those of the authors' code, with three differences. The total number of steps is
limited by `num_steps`, and therefore each c gets 100 steps instead of 1,000 (on a small network 2,000
steps in all came closer this way than 10,000 with 1,000 for each c). Success is defined as in the
paper, no change above tau, and not as a loss below 1e-4 c. The closest of all points that fooled is
returned, not the last one. ART's implementation tries every c up to 20 for every tau and starts each of
them from the image.

References:
  Carlini, Wagner, "Towards Evaluating the Robustness of Neural Networks", S&P 2017, section VI.C,
  https://arxiv.org/abs/1608.04644
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxrobust import checks, losses
from jaxrobust.attacks import conversation, settings
from jaxrobust.attacks.attack import Attack
from jaxrobust.attacks.carlini_wagner import adam, after_tanh, before_tanh, through_tanh
from jaxrobust.types import Array, Evaluation

_SHRINK, _DOUBLE = 0.9, 2.0
_LARGEST_CONSTANT = 20.0
_LEAST_LIMIT = 1 / 256


class State(NamedTuple):
    """One image under attack.

    Attributes:
      original: [H, W, C], the clean image.
      label: int32 scalar.
      w: [H, W, C], the point before tanh.
      first: [H, W, C], Adam's average of gradients.
      second: [H, W, C], Adam's average of their squares.
      adam_step: int32, the steps since these averages were reset.
      step: int32, the steps with the current tau and c.
      c: The weight of the penalty.
      tau: The limit on changes.
    """

    original: Array
    label: Array
    w: Array
    first: Array
    second: Array
    adam_step: Array
    step: Array
    c: Array
    tau: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CarliniWagnerLinf(Attack):
    """Carlini-Wagner attack that looks for the smallest linf perturbation.

    Attributes:
      confidence: By how much another logit must exceed the label's before tau is lowered, not
        negative. The closest point that fools is returned, whatever its confidence.
      learning_rate: The learning rate of Adam, above 0.
      initial_constant: The first c, the weight of the penalty, above 0.
      num_steps: How many steps to take in all, at least 1.
      num_iterations: After how many steps without success c is doubled, at least 1.
      targeted: Whether the labels are the classes to reach.
    """

    confidence: float = 0.0
    learning_rate: float = 5e-3
    initial_constant: float = 1e-5
    num_steps: int = settings.static(2000)
    num_iterations: int = settings.static(100)
    targeted: bool = settings.static(False)

    norm: ClassVar[str] = "linf"
    num_restarts: ClassVar[int] = 1
    keep: ClassVar[str] = "closest"
    uses_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.number("confidence", self.confidence, minimum=0.0)
        checks.number("learning_rate", self.learning_rate, above=0.0)
        checks.number("initial_constant", self.initial_constant, above=0.0)
        checks.integer("num_steps", self.num_steps, minimum=1)
        checks.integer("num_iterations", self.num_iterations, minimum=1)

    def done(self, state: State) -> Array:
        """Says whether c or tau has reached its limit."""
        return (state.c > _LARGEST_CONSTANT) | (state.tau <= _LEAST_LIMIT)

    def init(self, key: Array, image: Array, label: Array, restart: Array) -> State:
        """Starts at the image itself, with tau = 1, which limits nothing."""
        w, zero = before_tanh(image), jnp.zeros((), jnp.float32)
        nothing, none = jnp.zeros_like(w), jnp.int32(0)
        c, tau = zero + self.initial_constant, zero + 1.0
        return State(image, label, w, nothing, nothing, none, none, c, tau)

    def ask(self, state: State) -> Array:
        """Asks about the point of w."""
        return after_tanh(state.w)

    def objective(self, logits: Array, state: State) -> Array:
        """Returns the negative penalty, which is 0 once the confidence is reached."""
        won_by = losses.margin(logits, state.label, self.targeted)
        return jnp.minimum(won_by - self.confidence, 0.0)

    def tell(self, state: State, evaluation: Evaluation) -> State:
        """Takes a step of Adam, and lowers tau first if the point fools within tau."""
        change = after_tanh(state.w) - state.original
        largest = jnp.max(jnp.abs(change))
        won = losses.margin(evaluation.logits, state.label, self.targeted) > self.confidence
        solved = won & (largest <= state.tau)
        tau = jnp.where(solved, _SHRINK * largest, state.tau)
        first, second = (jnp.where(solved, 0.0, old) for old in (state.first, state.second))
        adam_step, step = (jnp.where(solved, 1, old + 1) for old in (state.adam_step, state.step))
        beyond = jnp.where(jnp.abs(change) > tau, jnp.sign(change), 0.0)
        by_point = beyond - state.c * conversation.finite_gradient(evaluation)
        move, first, second = adam(through_tanh(by_point, state.w), first, second, adam_step)
        over = step >= self.num_iterations
        return state._replace(
            w=state.w - self.learning_rate * move,
            first=first,
            second=second,
            adam_step=adam_step,
            step=jnp.where(over, 0, step),
            c=jnp.where(over, _DOUBLE * state.c, state.c),
            tau=tau,
        )
