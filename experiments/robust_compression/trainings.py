"""How every network of the study is trained: dense, in one shot, and by the alternatives.

All methods have `num_epochs` epochs in all. In phases:

    dense, ADMM's schemes, RigL, random masks   one training of all epochs
    magnitude     half of them dense; pruned; the other half under the masks
    two_phase     half of them dense; a quarter with ADMM; a quarter under the masks
    hydra         half of them dense; a quarter for the scores; a quarter under the masks

The dense half is one training for the three of them. Its epsilon rises in thirds of that half; the
phases after it have the full epsilon.
"""

import shutil
from typing import Any

import jax
import numpy as np

from experiments.robust_compression import networks
from experiments.robust_compression.attacking import pgd
from experiments.robust_compression.study import (
    Study,
    Variant,
    is_scheme,
    n_of_m,
    pack,
    right_ones,
)
from jaxrobust import pruning, training
from jaxrobust.data.augment import Augmentation
from jaxrobust.pruning.masks import named_leaves
from jaxrobust.training import ADMM, AttackSchedule, Hydra, RigL

_PHOTOGRAPHS = Augmentation(flip=0.5, translate=0.125)
NATURAL_WEIGHT, MOMENTUM, CLIP = 0.1, 0.9, 5.0
# Of two-phase ADMM, after Ye et al.; the one-shot method keeps its rho.
GROWTH = 1.3
NUM_RADII = 3
CONSTANTS = [NATURAL_WEIGHT, MOMENTUM, CLIP, GROWTH, NUM_RADII]
PRETRAINED = "pretrained"  # the dense half that three methods begin with

CONSTRAINTS = {
    "irregular": pruning.Irregular(),
    "funnel": pruning.Funnel(),
    "redundant": pruning.Redundant(),
}


def make(study: Study, variant: Variant) -> dict[str, Any]:
    """Trains a network, saves it as a file, and says what it is; once.

    Returns:
      {"right": of all test images, packed, "parameters", "weights": that may be pruned, "zeros": of
      them in the file, "layers": kernels that may be, "bytes" and "dense_bytes" of files, "epochs",
      "history", "seconds_per_epoch", "residual"}.
    """
    if variant.method in ("magnitude", "two_phase", "hydra"):
        _pretrained(study, variant)
    facts = study.stages.remember(f"train {variant.name}", lambda _: _trained(study, variant))
    if not study.path(variant).is_file():
        raise ValueError(
            f"{study.path(variant)} is missing; delete {study.folder} to start anew, or put it back."
        )
    study.facts[variant] = facts
    return facts


def phases(method: str, num_epochs: int) -> tuple[int, ...]:
    """The epochs of every phase of a method; together `num_epochs`.

    Example:
      >>> phases("irregular", 15), phases("magnitude", 15), phases("hydra", 15)
      ((15,), (7, 8), (7, 4, 4))
    """
    half = num_epochs // 2
    rest = num_epochs - half
    if method == "magnitude":
        return half, rest
    if method in ("two_phase", "hydra"):
        return half, rest - rest // 2, rest // 2
    return (num_epochs,)


def settings(study: Study, num_epochs: int, **changes: Any) -> training.TrainConfig:
    """The settings of a training, or of one of its phases."""
    config = study.config
    fields: dict[str, Any] = {
        "num_epochs": num_epochs,
        "batch_size": min(config.batch_size, len(study.train)),
        "optimizer": "sgd",
        "learning_rate": config.learning_rate,
        "schedule": "cosine",
        "weight_decay": config.weight_decay,
        "momentum": MOMENTUM,
        "nesterov": True,
        "gradient_clip": CLIP,
        "natural_weight": NATURAL_WEIGHT,
        "compute_type": "bfloat16" if jax.default_backend() == "gpu" else "float32",
    }
    return training.TrainConfig(**fields | changes)


def sequences(
    study: Study, variant: Variant, num_epochs: int
) -> tuple[AttackSchedule | None, tuple[float, ...]]:
    """The source's: the attack of every epoch, and the share kept in it."""
    strongest = pgd(variant.radius or 1.0, study.config.max_steps)
    # Of few epochs each has too many changes, of which no two may fall into one.
    several = num_epochs >= 3 * NUM_RADII
    attack, kept = training.source_sequences(
        num_epochs, strongest, variant.kept, num_radii=NUM_RADII if several else 1
    )
    return (attack if variant.radius else None), kept


def constraint(variant: Variant) -> Any:
    """The set of a scheme of one-shot ADMM."""
    if variant.method == "n_of_m":
        return pruning.NofM(*n_of_m(variant.kept))
    return CONSTRAINTS[variant.method]


def _pretrained(study: Study, variant: Variant) -> None:
    """The dense half, trained where it has not been; read from its file afterwards."""
    base = Variant(variant.network, PRETRAINED, 1.0, variant.radius, variant.seed)
    if base in study.facts:
        return
    epochs = phases("magnitude", study.config.num_epochs)[0]

    def train() -> dict[str, Any]:
        attack, _ = sequences(study, base, epochs)
        return _finished(study, base, [_fit(study, base, 0, epochs, attack)], [attack])

    study.facts[base] = study.stages.remember(f"train {base.name}", lambda _: train())


