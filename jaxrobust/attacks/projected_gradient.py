"""FGSM, BIM and PGD: steps along the gradient of the cross-entropy inside a ball.

With L the cross-entropy of the true class y and d the steepest direction of the norm (the sign of the
gradient for linf, the gradient over its length for l2):

    FGSM       x' = clip( x + epsilon * d(grad L(x, y)) )
    BIM, PGD   x_(t+1) = clip( x + project( x_t + step_size * d(grad L(x_t, y)) - x ) )

Here clip is to [0, 1], and project is to the ball of radius epsilon. BIM starts at the image, PGD at a
random point of the ball. A targeted attack decreases the cross-entropy of the class to reach instead.

References:
  FGSM: Goodfellow, Shlens, Szegedy, "Explaining and Harnessing Adversarial Examples", ICLR 2015,
  section 4, https://arxiv.org/abs/1412.6572
  BIM: Kurakin, Goodfellow, Bengio, "Adversarial Examples in the Physical World", ICLR 2017 workshop,
  section 2.2, https://arxiv.org/abs/1607.02533
  PGD: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018,
  equation 2, https://arxiv.org/abs/1706.06083
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxrobust import checks, losses, norms
from jaxrobust.attacks import conversation, settings
from jaxrobust.attacks.attack import Attack
from jaxrobust.types import Array, Evaluation


class State(NamedTuple):
    """One image under attack.

    Attributes:
      original: [H, W, C].
      label: int32 scalar, the class to leave or to reach.
      point: [H, W, C], where the attack stands.
    """

    original: Array
    label: Array
    point: Array


def _start_at_image(attack: Any, key: Array, image: Array, label: Array, restart: Array) -> State:
    return State(image, label, image)


def _ask(attack: Any, state: State) -> Array:
    return state.point


def _objective(attack: Any, logits: Array, state: State) -> Array:
    loss = losses.cross_entropy(logits, state.label)
    return -loss if attack.targeted else loss


def _projected_step(attack: Any, state: State, evaluation: Evaluation) -> State:
    direction = norms.steepest(conversation.finite_gradient(evaluation), attack.norm)
    moved = state.point + attack.step_size * direction
    change = norms.project(moved - state.original, state.original, attack.epsilon, attack.norm)
    return state._replace(point=state.original + change)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FGSM(Attack):
    """Fast gradient sign method: one step of size epsilon.

    An image that is misclassified from the start is changed too.

    Attributes:
      epsilon: The radius of the ball in pixel units, not negative; for linf at most 1.
      norm: "linf", "l2" (a step along the gradient instead of its sign) or "l1" (one sparse step,
        `norms.steepest`).
      targeted: Whether the labels are the classes to reach.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), jnp.full(len(x), 1.9)], axis=1)
      >>> result = FGSM(epsilon=0.25)(
      ...     jax.random.key(0), logits_fn, jnp.full((1, 2, 2, 1), 0.5), jnp.array([0])
      ... )
      >>> result.images.ravel().tolist(), bool(result.success[0])
      ([0.25, 0.25, 0.25, 0.25], True)
    """

    epsilon: float = 8 / 255
    norm: str = settings.static("linf")
    targeted: bool = settings.static(False)

    num_steps: ClassVar[int] = 1
    num_restarts: ClassVar[int] = 1
    keep: ClassVar[str] = "last"
    uses_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        settings.check_ball(self)

    init = _start_at_image
    ask = _ask
    objective = _objective

    def tell(self, state: State, evaluation: Evaluation) -> State:
        """Takes the step."""
        step = self.epsilon * norms.steepest(conversation.finite_gradient(evaluation), self.norm)
        return state._replace(point=jnp.clip(state.original + step, 0.0, 1.0))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BIM(Attack):
    """Basic iterative method: FGSM in small steps from the image itself, projected onto the ball.

    Attributes:
      epsilon: The radius of the ball in pixel units, not negative; for linf at most 1.
      step_size: The length of a step in pixel units, not negative.
      num_steps: How many steps to take, at least 1.
      norm: "linf", "l2" or "l1" (sparse steps, `norms.steepest`).
      targeted: Whether the labels are the classes to reach.
      keep: "best" returns the best point seen; "last" returns the last point, as in the paper.
    """

    epsilon: float = 8 / 255
    step_size: float = 2 / 255
    num_steps: int = settings.static(10)
    norm: str = settings.static("linf")
    targeted: bool = settings.static(False)
    keep: str = settings.static("best")

    num_restarts: ClassVar[int] = 1
    uses_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_steps(self)

    init = _start_at_image
    ask = _ask
    objective = _objective
    tell = _projected_step


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PGD(Attack):
    """Projected gradient descent: BIM from a random point of the ball.

    Attributes:
      epsilon: The radius of the ball in pixel units, not negative; for linf at most 1.
      step_size: The length of a step in pixel units, not negative.
      num_steps: How many steps to take in each restart, at least 1.
      norm: "linf", "l2" or "l1" (sparse steps, `norms.steepest`).
      targeted: Whether the labels are the classes to reach.
      random_start: Whether to draw the first point uniformly from the ball; with False this is BIM.
      num_restarts: How many random starts to try, at least 1; the best point of all is kept.
      keep: "best" returns the best point seen; "last" returns the last point.
    """

    epsilon: float = 8 / 255
    step_size: float = 2 / 255
    num_steps: int = settings.static(10)
    norm: str = settings.static("linf")
    targeted: bool = settings.static(False)
    random_start: bool = settings.static(True)
    num_restarts: int = settings.static(1)
    keep: str = settings.static("best")

    uses_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_steps(self)
        checks.integer("num_restarts", self.num_restarts, minimum=1)
        if self.num_restarts > 1 and not self.random_start:
            raise ValueError(
                f"`num_restarts` must be 1 without `random_start`, got {self.num_restarts}: all "
                "would be equal. Set `random_start=True`."
            )

    ask = _ask
    objective = _objective
    tell = _projected_step

    def init(self, key: Array, image: Array, label: Array, restart: Array) -> State:
        """Starts at a random point of the ball, clipped to [0, 1]."""
        if not self.random_start:
            return _start_at_image(self, key, image, label, restart)
        noise = norms.uniform_in_ball(key, image.shape, self.epsilon, self.norm)
        return State(image, label, jnp.clip(image + noise, 0.0, 1.0))


def _check_steps(attack: Any) -> None:
    settings.check_ball(attack)
    checks.number("step_size", attack.step_size, minimum=0.0)
    checks.integer("num_steps", attack.num_steps, minimum=1)
    checks.one_of("keep", attack.keep, ("best", "last"))
