"""The recipe: all settings of a training except the network and the data."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import optax

from jaxrobust import checks
from jaxrobust.attacks import Attack
from jaxrobust.training.compression.method import Compression
from jaxrobust.training.step import learning_rates
from jaxrobust.training.step.adversaries import as_adversary, check_attack
from jaxrobust.training.step.attack_schedule import stages_of
from jaxrobust.training.step.averaging import Averaging
from jaxrobust.training.step.free_replays import FreeReplays
from jaxrobust.training.step.learning_rates import Schedule
from jaxrobust.training.step.network import PRECISIONS
from jaxrobust.training.step.objectives import CrossEntropy, Objective
from jaxrobust.training.step.optimizers import AdamW, Optimizer, check_optimizer
from jaxrobust.types import Array

Augmentation = Callable[[Array, Array], Array]
"""(key, images float32 [B, H, W, C] in [0, 1]) -> images of the same kind, of any size."""

Monitor = Literal["validation_loss", "validation_accuracy"]
Precision = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class Validation:
    """How the network is evaluated on the validation set after every epoch.

    Attributes:
      attack: An untargeted attack on the validation images. With it the best epoch is the most robust
        one, which in a long adversarial training is not the last (Rice et al. 2020,
        https://arxiv.org/abs/2002.11569). None: the images stay clean.
      monitor: The figure that chooses the best epoch, lowers the rate of `Plateau` and stops early:
        "validation_loss" or "validation_accuracy".
      early_stopping_patience: The number of epochs without a new best after which training stops, at
        least 1. None: it never stops early.
    """

    attack: Attack | None = None
    monitor: Monitor = "validation_loss"
    early_stopping_patience: int | None = None

    def __post_init__(self) -> None:
        if self.attack is not None:
            check_attack("validation.attack", self.attack)
        checks.one_of("monitor", self.monitor, get_args(Monitor))
        if self.early_stopping_patience is not None:
            checks.integer("early_stopping_patience", self.early_stopping_patience, minimum=1)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The settings of a training.

    Two runs with the same recipe, network and data give the same result.

    Attributes:
      num_epochs: The number of passes over the training set, at least 1.
      batch_size: The number of images in a step, at least 1. Images that do not fill the last batch of
        an epoch are left out; since each epoch is shuffled anew, these are different images each time.
      optimizer: `AdamW`, `Adam`, `SGD`, or any function from a learning rate to an optax
        transformation, such as `optax.lion`.
      schedule: The learning rate schedule: `Constant`, `Cosine`, `Steps`, `Plateau`, or any optax
        schedule, which is a function of the step.
      objective: The loss: `CrossEntropy`, `TRADES`, `MART`, `Distillation`, or any `Objective`.
      adversary: What makes the adversarial images: an untargeted attack of `jaxrobust.attacks`,
        `NFGSM`, `KLAscent` (for TRADES), `FreeReplays`, an `AttackSchedule`, or a `Warmup` or `AWP` of
        these. The attack's restarts and `keep` have no effect, because training uses its last points.
        None: training on clean images.
      augmentation: A function (key, images float32 [B, H, W, C] in [0, 1]) -> images, which is applied
        before the adversary. None: no augmentation.
      compression: A method that compresses the network during training: `ADMM`, `Hydra` or `RigL`.
        None: no compression.
      averaging: `EMA` to validate and return an average of the weights. None: the weights themselves.
      precision: "float32", or "bfloat16" for the passes of the training and of its attack; weights,
        statistics and sums stay float32.
      validation: How the network is evaluated on the validation set, if there is one.
      seed: The seed of the initial weights, the order of the examples, augmentation, attack and
        dropout; at least 0.

    Raises:
      TypeError: A value has the wrong type.
      ValueError: A number is out of range, or two values cannot be combined.

    Example:
      >>> from jaxrobust.attacks import PGD
      >>> from jaxrobust.training.step.learning_rates import Cosine
      >>> Recipe(num_epochs=20, schedule=Cosine(2e-3), adversary=PGD(8 / 255)).batch_size
      32
    """

    num_epochs: int = 30
    batch_size: int = 32
    optimizer: Optimizer = AdamW()  # noqa: RUF009 (these cannot be changed)
    schedule: Schedule | optax.Schedule = learning_rates.Constant()  # noqa: RUF009
    objective: Objective = CrossEntropy()  # noqa: RUF009
    adversary: Any = None
    augmentation: Augmentation | None = None
    compression: Compression | None = None
    averaging: Averaging | None = None
    precision: Precision = "float32"
    validation: Validation = Validation()
    seed: int = 0

    def __post_init__(self) -> None:
        checks.integer("num_epochs", self.num_epochs, minimum=1)
        checks.integer("batch_size", self.batch_size, minimum=1)
        checks.one_of("precision", self.precision, PRECISIONS)
        checks.integer("seed", self.seed, minimum=0)
        _check_kinds(self)
        check_optimizer(self.optimizer)
        _check_lengths(self)
        _check_adversary(self)

    @property
    def needs_validation(self) -> bool:
        """Whether the schedule or early stopping needs a validation set."""
        by_schedule = getattr(self.schedule, "needs_validation", False)
        return by_schedule or self.validation.early_stopping_patience is not None

    def at(self, epoch: int) -> "Recipe":
        """Returns the recipe of one epoch, counted from 1: a schedule of attacks becomes its attack."""
        checks.integer("epoch", epoch, minimum=1)
        if epoch > self.num_epochs:
            raise ValueError(
                f"`epoch` must be at most {self.num_epochs}, the recipe's `num_epochs`, got {epoch}."
            )
        stages = stages_of(self.adversary)
        return dataclasses.replace(
            self, adversary=next(one for first, one in reversed(stages) if first <= epoch)
        )

    def learning_rate(self, steps_per_epoch: int) -> optax.Schedule:
        """Returns the learning rate as a function of the step, counted from 0."""
        return learning_rates.as_optax(self.schedule, self.num_epochs, steps_per_epoch)


def _check_kinds(recipe: Recipe) -> None:
    """Raises if a field has a value of the wrong kind, such as a class instead of an instance."""
    rules = {
        "schedule": ("a schedule such as Constant(1e-3)", (("over",), ("__call__",))),
        "objective": ("an objective such as CrossEntropy()", (("__call__",),)),
        "augmentation": ("a function of a key and images, or None", (("__call__",),)),
        "averaging": ("an average such as EMA(0.999), or None", (("start", "update"),)),
        "compression": ("a method such as ADMM(), or None", (("start", "update", "finish"),)),
    }
    optional = ("augmentation", "averaging", "compression")
    for name, (words, choices) in rules.items():
        value = getattr(recipe, name)
        if value is None and name in optional:
            continue
        fits = any(all(hasattr(value, part) for part in parts) for parts in choices)
        if isinstance(value, type) or not fits:
            hint = ": it is a class, so call it" if isinstance(value, type) else ""
            raise TypeError(f"`{name}` must be {words}, got {value!r}{hint}.")
    if not isinstance(recipe.validation, Validation):
        raise TypeError(
            "`validation` must be a Validation, such as Validation(PGD()), got "
            f"{type(recipe.validation).__name__}: the validation images belong in `Data`."
        )


def _check_lengths(recipe: Recipe) -> None:
    """Raises if a warm-up or a stage of attacks lies beyond the end of the training."""
    warmup_epochs = getattr(recipe.schedule, "warmup_epochs", 0)
    if warmup_epochs >= recipe.num_epochs:
        raise ValueError(
            f"`schedule.warmup_epochs` must be less than `num_epochs` = {recipe.num_epochs}, got "
            f"{warmup_epochs}."
        )
    adversary = recipe.adversary
    while hasattr(adversary, "adversary"):
        warmup_epochs = getattr(adversary, "warmup_epochs", 0)
        if warmup_epochs > recipe.num_epochs:
            raise ValueError(
                f"`warmup_epochs` of {type(adversary).__name__} must be at most `num_epochs` = "
                f"{recipe.num_epochs}, got {warmup_epochs}."
            )
        adversary = adversary.adversary
    last = stages_of(adversary)[-1][0]
    if last > recipe.num_epochs:
        raise ValueError(
            f"`adversary` has a stage that starts at epoch {last}, after `num_epochs` = "
            f"{recipe.num_epochs}."
        )


def _check_adversary(recipe: Recipe) -> None:
    """Raises if the adversary is none, or if the objective needs an adversary that is missing."""
    for _, adversary in stages_of(recipe.adversary):
        as_adversary(adversary)
        while hasattr(adversary, "adversary"):
            adversary = adversary.adversary
            as_adversary(adversary)
        if not getattr(recipe.objective, "compares", False):
            continue
        if adversary is None:
            raise ValueError(
                f"`adversary` must not be None with {recipe.objective}, which compares clean with "
                "adversarial images: use KLAscent(8 / 255), PGD(8 / 255) or another attack."
            )
        if isinstance(adversary, FreeReplays):
            raise ValueError(
                f"`adversary` must be an attack with {recipe.objective}, which compares clean with "
                "adversarial images, got FreeReplays, which does not keep the clean images."
            )