def _trained(study: Study, variant: Variant) -> dict[str, Any]:
    epochs = phases(variant.method, study.config.num_epochs)
    exclude = networks.NETWORKS[variant.network].exclude
    rho = study.config.rho
    if len(epochs) == 1:
        attack, kept = sequences(study, variant, epochs[0])
        given: dict[str, Any] = {}
        if is_scheme(variant.method):
            tie = ADMM(constraint(variant), kept, rho, exclude=exclude)
            given = {"compression": tie}
        elif variant.method == "rigl":
            given = {"compression": RigL(variant.kept, exclude=exclude)}
        elif variant.method == "random_masks":
            given = {"masks": _random_masks(study, variant)}
        return _finished(
            study, variant, [_fit(study, variant, 0, epochs[0], attack, **given)], [attack]
        )

    base = Variant(variant.network, PRETRAINED, 1.0, variant.radius, variant.seed)
    variables = study.classifier(base).variables
    strongest = pgd(variant.radius, study.config.max_steps)
    fits = []
    if variant.method == "magnitude":
        masks = pruning.Irregular().masks(variables["params"], variant.kept, exclude=exclude)
    else:
        method = (
            Hydra(pruning.Irregular(), variant.kept, exclude=exclude)
            if variant.method == "hydra"
            else ADMM(pruning.Irregular(), variant.kept, rho, rho_growth=GROWTH, exclude=exclude)
        )
        chosen = _fit(
            study, variant, 1, epochs[1], strongest, compression=method, variables=variables
        )
        fits.append(chosen)
        variables, masks = chosen.variables, chosen.masks
    fits.append(_fit(study, variant, 2, epochs[-1], strongest, variables=variables, masks=masks))
    history = study.facts[base]["history"]
    return _finished(study, variant, fits, [strongest] * len(fits), history)


def _random_masks(study: Study, variant: Variant) -> Any:
    """As many weights of every layer as the irregular scheme keeps, drawn at random."""
    exclude = networks.NETWORKS[variant.network].exclude
    network, shape = study.network(variant.network), study.dataset.image_shape
    params = training.initial_variables(network, shape, variant.seed)["params"]
    key = jax.random.fold_in(jax.random.key(variant.seed), 1)
    leaves, structure = jax.tree.flatten(params)
    drawn = [
        jax.random.uniform(jax.random.fold_in(key, index), leaf.shape)
        for index, leaf in enumerate(leaves)
    ]
    scores = jax.tree.unflatten(structure, drawn)
    return pruning.Irregular().masks(scores, variant.kept, exclude=exclude)


def _fit(
    study: Study, variant: Variant, phase: int, num_epochs: int, attack: Any, **given: Any
) -> training.FitResult:
    """One training; its folder is deleted when all of them are done."""
    natural = {} if variant.radius else {"natural_weight": 0.0}
    config = settings(study, num_epochs, seed=10 * variant.seed + phase, **natural)
    return training.fit(
        study.network(variant.network),
        (study.train.images, study.train.labels),
        config,
        run_dir=study.folder / "training" / f"{variant.stem}-{phase}",
        mean=study.dataset.mean,
        std=study.dataset.std,
        augment=None if study.dataset.name == "digits" else _PHOTOGRAPHS,
        attack=attack,
        checkpoint_every=2 if study.config.quick else 1,
        progress=False,
        **given,
    )


def _finished(
    study: Study,
    variant: Variant,
    fits: list[training.FitResult],
    attacks: list[Any],
    earlier: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Saves a network, deletes its checkpoints, and says what it is."""
    variables = fits[-1].variables
    size = study.save(variant, variables)
    dense = study.save(variant, variables, sparse=False)
    study.path(variant).with_suffix(".dense").unlink()
    classifier = study.classifier(variant)
    right = right_ones(classifier, study.test.images, study.test.labels)
    history = list(earlier or ())
    for fitted, attack in zip(fits, attacks, strict=True):
        first = len(history)
        for row in fitted.history:
            history.append(dict(row) | {"epoch": first + row["epoch"]} | _strength(attack, row))
    params = classifier.variables["params"]
    exclude = tuple(f"{prefix}/" for prefix in networks.NETWORKS[variant.network].exclude)
    kernels = {
        path: np.asarray(leaf)
        for path, leaf in named_leaves(params)
        if path in pruning.kernel_paths(params) and not path.startswith(exclude)
    }
    residuals = [row["residual"] for row in history if row.get("residual") is not None]
    for phase in range(3):
        shutil.rmtree(study.folder / "training" / f"{variant.stem}-{phase}", ignore_errors=True)
    return {
        "right": pack(right),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "weights": sum(kernel.size for kernel in kernels.values()),
        "zeros": sum(int((kernel == 0).sum()) for kernel in kernels.values()),
        "layers": len(kernels),
        "bytes": size,
        "dense_bytes": dense,
        "epochs": len(history),
        "history": history,
        "seconds_per_epoch": fits[-1].seconds_per_epoch,
        "residual": residuals[-1] if residuals else None,
    }


def _strength(attack: Any, row: dict[str, Any]) -> dict[str, Any]:
    """What the attack of an epoch was, for the log."""
    if attack is None:
        return {}
    stages = attack.stages if isinstance(attack, AttackSchedule) else ((1, attack),)
    one: Any = [one for first, one in stages if first <= row["epoch"]][-1]
    return {"epsilon": float(one.epsilon), "steps": int(one.num_steps)}
