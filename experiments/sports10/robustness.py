"""Problem B: white-box attacks, what they do to the maps, and transfer between networks."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.sports10.config import EPSILONS
from experiments.sports10.folds import remember
from experiments.sports10.networks import SUBJECTS
from experiments.sports10.study import Study, add_mean
from jaxrobust import attribution, evaluation, studies
from jaxrobust.evaluation import AttackReport

CURVE = (0.0, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1)


def measure(study: Study) -> dict[str, Any]:
    """Adds the facts of attacks; returns the records that their template draws."""
    config, found = study.config, _records(study)
    for name in config.models:
        for keys, attack in _attacks(study, *sorted({config.epsilon, *_epsilons(study)})):
            add_attack(study.facts, report_of(study, attack, name), network=name, **keys)
        remember(study, "shifts of the maps", _shifts, name)
    _transfer(study)
    return found | {"epsilons": _epsilons(study)}


def methods(study: Study, name: str) -> list[str]:
    """The methods of attribution that a network allows: an MLP has no layer with pixels."""
    layer = attribution.layers(study.base(name), study.pixels(name)[:1]).default
    needed = attribution.NEEDS_LAYER if layer is None else ()
    found = [method for method in attribution.METHODS if method not in needed]
    return found[::4] if study.config.quick else found


def report_of(study: Study, attack: Any, name: str) -> AttackReport:
    """An attack on the first seed's network."""
    return study.attack(attack, name, study.base(name), study.test(name))


def _epsilons(study: Study) -> tuple[float, ...]:
    """Those of report B."""
    return EPSILONS[1:2] if study.config.quick else EPSILONS


def _attacks(study: Study, *epsilons: float) -> list[tuple[dict[str, Any], Any]]:
    """(keys of its facts, attack) for FGSM and PGD at each epsilon, untargeted first."""
    return [
        ({"attack": kind, "epsilon": epsilon, "targeted": targeted}, make(epsilon, targeted))
        for targeted in (False, True)
        for kind, make in (("FGSM", study.fgsm), ("PGD", study.pgd))
        for epsilon in epsilons
    ]


def add_attack(facts: studies.Facts, report: AttackReport, **keys: Any) -> None:
    """Adds how often an attack succeeded, its norms, confidences, and the steps that half needed."""
    wins, sure = report.success & report.attacked, evaluation.confidences(report)
    facts.add_rate("success", keys, evaluation.success_rate(report))
    facts.add("l2", keys, value=report.l2[wins].mean() if wins.any() else None)
    facts.add("linf", keys, value=report.linf[wins].mean() if wins.any() else None)
    facts.add("confidence in wrong", keys, value=sure["wrong"]["mean"])
    facts.add("confidence in target", keys, value=(sure["target"] or {}).get("mean"))
    facts.add("steps for half", keys, value=evaluation.steps_for_success(report))


def _records(study: Study) -> dict[str, list[Any]]:
    """The attacks at the main epsilon, image by image, curves over epsilon and sanity checks."""
    kinds = ("attacks", "gallery", "matrices", "curves", "diagnostics")
    found: dict[str, list[Any]] = {kind: [] for kind in kinds}

    def kept(stage: str, record: Any, *more: Any) -> Any:
        return study.stages.remember(stage, functools.partial(record, study, *more))

    for _, attack in _attacks(study, study.config.epsilon):
        aim = {"target": study.config.target} if attack.targeted else {}
        words = evaluation.attack_label(attack) + (" to the target" if attack.targeted else "")
        for name in study.config.models:
            report = report_of(study, attack, name)
            found["attacks"].append(evaluation.summarise(report, name, study.class_names))
            found["gallery"] += kept(f"pictures of {words} on {name}", _pictures, name, report)
        for names in _same_size(study):
            bases = {name: study.base(name) for name in names}
            reports = {name: report_of(study, attack, name) for name in names}
            found["matrices"].append(evaluation.transfer_matrix(bases, reports) | aim)
    for name in study.config.models:
        found["curves"] += kept(f"curves over epsilon, {name}", _curves, name)
    # They compile seven programs: with --quick, for the network that compiles fastest.
    for name in study.config.models[:1] if study.config.quick else study.config.models:
        sane = kept(f"sanity checks of {name}", _sanity, name)
        found["diagnostics"].append({"model": name} | sane)
    return found


def _pictures(study: Study, name: str, report: AttackReport, _: Any) -> list[dict[str, Any]]:
    chosen = studies.spread(report.attacked, study.config.num_recorded)
    return studies.gallery(study.base(name), report, chosen, model=name)


def _same_size(study: Study) -> list[list[str]]:
    """Networks that take the same images, two or more of them."""
    sizes: dict[int, list[str]] = {}
    for name in study.config.models:
        sizes.setdefault(SUBJECTS[name].image_size, []).append(name)
    return [names for names in sizes.values() if len(names) > 1]


def _curves(study: Study, name: str, _: Any) -> list[dict[str, Any]]:
    base, test, key = study.base(name), study.test(name), study.key
    epsilons = CURVE[::2] if study.config.quick or SUBJECTS[name].slow else CURVE
    return [
        evaluation.robustness_curve(
            attack, base, test.images, test.labels, epsilons, key=key, model=name
        )
        for attack in (study.fgsm(), study.pgd())
    ]


def _sanity(study: Study, name: str, progress: Any) -> dict[str, Any]:
    test = study.test(name)
    return evaluation.sanity(
        study.base(name),
        test.images,
        test.labels,
        study.config.epsilon,
        key=study.key,
        num_images=2 if study.config.quick else 50,
        progress=progress,
    )


def _transfer(study: Study) -> None:
    """Both directions between the two networks of each report, at every epsilon."""
    reports = (["mlp", "cnn"], ["simple_cnn", "resnet_small"])
    pairs = [pair for pair in reports if set(pair) <= set(study.config.models)]
    for pair in pairs or [names[:2] for names in _same_size(study)]:
        for source, shown_to in itertools.permutations(pair):
            for keys, attack in _attacks(study, *_epsilons(study)):
                report = report_of(study, attack, source)
                found = evaluation.transfer_rates(report, study.base(shown_to))
                keys |= {"network": source, "shown_to": shown_to}
                study.facts.add_rate("transfer of successes", keys, found["of_successes"])
                study.facts.add_rate("transfer of right", keys, found["of_right"])


def _shifts(study: Study, name: str, facts: studies.Facts, _: Any) -> None:
    """How far the maps move under attack, with random noise of the same size as the control."""
    classifier, report = study.base(name), report_of(study, study.pgd(), name)
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
            add_mean(facts, "map cosine", shift["cosine"], **keys)
            add_mean(facts, "map rank correlation", shift["rank_correlation"], **keys)
            add_mean(facts, "map distance", distance, **keys)
