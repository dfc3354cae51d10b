"""What works against the network in a step of training.

Any attack is an adversary: PGD is that of Madry et al. (2018), PGD with one step of 1.25 epsilon
FGSM-RS (Wong et al. 2020). Those that have no use but training are in files of their own: `n_fgsm`,
`trades`, `free_replays`. `attack_schedule` changes the attack from epoch to epoch, `Warmup` lets it
grow first, and `weight_perturbation` moves the weights besides.

References:
  Wong, Rice, Kolter, "Fast is better than free: Revisiting adversarial training", ICLR 2020,
  https://arxiv.org/abs/2001.03994
"""

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxrobust import checks
from jaxrobust.attacks import Attack, engine
from jaxrobust.types import Array, LogitsFn, PyTree

Metrics = dict[str, Array]


class Batch(NamedTuple):
    """The batch of a step before the adversary has seen it, and the network that it works against.

    Attributes:
      images: float32 [B, H, W, C] in [0, 1], augmented.
      labels: int [B].
      key: A PRNG key, of the adversary's own.
      logits_fn: The network in evaluation mode, as it is before the step.
      step: int32 scalar, the steps before this one.
      steps_per_epoch: At least 1.
    """

    images: Array
    labels: Array
    key: Array
    logits_fn: LogitsFn
    step: Array | int = 0
    steps_per_epoch: int = 1


class Shift(Protocol):
    """Where else than at the weights a gradient is to be taken."""

    def __call__(self, params: PyTree, gradient: Any, masked: Any) -> PyTree:
        """That point.

        Args:
          params: The weights.
          gradient: Parameters -> the objective's gradient there.
          masked: A tree of the parameters' structure -> the same, 0 where weights are pruned.
        """


class Descend(Protocol):
    """A step of the optimizer."""

    def __call__(
        self, state: Any, adversarial: Array, number: Array | int = 0, shift: Shift | None = None
    ) -> tuple[Any, Metrics, Array]:
        """A step on one batch of adversarial images.

        Args:
          state: The TrainState before.
          adversarial: float32 [B, H, W, C] in [0, 1].
          number: Of the first pass, for its dropout: that of the replay where a batch has several.
          shift: Where the gradient is taken; None: at the weights.

        Returns:
          (the state after, what the step measured, the loss's gradient by the adversarial images).
        """


class Adversary(Protocol):
    """What works against the network in a step: a frozen dataclass, registered as a pytree.

    All of it is pure and compiled.
    """

    def memory(self, shape: tuple[int, ...]) -> PyTree | None:
        """What it remembers from step to step, before the first; `shape` [B, H, W, C] of a batch."""

    def craft(self, batch: Batch, memory: PyTree | None) -> Array:
        """The images of a batch as it has them now: float32 [B, H, W, C] in [0, 1]."""

    def step(self, batch: Batch, state: Any, descend: Descend) -> tuple[Any, Metrics]:
        """A step of training on a batch, or several: (the state after, the metrics of the last)."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Crafted:
    """The adversary that an attack is: its last points take the place of the images.

    Attributes:
      attack: None leaves the images clean.
    """

    attack: Attack | None

    def memory(self, shape: tuple[int, ...]) -> None:
        """None."""

    def craft(self, batch: Batch, memory: None) -> Array:
        """The attack's last points."""
        del memory
        if self.attack is None:
            return batch.images
        return engine.craft(self.attack, batch.key, batch.logits_fn, batch.images, batch.labels)

    def step(self, batch: Batch, state: Any, descend: Descend) -> tuple[Any, Metrics]:
        """One step on the attack's points."""
        return step_once(self, batch, state, descend)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Warmup:
    """An adversary whose epsilon and step size grow linearly in the first epochs of a training.

    Attributes:
      adversary: An attack, an AttackSchedule or FreeReplays, with an `epsilon`.
      warmup_epochs: From the first step of the training on, whatever the stage; at least 1.

    Raises:
      ValueError: An adversary without an epsilon.
    """

    adversary: Any
    warmup_epochs: int = dataclasses.field(metadata={"static": True})

    def __post_init__(self) -> None:
        checks.integer("warmup_epochs", self.warmup_epochs, minimum=1)
        if not hasattr(self.adversary, "stages"):
            _lengths(self.adversary)

    def memory(self, shape: tuple[int, ...]) -> PyTree | None:
        """That of the adversary."""
        return as_adversary(self.adversary).memory(shape)

    def craft(self, batch: Batch, memory: PyTree | None) -> Array:
        """The images that the adversary has at its present length."""
        return self._now(batch).craft(batch, memory)

    def step(self, batch: Batch, state: Any, descend: Descend) -> tuple[Any, Metrics]:
        """A step of the adversary at its present length."""
        return self._now(batch).step(batch, state, descend)

    def _now(self, batch: Batch) -> Adversary:
        num_steps = self.warmup_epochs * batch.steps_per_epoch
        # The first step is 1 / num_steps of the whole rather than a wasted one at 0.
        return as_adversary(scaled(self.adversary, jnp.minimum(1.0, (batch.step + 1) / num_steps)))


def step_once(
    adversary: Adversary, batch: Batch, state: Any, descend: Descend
) -> tuple[Any, Metrics]:
    """A step of an adversary that makes its images once and is done."""
    state, metrics, _ = descend(state, adversary.craft(batch, state.adversary))
    return state, metrics


def as_adversary(value: Any) -> Adversary:
    """The adversary that an attack, an adversary or None is.

    Raises:
      TypeError: None of these.
      ValueError: A targeted attack, or attacks of several epochs.
    """
    if value is None:
        return Crafted(None)
    if hasattr(value, "stages"):
        raise ValueError(
            "`adversary` must be that of one epoch here, got an AttackSchedule: take "
            "`recipe.at(epoch)`."
        )
    if all(hasattr(value, name) for name in ("memory", "craft", "step")):
        if isinstance(value, type) or jax.tree.leaves(value) == [value]:
            raise TypeError(
                "`adversary` must be a value that is registered as a pytree, by the decorator "
                f"jax.tree_util.register_dataclass or register_static, got {value!r}."
            )
        return value
    check_attack("adversary", value)
    return Crafted(value)


def check_attack(name: str, value: Any) -> None:
    """Raises unless a value is an attack that is not aimed at the labels.

    Raises:
      TypeError: No attack, or one that lacks a part.
      ValueError: A targeted attack.
    """
    if not isinstance(value, Attack):
        raise TypeError(
            f"`{name}` must be an attack such as PGD(), which inherits jaxrobust.attacks.Attack, or "
            "where more than an attack will do an adversary with memory, craft and step, got "
            f"{value!r}."
        )
    engine.check_attack(value)
    if value.targeted:
        raise ValueError(
            f"`{name}` must be untargeted: aimed at the true labels, it would make the task easier."
        )


def scaled(attack: Any, scale: Array | float) -> Any:
    """An attack whose epsilon and step size are multiplied by a number in [0, 1].

    Raises:
      ValueError: An attack without an epsilon.
    """
    changes = {name: getattr(attack, name) * scale for name in _lengths(attack)}
    return dataclasses.replace(attack, **changes)


def _lengths(attack: Any) -> list[str]:
    fields = dataclasses.fields(attack) if dataclasses.is_dataclass(attack) else ()
    # In the order of the fields: that of a set differs between processes, and programs with it.
    found = [field.name for field in fields if field.name in ("epsilon", "step_size")]
    if "epsilon" not in found:
        raise ValueError(
            f"Warmup needs an attack with an epsilon, got {type(attack).__name__}: what grows is the "
            "radius. Beside AWP write AWP(Warmup(...))."
        )
    return found
