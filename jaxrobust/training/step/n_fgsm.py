"""N-FGSM: a single step from wide noise."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxrobust import checks, losses
from jaxrobust.attacks import Attack, conversation
from jaxrobust.types import Array, Evaluation


class State(NamedTuple):
    """The state of the attack on one image.

    Attributes:
      original: [H, W, C], the clean image.
      label: int32 scalar, the true class.
      point: [H, W, C], the present point of the attack.
    """

    original: Array
    label: Array
    point: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NFGSM(Attack):
    """One step from a noisy image, without projection onto the epsilon ball.

    The noise is wider than the ball. It prevents catastrophic overfitting, in which a network becomes
    robust to single steps only; FGSM-RS suffers from it at larger radii.

    Attributes:
      epsilon: The radius in pixel units, in [0, 1].
      noise_scale: The noise of a pixel is uniform within plus or minus `noise_scale` times epsilon.
      step_scale: The step is `step_scale` times epsilon in every pixel.

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
        """Adds the noise, and clips to [0, 1]."""
        noise = jax.random.uniform(key, image.shape, jnp.float32, -1.0, 1.0)
        return State(image, label, jnp.clip(image + self.noise_scale * self.epsilon * noise, 0, 1))

    def ask(self, state: State) -> Array:
        """Returns the present point of the attack."""
        return state.point

    def objective(self, logits: Array, state: State) -> Array:
        """Returns the cross-entropy of the label."""
        return losses.cross_entropy(logits, state.label)

    def tell(self, state: State, evaluation: Evaluation) -> State:
        """Takes the step."""
        step = jnp.sign(conversation.finite_gradient(evaluation))
        moved = state.point + self.step_scale * self.epsilon * step
        return state._replace(point=jnp.clip(moved, 0.0, 1.0))
