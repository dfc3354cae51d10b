"""Attacks on the networks of the study: images made once and shown to many, and white-box attacks."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import data, evaluation, files, training
from jaxrobust.attacks import APGD, DeepFool, conversation
from jaxrobust.evaluation import Execution, UniversalPerturbation
from jaxrobust.evaluation.answers import as_float
from jaxrobust.studies.outcomes import pack
from jaxrobust.types import Evaluation, LogitsFn, Progress

_TINY = 1e-7  # ART's guard against a division by 0
UNIVERSAL_BATCH = 4  # the images of each DeepFool; the paper and ART have 1, which is slower


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ArtAPGD(APGD):
    """APGD in linf as ART 1.20 begins it and judges it, up to its first checkpoint step by step.

    It starts at a uniform point of the ball and its first step has the length `step_size`, where the
    paper takes the sphere and 2 epsilon. It counts the steps that found a new highest loss, the paper
    those with a higher loss than the last; and it returns the last point, not the best one. Two
    differences to ART remain: ART's checkpoints come a step later, and after halving it goes on with
    the momentum of the best point.

    Attributes:
      step_size: The length of the first step in pixel units, above 0.
    """

    step_size: float = 0.1

    keep: ClassVar[str] = "last"

    def init(self, key: jax.Array, image: jax.Array, label: jax.Array, restart: jax.Array) -> Any:
        """Starts at a uniform point of the ball, clipped to [0, 1]."""
        noise = jax.random.uniform(key, image.shape, jnp.float32, -1.0, 1.0)
        start = jnp.clip(image + self.epsilon * noise, 0.0, 1.0)
        state = super().init(key, image, label, restart)
        begun = {"start": start, "point": start, "previous": start, "best": start}
        return state._replace(**begun, step_size=jnp.asarray(self.step_size, jnp.float32))

    def tell(self, state: Any, evaluation: Evaluation) -> Any:
        """Takes a step; a loss counts as higher if it is higher than all before."""
        return super().tell(state._replace(last_loss=state.best_loss), evaluation)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ArtDeepFool(DeepFool):
    """DeepFool in l2 as ART 1.20 has it, the inner attack of its universal perturbation.

    A step ends on the linearised boundary, where rounding decides whether the image is fooled, and
    every point is clipped before the next step. ART applies the overshoot at the end; here it belongs
    to every point that is shown to the classifier. These points are clipped: ART also shows it the
    image with the universal perturbation as it is, outside of [0, 1].
    """

    def tell(self, state: Any, evaluation: Evaluation) -> Any:
        """Takes a step, unless the point fooled."""
        fooled = jnp.argmax(evaluation.logits) != state.label
        gradients, gaps = conversation.finite_gradient(evaluation), jnp.abs(evaluation.value)
        lengths = jnp.sqrt(jnp.sum(gradients**2, axis=(1, 2, 3)))
        nearest = jnp.argmin(gaps / (lengths + _TINY))
        step = gaps[nearest] / (lengths[nearest] ** 2 + _TINY) * gradients[nearest]
        moved = jnp.clip(state.original + state.total + step, 0.0, 1.0) - state.original
        return state._replace(total=jnp.where(fooled, state.total, moved), fooled=fooled)


def is_made_on_test(setting: str) -> bool:
    """Returns whether a universal perturbation is made on the test images to which it is applied.

    It is in the source. Otherwise it is made on as many training images, as "universal" promises.
    """
    return setting == "source"


def universal_batch(setting: str) -> int:
    """Returns how many images the DeepFool of a universal perturbation works on together."""
    return 1 if setting == "source" else UNIVERSAL_BATCH


def described(attack: Any, setting: str) -> Any:
    """Returns an attack in the form of a run's settings, in JSON."""
    if not isinstance(attack, UniversalPerturbation):
        return training.describe(attack)
    made = {"on_test": is_made_on_test(setting), "batch": universal_batch(setting)}
    return {"attack": training.describe(attack), **made}


def looks_for_the_smallest(attack: Any) -> bool:
    """Returns whether an attack looks for the smallest perturbation, without an epsilon."""
    return not isinstance(attack, UniversalPerturbation) and attack.keep == "closest"


def craft(
    attack: Any,
    setting: str,
    classifier: LogitsFn,
    attacked: data.Split,
    train: data.Split,
    path: Path,
    key: jax.Array,
    progress: Progress,
) -> None:
    """Makes the images of an attack on test images and saves them, unless the file exists.

    Of a universal perturbation, the perturbation is saved.
    """
    if path.exists():
        return
    if isinstance(attack, UniversalPerturbation):
        made_on = attacked if is_made_on_test(setting) else train
        options: Any = {"key": key, "batch_size": universal_batch(setting), "progress": progress}
        found = evaluation.universal_perturbation(attack, classifier, made_on.images, **options)
        with files.replace(path) as partial:
            np.savez_compressed(partial, perturbation=found.perturbation)
        return
    under_way, images = path.with_suffix(".state.npz"), (attacked.images, attacked.labels)
    options = {"key": key, "execution": Execution(path=under_way, progress=progress)}
    evaluation.save_attack(path, evaluation.attack_dataset(attack, classifier, *images, **options))
    under_way.unlink(missing_ok=True)


def images_of(attack: Any, path: Path, clean: np.ndarray) -> np.ndarray:
    """Returns the images that `craft` made from `clean`, float32 [N, H, W, C]."""
    if isinstance(attack, UniversalPerturbation):
        with np.load(path, allow_pickle=False) as archive:
            return np.clip(as_float(clean) + archive["perturbation"], 0.0, 1.0)
    return evaluation.load_attack(path, type(attack)).images


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
