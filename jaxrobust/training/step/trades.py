"""TRADES: its objective, and the attack that goes with it.

With x a clean image, x' what the adversary made of it, f the network and CE the cross-entropy:

    TRADES      CE(f(x), y) + beta KL(p(x) || p(x'))
    KLAscent    ascends KL(p(x) || p(x'))

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
    """The clean images' cross-entropy, and how far the adversary moves the answer from theirs.

    Its adversary is `KLAscent`.

    Attributes:
      beta: Weight of the divergence, above 0. The paper's are 1 and 6.
      label_smoothing: Probability that is spread evenly over all classes, in [0, 1).

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
        """The mean over a batch."""
        clean, forward = forward(images)
        logits, forward = forward(adversarial)
        apart = jnp.mean(jax.vmap(divergence)(clean, logits))
        natural = jnp.mean(smoothed_cross_entropy(clean, labels, self.label_smoothing))
        return natural + self.beta * apart, logits, forward


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KLAscent(Attack):
    """Steps away from the answer that the network gives for the clean image: the attack of TRADES.

    It ascends KL(p(clean) || p(point)) and knows no label. For training and validation alone: `craft`
    gives it the logits [2, K] of the point and of the clean image.

    Attributes:
      epsilon: Radius in pixel units, not negative; for linf at most 1.
      step_size: Length of a step in pixel units, not negative.
      num_steps: At least 1; the paper's 10.
      norm: "linf" or "l2".
      start_scale: Deviation of the Gaussian noise of the start, without which the gradient is zero.

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
        """A little noise."""
        noise = self.start_scale * jax.random.normal(key, image.shape, jnp.float32)
        return State(image, label, jnp.clip(image + noise, 0.0, 1.0))

    def ask(self, state: State) -> Array:
        """Where the attack stands."""
        return state.point

    def objective(self, logits: Array, state: State) -> Array:
        """The divergence of the point's answer from the clean one; logits [2, K]."""
        if logits.ndim != 2:
            raise ValueError(
                "KLAscent compares with the answers to the clean images, which training gives it; to "
                "measure, take PGD."
            )
        point, clean = logits
        return divergence(jax.lax.stop_gradient(clean), point)

    def tell(self, state: State, evaluation: Evaluation) -> State:
        """The step, projected."""
        step = norms.steepest(conversation.finite_gradient(evaluation), self.norm)
        change = state.point + self.step_size * step - state.original
        change = norms.project(change, state.original, self.epsilon, self.norm)
        return state._replace(point=state.original + change)

    def craft(self, batch: Batch, memory: None) -> Array:
        """Its last points, with the clean answers beside each answer."""
        del memory
        clean = jax.lax.stop_gradient(batch.logits_fn(batch.images))

        def beside(points: Array) -> Array:
            return jnp.stack([batch.logits_fn(points), clean], axis=1)

        return engine.craft(self, batch.key, beside, batch.images, batch.labels)

    def memory(self, shape: tuple[int, ...]) -> None:
        """None."""

    def step(self, batch: Batch, state: Any, descend: Descend) -> tuple[Any, Metrics]:
        """One step on its points."""
        return step_once(self, batch, state, descend)
