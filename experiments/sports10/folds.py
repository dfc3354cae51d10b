"""Variants of a network, and cross-validation: 1,593 judgements where the test set has 50."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.sports10.config import OURS
from experiments.sports10.study import Study, right
from jaxrobust import evaluation, pruning, studies
from jaxrobust.attacks import PGD

EPSILON = 0.005  # small, so that something is left to compare: at .03 nearly every photograph falls
NUM_STEPS = 20
CONTROL = "dense, fine-tuned"  # what pruned networks are compared with: they are fine-tuned too


@dataclasses.dataclass(frozen=True)
class Variant:
    """A network as it was compressed, and the attack that it was put under, if any.

    Attributes:
      network: Its name.
      kind: "dense", as it was trained; "control", fine-tuned without a pruning before it; "pruned",
        and fine-tuned; "int8", with rounded weights.
      sparsity: Share of the kernels' weights that was removed.
      attack: "FGSM" or "PGD".
      targeted: Whether the attack aims at the study's target.
      epsilon: Radius of its linf ball, in pixel units.
    """

    network: str
    kind: str = "dense"
    sparsity: float = 0.0
    attack: str | None = None
    targeted: bool | None = None
    epsilon: float | None = None

    @property
    def label(self) -> str:
        """For readers, in names of files, and in the records of cross-validation: "80 %, int8"."""
        share = f"{100 * self.sparsity:g} %"
        int8 = f"{share}, int8" if self.sparsity else "int8"
        return {"dense": "dense", "control": CONTROL, "pruned": share, "int8": int8}[self.kind]


def pruned(study: Study, name: str) -> list[Variant]:
    """A network at every sparsity."""
    return [Variant(name, "pruned", sparsity) for sparsity in study.config.sparsities]


def variants(study: Study, name: str) -> list[Variant]:
    """What is cross-validated of a network.

    Of simple_cnn every sparsity, because report B claims a lottery ticket there; of ours the highest;
    of others the dense network alone.
    """
    kept = {"simple_cnn": slice(None), OURS: slice(-1, None)}.get(name, slice(0))
    found = pruned(study, name)[kept]
    return [Variant(name), *([Variant(name, "control")] if found else []), *found]


def weights(study: Study, variant: Variant, seed: int) -> Any:
    """A variant's variables, trained on all photographs; int8 kernels are `QuantizedKernel`s.

    `pruning.dequantize` multiplies those out for an attack. They are constants for it, so its gradient
    passes straight through the rounding and is the exact gradient of the quantised network.
    """
    if variant.sparsity:
        found = study.pruned(variant.network, variant.sparsity, seed)[2]
    else:
        found = study.trained(variant.network, seed).variables
    return pruning.quantize(found) if variant.kind == "int8" else found


def num_steps(study: Study) -> int:
    """Of the attack on the folds."""
    return 5 if study.config.quick else NUM_STEPS


def outcomes(study: Study, name: str) -> dict[str, Any]:
    """Each training photograph judged by the network of the fold that held it out.

    Returns:
      {"right": {label of the variant: [0 or 1, ...]}, "robust": likewise, right also under PGD}, in
      the order of the training photographs. A dense network alone is not attacked.
    """
    stage = f"cross-validate {name}"
    return study.once(
        (stage,), lambda: study.run.stages.remember(stage, lambda p: _outcomes(study, name, p))
    )


def _outcomes(study: Study, name: str, progress: Any) -> dict[str, Any]:
    count, judged = len(study.dataset(name).train), variants(study, name)
    found = {kind: {v.label: np.zeros(count, int) for v in judged} for kind in ("right", "robust")}
    attack = PGD(EPSILON, EPSILON / 4, num_steps(study))
    for fold, (rows, held_out) in enumerate(study.fold_rows()):
        dense, split = study.trained_on_fold(name, fold).variables, study.held_out(name, fold)
        seed, words = study.config.seed + fold, f"fold {fold}"
        for variant in judged:
            used = dense
            if variant.kind != "dense":
                used = study.prune(name, dense, variant.sparsity, words, seed=seed, rows=rows)[2]
            classifier = study.classifier(name, used)
            found["right"][variant.label][held_out] = right(classifier, split)
            if len(judged) > 1:
                report = evaluation.attack_dataset(
                    attack, classifier, split.images, split.labels, key=study.key
                )
                robust = report.attacked & ~report.success
                found["robust"][variant.label][held_out] = robust
        progress(fold + 1, study.config.num_folds)
    return {kind: {k: v.tolist() for k, v in values.items()} for kind, values in found.items()}


def remember(study: Study, stage: str, measure: Callable[..., None], name: str) -> None:
    """A stage whose record is the facts of a network that it measures, added to those of the run.

    `measure` takes the study, the network's name, the facts to add to, and a progress callback.
    """

    def record(progress: Any) -> list[dict[str, Any]]:
        facts = studies.Facts()
        measure(study, name, facts, progress)
        return [
            vars(fact) | {"outcomes": None if fact.outcomes is None else fact.outcomes.tolist()}
            for fact in facts
        ]

    for kept in study.run.stages.remember(f"{stage}, {name}", record):
        study.run.facts.add(kept.pop("measure"), kept.pop("keys"), **kept)
