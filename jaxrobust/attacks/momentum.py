"""MI-FGSM: BIM along an average of the gradients so far, which transfers better to other networks.

    g_(t+1) = decay g_t + grad L(x_t, y) / ||grad L(x_t, y)||_1
    x_(t+1) = clip( x + project( x_t + step_size d(g_(t+1)) - x ) )

References:
  Dong et al., "Boosting Adversarial Attacks with Momentum", CVPR 2018, algorithm 1,
  https://arxiv.org/abs/1710.06081
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxrobust import checks, losses, norms
from jaxrobust.attacks import conversation, settings
from jaxrobust.attacks.attack import Attack
from jaxrobust.types import Array, Evaluation


class State(NamedTuple):
    """One image under attack.

    Attributes:
      original: [H, W, C], the clean image.
      label: int32 scalar.
      point: [H, W, C], where the attack stands.
      average: [H, W, C], the average of the gradients so far.
    """

    original: Array
    label: Array
    point: Array
    average: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MIFGSM(Attack):
    """Momentum iterative FGSM: BIM along an average of the gradients so far.

    Attributes:
      epsilon: The radius of the ball in pixel units, not negative; for linf at most 1.
      step_size: The length of a step in pixel units, not negative.
      decay: The factor of the earlier gradients at each step, not negative; 1 in the paper.
      num_steps: How many steps to take, at least 1; 10 in the paper.
      norm: "linf", "l2" or "l1".
      targeted: Whether the labels are the classes to reach.
      keep: "best" returns the best point seen; "last" returns the last point, as in the paper.
    """

    epsilon: float = 8 / 255
    step_size: float = 0.8 / 255
    decay: float = 1.0
    num_steps: int = settings.static(10)
    norm: str = settings.static("linf")
    targeted: bool = settings.static(False)
    keep: str = settings.static("best")

    num_restarts: ClassVar[int] = 1
    uses_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        settings.check_ball(self)
        checks.number("step_size", self.step_size, minimum=0.0)
        checks.number("decay", self.decay, minimum=0.0)
        checks.integer("num_steps", self.num_steps, minimum=1)
        checks.one_of("keep", self.keep, ("best", "last"))

    def init(self, key: Array, image: Array, label: Array, restart: Array) -> State:
        """Starts at the image itself."""
        return State(image, label, image, jnp.zeros_like(image))

    def ask(self, state: State) -> Array:
        """Asks about the current point."""
        return state.point

    def objective(self, logits: Array, state: State) -> Array:
        """Returns the cross-entropy of the label; for a targeted attack, its negative."""
        loss = losses.cross_entropy(logits, state.label)
        return -loss if self.targeted else loss

    def tell(self, state: State, evaluation: Evaluation) -> State:
        """Updates the average and takes a step along it."""
        gradient = conversation.finite_gradient(evaluation)
        # Scaled to its largest value first: a sum of 3,072 values of 1e-40 is no number.
        gradient = gradient / jnp.maximum(jnp.max(jnp.abs(gradient)), 1e-30)
        share = gradient / jnp.maximum(norms.norm(gradient, "l1"), 1e-12)
        average = self.decay * state.average + share
        moved = state.point + self.step_size * norms.steepest(average, self.norm)
        change = norms.project(moved - state.original, state.original, self.epsilon, self.norm)
        return state._replace(point=state.original + change, average=average)
