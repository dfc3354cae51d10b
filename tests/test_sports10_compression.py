"""Problem C of the Sports-10 study: its variants, what it decides, and its words."""

import types
from pathlib import Path

import numpy as np
import pytest

import experiments.sports10
from experiments.sports10 import compression, folds
from experiments.sports10.folds import Variant
from jaxrobust import evaluation, studies
from jaxrobust.studies import words

TEMPLATES = Path(experiments.sports10.__file__).parent


def study_of(folder=None, sparsities=(0.5, 0.8), folded=("simple_cnn",)):
    run = studies.Run("sports10", None, folder, studies.Stages(folder))
    config = types.SimpleNamespace(models=("simple_cnn",), sparsities=sparsities)
    return types.SimpleNamespace(config=config, run=run, facts=run.facts, folded=list(folded))


@pytest.mark.parametrize(
    "variant, label",
    [
        (Variant("mlp"), "dense"),
        (Variant("mlp", "control"), "dense, fine-tuned"),
        (Variant("mlp", "pruned", 0.8), "80 %"),
        (Variant("mlp", "pruned", 0.125), "12.5 %"),
        (Variant("mlp", "int8"), "int8"),
        (Variant("mlp", "int8", 0.8), "80 %, int8"),
    ],
)
def test_labels_are_those_of_saved_attacks_and_cross_validations(variant, label):
    assert variant.label == label


@pytest.mark.parametrize(
    "gains, held, chosen",
    [
        ((0.02, -0.04), (0.01, -0.04), 0.8),  # both cost what is tolerated
        ((0.02, -0.041), (0.01, 0.0), 0.5),  # too much by the seeds
        ((0.02, 0.0), (0.01, -0.06), 0.5),  # too much by the folds
        ((0.02, -0.04), (None, None), 0.8),  # no folds
        ((-0.1, -0.2), (0.0, 0.0), None),
    ],
)
def test_the_highest_sparsity_of_tolerable_cost_is_chosen(gains, held, chosen):
    study = study_of()
    facts = study.run.facts
    facts.add("right of held-out", Variant("simple_cnn"), value=0.7)
    for variant, seeds, fold in zip(folds.pruned(study, "simple_cnn"), gains, held, strict=True):
        facts.add("gain of seeds", variant, value=seeds, n=2)
        if fold is not None:
            facts.add("gain of held-out", variant, value=fold)
    found = compression._choice(study)
    assert found["network"] == "simple_cnn"
    assert found["variant"] == (chosen and Variant("simple_cnn", "pruned", chosen))


def cross_validated(tmp_path):
    """A study whose folds say: 50 % falls more often than the control, 80 % has nothing right."""
    right = {"dense": [1] * 40, folds.CONTROL: [1] * 40, "50 %": [1] * 40, "80 %": [0] * 40}
    robust = {"dense": [1] * 40, folds.CONTROL: [1] * 30 + [0] * 10, "50 %": [0] * 40}
    robust["80 %"] = [0] * 40
    study = study_of(tmp_path)
    record = {"right": right, "robust": robust}
    study.run.stages.remember("cross-validate simple_cnn", lambda _: record)
    study.run.stages.seconds.clear()  # as in a process that goes on
    folds.measure(study)
    compression._compare_folds(study)
    return study


def test_pruned_networks_are_compared_among_what_both_have_right(tmp_path):
    facts = cross_validated(tmp_path).run.facts
    half, most = (Variant("simple_cnn", "pruned", sparsity) for sparsity in (0.5, 0.8))
    gain = facts.of("robust gain", half)
    test = evaluation.mcnemar(np.zeros(40, bool), np.arange(40) < 30)
    assert (gain.value, gain.n, gain.p) == (-0.75, 40, test["p_value"])
    assert facts.of("robust gain", most).n == 0  # and so no case for Holm's correction
    assert facts.find("robust gain, corrected", most) is None
    assert facts.of("robust gain, corrected", half).p == gain.p
    assert facts.of("gain of held-out", most).value == -1.0


def test_the_verdicts_say_what_was_found(tmp_path):
    study = cross_validated(tmp_path)
    facts, variant = study.run.facts, Variant("simple_cnn", "pruned", 0.5)
    for sparsity, gain in ((0.5, -0.02), (0.8, -0.5)):
        pruned = Variant("simple_cnn", "pruned", sparsity)
        facts.add("gain of seeds", pruned, value=gain, low=gain - 0.01, high=gain + 0.01, n=3)
    facts.add("times smaller", variant, value=3.14)
    facts.add("sparse file", variant, value=120.4)
    facts.add("direction", variant, batch=1, value=-1.0)
    facts.add("direction", variant, batch=16, value=0.0)
    choice = compression._choice(study)
    names = {"study": study, "folds": folds, "sparsity_choice": choice}
    names["judged"] = folds.variants(study, "simple_cnn")
    _, found = words.render(TEMPLATES / "verdicts_c.md.j2", facts, names)
    text = {block["question"]: " ".join(block["text"].replace("\\", "").split()) for block in found}
    sparsity = text["Which sparsity for simple_cnn?"].replace("\N{NO-BREAK SPACE}", " ")
    assert sparsity.startswith("50 %, fine-tuned. ")
    assert "averaged over 3 seeds, and its file is 3.1 times smaller (120 KiB)." in sparsity
    assert "faster at batch 1, no difference shown at batch 16." in sparsity
    assert "−2.0 points (−3.0 to −1.0) at 50 %, of 3 seeds; −50.0 points" in sparsity
    attacks = text["Does pruning make attacks easier?"].replace("\N{NO-BREAK SPACE}", " ")
    assert attacks.startswith("Beyond chance, attacks are easier in 1 of 1 case and harder in 0.")
    assert "simple_cnn at 50 %: easier (−75.0 points, p < 0.0001, n = 40)" in attacks
