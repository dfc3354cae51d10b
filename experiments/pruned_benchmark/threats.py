"""Attacks on the networks of the study: images that are made once and shown to many, and white box."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrobust import data, evaluation, files, training
from jaxrobust.evaluation import Execution, UniversalPerturbation
from jaxrobust.evaluation.answers import as_float
from jaxrobust.studies.outcomes import pack
from jaxrobust.types import LogitsFn, Progress

_DESCRIBED = ("epsilon", "max_passes", "inner", "num_steps", "overshoot")
UNIVERSAL_BATCH = 4  # DeepFool on so many images together; 1 is the paper's, and slower


def is_made_on_test(setting: str) -> bool:
    """Whether a universal perturbation is made on the images that it is then shown with.

    So it is in the source; else it is on as many training images, as "universal" promises.
    """
    return setting == "source"


def described(attack: Any, setting: str) -> Any:
    """An attack as a run's settings have it, in JSON."""
    if not isinstance(attack, UniversalPerturbation):
        return training.describe(attack)
    # As finished runs have it, from when it was a class of this module; what has no place in that is
    # said where it is not the default.
    usual = UniversalPerturbation(attack.epsilon)
    others: dict[str, Any] = {}
    for prefix, one, default in (("", attack, usual), ("inner.", attack.inner, usual.inner)):
        for field in dataclasses.fields(one):
            value = getattr(one, field.name)
            if field.name not in _DESCRIBED and value != getattr(default, field.name):
                others[prefix + field.name] = training.describe(value)
    return {
        "type": "experiments.pruned_benchmark.threats.Universal",
        "epsilon": attack.epsilon,
        "max_passes": attack.max_passes,
        "num_steps": attack.inner.num_steps,
        "overshoot": attack.inner.overshoot,
        "on_test": is_made_on_test(setting),
    } | others


def looks_for_the_smallest(attack: Any) -> bool:
    """Whether an attack has no epsilon to keep to."""
    return not isinstance(attack, UniversalPerturbation) and attack.keep == "closest"


def craft(
    attack: Any,
    classifier: LogitsFn,
    attacked: data.Split,
    made_on: data.Split,
    path: Path,
    key: jax.Array,
    progress: Progress,
) -> None:
    """Makes the images of an attack on test images and keeps them in a file, unless it is there.

    A universal perturbation is made on other images, and is what its file keeps.
    """
    if path.exists():
        return
    if isinstance(attack, UniversalPerturbation):
        of: Any = classifier, made_on.images
        found = evaluation.universal_perturbation(
            attack, *of, key=key, batch_size=UNIVERSAL_BATCH, progress=progress
        )
        with files.replace(path) as partial:
            np.savez_compressed(partial, perturbation=found.perturbation)
        return
    under_way, images = path.with_suffix(".state.npz"), (attacked.images, attacked.labels)
    options: Any = {"key": key, "execution": Execution(path=under_way, progress=progress)}
    evaluation.save_attack(path, evaluation.attack_dataset(attack, classifier, *images, **options))
    under_way.unlink(missing_ok=True)


def images_of(attack: Any, path: Path, clean: np.ndarray) -> np.ndarray:
    """The images that `craft` made, float32 [N, H, W, C]; `clean` are those that it started from."""
    if isinstance(attack, UniversalPerturbation):
        with np.load(path, allow_pickle=False) as archive:
            return np.clip(as_float(clean) + archive["perturbation"], 0.0, 1.0)
    return evaluation.load_attack(path).images


def norms(report: evaluation.AttackReport) -> np.ndarray:
    """L2 norms of perturbations: infinite where none fools, 0 where the image was wrong before."""
    return np.where(report.attacked, np.where(report.success, report.l2, np.inf), 0.0)


def white_box(
    attacks: dict[str, Any],
    smallest: Any,
    classifier: LogitsFn,
    attacked: data.Split,
    key: jax.Array,
    progress: Progress,
) -> dict[str, Any]:
    """What a network still has right under attacks, packed, and the norms that `smallest` takes."""
    images, right = (attacked.images, attacked.labels), {}
    options: Any = {"key": key, "execution": Execution(progress=progress)}
    for name, attack in attacks.items():  # only who is fooled is asked
        report = evaluation.attack_dataset(
            attack, classifier, *images, until_fooled=True, **options
        )
        right[name] = pack(report.predictions == report.labels)
    lengths = norms(evaluation.attack_dataset(smallest, classifier, *images, **options))
    found = [round(float(norm), 5) if np.isfinite(norm) else None for norm in lengths]
    return {"right": right, "norms": found}
