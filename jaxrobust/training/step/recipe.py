"""Everything that decides what a training comes to, beside the network and the data."""

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
    """What is made of the validation set after every epoch.

    Attributes:
      attack: Untargeted; its last points take the place of the images, so that the best epoch is the
        most robust one: of a long adversarial training that is not the last (Rice et al. 2020,
        https://arxiv.org/abs/2002.11569). None: the images stay clean.
      monitor: The figure that decides about the best epoch, the plateau and early stopping.
      early_stopping_patience: Stop after so many epochs without a new best; None: never.
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
    """How a network is trained; each field is a value of its own.

    Two runs with the same recipe, network and data give the same result.

    Attributes:
      num_epochs: Passes over the training set, at least 1.
      batch_size: Images in a step. The examples that do not fill the last batch of an epoch are
        left out of it; as each epoch is shuffled anew, all are left out equally often.
      optimizer: `AdamW`, `Adam`, `SGD`, or any function from a learning rate to an optax
        transformation, such as `optax.lion`.
      schedule: Of the learning rate: `Constant`, `Cosine`, `Steps`, `Plateau`, or any schedule of
        optax, a function of the step.
      objective: What is descended: `CrossEntropy`, `TRADES`, `MART`, `Distillation`, or one's own.
      adversary: What works against the network: an attack of `jaxrobust.attacks`, `NFGSM`, `KLAscent`
        (of TRADES), `FreeReplays`, an `AttackSchedule`, a `Warmup` or an `AWP` of these. Untargeted;
        restarts and `keep` do not matter: no point is judged. None: training on clean images.
      augmentation: (key, images float32 [B, H, W, C] in [0, 1]) -> images, before the adversary.
      compression: A method that compresses the network while it is trained: `ADMM`, `Hydra`, `RigL`.
      averaging: `EMA`: an average of the weights is validated and returned. None: the weights.
      precision: "float32", or "bfloat16" for the passes of training and of its attack; weights,
        statistics and sums stay float32.
      validation: What is made of the validation set, where there is one.
      seed: Of the initial weights, the order of the examples, augmentation, attack and dropout.

    Raises:
      TypeError: A value of the wrong type.
      ValueError: A number out of range, or values that do not go together.

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
        """Whether something is decided by a figure of the validation set."""
        by_schedule = getattr(self.schedule, "needs_validation", False)
        return by_schedule or self.validation.early_stopping_patience is not None

    def at(self, epoch: int) -> "Recipe":
        """The recipe with the adversary of an epoch, counted from 1, in the place of a schedule."""
        checks.integer("epoch", epoch, minimum=1)
        if epoch > self.num_epochs:
            raise ValueError(
                f"`epoch` must be at most the {self.num_epochs} of the recipe, got {epoch}."
            )
        stages = stages_of(self.adversary)
        return dataclasses.replace(
            self, adversary=next(one for first, one in reversed(stages) if first <= epoch)
        )

    def learning_rate(self, steps_per_epoch: int) -> optax.Schedule:
        """The learning rate as a function of the step; 0 is the first."""
        return learning_rates.as_optax(self.schedule, self.num_epochs, steps_per_epoch)


def _check_kinds(recipe: Recipe) -> None:
    """Refuses what cannot be what its field says, a class in the place of a value above all."""
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
            hint = ": call it, with parentheses" if isinstance(value, type) else ""
            raise TypeError(f"`{name}` must be {words}, got {value!r}{hint}.")
    if not isinstance(recipe.validation, Validation):
        raise TypeError(
            "`validation` must be a Validation, such as Validation(PGD()), got "
            f"{type(recipe.validation).__name__}: images for validation are the data's."
        )


def _check_lengths(recipe: Recipe) -> None:
    """Refuses what would not be over, or not be reached, before the training is."""
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
            f"`adversary` has a stage from epoch {last} on, which is beyond `num_epochs` = "
            f"{recipe.num_epochs}."
        )


def _check_adversary(recipe: Recipe) -> None:
    """Refuses what is no adversary, and an objective that has none to compare with."""
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
                "adversarial images: give KLAscent(8 / 255), PGD(8 / 255) or another attack."
            )
        if isinstance(adversary, FreeReplays):
            raise ValueError(
                f"`adversary` must be an attack with {recipe.objective}, which compares clean with "
                "adversarial images, got FreeReplays, which keeps no clean ones."
            )
