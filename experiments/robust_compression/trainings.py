"""Trains every network of the study: dense, in one shot, and by the alternatives.

All methods have `num_epochs` epochs in all, in these phases:

    dense, ADMM's schemes, RigL, random masks   one training of all epochs
    magnitude       half of them dense; pruned; the other half under the masks
    two_phase       half of them dense; a quarter with ADMM; a quarter under the masks
    hydra           half of them dense; a quarter for the scores; a quarter under the masks
    dense_phases    half of them dense; the other half dense too: the control of those three

These four methods share the training of the dense half. The attack, the learning rate and the share
kept depend on the epoch, counted over all phases, so no method has a weaker attack than another, or a
higher learning rate. Only the momentum starts anew in a new phase.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.robust_compression import networks
from experiments.robust_compression.attacks import pgd
from experiments.robust_compression.networks import PRETRAINED, SCHEMES, Study, Variant
from jaxrobust import models, pruning, training
from jaxrobust.data.augment import Augmentation
from jaxrobust.pruning.constraints import open_kernels
from jaxrobust.pruning.magnitude import not_excluded
from jaxrobust.studies.outcomes import pack, right_ones
from jaxrobust.training import ADMM, AttackSchedule, Hydra, RigL
from jaxrobust.training.step.attack_schedule import strength

NATURAL_WEIGHT, MOMENTUM, CLIP = 0.1, 0.9, 5.0
AUGMENTATIONS = {
    "rotation": Augmentation(flip=0.5, rotation=15.0),
    "translation": Augmentation(flip=0.5, translate=0.125),
}
NUM_RADII = 3  # at most, in the first half of the epochs
LATE, FACTOR = 0.75, 0.2  # after this share of the epochs, the learning rate falls by this factor
UPDATES = 4  # of ADMM's multipliers in an epoch
# The pulls of one-shot ADMM (`training.rho_for_pull`) at the first update, and when the learning rate
# falls: of six pairs, the one with the most validation images right under attack, though by no more
# than chance (pulls.py). After the fall the last rho pulls by 60 %. Clipping covers the penalty too, so
# that pulls may be smaller.
PULLS = (0.05, 0.99)
# For two-phase ADMM, after Ye et al. No rho times the learning rate exceeds STEEPEST, far below the
# values at which steps become unstable.
GROWTH, STEEPEST = 1.3, 0.2
CONSTANTS: list[Any] = [NATURAL_WEIGHT, MOMENTUM, CLIP, NUM_RADII, LATE, FACTOR]
CONSTANTS += [UPDATES, PULLS, GROWTH, STEEPEST, list(AUGMENTATIONS.items())]
_BLOCK = 4  # N of every 4 weights, or of 8 if N would not be a whole number of at least one


def train(study: Study, variant: Variant) -> dict[str, Any]:
    """Trains a network once and saves it as a file; returns its record (`_finished`).

    Raises:
      ValueError: The training is finished, but the file of the network is missing.
    """
    if variant not in study.records:
        if any(phases(variant.method, study.settings.num_epochs)[1:]):
            train(study, _dense_half(variant))
        study.records[variant] = study.run.stages.remember(
            f"train {variant.name}",
            lambda _: _trained(study, variant),
            scratch=_training_folder(study, variant),
        )
        if not study.path(variant).is_file():
            raise ValueError(
                f"{study.path(variant)} is missing; put it back, or delete {study.run.folder} to "
                "start anew."
            )
    return study.records[variant]


def _dense_half(variant: Variant) -> Variant:
    return variant.but(method=PRETRAINED, kept=1.0)


def _trained(study: Study, variant: Variant) -> dict[str, Any]:
    epochs, tie = phases(variant.method, study.settings.num_epochs), compression(study, variant)
    if not any(epochs[1:]):
        masks = _random_masks(study, variant) if variant.method == "random_masks" else None
        return _finished(study, variant, [_fit(study, variant, 0, tie, None, masks)])
    base, fits, masks = _dense_half(variant), [], None
    variables = study.classifier(base).variables
    if variant.method == "magnitude":
        params, whole = variables["params"], variant.exclude
        masks = pruning.Irregular().masks(params, variant.kept, exclude=whole)
    if epochs[1]:
        fits = [_fit(study, variant, 1, tie, variables)]
        variables, masks = fits[0].variables, fits[0].masks
    fits.append(_fit(study, variant, 2, None, variables, masks))
    return _finished(study, variant, fits, study.records[base]["history"])


def compression(
    study: Study, variant: Variant, pulls: tuple[float, float] = PULLS
) -> training.Compression | None:
    """Returns the compression of the phase that compresses; None: nothing, or only masks."""
    settings, exclude = study.settings, variant.exclude
    if variant.method == "rigl":
        return RigL(variant.kept, exclude=exclude)
    if variant.method == "hydra":
        return Hydra(pruning.Irregular(), variant.kept, exclude=exclude)
    if variant.method not in (*SCHEMES, "two_phase"):
        return None
    # Rho is small at first: with the whole rho from the start a network learned less, perhaps because
    # its weights were drawn to their values at the last update (docs/compression.md).
    smallest, largest = rhos(study, pulls)
    until = max(1, round(LATE * settings.num_epochs * UPDATES))
    course: dict[str, Any] = {"rho": smallest, "rho_growth": (largest / smallest) ** (1 / until)}
    course |= {"largest_rho": largest, "kept": budgets(settings, variant.kept)}
    if variant.method == "two_phase":
        course = {"rho": largest, "rho_growth": GROWTH, "kept": variant.kept, "rescale": False}
        course["largest_rho"] = STEEPEST / settings.learning_rate
    return ADMM(constraint(study, variant), every=every(study), exclude=exclude, **course)


def every(study: Study) -> int:
    """Returns the number of steps between two updates of ADMM's multipliers."""
    return max(1, len(study.train) // study.batch_size // UPDATES)


def rhos(study: Study, pulls: tuple[float, float] = PULLS) -> tuple[float, float]:
    """Returns the first and the last rho of one-shot ADMM: the pulls, scaled to the recipe."""
    rate = study.settings.learning_rate
    first, last = (training.rho_for_pull(pull, rate, every(study), MOMENTUM) for pull in pulls)
    return min(first, STEEPEST / rate), min(last, STEEPEST / rate)


def constraint(study: Study, variant: Variant) -> Any:
    """Returns the constraint set of a scheme of one-shot ADMM."""
    if variant.method == "n_of_m":
        return pruning.NofM(*n_of_m(variant.kept))
    if variant.method == "redundant":
        return pruning.Redundant()
    if variant.method != "funnel":
        return pruning.Irregular()
    if networks.NETWORKS[variant.network].family != "mobilenet_v2":
        return pruning.Funnel()  # knows the shortcuts and blocks of residual networks
    network = study.network(variant.network)
    image = jax.ShapeDtypeStruct((1, *study.dataset.image_shape), np.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), image)
    kernels = pruning.channel_groups(network.apply, shapes, image).kernels
    paths = [kernel.path.removeprefix("params/") for kernel in kernels]
    return pruning.Funnel(order=tuple(not_excluded(dict.fromkeys(paths), variant.exclude)))


