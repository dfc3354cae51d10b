"""How every network of the study is trained: dense, in one shot, and by the alternatives.

All methods have `num_epochs` epochs in all. In phases:

    dense, ADMM's schemes, RigL, random masks   one training of all epochs
    magnitude       half of them dense; pruned; the other half under the masks
    two_phase       half of them dense; a quarter with ADMM; a quarter under the masks
    hydra           half of them dense; a quarter for the scores; a quarter under the masks
    dense_phases    half of them dense; the other half dense too: the control of those three

The dense half is one training for the four of them. Attack and learning rate are of the epoch, counted
over all phases: every method meets the same ones. What a new phase has anew is the momentum.
"""

import shutil
from typing import Any

import jax
import numpy as np

from experiments.robust_compression import course, networks
from experiments.robust_compression.study import Study, Variant, is_scheme, n_of_m
from jaxrobust import models, pruning, training
from jaxrobust.pruning.constraints import open_kernels
from jaxrobust.pruning.magnitude import not_excluded
from jaxrobust.studies.outcomes import pack, right_ones
from jaxrobust.training import ADMM, Hydra, RigL

# Of two-phase ADMM, after Ye et al.
GROWTH = 1.3
STEEPEST = 0.2  # of two-phase ADMM's rho times the learning rate; it grows no further
RISE = (
    100.0  # of rho in the one-shot schemes, from the first epoch to where the learning rate falls
)
UPDATES = 4  # of ADMM's multipliers in an epoch
CONSTANTS = [*course.CONSTANTS, GROWTH, STEEPEST, RISE, UPDATES]
PRETRAINED = "pretrained"  # the dense half that three methods begin with

PHASED = ("magnitude", "two_phase", "hydra", "dense_phases")


def make(study: Study, variant: Variant) -> dict[str, Any]:
    """Trains a network, saves it as a file, and says what it is; once.

    Returns:
      {"right": of all test images, packed, "parameters", "weights": that may be pruned, "zeros": of
      them in the file, "layers": kernels that may be, "bytes" and "dense_bytes" of files, "epochs",
      "history", "seconds_per_epoch", "residual"}.
    """
    if variant.method in PHASED:
        _pretrained(study, variant)
    facts = study.stages.remember(f"train {variant.name}", lambda _: _trained(study, variant))
    if not study.path(variant).is_file():
        raise ValueError(
            f"{study.path(variant)} is missing; delete {study.folder} to start anew, or put it back."
        )
    study.facts[variant] = facts
    return facts


def constraint(study: Study, variant: Variant) -> Any:
    """The set of a scheme of one-shot ADMM."""
    if variant.method == "n_of_m":
        return pruning.NofM(*n_of_m(variant.kept))
    if variant.method == "redundant":
        return pruning.Redundant()
    if variant.method == "funnel":
        return pruning.Funnel(order=_order(study, variant))
    return pruning.Irregular()


def _order(study: Study, variant: Variant) -> tuple[str, ...] | None:
    """The layers by depth; None for residual networks, whose shortcuts and blocks the set knows."""
    known = networks.NETWORKS[variant.network]
    if known.family != "mobilenet_v2":
        return None
    network = study.network(variant.network)
    image = jax.ShapeDtypeStruct((1, *study.dataset.image_shape), np.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), image)
    kernels = pruning.channel_groups(network.apply, shapes, image).kernels
    paths = [kernel.path.removeprefix("params/") for kernel in kernels]
    return tuple(not_excluded(dict.fromkeys(paths), known.exclude))


def _pretrained(study: Study, variant: Variant) -> None:
    """The dense half, trained where it has not been; read from its file afterwards."""
    base = Variant(variant.network, PRETRAINED, 1.0, variant.radius, variant.seed)
    if base in study.facts:
        return
    epochs = course.phases("magnitude", study.config.num_epochs)[0]

    def train() -> dict[str, Any]:
        return _finished(study, base, [_fit(study, base, 0, 0, epochs)])

    study.facts[base] = study.stages.remember(f"train {base.name}", lambda _: train())


