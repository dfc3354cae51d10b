"""Problem C: attacks on pruned networks, and how examples transfer to them and back."""

import dataclasses
import functools
from typing import Any

from experiments.sports10 import folds
from experiments.sports10.folds import Variant
from experiments.sports10.networks import SUBJECTS
from experiments.sports10.robustness import add_attack
from experiments.sports10.study import Study
from jaxrobust import evaluation, models, pruning, studies
from jaxrobust.attacks import FGSM, PGD


def measure(study: Study) -> dict[str, Any]:
    """Attacks every variant, and finds the epsilon and steps at which half of the attacks succeed.

    Returns:
      Names for problem_c.md.j2: the rows of its tables.
    """
    names = study.config.models
    for name in names:
        study.run.measure(f"attacks on variants, {name}", functools.partial(_attacks, study, name))
        study.run.measure(f"half of attacks, {name}", functools.partial(_half, study, name))
    return {
        "white_box": [row for name in names for row in _white_box(study, name)],
        "transferred": [row for name in names for row in _transferred(study, name)],
        "half_steps": _half_steps(study),
    }


def variants(study: Study, name: str) -> list[Variant]:
    """Returns the dense network, the pruned networks, and the dense network with int8 weights."""
    return [Variant(name), *folds.pruned(study, name), Variant(name, "int8")]


def _white_box(study: Study, name: str) -> list[Variant]:
    """Returns every attack on every variant, at the main epsilon."""
    threats, judged = study.threats(study.config.epsilon), variants(study, name)
    return [dataclasses.replace(variant, **threat) for threat in threats for variant in judged]


def _transferred(study: Study, name: str) -> list[Variant]:
    """Returns every attack on every pruned variant, at every epsilon."""
    threats, judged = study.threats(*study.epsilons), folds.pruned(study, name)
    # PGD on a slow network takes ten seconds, and FGSM a fortieth of it.
    if SUBJECTS[name].slow:
        main = study.config.epsilon
        threats = [t for t in threats if t["attack"] == "FGSM" or t["epsilon"] == main]
    return [dataclasses.replace(variant, **threat) for variant in judged for threat in threats]


def _classifier(study: Study, variant: Variant) -> models.Classifier:
    variables = pruning.dequantize(folds.weights(study, variant, study.config.seed))
    return study.classifier(variant.network, variables)


def _attacks(study: Study, name: str, facts: studies.Facts, progress: Any) -> None:
    """Attacks each variant with the dense network's saved examples and with new attacks.

    Examples made on pruned variants are also shown to the dense network.
    """
    rows = dict.fromkeys([*_white_box(study, name), *_transferred(study, name)])
    dense = study.base(name)
    for done, row in enumerate(rows, start=1):
        attack = study.make(row.attack, row.epsilon, row.targeted)
        classifier = _classifier(study, row)
        saved = made = study.attack(attack, name)
        if row.kind != "dense":
            made = study.attack(attack, name, classifier, f" at {row.label}")
        shown = evaluation.transfer_rates(saved, classifier)
        facts.add_rate("fooled by dense", row, shown["of_successes"])
        facts.add_rate("fooled by dense of right", row, shown["of_right"])
        logits = evaluation.logits(classifier, saved.images)
        sure = evaluation.confidences(dataclasses.replace(saved, logits=logits))
        confidence = (sure["target"] or sure["wrong"])["mean"]
        facts.add("confidence when fooled by dense", row, value=confidence)
        if row.kind == "pruned":
            back = evaluation.transfer_rates(made, dense)
            facts.add_rate("fools dense", row, back["of_successes"])
            facts.add_rate("fools dense of right", row, back["of_right"])
        add_attack(facts, made, **vars(row))
        progress(f"{row.attack} at {row.label}", done, len(rows))


def _half(study: Study, name: str, facts: studies.Facts, progress: Any) -> None:
    """Adds the epsilon, and the number of steps, at which half of the attacks succeed."""
    test, judged, slow = study.test(name), variants(study, name), SUBJECTS[name].slow
    tolerance = 1e-3 if study.config.quick or slow else 2e-4
    facts.add("tolerance", network=name, value=tolerance)
    crossing = evaluation.Crossing(maximum=0.05, tolerance=tolerance, interval=not slow)
    search = functools.partial(evaluation.epsilon_for_success, key=study.key, crossing=crossing)
    for done, variant in enumerate(judged, start=1):
        classifier = _classifier(study, variant)
        for attack in (FGSM(0.03), PGD(0.03, 0.03 / 4, _half_steps(study))):
            found = search(attack, classifier, test.images, test.labels)
            figures = {"value": found["epsilon"], "low": found["low"], "high": found["high"]}
            facts.add("epsilon for half", variant, attack=type(attack).__name__, **figures)
        # Steps so small that their number is informative.
        fine = PGD(0.03, 0.001, study.config.num_steps, random_start=False)
        report = study.attack(fine, name, classifier, f" at {variant.label}, small steps")
        facts.add("small steps for half", variant, value=evaluation.steps_for_success(report))
        facts.add_rate("success of small steps", variant, evaluation.success_rate(report))
        progress(variant.label, done, len(judged))


def _half_steps(study: Study) -> int:
    return 5 if study.config.quick else 10