def share_of(method: str, kept: float) -> float:
    """Returns the share that a method keeps, which for N of M is a ratio of whole numbers."""
    if method == networks.CONTROL:
        return 1.0
    return n_of_m(kept)[0] / n_of_m(kept)[1] if method == "n_of_m" else kept


def n_of_m(kept: float) -> tuple[int, int]:
    """Returns the (N, M) nearest to a share: 2 of 4 for a half, 1 of 8 for a tenth."""
    exact = abs(kept * _BLOCK - round(kept * _BLOCK)) < 1e-6 and round(kept * _BLOCK) > 0
    size = _BLOCK if exact else 2 * _BLOCK
    return max(1, round(kept * size)), size


def promised(variant: Variant, sizes: list[int]) -> int | None:
    """Returns how many weights of kernels of these sizes a method promises to keep, if it does."""
    # For whole filters and groups of M this number depends on the shapes of the kernels.
    if variant.method in ("redundant", "n_of_m"):
        return None
    if variant.method == "funnel":
        return round(variant.kept * sum(sizes))
    return sum(round(variant.kept * size) for size in sizes)


def _random_masks(study: Study, variant: Variant) -> Any:
    """Returns random masks that keep as many weights of every layer as the irregular scheme."""
    network, shape = study.network(variant.network), study.dataset.image_shape
    params = training.initial_variables(network, shape, variant.seed)["params"]
    kernels = open_kernels(params, variant.exclude)
    # Not one number with `exclude`, which would be a share of all kernels, including unpruned ones.
    removed = {p: 1 - round(variant.kept * leaf.size) / leaf.size for p, leaf in kernels.items()}
    key = jax.random.fold_in(jax.random.key(variant.seed), 1)
    return pruning.random(key, params, removed, scope="layer")


def _fit(
    study: Study,
    variant: Variant,
    phase: int,
    tie: training.Compression | None = None,
    variables: Any = None,
    masks: Any = None,
) -> training.FitResult:
    """Runs a phase of a training: 0, 1 or 2."""
    epochs = phases(variant.method, study.settings.num_epochs)
    train, held = study.train, study.validation
    return training.fit(
        study.network(variant.network),
        training.Data(
            (train.images, train.labels),
            (held.images, held.labels),
            study.dataset.mean,
            study.dataset.std,
        ),
        dataclasses.replace(
            recipe(study, variant.radius, sum(epochs[:phase]), epochs[phase]),
            seed=10 * variant.seed + phase,
            compression=tie,
        ),
        run_dir=_training_folder(study, variant) / str(phase),
        host=training.Host(checkpoint_every=2 if study.settings.quick else 1),
        variables=variables,
        masks=masks,
        progress=False,
    )


def _training_folder(study: Study, variant: Variant) -> Path:
    return study.run.folder / "training" / variant.stem