def admm(study: Study, variant: Variant, **changes: Any) -> ADMM:
    """The tie of a one-shot scheme, or with `changes` of another method."""
    per_epoch = len(study.train) // min(study.config.batch_size, len(study.train))
    # Small while there is much to learn: it draws the weights to where they were at the last update,
    # and with the whole rho from the start the network learns less (docs/compression.md).
    until = max(1, round(course.LATE * study.config.num_epochs * UPDATES))
    fields = {
        "kept": course.budgets(study, variant.kept),
        "rho": study.config.rho / RISE,
        "rho_growth": RISE ** (1 / until),
        "largest_rho": study.config.rho,
        "every": max(1, per_epoch // UPDATES),
        "exclude": networks.NETWORKS[variant.network].exclude,
    }
    return ADMM(constraint(study, variant), **fields | changes)


def largest_rho(study: Study) -> float:
    """Of two-phase ADMM, a bound of ours: some way below where steps of this rate grow unstable."""
    return max(study.config.rho, STEEPEST / study.config.learning_rate)


def _trained(study: Study, variant: Variant) -> dict[str, Any]:
    epochs = course.phases(variant.method, study.config.num_epochs)
    exclude = networks.NETWORKS[variant.network].exclude
    if len(epochs) == 1:
        given: dict[str, Any] = {}
        if is_scheme(variant.method):
            given = {"compression": admm(study, variant)}
        elif variant.method == "rigl":
            given = {"compression": RigL(variant.kept, exclude=exclude)}
        elif variant.method == "random_masks":
            given = {"masks": _random_masks(study, variant)}
        return _finished(study, variant, [_fit(study, variant, 0, 0, epochs[0], **given)])

    base = Variant(variant.network, PRETRAINED, 1.0, variant.radius, variant.seed)
    variables = study.classifier(base).variables
    fits, masks, done = [], None, epochs[0]
    if variant.method == "magnitude":
        masks = pruning.Irregular().masks(variables["params"], variant.kept, exclude=exclude)
    elif variant.method != "dense_phases":
        method: Any = Hydra(pruning.Irregular(), variant.kept, exclude=exclude)
        if variant.method == "two_phase":
            grows = {"rho_growth": GROWTH, "largest_rho": largest_rho(study), "rescale": False}
            method = admm(study, variant, kept=variant.kept, rho=study.config.rho, **grows)
        chosen = _fit(study, variant, 1, done, epochs[1], compression=method, variables=variables)
        fits.append(chosen)
        variables, masks, done = chosen.variables, chosen.masks, done + epochs[1]
    last = _fit(study, variant, 2, done, epochs[-1], variables=variables, masks=masks)
    return _finished(study, variant, [*fits, last], study.facts[base]["history"])


def _random_masks(study: Study, variant: Variant) -> Any:
    """As many weights of every layer as the irregular scheme keeps, drawn at random."""
    network, shape = study.network(variant.network), study.dataset.image_shape
    params = training.initial_variables(network, shape, variant.seed)["params"]
    sizes = {
        path: kernel.size
        for path, kernel in open_kernels(params, networks.NETWORKS[variant.network].exclude).items()
    }
    # One number with `exclude` would be of all kernels, those that stay whole too.
    removed = {path: 1 - round(variant.kept * size) / size for path, size in sizes.items()}
    key = jax.random.fold_in(jax.random.key(variant.seed), 1)
    return pruning.random(key, params, removed, scope="layer")


def whole(study: Study) -> training.Recipe:
    """A robust training in one phase, without a compression."""
    num_epochs = study.config.num_epochs
    against = course.robust(study, study.config.radii[0], 0, num_epochs)
    return course.recipe(study, 0, num_epochs, **against)


def _fit(
    study: Study,
    variant: Variant,
    phase: int,
    first: int,
    num_epochs: int,
    compression: training.Compression | None = None,
    variables: Any = None,
    masks: Any = None,
) -> training.FitResult:
    """One training; its folder is deleted when all of them are done."""
    recipe = course.recipe(
        study,
        first,
        num_epochs,
        seed=10 * variant.seed + phase,
        compression=compression,
        **course.robust(study, variant.radius, first, num_epochs),
    )
    return training.fit(
        study.network(variant.network),
        training.Data(
            train=(study.train.images, study.train.labels),
            validation=(study.validation.images, study.validation.labels),
            mean=study.dataset.mean,
            std=study.dataset.std,
        ),
        recipe,
        run_dir=study.folder / "training" / f"{variant.stem}-{phase}",
        host=training.Host(checkpoint_every=2 if study.config.quick else 1),
        variables=variables,
        masks=masks,
        progress=False,
    )


def _finished(
    study: Study,
    variant: Variant,
    fits: list[training.FitResult],
    earlier: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Saves a network, deletes its checkpoints, and says what it is."""
    network, (mean, std) = study.network(variant.network), (study.dataset.mean, study.dataset.std)
    # Estimated alike for all: a compression gives back such, a training without one moving averages.
    variables = training.reestimate_batch_stats(
        network,
        fits[-1].variables,
        study.train.images,
        mean=mean,
        std=std,
        batch_size=min(study.config.batch_size, len(study.train)),
        seed=variant.seed,
    )
    size = study.save(variant, variables)
    dense = study.save(variant, variables, sparse=False)
    study.path(variant).with_suffix(".dense").unlink()
    classifier = study.classifier(variant)
    as_trained = models.Classifier(network.apply, fits[-1].variables, mean, std)
    right, before = (
        right_ones(one, study.test.images, study.test.labels) for one in (classifier, as_trained)
    )
    history = list(earlier or ())
    schedule = course.attacks(study, variant.radius)
    for fitted in fits:
        first = len(history)
        for row in fitted.history:
            epoch = first + row["epoch"]
            history.append(dict(row) | {"epoch": epoch} | course.strength(schedule, epoch))
    params = classifier.variables["params"]
    exclude = networks.NETWORKS[variant.network].exclude
    kernels = {path: np.asarray(leaf) for path, leaf in open_kernels(params, exclude).items()}
    residuals = [row["residual"] for row in history if row.get("residual") is not None]
    finals = [fitted.final for fitted in fits if fitted.final]
    for phase in range(3):
        shutil.rmtree(study.folder / "training" / f"{variant.stem}-{phase}", ignore_errors=True)
    return {
        "right": pack(right),
        "right_as_trained": int(before.sum()),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "weights": sum(kernel.size for kernel in kernels.values()),
        "zeros": sum(int((kernel == 0).sum()) for kernel in kernels.values()),
        "promised": promised(variant, [kernel.size for kernel in kernels.values()]),
        "layers": len(kernels),
        "bytes": size,
        "dense_bytes": dense,
        "epochs": len(history),
        "history": history,
        "seconds_per_epoch": fits[-1].seconds_per_epoch,
        "residual": residuals[-1] if residuals else None,
        "final": finals[-1] if finals else None,
    }


def promised(variant: Variant, sizes: list[int]) -> int | None:
    """How many weights a method says that it keeps, of kernels of these sizes; None: it does not say.

    Whole filters and groups of M round otherwise: what they keep depends on the kernels' shapes.

    Example:
      >>> promised(Variant("resnet18", "hydra", 0.1), [144, 288])
      43
    """
    if variant.method in ("redundant", "n_of_m"):
        return None
    if variant.method == "funnel":
        return round(variant.kept * sum(sizes))
    return sum(round(variant.kept * size) for size in sizes)
