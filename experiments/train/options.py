"""How a network is trained, as options of the command line, and the recipe that they make."""

import dataclasses
from typing import Any, Literal

from jaxrobust import checks, training
from jaxrobust.training import Recipe


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of training; `jaxrobust.training.Recipe` and its values say more about each.

    Attributes:
      num_epochs: Passes over the training set.
      batch_size: Images in a step.
      optimizer: adamw, adam or sgd.
      learning_rate: Of the first step, or of the end of the warm-up.
      weight_decay: At least 0.
      decayed_weights: What decays: all parameters, or the kernels only.
      momentum: Of sgd.
      nesterov: Nesterov's momentum, of sgd.
      gradient_clip: The gradient's largest global l2 norm.
      schedule: constant, cosine (to 0 at the last step), step (falls at the milestones) or plateau
        (falls when the monitored figure stops improving).
      warmup_epochs: The learning rate grows linearly over so many epochs first.
      milestones: Epochs after which step lowers the learning rate.
      factor: What step or plateau multiplies it by; None: a tenth, or half.
      patience: Of plateau: epochs without improvement that are borne.
      label_smoothing: Probability spread evenly over all classes; not of mart.
      natural_weight: Share of the clean images' cross-entropy; of pgd, fgsm_rs and n_fgsm.
      beta: Weight of the divergence, of trades and mart; None: 6, or 5.
      attack_warmup_epochs: The attack's epsilon and step size grow linearly over so many epochs.
      awp_gamma: Of adversarial weight perturbation; 0: none.
      awp_warmup_epochs: Epochs before weights are perturbed.
      ema_decay: Of a moving average of the weights, which is validated and returned; None: none.
      precision: float32, or bfloat16 for the passes of training and of its attack.
      monitor: The figure that decides about the best epoch, the plateau and early stopping.
      early_stopping_patience: Stop after so many epochs without a new best; None: never.
      seed: Of all that is random.
    """

    num_epochs: int = 30
    batch_size: int = 128
    optimizer: Literal["adamw", "adam", "sgd"] = "sgd"
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    decayed_weights: Literal["all", "kernels"] = "all"
    momentum: float = 0.9
    nesterov: bool = True
    gradient_clip: float | None = None
    schedule: Literal["constant", "cosine", "step", "plateau"] = "cosine"
    warmup_epochs: int = 1
    milestones: tuple[int, ...] = ()
    factor: float | None = None
    patience: int = 3
    label_smoothing: float = 0.0
    natural_weight: float = 0.0
    beta: float | None = None
    attack_warmup_epochs: int = 0
    awp_gamma: float = 0.0
    awp_warmup_epochs: int = 0
    ema_decay: float | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    monitor: Literal["validation_loss", "validation_accuracy"] = "validation_accuracy"
    early_stopping_patience: int | None = None
    seed: int = 0


def recipe(
    options: Options, method: str, attack: Any, judge: Any = None, augmentation: Any = None
) -> Recipe:
    """The recipe of a method.

    Args:
      options: Of the command line.
      method: Which decides about the objective.
      attack: What makes the training images, or None.
      judge: The attack on the validation images.
      augmentation: Of the training images.
    """
    adversary = attack
    if adversary is not None and options.attack_warmup_epochs:
        adversary = training.Warmup(adversary, options.attack_warmup_epochs)
    if options.awp_gamma:
        adversary = training.AWP(adversary, options.awp_gamma, options.awp_warmup_epochs)
    return Recipe(
        num_epochs=options.num_epochs,
        batch_size=options.batch_size,
        optimizer=_optimizer(options),
        schedule=_schedule(options),
        objective=_objective(options, method),
        adversary=adversary,
        augmentation=augmentation,
        averaging=None if options.ema_decay is None else training.EMA(options.ema_decay),
        precision=options.precision,
        validation=training.Validation(judge, options.monitor, options.early_stopping_patience),
        seed=options.seed,
    )


def check(options: Options) -> None:
    """Refuses what is out of range, whether the method or the optimizer reads it or not."""
    for name in ("momentum", "natural_weight", "label_smoothing"):
        checks.fraction(f"training.{name}", getattr(options, name))
    if options.ema_decay is not None:
        checks.fraction("training.ema_decay", options.ema_decay)
    if options.beta is not None:
        checks.number("training.beta", options.beta, above=0.0)
    if options.factor is not None:
        checks.number("training.factor", options.factor, above=0.0, maximum=1.0)
    checks.integer("training.patience", options.patience, minimum=0)
    checks.number("training.awp_gamma", options.awp_gamma, minimum=0.0)
    for name in ("attack_warmup_epochs", "awp_warmup_epochs"):
        checks.integer(f"training.{name}", getattr(options, name), minimum=0)
        if getattr(options, name) > options.num_epochs:
            raise ValueError(
                f"`training.{name}` must be at most the {options.num_epochs} epochs, got "
                f"{getattr(options, name)}."
            )


def _optimizer(options: Options) -> Any:
    common: dict[str, Any] = {
        "weight_decay": options.weight_decay,
        "decayed_weights": options.decayed_weights,
        "gradient_clip": options.gradient_clip,
    }
    if options.optimizer == "adamw":
        return training.AdamW(**common)
    if options.optimizer == "adam":
        return training.Adam(**common)
    return training.SGD(momentum=options.momentum, nesterov=options.nesterov, **common)


def _schedule(options: Options) -> Any:
    rate, warmup = options.learning_rate, options.warmup_epochs
    if (options.schedule == "step") != bool(options.milestones):
        raise ValueError(
            '`training.milestones` and the schedule "step" need each other, got schedule '
            f"{options.schedule!r} with milestones {options.milestones}."
        )
    if options.schedule == "step":
        return training.Steps(
            rate, options.milestones, 0.1 if options.factor is None else options.factor, warmup
        )
    if options.schedule == "plateau":
        return training.Plateau(
            rate, 0.5 if options.factor is None else options.factor, options.patience, warmup
        )
    if options.schedule == "cosine":
        return training.Cosine(rate, warmup)
    return training.Constant(rate, warmup)


def _objective(options: Options, method: str) -> Any:
    if method == "trades":
        return training.TRADES(
            6.0 if options.beta is None else options.beta, options.label_smoothing
        )
    if method == "mart":
        return training.MART(5.0 if options.beta is None else options.beta)
    weighted = method in ("pgd", "fgsm_rs", "n_fgsm")
    weight = options.natural_weight if weighted else 0.0
    return training.CrossEntropy(weight, options.label_smoothing)
