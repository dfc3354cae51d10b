"""Random noise from the ball: the baseline that every attack should beat."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxrobust import checks, losses, norms
from jaxrobust.attacks import settings
from jaxrobust.attacks.attack import Attack
from jaxrobust.types import Array, Evaluation


class State(NamedTuple):
    """One image under attack.

    Attributes:
      key: The PRNG key of the draws.
      original: [H, W, C], the clean image.
      label: int32 scalar.
      step: int32, the number of draws so far.
    """

    key: Array
    original: Array
    label: Array
    step: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RandomNoise(Attack):
    """Points drawn uniformly from the ball and clipped to [0, 1]; the worst of them is kept.

    Attributes:
      epsilon: The radius of the ball in pixel units, not negative; for linf at most 1.
      num_steps: The number of steps, at least 1. There is one more draw, because the last point is
        a draw too.
      norm: "linf", "l2" or "l1".
      targeted: Whether the labels are the classes to reach.
    """

    epsilon: float = 8 / 255
    num_steps: int = settings.static(10)
    norm: str = settings.static("linf")
    targeted: bool = settings.static(False)

    num_restarts: ClassVar[int] = 1
    keep: ClassVar[str] = "best"
    uses_gradient: ClassVar[bool] = False

    def __post_init__(self) -> None:
        settings.check_ball(self)
        checks.integer("num_steps", self.num_steps, minimum=1)

    def init(self, key: Array, image: Array, label: Array, restart: Array) -> State:
        """Returns the state before the first draw."""
        return State(key, image, label, jnp.int32(0))

    def ask(self, state: State) -> Array:
        """Draws the next point."""
        key = jax.random.fold_in(state.key, state.step)
        shape = state.original.shape
        noise = norms.uniform_in_ball(key, shape, self.epsilon, self.norm)
        return jnp.clip(state.original + noise, 0.0, 1.0)

    def objective(self, logits: Array, state: State) -> Array:
        """Returns the margin: positive if another class is predicted (targeted: the target)."""
        return losses.margin(logits, state.label, self.targeted)

    def tell(self, state: State, evaluation: Evaluation) -> State:
        """Counts the draw."""
        return state._replace(step=state.step + 1)
