"""Attacks on the networks of the study: images that are made once and shown to many, and white box."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from jaxrobust import data, evaluation, files
from jaxrobust.evaluation.answers import as_float
from jaxrobust.studies.outcomes import pack
from jaxrobust.types import LogitsFn

UNIVERSAL_BATCH = 4  # DeepFool on so many images together; 1 is the paper's, and slower


@dataclasses.dataclass(frozen=True)
class Universal:
    """Arguments of `evaluation.universal_perturbation`: one perturbation for all images, in linf."""

    epsilon: float
    max_passes: int
    num_steps: int = 10
    overshoot: float = 0.02
    # Whether it is made on the images that it is then shown with, as in the source; else on as many
    # training images, as "universal" promises.
    on_test: bool = False
    keep: ClassVar[str] = (
        "best"  # as attacks say that they do not look for the smallest perturbation
    )


def shortened(attack: Any, max_steps: int | None) -> Any:
    """An attack with at most so many steps, where a number is given."""
    if max_steps is None:
        return attack
    steps = {"num_steps", "num_iterations", "num_searches", "max_passes"}
    fields = steps & {field.name for field in dataclasses.fields(attack)}
    fewer = {name: min(getattr(attack, name), max_steps) for name in fields}
    return dataclasses.replace(attack, **fewer)


def craft(
    attack: Any,
    classifier: LogitsFn,
    attacked: data.Split,
    train: data.Split,
    path: Path,
    key: jax.Array,
    progress: Any,
) -> None:
    """Makes the images of an attack on test images and keeps them in a file, unless it is there."""
    if path.exists():
        return
    if isinstance(attack, Universal):
        arguments = dataclasses.asdict(attack)
        made_on = attacked if arguments.pop("on_test") else train
        arguments |= {"key": key, "batch_size": UNIVERSAL_BATCH, "progress": progress}
        found = evaluation.universal_perturbation(classifier, made_on.images, **arguments)
        with files.replace(path) as partial:
            np.savez_compressed(partial, perturbation=found.perturbation)
        return
    under_way, images = path.with_suffix(".state.npz"), (attacked.images, attacked.labels)
    options = {"key": key, "path": under_way, "progress": progress}
    evaluation.save_attack(path, evaluation.attack_dataset(attack, classifier, *images, **options))
    under_way.unlink(missing_ok=True)


def images_of(attack: Any, path: Path, clean: np.ndarray) -> np.ndarray:
    """The images that `craft` made, float32 [N, H, W, C]; `clean` are those that it started from."""
    if isinstance(attack, Universal):
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
    progress: Any,
) -> dict[str, Any]:
    """What a network still has right under attacks, packed, and the norms that `smallest` takes."""
    images, options = (attacked.images, attacked.labels), {"key": key, "progress": progress}
    right = {}
    for name, attack in attacks.items():  # only who is fooled is asked
        report = evaluation.attack_dataset(
            attack, classifier, *images, until_fooled=True, **options
        )
        right[name] = pack(report.predictions == report.labels)
    lengths = norms(evaluation.attack_dataset(smallest, classifier, *images, **options))
    found = [round(float(norm), 5) if np.isfinite(norm) else None for norm in lengths]
    return {"right": right, "norms": found}
