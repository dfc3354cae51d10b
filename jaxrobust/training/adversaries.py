"""What makes the images of adversarial training, beside the attacks that also measure.

Any attack will do: PGD is that of Madry et al. (2018), PGD with one step of 1.25 epsilon FGSM-RS (Wong
et al. 2020). Those here have no use but training: they leave the ball, or need no label.

References:
  Wong, Rice, Kolter, "Fast is better than free: Revisiting adversarial training", ICLR 2020,
  https://arxiv.org/abs/2001.03994
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxrobust import checks, losses, norms
from jaxrobust.attacks import conversation, engine
from jaxrobust.types import Array, Attack, Evaluation, LogitsFn


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
class NFGSM:
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KLAscent:
    """Steps away from the answer that the network gives for the clean image: the attack of TRADES.

    It ascends KL(p(clean) || p(point)) and knows no label. For training alone: `craft` gives it the
    logits [2, K] of the point and of the clean image.

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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FreeReplays:
    """Free adversarial training: every batch is trained on several times, the perturbation with it.

    One pass gives the gradient for the weights and for the perturbation, which goes on from batch to
    batch. Train for `num_epochs` divided by the replays.

    Attributes:
      epsilon: Radius of the linf ball and size of a step, in pixel units, in [0, 1].
      num_replays: Passes over each batch; the paper's m, 8 for CIFAR-10.

    References:
      Shafahi et al., "Adversarial Training for Free!", NeurIPS 2019, https://arxiv.org/abs/1904.12843
      (algorithm 1)
    """

    epsilon: float = 8 / 255
    num_replays: int = dataclasses.field(default=8, metadata={"static": True})

    targeted: ClassVar[bool] = False

    def __post_init__(self) -> None:
        checks.number("epsilon", self.epsilon, minimum=0.0, maximum=1.0)
        checks.integer("num_replays", self.num_replays, minimum=1)


@dataclasses.dataclass(frozen=True)
class AttackSchedule:
    """Another attack from an epoch on: a larger radius, more steps. For `fit`.

    Attributes:
      stages: ((first epoch, attack), ...), the epochs counted from 1 as in the log, ascending, the
        first of them 1. Attacks that differ in numbers alone (epsilon, step size, not in how many
        steps) share a compiled program.

    Raises:
      TypeError: Not a tuple of such pairs.
      ValueError: Epochs that do not ascend from 1.

    Example:
      >>> from jaxrobust.attacks import PGD
      >>> AttackSchedule(((1, PGD(2 / 255, num_steps=3)), (11, PGD(8 / 255, num_steps=10))))
      AttackSchedule(stages=((1, PGD(...)), (11, PGD(...))))
    """

    stages: tuple[tuple[int, Attack], ...]

    def __post_init__(self) -> None:
        pairs = isinstance(self.stages, tuple) and all(
            isinstance(stage, tuple) and len(stage) == 2 for stage in self.stages
        )
        if not pairs:
            raise TypeError(
                f"`stages` must be a tuple of pairs (first epoch, attack), got {self.stages!r}."
            )
        for index, (epoch, attack) in enumerate(self.stages):
            checks.integer(f"stages[{index}][0]", epoch, minimum=1)
            if not all(hasattr(attack, name) for name in ("init", "ask", "tell")):
                raise TypeError(
                    f"`stages` must have attacks, got {attack!r} from epoch {epoch} on; free training "
                    "is none, it is a way to train."
                )
        epochs = [epoch for epoch, _ in self.stages]
        if epochs[:1] != [1] or epochs != sorted(set(epochs)):
            raise ValueError(f"`stages` must begin with epoch 1 and ascend, got epochs {epochs}.")


def stages_of(
    attack: Attack | FreeReplays | AttackSchedule | None,
) -> tuple[tuple[int, Any], ...]:
    """((first epoch, attack), ...): those of a schedule, or one for all epochs."""
    return attack.stages if isinstance(attack, AttackSchedule) else ((1, attack),)


def divergence(first: Array, second: Array) -> Array:
    """KL(p || q) of the softmaxes of two vectors of logits [K], in nats: a scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> round(float(divergence(jnp.array([0.0, 0.0]), jnp.log(jnp.array([0.25, 0.75])))), 4)
      0.1438
    """
    first, second = jax.nn.log_softmax(first), jax.nn.log_softmax(second)
    return jnp.sum(jnp.exp(first) * (first - second))


def craft(attack: Attack, key: Array, logits_fn: LogitsFn, images: Array, labels: Array) -> Array:
    """`engine.craft`, with the clean answers beside each answer where the attack is `KLAscent`."""
    if not isinstance(attack, KLAscent):
        return engine.craft(attack, key, logits_fn, images, labels)
    clean = jax.lax.stop_gradient(logits_fn(images))

    def beside(points: Array) -> Array:
        return jnp.stack([logits_fn(points), clean], axis=1)

    return engine.craft(attack, key, beside, images, labels)


def scaled(attack: Any, scale: Array) -> Any:
    """An attack whose epsilon and step size are multiplied by a number in [0, 1].

    Raises:
      ValueError: An attack without an epsilon.
    """
    lengths = {f.name for f in dataclasses.fields(attack)} & {"epsilon", "step_size"}
    if "epsilon" not in lengths:
        raise ValueError(
            f"`attack_warmup_epochs` needs an attack with an epsilon, got {type(attack).__name__}."
        )
    return dataclasses.replace(attack, **{name: getattr(attack, name) * scale for name in lengths})
