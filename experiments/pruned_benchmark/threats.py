"""Attacks on the networks of the study: images made once and shown to many, and white-box attacks."""

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
UNIVERSAL_BATCH = 4  # the images of each DeepFool; the paper has 1, which is slower


def is_made_on_test(setting: str) -> bool:
    """Returns whether a universal perturbation is made on the test images to which it is applied.

    It is in the source. Otherwise it is made on as many training images, as "universal" promises.
    """
    return setting == "source"


def described(attack: Any, setting: str) -> Any:
    """Returns an attack in the form of a run's settings, in JSON."""
    if not isinstance(attack, UniversalPerturbation):
        return training.describe(attack)
    # The form of finished runs, from when it was a class of this module; fields that this form lacks
    # are added if they are not the default.
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
    """Returns whether an attack looks for the smallest perturbation, without an epsilon."""
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
    """Makes the images of an attack on test images and saves them, unless the file exists.

    A universal perturbation is made on `made_on`, and the perturbation is saved.
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
    """Returns the images that `craft` made from `clean`, float32 [N, H, W, C]."""
    if isinstance(attack, UniversalPerturbation):
        with np.load(path, allow_pickle=False) as archive:
            return np.clip(as_float(clean) + archive["perturbation"], 0.0, 1.0)
    return evaluation.load_attack(path).images


def norms(report: evaluation.AttackReport) -> np.ndarray:
    """Returns l2 norms of perturbations: infinite for a failure, 0 for an image wrong when clean."""
    return np.where(report.attacked, np.where(report.success, report.l2, np.inf), 0.0)


def white_box(
    attacks: dict[str, Any],
    smallest: Any,
    classifier: LogitsFn,
    attacked: data.Split,
    key: jax.Array,
    progress: Progress,
) -> dict[str, Any]:
    """Returns which images a network has right under attacks, packed, and the norms of `smallest`."""
    images, right = (attacked.images, attacked.labels), {}
    options: Any = {"key": key, "execution": Execution(progress=progress)}
    for name, attack in attacks.items():  # only which images are fooled matters
        report = evaluation.attack_dataset(
            attack, classifier, *images, until_fooled=True, **options
        )
        right[name] = pack(report.predictions == report.labels)
    lengths = norms(evaluation.attack_dataset(smallest, classifier, *images, **options))
    found = [round(float(norm), 5) if np.isfinite(norm) else None for norm in lengths]
    return {"right": right, "norms": found}