def _finished(
    study: Study, variant: Variant, fits: list[training.FitResult], earlier: Any = ()
) -> dict[str, Any]:
    """Saves a network, and returns its record."""
    network, mean, std = study.network(variant.network), study.dataset.mean, study.dataset.std
    # Estimated for all networks in the same way: a compression returns estimated statistics, but a
    # training without compression returns moving averages.
    variables = training.reestimate_batch_stats(
        network,
        fits[-1].variables,
        study.train.images,
        mean=mean,
        std=std,
        batch_size=study.batch_size,
        seed=variant.seed,
    )
    size, dense = study.save(variant, variables)
    classifier = study.classifier(variant)
    as_trained = models.Classifier(network.apply, fits[-1].variables, mean, std)
    right, before = (
        right_ones(one, study.test.images, study.test.labels) for one in (classifier, as_trained)
    )
    history = list(earlier)
    for row in [row for fitted in fits for row in fitted.history]:
        history.append(dict(row) | {"epoch": len(history) + 1})
        if variant.radius:
            now = strength(attacks_of(study.settings, variant.radius), len(history))
            history[-1] |= {"epsilon": float(now[0]), "steps": int(now[1])}
    params = classifier.variables["params"]
    open_ones = open_kernels(params, variant.exclude)
    kernels = [np.asarray(leaf) for leaf in open_ones.values()]
    residuals = [row["residual"] for row in history if row.get("residual") is not None]
    finals = [fitted.final for fitted in fits if fitted.final]
    return {
        "right": pack(right),
        "right_as_trained": int(before.sum()),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "weights": sum(kernel.size for kernel in kernels),
        "zeros": sum(int((kernel == 0).sum()) for kernel in kernels),
        "promised": promised(variant, [kernel.size for kernel in kernels]),
        "bytes": size,
        "dense_bytes": dense,
        "epochs": len(history),
        "history": history,
        "seconds_per_epoch": fits[-1].seconds_per_epoch,
        "residual": residuals[-1] if residuals else None,
        "final": finals[-1] if finals else None,
    }


def phases(method: str, num_epochs: int) -> tuple[int, int, int]:
    """Returns the epochs of the three phases of a method, 0 for phases that it lacks.

    Their sum is `num_epochs`, except for the dense half alone.
    """
    half = num_epochs // 2
    rest = num_epochs - half
    if method == PRETRAINED:
        return half, 0, 0
    if method in ("magnitude", "dense_phases"):
        return half, 0, rest
    if method in ("two_phase", "hydra"):
        return half, rest - rest // 2, rest // 2
    return num_epochs, 0, 0


def recipe(study: Study, radius: float, first: int, num_epochs: int) -> training.Recipe:
    """Returns the recipe of a training or of a phase that starts after `first` epochs."""
    settings = study.settings
    drop = round(LATE * settings.num_epochs) - first
    rate: Any = training.Constant(settings.learning_rate * (FACTOR if drop <= 0 else 1))
    if 0 < drop < num_epochs:
        rate = training.Steps(settings.learning_rate, (drop,), FACTOR)
    against: dict[str, Any] = {}
    if radius:
        against = {
            "objective": training.CrossEntropy(natural_weight=NATURAL_WEIGHT),
            "adversary": attacks_of(settings, radius).part(first, num_epochs),
            "validation": training.Validation(pgd(radius, settings.max_steps)),
        }
    return training.Recipe(
        num_epochs=num_epochs,
        batch_size=study.batch_size,
        optimizer=training.SGD(
            momentum=MOMENTUM, nesterov=True, weight_decay=settings.weight_decay, gradient_clip=CLIP
        ),
        schedule=rate,
        augmentation=None
        if study.dataset.name == "digits"
        else AUGMENTATIONS[settings.augmentation],
        precision="bfloat16" if jax.default_backend() == "gpu" else "float32",
        **against,
    )


def attacks_of(settings: Any, radius: float) -> AttackSchedule:
    """Returns the attack of every epoch, the same for all methods."""
    # Radius and steps rise as the source's do, but within the first half of the epochs, so that methods
    # that prune in the second half are trained under the whole attack.
    rising, whole = settings.num_epochs // 2, pgd(radius, settings.max_steps)
    return training.source_sequences(rising, whole, 1.0, num_radii=min(NUM_RADII, rising // 3))[0]


def budgets(settings: Any, kept: float) -> tuple[float, ...]:
    """Returns the share kept in every epoch of a one-shot scheme.

    It never falls in an epoch in which the attack changes. It stays the same after the learning rate
    has fallen, so that the weights can converge to the set.
    """
    changes = [first for first, _ in attacks_of(settings, settings.radii[0]).stages]
    rests = round(LATE * settings.num_epochs)
    falls = [epoch for epoch in range(2, rests + 1) if epoch not in changes]
    sparsities = pruning.cubic_schedule(1 - kept, len(falls))
    shares = []
    for epoch in range(1, settings.num_epochs + 1):
        done = sum(fall <= epoch for fall in falls)
        shares.append(kept if done == len(falls) else 1 - sparsities[done - 1] if done else 1.0)
    return tuple(shares)
