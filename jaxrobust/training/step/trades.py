"""TRADES: its objective, and the attack that goes with it.

With x a clean image, x' its adversarial image, f the network, p its softmax and CE the cross-entropy:

    TRADES      minimises CE(f(x), y) + beta KL(p(x) || p(x'))
    KLAscent    maximises KL(p(x) || p(x'))

References:
  Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy", ICML 2019,
  equation 3 and algorithm 1, https://arxiv.org/abs/1901.08573
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxrobust import checks, norms
from jaxrobust.attacks import Attack, conversation, engine
from jaxrobust.training.step.adversaries import Batch, Descend, Metrics, step_once
from jaxrobust.training.step.n_fgsm import State
from jaxrobust.training.step.network import Passes
from jaxrobust.training.step.objectives import divergence, smoothed_cross_entropy
from jaxrobust.types import Array, Evaluation


@dataclasses.dataclass(frozen=True)
class TRADES:
    """The clean cross-entropy plus the divergence of the adversarial from the clean predictions.

    The loss is CE(f(x), y) + beta KL(p(x) || p(x')). Use it with the adversary `KLAscent`.

    Attributes:
      beta: The weight of the divergence, above 0; 1 and 6 in the paper.
      label_smoothing: The probability that is spread evenly over all classes, in [0, 1).

    References:
      Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy", ICML 2019,
      equation 3, https://arxiv.org/abs/1901.08573
    """

    beta: float = 6.0
    label_smoothing: float = 0.0

    compares: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.number("beta", self.beta, above=0.0)
        checks.fraction("label_smoothing", self.label_smoothing)

    def __call__(
        self, forward: Passes, images: Array, adversarial: Array, labels: Array
    ) -> tuple[Array, Array, Passes]:
        """Returns (mean loss, adversarial logits [B, K], the passes that are left)."""
        clean, forward = forward(images)
        logits, forward = forward(adversarial)
        apart = jnp.mean(jax.vmap(divergence)(clean, logits))
        natural = jnp.mean(smoothed_cross_entropy(clean, labels, self.label_smoothing))
        return natural + self.beta * apart, logits, forward


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KLAscent(Attack):
    """The attack of TRADES, which moves the prediction away from that of the clean image.

    It takes projected gradient steps up KL(p(clean) || p(point)) and does not use the label. It can
    only be the adversary of a training, which gives it the logits of the clean image; to evaluate a
    network, use PGD.

    Attributes:
      epsilon: The radius in pixel units, not negative; for linf at most 1.
      step_size: The length of a step in pixel units, not negative.
      num_steps: The number of steps, at least 1; 10 in the paper.
      norm: "linf" or "l2".
      start_scale: The standard deviation of the Gaussian noise added at the start, without which the
        gradient is zero.

    References:
      Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy", ICML 2019,
      https://arxiv.org/abs/1901.08573 (algorithm 1)
    """

    epsilon: float = 8 / 255
    step_size: float = 2 / 255
    num_steps: int = dataclasses.field(default=10, metadata={"static": True})
    norm: str = dataclasses.field(default="linf", metadata={"static": True})
    start_scale: float = 0.001

    num_restarts: ClassVar[int] = 1
    targeted: ClassVar[bool] = False
    keep: ClassVar[str] = "last"
    uses_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.one_of("norm", self.norm, ("linf", "l2"))
        largest = 1.0 if self.norm == "linf" else float("inf")
        checks.number("epsilon", self.epsilon, minimum=0.0, maximum=largest)
        checks.number("step_size", self.step_size, minimum=0.0)
        checks.number("start_scale", self.start_scale, minimum=0.0)
        checks.integer("num_steps", self.num_steps, minimum=1)

    def init(self, key: Array, image: Array, label: Array, restart: Array) -> State:
        """Starts from the image with a little noise."""
        noise = self.start_scale * jax.random.normal(key, image.shape, jnp.float32)
        return State(image, label, jnp.clip(image + noise, 0.0, 1.0))

    def ask(self, state: State) -> Array:
        """Returns the present point of the attack."""
        return state.point

    def objective(self, logits: Array, state: State) -> Array:
        """Returns KL(p(clean) || p(point)) for the logits [2, K] of the point and the clean image."""
        if logits.ndim != 2:
            raise ValueError(
                "KLAscent needs the logits of the clean images, which only training gives it; to "
                "evaluate a network, use PGD."
            )
        point, clean = logits
        return divergence(jax.lax.stop_gradient(clean), point)

    def tell(self, state: State, evaluation: Evaluation) -> State:
        """Takes a step and projects it onto the ball."""
        step = norms.steepest(conversation.finite_gradient(evaluation), self.norm)
        change = state.point + self.step_size * step - state.original
        change = norms.project(change, state.original, self.epsilon, self.norm)
        return state._replace(point=state.original + change)

    def craft(self, batch: Batch, memory: None) -> Array:
        """Returns the last points of the attack, which sees the clean logits as well."""
        del memory
        clean = jax.lax.stop_gradient(batch.logits_fn(batch.images))

        def beside(points: Array) -> Array:
            return jnp.stack([batch.logits_fn(points), clean], axis=1)

        return engine.craft(self, batch.key, beside, batch.images, batch.labels)

    def memory(self, shape: tuple[int, ...]) -> None:
        """Returns None: the attack remembers nothing between steps."""

    def step(self, batch: Batch, state: Any, descend: Descend) -> tuple[Any, Metrics]:
        """Takes one training step on the points of the attack."""
        return step_once(self, batch, state, descend)
