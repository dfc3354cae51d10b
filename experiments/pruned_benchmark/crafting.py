"""Images that the attacks make on every base network, crafted once, and who has them right."""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from experiments.pruned_benchmark import threats
from experiments.pruned_benchmark.study import Study, Variant, spread
from experiments.pruned_benchmark.threats import UNIVERSAL_BATCH, Universal
from jaxrobust import evaluation, files
from jaxrobust.evaluation.answers import as_float
from jaxrobust.studies.outcomes import pack, right_ones, unpack


def victims(study: Study, surrogate: str) -> list[Variant]:
    """Who is shown the images made on a base network.

    Of its own family all; of the others base, controls and those pruned by one criterion.
    """
    found = []
    for network in study.config.networks:
        for variant in study.variants(network):
            shown = ("base", "control", study.shown_criterion)
            if network == surrogate or variant.kind in shown:
                found.append(variant)
    return found


def make(study: Study) -> None:
    """Crafts and shows all images, and attacks every network itself, into the study's records."""
    count = len(study.attacked)
    for surrogate in study.config.networks:
        for setting in threats.SETTINGS:
            for name in threats.NAMES:
                found = study.stages.remember(
                    f"{name}, {threats.words(setting)}, made on {surrogate}",
                    functools.partial(_craft_and_show, study, surrogate, setting, name),
                )
                study.shown[surrogate, setting, name] = {
                    victim: unpack(found[victim.name], count)
                    for victim in victims(study, surrogate)
                }
    for network in study.config.networks:
        for variant in study.variants(network):
            study.white_box[variant] = _white_box(study, variant)


def smallest(study: Study, surrogate: str, setting: str, name: str) -> np.ndarray:
    """L2 norms of CW's or DeepFool's perturbations, of the images that were right before.

    Infinite where none was found that fools.
    """
    report = evaluation.load_attack(path_of(study, surrogate, setting, name))
    return np.where(report.success, report.l2, np.inf)[report.attacked]


def path_of(study: Study, surrogate: str, setting: str, name: str) -> Path:
    """The file of the images that an attack made on a base network."""
    stem = f"{surrogate}-{setting.replace('/', '-of-')}-{name}".lower().replace("_", "-")
    return study.folder / "adversarial" / f"{stem}.npz"


def images_of(study: Study, surrogate: str, setting: str, name: str) -> np.ndarray:
    """The images that an attack made on a base network, float32 [N, H, W, C]."""
    path = path_of(study, surrogate, setting, name)
    if isinstance(threats.attacks()[setting][name], Universal):
        with np.load(path, allow_pickle=False) as archive:
            return np.clip(as_float(study.attacked.images) + archive["perturbation"], 0.0, 1.0)
    return evaluation.load_attack(path).images


def _craft_and_show(
    study: Study, surrogate: str, setting: str, name: str, progress: Any
) -> dict[str, Any]:
    attack = threats.attacks(study.config.max_steps)[setting][name]
    classifier, split = study.classifier(Variant(surrogate)), study.attacked
    path = path_of(study, surrogate, setting, name)
    if not path.exists():
        if isinstance(attack, Universal):
            _universal(study, attack, classifier, path, progress)
        else:
            under_way = path.with_suffix(".state.npz")
            report = evaluation.attack_dataset(
                attack,
                classifier,
                split.images,
                split.labels,
                key=study.key,
                path=under_way,
                progress=progress,
            )
            evaluation.save_attack(path, report)
            under_way.unlink(missing_ok=True)
    images = images_of(study, surrogate, setting, name)
    return {
        victim.name: pack(right_ones(study.classifier(victim), images, split.labels))
        for victim in victims(study, surrogate)
    }


def _universal(study: Study, attack: Universal, classifier: Any, path: Path, progress: Any) -> None:
    """One perturbation for all images, into a file."""
    made_on = study.attacked if attack.on_test else spread(study.train, len(study.attacked))
    found = evaluation.universal_perturbation(
        classifier,
        made_on.images,
        key=study.key,
        epsilon=attack.epsilon,
        max_passes=attack.max_passes,
        num_steps=attack.num_steps,
        overshoot=attack.overshoot,
        batch_size=UNIVERSAL_BATCH,
        progress=progress,
    )
    with files.replace(path) as partial:
        np.savez_compressed(partial, perturbation=found.perturbation)


def _white_box(study: Study, variant: Variant) -> dict[str, Any]:
    """Attacks made on a network itself.

    Returns:
      {attack of `threats.WHITE_BOX`: bool [N], which images it still has right; "norms": float [N],
      DeepFool's l2 norms, infinite where it did not fool, 0 where the image was wrong before}.
    """
    count = len(study.attacked)
    found = study.stages.remember(
        f"white box on {variant.name}", lambda progress: _attack(study, variant, progress)
    )
    lengths = [np.inf if norm is None else norm for norm in found["norms"]]
    right = {name: unpack(digits, count) for name, digits in found["right"].items()}
    return right | {"norms": np.array(lengths)}


def _attack(study: Study, variant: Variant, progress: Any) -> dict[str, Any]:
    split, right, lengths = study.attacked, {}, np.zeros(0)
    for name, attack in threats.white_box(study.config.max_steps).items():
        report = evaluation.attack_dataset(
            attack,
            study.classifier(variant),
            split.images,
            split.labels,
            key=study.key,
            until_fooled=attack.keep != "closest",  # of the others only who is fooled is asked
            progress=progress,
        )
        if attack.keep == "closest":
            reached = np.where(report.success, report.l2, np.inf)
            lengths = np.where(report.attacked, reached, 0.0)
        else:
            right[name] = pack(report.predictions == report.labels)
    return {
        "right": right,
        "norms": [round(float(n), 5) if np.isfinite(n) else None for n in lengths],
    }
