"""What changes from epoch to epoch, for all methods alike: attack, learning rate, share kept.

All of it is of the epoch counted over all phases of a method, so that no method meets a weaker attack
than another, or a higher learning rate.
"""

import dataclasses
from typing import Any

import jax

from experiments.robust_compression.attacking import pgd
from experiments.robust_compression.config import EPSILON
from experiments.robust_compression.study import Study
from jaxrobust import pruning, training
from jaxrobust.data.augment import Augmentation
from jaxrobust.training import AttackSchedule

NATURAL_WEIGHT, MOMENTUM, CLIP = 0.1, 0.9, 5.0
PHOTOGRAPHS = Augmentation(flip=0.5, translate=0.125)
NUM_RADII = 3  # at most, in the first half of the epochs
LATE, FACTOR = 0.75, 0.2  # of the epochs, from which on the learning rate is this much of itself
CONSTANTS = [NATURAL_WEIGHT, MOMENTUM, CLIP, NUM_RADII, LATE, FACTOR]


def phases(method: str, num_epochs: int) -> tuple[int, ...]:
    """The epochs of every phase of a method; together `num_epochs`.

    Example:
      >>> phases("irregular", 15), phases("magnitude", 15), phases("hydra", 15)
      ((15,), (7, 8), (7, 4, 4))
    """
    half = num_epochs // 2
    rest = num_epochs - half
    if method in ("magnitude", "dense_phases"):
        return half, rest
    if method in ("two_phase", "hydra"):
        return half, rest - rest // 2, rest // 2
    return (num_epochs,)


def recipe(study: Study, first: int, num_epochs: int, **changes: Any) -> training.Recipe:
    """How a training or one of its phases goes, `first` epochs after the beginning."""
    config = study.config
    drop = round(LATE * config.num_epochs) - first
    rate: Any = training.Constant(config.learning_rate)
    if drop <= 0:
        rate = training.Constant(config.learning_rate * FACTOR)
    elif drop < num_epochs:
        rate = training.Steps(config.learning_rate, (drop,), FACTOR)
    common = training.Recipe(
        num_epochs=num_epochs,
        batch_size=min(config.batch_size, len(study.train)),
        optimizer=training.SGD(
            momentum=MOMENTUM, nesterov=True, weight_decay=config.weight_decay, gradient_clip=CLIP
        ),
        schedule=rate,
        augmentation=None if study.dataset.name == "digits" else PHOTOGRAPHS,
        precision="bfloat16" if jax.default_backend() == "gpu" else "float32",
    )
    return dataclasses.replace(common, **changes)


def robust(study: Study, radius: float, first: int, num_epochs: int) -> dict[str, Any]:
    """What a recipe has against attacks; none of it for natural training."""
    if not radius:
        return {}
    return {
        "objective": training.CrossEntropy(natural_weight=NATURAL_WEIGHT),
        "adversary": part_of(attacks(study, radius), first, num_epochs),
        "validation": training.Validation(pgd(radius, study.config.max_steps)),
    }


def attacks(study: Study, radius: float) -> AttackSchedule | None:
    """The attack of every epoch, the same for all methods; None for natural training.

    Radius and steps rise as the source's do, but within the first half of the epochs: what is pruned
    in the second half, by whatever method, meets the whole attack.
    """
    if not radius:
        return None
    rising = study.config.num_epochs // 2
    schedule, _ = training.source_sequences(
        rising,
        pgd(radius, study.config.max_steps),
        1.0,
        num_radii=min(NUM_RADII, rising // 3),
    )
    return schedule


def part_of(schedule: AttackSchedule | None, first: int, num_epochs: int) -> AttackSchedule | None:
    """The attacks of a phase that begins `first` epochs after the beginning.

    Example:
      >>> from jaxrobust.attacks import PGD
      >>> whole = AttackSchedule(((1, PGD(0.1)), (3, PGD(0.2)), (6, PGD(0.3))))
      >>> [(epoch, one.epsilon) for epoch, one in part_of(whole, 3, 4).stages]
      [(1, 0.2), (3, 0.3)]
    """
    if schedule is None:
        return None
    stages: dict[int, Any] = {}
    for epoch, one in schedule.stages:
        if epoch <= first + num_epochs:
            stages[max(1, epoch - first)] = one
    return AttackSchedule(tuple(stages.items()))


def budgets(study: Study, kept: float) -> tuple[float, ...]:
    """The share kept in every epoch of a one-shot scheme: it falls only where the attack stays.

    It rests from where the learning rate falls, so that the weights come to lie in the set.
    """
    num_epochs = study.config.num_epochs
    changes = {first for first, _ in _stages(attacks(study, EPSILON))}
    rests = round(LATE * num_epochs)
    falls = [epoch for epoch in range(2, rests + 1) if epoch not in changes]
    sparsities = pruning.cubic_schedule(1 - kept, len(falls))
    shares = []
    for epoch in range(1, num_epochs + 1):
        done = sum(fall <= epoch for fall in falls)
        shares.append(kept if done == len(falls) else 1 - sparsities[done - 1] if done else 1.0)
    return tuple(shares)


def strength(schedule: AttackSchedule | None, epoch: int) -> dict[str, Any]:
    """What the attack of an epoch was, for the log."""
    now = [one for first, one in _stages(schedule) if first <= epoch]
    return {"epsilon": float(now[-1].epsilon), "steps": int(now[-1].num_steps)} if now else {}


def _stages(schedule: AttackSchedule | None) -> tuple[tuple[int, Any], ...]:
    return () if schedule is None else schedule.stages
