"""What each method of training makes its images with, and which settings are refused."""

import dataclasses
import math
from typing import Any, get_args

from experiments.train.config import Config, Method
from experiments.train.options import Options, recipe
from experiments.train.options import check as check_options
from jaxrobust import checks, models
from jaxrobust.attacks import PGD
from jaxrobust.studies import suites
from jaxrobust.training import NFGSM, AttackSchedule, FreeReplays, KLAscent

STAGED = ("pgd", "trades", "mart")


def check(config: Config) -> None:
    """Refuses what is out of range. Not in `Config`: the command line would frame the words."""
    largest = 1.0 if config.norm == "linf" else math.inf
    checks.number("epsilon", config.radius, above=0.0, maximum=largest)
    checks.integer("train_steps", config.train_steps, minimum=1)
    checks.integer("num_validation", config.num_validation, minimum=1)
    checks.integer("num_images", config.num_images, minimum=1)
    if config.num_train is not None:
        checks.integer("num_train", config.num_train, minimum=2)
    check_options(config.training)
    if "mart" in config.methods and config.training.label_smoothing:
        raise ValueError("`training.label_smoothing` must be 0 for mart, whose loss has none.")
    for name in config.models:
        checks.one_of("models", name, tuple(models.MODELS))
    for name in ("models", "methods"):
        values = getattr(config, name)
        if not values or len(set(values)) < len(values):
            raise ValueError(f"`{name}` must be at least one and no name twice, got {values}.")
    _check_stages(config, largest)
    only_linf = {"fgsm_rs", "n_fgsm", "free"} & set(config.methods)
    if only_linf and config.norm != "linf":
        raise ValueError(f"`norm` must be 'linf' for {', '.join(sorted(only_linf))}.")
    if "trades" in config.methods and config.norm == "l1":
        raise ValueError("`norm` must be 'linf' or 'l2' for trades.")
    for method in config.methods:
        checks.one_of("methods", method, get_args(Method))
        attack, settings = prepare(config, method)
        recipe(settings, method, attack)  # which checks all of them


def _check_stages(config: Config, largest: float) -> None:
    """Refuses stages of the attack that would not be reached, or change nothing."""
    milestones = config.attack_milestones
    values = {name: getattr(config, name) for name in ("attack_epsilons", "attack_steps")}
    if bool(milestones) != any(values.values()):
        raise ValueError(
            "`attack_milestones` need `attack_epsilons` or `attack_steps`, and these need them."
        )
    if milestones and not set(STAGED) & set(config.methods):
        raise ValueError("`attack_milestones` are of the methods pgd, trades and mart.")
    num_epochs = config.training.num_epochs
    if list(milestones) != sorted(set(milestones) & set(range(1, num_epochs))):
        raise ValueError(
            f"`attack_milestones` must ascend and be at least 1 and below the {num_epochs} epochs, got "
            f"{milestones}."
        )
    for name, given in values.items():
        if given and len(given) != len(milestones) + 1:
            raise ValueError(
                f"`{name}` must be none or {len(milestones) + 1}, one more than `attack_milestones`, "
                f"got {given}."
            )
    for epsilon in config.attack_epsilons:
        value = suites.number("attack_epsilons", epsilon)
        checks.number("attack_epsilons", value, above=0.0, maximum=largest)
    for steps in config.attack_steps:
        checks.integer("attack_steps", steps, minimum=1)


def prepare(config: Config, method: str) -> tuple[Any, Options]:
    """What makes the training images, and the settings that go with it."""
    epsilon, steps, settings = config.radius, config.train_steps, config.training
    attack: Any = None
    if method in ("pgd", "mart"):
        attack = _staged(config, PGD)
    elif method == "trades":
        attack = _staged(config, KLAscent)
    elif method == "fgsm_rs":
        attack = PGD(epsilon, 1.25 * epsilon, num_steps=1)
    elif method == "n_fgsm":
        attack = NFGSM(epsilon)
    elif method == "free":
        attack = FreeReplays(epsilon, steps)
        settings = _fewer_epochs(settings, steps)
    return attack, settings


def _staged(config: Config, attack: type[PGD] | type[KLAscent]) -> Any:
    """The attack of training, or those of its stages; a step is 2.5 epsilon over their number."""
    starts = [1, *(milestone + 1 for milestone in config.attack_milestones)]
    epsilons = config.attack_epsilons or (config.epsilon,) * len(starts)
    numbers = config.attack_steps or (config.train_steps,) * len(starts)
    radii = [suites.number("attack_epsilons", epsilon) for epsilon in epsilons]
    stages = tuple(
        (start, attack(radius, 2.5 * radius / steps, steps, config.norm))
        for start, radius, steps in zip(starts, radii, numbers, strict=True)
    )
    return AttackSchedule(stages) if len(stages) > 1 else stages[0][1]


def _fewer_epochs(settings: Options, replays: int) -> Options:
    """The settings of a training that takes so many steps where others take one."""

    def fewer(epochs: int) -> int:
        return max(1, round(epochs / replays)) if epochs else 0

    num_epochs = fewer(settings.num_epochs)
    return dataclasses.replace(
        settings,
        num_epochs=num_epochs,
        warmup_epochs=min(fewer(settings.warmup_epochs), num_epochs - 1),
        milestones=tuple(sorted({fewer(milestone) for milestone in settings.milestones})),
        attack_warmup_epochs=min(fewer(settings.attack_warmup_epochs), num_epochs),
        awp_warmup_epochs=min(fewer(settings.awp_warmup_epochs), num_epochs),
    )
