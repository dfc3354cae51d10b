"""Problem B: white-box attacks, their effect on the maps, and transfer between networks."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.sports10.networks import SUBJECTS
from experiments.sports10.study import Study
from jaxrobust import attribution, evaluation, studies
from jaxrobust.evaluation import AttackReport

CURVE = (0.0, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1)


def measure(study: Study) -> dict[str, Any]:
    """Adds the facts of attacks; returns the records that their template draws."""
    found = _records(study)
    for name in study.config.models:
        for threat in study.threats(*sorted({study.config.epsilon, *study.epsilons})):
            add_attack(
                study.facts, study.attack(study.make(**threat), name), network=name, **threat
            )
        study.run.measure(f"shifts of the maps, {name}", functools.partial(_shifts, study, name))
    _transfer(study)
    return found


def methods(study: Study, name: str) -> list[str]:
    """Returns the methods of attribution that a network allows: an MLP has no layer with pixels."""
    layer = attribution.layers(study.base(name), study.pixels(name)[:1]).default
    given = attribution.METHODS.items()
    found = [name for name, method in given if not (method.needs_layer and layer is None)]
    return found[::4] if study.config.quick else found


def add_attack(facts: studies.Facts, report: AttackReport, **keys: Any) -> None:
    """Adds an attack's success rate, norms, confidences, and the steps by which half succeeded."""
    wins, sure = report.success & report.attacked, evaluation.confidences(report)
    facts.add_rate("success", keys, evaluation.success_rate(report))
    facts.add("l2", keys, value=report.l2[wins].mean() if wins.any() else None)
    facts.add("linf", keys, value=report.linf[wins].mean() if wins.any() else None)
    facts.add("confidence in wrong", keys, value=sure["wrong"]["mean"])
    facts.add("confidence in target", keys, value=(sure["target"] or {}).get("mean"))
    facts.add("steps for half", keys, value=evaluation.steps_for_success(report))


def _records(study: Study) -> dict[str, list[Any]]:
    """Returns records of the attacks at the main epsilon, curves over epsilon and sanity checks."""
    kinds = ("attacks", "gallery", "matrices", "curves", "diagnostics")
    found: dict[str, list[Any]] = {kind: [] for kind in kinds}
    names, remember = study.config.models, study.run.stages.remember
    for threat in study.threats(study.config.epsilon):
        attack = study.make(**threat)
        reports = {name: study.attack(attack, name) for name in names}
        aim = {"target": study.config.target} if attack.targeted else {}
        words = evaluation.attack_label(attack) + (" to the target" if attack.targeted else "")
        for name, report in reports.items():
            found["attacks"].append(evaluation.summarise(report, name, study.class_names))
            shown = functools.partial(_pictures, study, name, report)
            found["gallery"] += remember(f"pictures of {words} on {name}", shown)
        for group in _same_size(study):
            bases = {name: study.base(name) for name in group}
            table = evaluation.transfer_matrix(bases, {name: reports[name] for name in group})
            found["matrices"].append(table | aim)
    for name in names:
        curves = functools.partial(_curves, study, name)
        found["curves"] += remember(f"curves over epsilon, {name}", curves)
    # Each compiles seven programs, so --quick has only that of the network that compiles fastest.
    for name in names[:1] if study.config.quick else names:
        sane = remember(f"sanity checks of {name}", functools.partial(_sanity, study, name))
        found["diagnostics"].append({"model": name} | sane)
    return found


def _pictures(study: Study, name: str, report: AttackReport, _: Any) -> list[dict[str, Any]]:
    chosen = studies.spread(report.attacked, study.config.num_recorded)
    return studies.gallery(study.base(name), report, chosen, model=name)


def _same_size(study: Study) -> list[list[str]]:
    """Returns groups of at least two networks that take images of the same size."""
    sizes: dict[int, list[str]] = {}
    for name in study.config.models:
        sizes.setdefault(SUBJECTS[name].image_size, []).append(name)
    return [names for names in sizes.values() if len(names) > 1]


def _curves(study: Study, name: str, _: Any) -> list[dict[str, Any]]:
    test, step = study.test(name), 2 if study.config.quick or SUBJECTS[name].slow else 1
    given: Any = (study.base(name), test.images, test.labels, evaluation.Sweep(CURVE[::step]))
    return [
        evaluation.robustness_curve(study.make(kind), *given, key=study.key, model=name)
        for kind in ("FGSM", "PGD")
    ]


def _sanity(study: Study, name: str, progress: Any) -> dict[str, Any]:
    test, num_images = study.test(name), 2 if study.config.quick else 50
    given: Any = (study.base(name), test.images, test.labels, study.config.epsilon)
    execution = evaluation.Execution(progress=progress)
    return evaluation.sanity(*given, key=study.key, num_images=num_images, execution=execution)


def _transfer(study: Study) -> None:
    """Adds transfer in both directions between the two networks of each report, at every epsilon."""
    reports = (["mlp", "cnn"], ["simple_cnn", "resnet_small"])
    pairs = [pair for pair in reports if set(pair) <= set(study.config.models)]
    for pair in pairs or [names[:2] for names in _same_size(study)]:
        for source, shown_to in itertools.permutations(pair):
            for threat in study.threats(*study.epsilons):
                report = study.attack(study.make(**threat), source)
                found = evaluation.transfer_rates(report, study.base(shown_to))
                keys = threat | {"network": source, "shown_to": shown_to}
                study.facts.add_rate("transfer of successes", keys, found["of_successes"])
                study.facts.add_rate("transfer of right", keys, found["of_right"])


def _shifts(study: Study, name: str, facts: studies.Facts, _: Any) -> None:
    """Adds how far the maps move under attack, and under random noise of the same size (control)."""
    classifier, report = study.base(name), study.attack(study.make("PGD"), name)
    chosen = np.flatnonzero(report.attacked)
    clean, attacked = (jnp.asarray(i[chosen]) for i in (report.clean_images, report.images))
    noise = jax.random.rademacher(study.key, clean.shape, jnp.float32) * study.config.epsilon
    labels = jnp.asarray(report.clean_predictions[chosen])
    cases = (
        ("attacked", "named", attacked, jnp.asarray(report.predictions[chosen])),
        ("attacked", "true", attacked, labels),
        ("noisy", "named", jnp.clip(clean + noise, 0, 1), labels),  # the control keeps the class
    )
    layer = attribution.layers(classifier, clean).default
    few = ["saliency"] if layer is None else ["saliency", "grad_cam"]
    for method in methods(study, name) if name == study.chosen else few:
        explain = attribution.METHODS[method]
        before = explain(study.key, classifier, clean, labels)
        for images, map_of, pixels, classes in cases:
            keys = {"network": name, "method": method, "images": images, "map_of": map_of}
            shift = attribution.map_shift(before, explain(study.key, classifier, pixels, classes))
            distance = jnp.linalg.norm(shift["centre_of_mass"], axis=-1)
            facts.add_mean("map cosine", keys, shift["cosine"])
            facts.add_mean("map rank correlation", keys, shift["rank_correlation"])
            facts.add_mean("map distance", keys, distance)
