"""Cross-validation on the training photographs: 1,593 judgements where the test set has 50."""

import dataclasses
import functools
from typing import Any

import numpy as np

from experiments.sports10.study import OURS, Study, percent
from jaxrobust import data, evaluation
from jaxrobust.attacks import PGD
from jaxrobust.evaluation.classification import predictions

# Small, so that something is left to compare: at .03 nearly every photograph falls.
EPSILON, NUM_STEPS = 0.005, 20


def sparsities(study: Study, name: str) -> tuple[float, ...]:
    """The sparsities at which a network is cross-validated too.

    Of simple_cnn all, because report B claims a lottery ticket there; of ours the highest.
    """
    if name == "simple_cnn":
        return study.config.sparsities
    return study.config.sparsities[-1:] if name == OURS else ()


@functools.cache
def outcomes(study: Study, name: str) -> dict[str, Any]:
    """Each training photograph judged by the network of the fold that held it out.

    Returns:
      {"right": {"dense": [0 or 1, ...], "80 %": ...}, "robust": likewise, right also under PGD}, in
      the order of the training photographs.
    """
    return study.stages.remember(
        f"cross-validate {name}", lambda progress: _outcomes(study, name, progress)
    )


def _outcomes(study: Study, name: str, progress: Any) -> dict[str, Any]:
    train, config = study.dataset(name).train, study.recipe(name)
    variants = ["dense", *map(percent, sparsities(study, name))]
    right = {variant: np.zeros(len(train), int) for variant in variants}
    robust = {variant: np.zeros(len(train), int) for variant in variants}
    for fold, (rows, held_out) in enumerate(study.fold_rows()):
        seed = study.config.seed + fold
        fitted = study.fit(
            name, f"train {name}, fold {fold}", dataclasses.replace(config, seed=seed), rows=rows
        )
        networks = {"dense": fitted.variables}
        for sparsity in sparsities(study, name):
            networks[percent(sparsity)] = study.prune(
                name, fitted.variables, sparsity, f"fold {fold}", seed=seed, rows=rows
            )[2]
        split = data.Split(
            train.images[held_out],
            train.labels[held_out],
            tuple(train.files[i] for i in held_out),
        )
        for variant, variables in networks.items():
            classifier = study.classifier(name, variables)
            answers = predictions(evaluation.logits(classifier, split.images))
            right[variant][held_out] = answers == split.labels
            if len(variants) > 1:
                report = evaluation.attack_dataset(
                    PGD(EPSILON, EPSILON / 4, 5 if study.config.quick else NUM_STEPS),
                    classifier,
                    split.images,
                    split.labels,
                    key=study.key,
                )
                robust[variant][held_out] = report.attacked & ~report.success
        progress(fold + 1, study.config.num_folds)
    return {
        "right": {variant: values.tolist() for variant, values in right.items()},
        "robust": {variant: values.tolist() for variant, values in robust.items()},
    }
