"""Adversaries: what makes the adversarial images of a training step.

Any attack is an adversary: PGD gives the training of Madry et al. (2018), and PGD with one step of
1.25 epsilon gives FGSM-RS (Wong et al. 2020). Adversaries that are useful only for training have
files of their own: `n_fgsm`, `trades`, `free_replays`. `attack_schedule` changes the attack from
epoch to epoch, `Warmup` increases its radius in the first epochs, and `weight_perturbation` perturbs
the weights as well.

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
    """The batch that an adversary is given, and the network that it attacks.

    Attributes:
      images: float32 [B, H, W, C] in [0, 1], after augmentation.
      labels: int [B], the true classes.
      key: A PRNG key for the adversary alone.
      logits_fn: The network in evaluation mode, with the weights before the step: images
        [B, H, W, C] in [0, 1] -> logits [B, K].
      step: int32 scalar, the number of training steps before this one.
      steps_per_epoch: The number of training steps in an epoch, at least 1.
    """

    images: Array
    labels: Array
    key: Array
    logits_fn: LogitsFn
    step: Array | int = 0
    steps_per_epoch: int = 1


class Shift(Protocol):
    """A function that moves the weights before the gradient is computed."""

    def __call__(self, params: PyTree, gradient: Any, masked: Any) -> PyTree:
        """Returns the weights at which the gradient is computed.

        Args:
          params: The present weights.
          gradient: A function from weights to the gradient of the objective at them.
          masked: A function that sets a tree like `params` to 0 where weights are pruned.
        """


class Descend(Protocol):
    """A function that takes one optimizer step."""

    def __call__(
        self, state: Any, adversarial: Array, number: Array | int = 0, shift: Shift | None = None
    ) -> tuple[Any, Metrics, Array]:
        """Takes one optimizer step on a batch of adversarial images.

        Args:
          state: The TrainState before the step.
          adversarial: float32 [B, H, W, C] in [0, 1].
          number: The number of this step on the same batch, from 0. It makes the dropout of repeated
            steps differ.
          shift: Gives the weights at which the gradient is computed; None: the present weights.

        Returns:
          (the TrainState after the step, its metrics, the gradient of the loss with respect to the
          adversarial images, [B, H, W, C]).
        """


class Adversary(Protocol):
    """The interface of an adversary: a frozen dataclass that is registered as a pytree.

    Its methods are compiled, so they must be pure.
    """

    def memory(self, shape: tuple[int, ...]) -> PyTree | None:
        """Returns the memory before the first step, or None; `shape` is a batch's [B, H, W, C]."""

    def craft(self, batch: Batch, memory: PyTree | None) -> Array:
        """Returns the adversarial images of a batch: float32 [B, H, W, C] in [0, 1]."""

    def step(self, batch: Batch, state: Any, descend: Descend) -> tuple[Any, Metrics]:
        """Takes one or more training steps on a batch; returns (state, metrics) after the last."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Crafted:
    """An attack as an adversary: the last points of the attack replace the images.

    Attributes:
      attack: The attack; None leaves the images clean.
    """

    attack: Attack | None

    def memory(self, shape: tuple[int, ...]) -> None:
        """Returns None: an attack remembers nothing between steps."""

    def craft(self, batch: Batch, memory: None) -> Array:
        """Returns the last points of the attack."""
        del memory
        if self.attack is None:
            return batch.images
        return engine.craft(self.attack, batch.key, batch.logits_fn, batch.images, batch.labels)

    def step(self, batch: Batch, state: Any, descend: Descend) -> tuple[Any, Metrics]:
        """Takes one training step on the points of the attack."""
        return step_once(self, batch, state, descend)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Warmup:
    """An adversary whose epsilon and step size grow linearly during the first epochs.

    Attributes:
      adversary: An attack, an AttackSchedule or FreeReplays. It must have an `epsilon`.
      warmup_epochs: The number of epochs, counted from the start of the training, after which the
        full epsilon is reached; at least 1.

    Raises:
      ValueError: The adversary has no epsilon.
    """

    adversary: Any
    warmup_epochs: int = dataclasses.field(metadata={"static": True})

    def __post_init__(self) -> None:
        checks.integer("warmup_epochs", self.warmup_epochs, minimum=1)
        if not hasattr(self.adversary, "stages"):
            _lengths(self.adversary)

    def memory(self, shape: tuple[int, ...]) -> PyTree | None:
        """Returns the memory of the wrapped adversary."""
        return as_adversary(self.adversary).memory(shape)

    def craft(self, batch: Batch, memory: PyTree | None) -> Array:
        """Returns the images of the wrapped adversary at its present radius."""
        return self._now(batch).craft(batch, memory)

    def step(self, batch: Batch, state: Any, descend: Descend) -> tuple[Any, Metrics]:
        """Takes a step of the wrapped adversary at its present radius."""
        return self._now(batch).step(batch, state, descend)

    def _now(self, batch: Batch) -> Adversary:
        num_steps = self.warmup_epochs * batch.steps_per_epoch
        # The first step is 1 / num_steps of the whole rather than a wasted one at 0.
        return as_adversary(scaled(self.adversary, jnp.minimum(1.0, (batch.step + 1) / num_steps)))


def step_once(
    adversary: Adversary, batch: Batch, state: Any, descend: Descend
) -> tuple[Any, Metrics]:
    """Takes one training step on the images that an adversary crafts once.

    This is the `step` of an adversary without memory. The arguments and the result are those of
    `Adversary.step`.
    """
    state, metrics, _ = descend(state, adversary.craft(batch, state.adversary))
    return state, metrics


def as_adversary(value: Any) -> Adversary:
    """Turns an attack, an adversary or None into an adversary.

    Raises:
      TypeError: The value is none of these.
      ValueError: The value is a targeted attack or an AttackSchedule.
    """
    if value is None:
        return Crafted(None)
    if hasattr(value, "stages"):
        raise ValueError(
            "`adversary` must be the adversary of one epoch, got an AttackSchedule: use "
            "`recipe.at(epoch)`."
        )
    if all(hasattr(value, name) for name in ("memory", "craft", "step")):
        if isinstance(value, type) or jax.tree.leaves(value) == [value]:
            raise TypeError(
                "`adversary` must be registered as a pytree, with the decorator "
                f"jax.tree_util.register_dataclass or register_static, got {value!r}."
            )
        return value
    check_attack("adversary", value)
    return Crafted(value)


def check_attack(name: str, value: Any) -> None:
    """Raises unless a value is an untargeted attack.

    Raises:
      TypeError: The value is not an attack, or it lacks a method or a field of one.
      ValueError: The attack is targeted.
    """
    if not isinstance(value, Attack):
        raise TypeError(
            f"`{name}` must be an attack such as PGD(), a subclass of jaxrobust.attacks.Attack, or "
            "for a recipe an adversary with the methods memory, craft and step, got "
            f"{value!r}."
        )
    engine.check_attack(value)
    if value.targeted:
        raise ValueError(
            f"`{name}` must be untargeted: an attack that aims at the true labels makes them easier "
            "to predict."
        )


def scaled(attack: Any, scale: Array | float) -> Any:
    """Multiplies the epsilon and the step size of an attack by a number in [0, 1].

    Raises:
      ValueError: The attack has no epsilon.
    """
    changes = {name: getattr(attack, name) * scale for name in _lengths(attack)}
    return dataclasses.replace(attack, **changes)


def _lengths(attack: Any) -> list[str]:
    fields = dataclasses.fields(attack) if dataclasses.is_dataclass(attack) else ()
    # In the order of the fields: that of a set differs between processes, and programs with it.
    found = [field.name for field in fields if field.name in ("epsilon", "step_size")]
    if "epsilon" not in found:
        raise ValueError(
            f"Warmup needs an attack with an epsilon, which it increases, got {type(attack).__name__}. "
            "To combine it with AWP, write AWP(Warmup(...))."
        )
    return found
