"""The recipe of each training method, and the checks of its settings."""

import dataclasses
import math
from typing import Any, get_args

from experiments.train.settings import Method, Options, Settings
from jaxrobust import checks, models, studies, training
from jaxrobust.attacks import PGD
from jaxrobust.studies import suite_names
from jaxrobust.training import NFGSM, AttackSchedule, FreeReplays, KLAscent, Recipe

STAGED = ("pgd", "trades", "mart")
_VALIDATION_STEPS = 10


def recipe(settings: Settings, method: str, augmentation: Any = None) -> Recipe:
    """Returns the recipe of a method; `augmentation` is applied to the training images."""
    options, attack = settings.training, _attack(settings, method)
    if method == "free":
        options = _fewer_epochs(options, settings.train_steps)
    adversary, judge = attack, None
    if attack is not None:
        size = 2.5 * settings.radius / _VALIDATION_STEPS
        judge = PGD(settings.radius, size, _VALIDATION_STEPS, settings.norm)
        if options.attack_warmup_epochs:
            adversary = training.Warmup(attack, options.attack_warmup_epochs)
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


def _attack(settings: Settings, method: str) -> Any:
    """Returns the attack that makes the training images, or None for clean images."""
    if method in STAGED:
        return _staged(settings, KLAscent if method == "trades" else PGD)
    if method == "fgsm_rs":
        return PGD(settings.radius, 1.25 * settings.radius, num_steps=1)
    if method == "n_fgsm":
        return NFGSM(settings.radius)
    return FreeReplays(settings.radius, settings.train_steps) if method == "free" else None


def _staged(settings: Settings, attack: type[PGD] | type[KLAscent]) -> Any:
    """Returns the attack of training, or its stages; a step is 2.5 epsilon / the number of steps."""
    starts = [1, *(milestone + 1 for milestone in settings.attack_milestones)]
    epsilons = settings.attack_epsilons or (settings.epsilon,) * len(starts)
    numbers = settings.attack_steps or (settings.train_steps,) * len(starts)
    radii = [suite_names.number("attack_epsilons", epsilon) for epsilon in epsilons]
    stages = tuple(
        (start, attack(radius, 2.5 * radius / steps, steps, settings.norm))
        for start, radius, steps in zip(starts, radii, numbers, strict=True)
    )
    return AttackSchedule(stages) if len(stages) > 1 else stages[0][1]


def _fewer_epochs(options: Options, replays: int) -> Options:
    """Divides the numbers of epochs by `replays`, the number of steps taken on each batch."""

    def fewer(epochs: int) -> int:
        return max(1, round(epochs / replays)) if epochs else 0

    num_epochs = fewer(options.num_epochs)
    return dataclasses.replace(
        options,
        num_epochs=num_epochs,
        warmup_epochs=min(fewer(options.warmup_epochs), num_epochs - 1),
        milestones=tuple(sorted({fewer(milestone) for milestone in options.milestones})),
        attack_warmup_epochs=min(fewer(options.attack_warmup_epochs), num_epochs),
        awp_warmup_epochs=min(fewer(options.awp_warmup_epochs), num_epochs),
    )


def _optimizer(options: Options) -> Any:
    names = ("weight_decay", "decayed_weights", "gradient_clip")
    common: dict[str, Any] = {name: getattr(options, name) for name in names}
    if options.optimizer == "sgd":
        return training.SGD(momentum=options.momentum, nesterov=options.nesterov, **common)
    return {"adamw": training.AdamW, "adam": training.Adam}[options.optimizer](**common)


def _schedule(options: Options) -> Any:
    rate, warmup = options.learning_rate, options.warmup_epochs
    if (options.schedule == "step") != bool(options.milestones):
        raise ValueError(
            '`training.milestones` and the schedule "step" need each other, got schedule '
            f"{options.schedule!r} with milestones {options.milestones}."
        )
    if options.schedule == "step":
        return training.Steps(rate, options.milestones, options.factor or 0.1, warmup)
    if options.schedule == "plateau":
        return training.Plateau(rate, options.factor or 0.5, options.patience, warmup)
    return {"cosine": training.Cosine, "constant": training.Constant}[options.schedule](
        rate, warmup
    )


