"""Cross-validation on the training photographs: 1,593 judgements where the test set has 50."""

from typing import Any

import numpy as np

from experiments.sports10.config import OURS
from experiments.sports10.study import Study, percent, right
from jaxrobust import evaluation
from jaxrobust.attacks import PGD

EPSILON = 0.005  # small, so that something is left to compare: at .03 nearly every photograph falls
NUM_STEPS = 20
CONTROL = "dense, fine-tuned"  # what pruned networks are compared with: they are fine-tuned too


def num_steps(study: Study) -> int:
    """Of the attack on the folds."""
    return 5 if study.config.quick else NUM_STEPS


def sparsities(study: Study, name: str) -> tuple[float, ...]:
    """The sparsities at which a network is cross-validated too.

    Of simple_cnn all, because report B claims a lottery ticket there; of ours the highest.
    """
    if name == "simple_cnn":
        return study.config.sparsities
    return study.config.sparsities[-1:] if name == OURS else ()


def outcomes(study: Study, name: str) -> dict[str, Any]:
    """Each training photograph judged by the network of the fold that held it out.

    Returns:
      {"right": {"dense": [0 or 1, ...], CONTROL: ..., "80 %": ...}, "robust": likewise, right also
      under PGD}, in the order of the training photographs. A network that is not pruned on the folds
      has "dense" alone, and no robust ones.
    """
    stage = f"cross-validate {name}"
    return study.once(
        (stage,), lambda: study.stages.remember(stage, lambda p: _outcomes(study, name, p))
    )


def _outcomes(study: Study, name: str, progress: Any) -> dict[str, Any]:
    count, config = len(study.dataset(name).train), study.config
    cut = {percent(sparsity): sparsity for sparsity in sparsities(study, name)}
    tuned = ({CONTROL: 0.0} | cut) if cut else {}
    right_ones = {variant: np.zeros(count, int) for variant in ["dense", *tuned]}
    robust = {variant: np.zeros(count, int) for variant in ["dense", *tuned]}
    for fold, (rows, held_out) in enumerate(study.fold_rows()):
        dense = study.trained_on_fold(name, fold).variables
        networks = {"dense": dense}
        for variant, sparsity in tuned.items():
            networks[variant] = study.prune(
                name, dense, sparsity, f"fold {fold}", seed=config.seed + fold, rows=rows
            )[2]
        split = study.held_out(name, fold)
        for variant, variables in networks.items():
            classifier = study.classifier(name, variables)
            right_ones[variant][held_out] = right(classifier, split)
            if tuned:
                report = evaluation.attack_dataset(
                    PGD(EPSILON, EPSILON / 4, num_steps(study)),
                    classifier,
                    split.images,
                    split.labels,
                    key=study.key,
                )
                robust[variant][held_out] = report.attacked & ~report.success
        progress(fold + 1, config.num_folds)
    return {
        "right": {variant: values.tolist() for variant, values in right_ones.items()},
        "robust": {variant: values.tolist() for variant, values in robust.items()},
    }
