"""Variants of a network, and cross-validation on 1,593 photographs, where the test set has only 50."""

import dataclasses
import functools
from typing import Any

import numpy as np

from experiments.sports10.config import OURS
from experiments.sports10.study import Study
from jaxrobust import evaluation, pruning
from jaxrobust.attacks import PGD
from jaxrobust.studies.outcomes import right_ones

EPSILON = 0.005  # small, because at .03 attacks succeed on nearly every photograph
NUM_STEPS = 20
CONTROL = "dense, fine-tuned"  # the control for pruned networks, which are fine-tuned too


@dataclasses.dataclass(frozen=True)
class Variant:
    """A network with its compression and, if it is attacked, the attack.

    Attributes:
      network: The name of the network.
      kind: "dense", as it was trained; "control", fine-tuned without pruning; "pruned", pruned and
        fine-tuned; "int8", with weights rounded to int8.
      sparsity: The share of the kernels' weights that is removed.
      attack: "FGSM" or "PGD".
      targeted: Whether the attack aims at the study's target.
      epsilon: The radius of the attack's linf ball, in pixel units.
    """

    network: str
    kind: str = "dense"
    sparsity: float = 0.0
    attack: str | None = None
    targeted: bool | None = None
    epsilon: float | None = None

    @property
    def label(self) -> str:
        """The name in reports, file names and records of cross-validation, such as "80 %, int8"."""
        share = f"{100 * self.sparsity:g} %"
        int8 = f"{share}, int8" if self.sparsity else "int8"
        return {"dense": "dense", "control": CONTROL, "pruned": share, "int8": int8}[self.kind]


def pruned(study: Study, name: str) -> list[Variant]:
    """Returns a network pruned to every sparsity."""
    return [Variant(name, "pruned", sparsity) for sparsity in study.config.sparsities]


def variants(study: Study, name: str) -> list[Variant]:
    """Returns the variants of a network that are cross-validated.

    These are all sparsities of simple_cnn, because report B claims a lottery ticket there, the highest
    sparsity of our network, and only the dense network of others.
    """
    kept = {"simple_cnn": slice(None), OURS: slice(-1, None)}.get(name, slice(0))
    found = pruned(study, name)[kept]
    return [Variant(name), *([Variant(name, "control")] if found else []), *found]


def weights(study: Study, variant: Variant, seed: int, fold: int | None = None) -> Any:
    """Returns a variant's variables; int8 kernels are `QuantizedKernel`s.

    `pruning.dequantize` converts these to floats for an attack. The weights are constants for the
    attack, so its gradient is the exact gradient of the quantised network.
    """
    if variant.sparsity or variant.kind == "control":
        found = study.pruned(variant.network, variant.sparsity, seed, fold)[2]
    else:
        found = study.trained(variant.network, seed, fold).variables
    return pruning.quantize(found) if variant.kind == "int8" else found


def num_steps(study: Study) -> int:
    """Returns the number of steps of the attack on the folds."""
    return 5 if study.config.quick else NUM_STEPS


def measure(study: Study) -> None:
    """Adds which photographs each variant has right when held out, and which also under PGD.

    Every training photograph is judged by the network of the fold that held it out. A dense network
    without pruned variants to compare is not attacked.
    """
    for name in study.folded:
        record = functools.partial(_judge, study, name)
        found = study.run.stages.remember(f"cross-validate {name}", record)
        judged = variants(study, name)
        for kind in ("right", "robust") if len(judged) > 1 else ("right",):
            for variant, ones in zip(judged, found[kind].values(), strict=True):
                study.facts.add(f"{kind} of held-out", variant, outcomes=np.array(ones, bool))


def _judge(study: Study, name: str, progress: Any) -> dict[str, dict[str, list[int]]]:
    """Returns "right" and "robust", each as {label of the variant: [0 or 1 for each photograph]}."""
    train, judged = study.dataset(name).train, variants(study, name)
    right, robust = (np.zeros((len(judged), len(train)), int) for _ in range(2))
    attack = PGD(EPSILON, EPSILON / 4, num_steps(study))
    for fold, (_, held_out) in enumerate(study.fold_rows()):
        split, seed = train.take(held_out), study.config.seed + fold
        for number, variant in enumerate(judged):
            classifier = study.classifier(name, weights(study, variant, seed, fold))
            given: Any = (classifier, split.images, split.labels)
            right[number, held_out] = right_ones(*given)
            if len(judged) > 1:
                report = evaluation.attack_dataset(attack, *given, key=study.key)
                robust[number, held_out] = report.attacked & ~report.success
        progress(f"fold {fold + 1}", fold + 1, study.config.num_folds)
    labels = [variant.label for variant in judged]
    both = {"right": right, "robust": robust}
    return {kind: dict(zip(labels, rows.tolist(), strict=True)) for kind, rows in both.items()}