def _objective(options: Options, method: str) -> Any:
    if method == "trades":
        return training.TRADES(options.beta or 6.0, options.label_smoothing)
    if method == "mart":
        return training.MART(options.beta or 5.0)
    weighted = method in ("pgd", "fgsm_rs", "n_fgsm")
    return training.CrossEntropy(options.natural_weight * weighted, options.label_smoothing)


def check(settings: Settings) -> None:
    """Raises if a setting is out of range.

    This is not done in `Settings`, because the command line would draw a frame around the message.
    """
    largest = 1.0 if settings.norm == "linf" else math.inf
    checks.number("epsilon", settings.radius, above=0.0, maximum=largest)
    known = {"models": models.MODELS, "methods": get_args(Method)}
    studies.check_settings(settings, {"num_train": 2}, **known)
    _check_options(settings.training)
    _check_stages(settings, largest)
    methods = set(settings.methods)
    only_linf = {"fgsm_rs", "n_fgsm", "free"} & methods
    if only_linf and settings.norm != "linf":
        raise ValueError(f"`norm` must be 'linf' for {', '.join(sorted(only_linf))}.")
    if "trades" in methods and settings.norm == "l1":
        raise ValueError("`norm` must be 'linf' or 'l2' for trades.")
    if "mart" in methods and settings.training.label_smoothing:
        raise ValueError("`training.label_smoothing` must be 0 for mart, whose loss has none.")
    for method in settings.methods:
        recipe(settings, method)  # checks the remaining settings


def _check_options(options: Options) -> None:
    """Raises if an option is out of range, even if the method or the optimizer does not use it."""
    given = {name: value for name, value in vars(options).items() if value is not None}
    for name in ("momentum", "natural_weight", "label_smoothing", "ema_decay"):
        checks.fraction(f"training.{name}", given.get(name, 0.0))
    checks.number("training.beta", given.get("beta", 1.0), above=0.0)
    checks.number("training.factor", given.get("factor", 1.0), above=0.0, maximum=1.0)
    checks.number("training.awp_gamma", options.awp_gamma, minimum=0.0)
    for name in ("patience", "attack_warmup_epochs", "awp_warmup_epochs"):
        checks.integer(f"training.{name}", given[name], minimum=0)
        if name != "patience" and given[name] > options.num_epochs:
            raise ValueError(
                f"`training.{name}` must be at most {options.num_epochs}, the number of epochs, got "
                f"{given[name]}."
            )


def _check_stages(settings: Settings, largest: float) -> None:
    """Raises if a stage of the attack would not be reached, or would change nothing."""
    milestones, num_epochs = settings.attack_milestones, settings.training.num_epochs
    if bool(milestones) != bool(settings.attack_epsilons or settings.attack_steps):
        raise ValueError(
            "`attack_milestones` must be given together with `attack_epsilons` or `attack_steps`."
        )
    if milestones and not set(STAGED) & set(settings.methods):
        raise ValueError("`attack_milestones` needs one of the methods pgd, trades and mart.")
    if list(milestones) != sorted(set(milestones) & set(range(1, num_epochs))):
        raise ValueError(
            f"`attack_milestones` must ascend from at least 1 to less than {num_epochs}, the number of "
            f"epochs, got {milestones}."
        )
    for name in ("attack_epsilons", "attack_steps"):
        given = getattr(settings, name)
        if given and len(given) != len(milestones) + 1:
            raise ValueError(
                f"`{name}` must be empty or have {len(milestones) + 1} values, one more than "
                f"`attack_milestones`, got {given}."
            )
    for epsilon in settings.attack_epsilons:
        value = suite_names.number("attack_epsilons", epsilon)
        checks.number("attack_epsilons", value, above=0.0, maximum=largest)
    for steps in settings.attack_steps:
        checks.integer("attack_steps", steps, minimum=1)
