"""N-FGSM: a single step from wide noise."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxrobust import checks, losses
from jaxrobust.attacks import Attack, conversation
from jaxrobust.types import Array, Evaluation


class State(NamedTuple):
    """One image under attack.

    Attributes:
      original: [H, W, C].
      label: int32 scalar.
      point: [H, W, C], where the attack stands.
    """

    original: Array
    label: Array
    point: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NFGSM(Attack):
    """One step from a point of uniform noise, which is not brought back to the ball.

    Noise wider than the ball keeps the network from learning to hide from a single step, where FGSM-RS
    fails at larger radii.

    Attributes:
      epsilon: Radius in pixel units, in [0, 1].
      noise_scale: The noise is uniform within this many epsilon of each pixel.
      step_scale: The step is this many epsilon.

    References:
      de Jorge et al., "Make Some Noise: Reliable and Efficient Single-Step Adversarial Training",
      NeurIPS 2022, https://arxiv.org/abs/2202.01181 (equation 5; both scales: section 4)
    """

    epsilon: float = 8 / 255
    noise_scale: float = 2.0
    step_scale: float = 1.0

    norm: ClassVar[str] = "linf"
    num_steps: ClassVar[int] = 1
    num_restarts: ClassVar[int] = 1
    targeted: ClassVar[bool] = False
    keep: ClassVar[str] = "last"
    uses_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.number("epsilon", self.epsilon, minimum=0.0, maximum=1.0)
        checks.number("noise_scale", self.noise_scale, minimum=0.0)
        checks.number("step_scale", self.step_scale, minimum=0.0)

    def init(self, key: Array, image: Array, label: Array, restart: Array) -> State:
        """The noise, cut to [0, 1]."""
        noise = jax.random.uniform(key, image.shape, jnp.float32, -1.0, 1.0)
        return State(image, label, jnp.clip(image + self.noise_scale * self.epsilon * noise, 0, 1))

    def ask(self, state: State) -> Array:
        """Where the attack stands."""
        return state.point

    def objective(self, logits: Array, state: State) -> Array:
        """The cross-entropy of the label."""
        return losses.cross_entropy(logits, state.label)

    def tell(self, state: State, evaluation: Evaluation) -> State:
        """The step."""
        step = jnp.sign(conversation.finite_gradient(evaluation))
        moved = state.point + self.step_scale * self.epsilon * step
        return state._replace(point=jnp.clip(moved, 0.0, 1.0))
