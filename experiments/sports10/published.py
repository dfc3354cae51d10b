"""Compares report A's attacks as published with FGSM and PGD as defined, on the same networks.

Each step of the published procedure adds the sign of the gradient of one class's logit to images that
are normalised and then clipped to [0, 1]. The class is the target or, without a target, the predicted
class itself. On report A's own network this gives the figures that the report prints
(tests/test_sports10_published.py).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.sports10.study import Study
from jaxrobust import compilation, studies
from jaxrobust.models import Classifier
from jaxrobust.reports.pictures import decode_array, encode_array

# (attack, procedure, the sign of its steps, whether it clips pixels instead of normalised values).
PROCEDURES = (
    ("none", "as_published", 1, False),
    ("FGSM", "as_published", 1, False),
    ("PGD", "as_published", 1, False),
    ("PGD", "clipping_mended", 1, True),
    ("PGD", "sign_mended", -1, False),
    ("PGD", "both_mended", -1, True),
)


@compilation.jit
def as_published(
    classifier: Classifier,
    images: jax.Array,
    classes: jax.Array,
    epsilon: jax.Array | float,
    step_size: jax.Array | float,
    num_steps: jax.Array | int,
    sign: jax.Array | float = 1.0,
    bounds: tuple[Any, Any] = (0.0, 1.0),
) -> jax.Array:
    """Runs the published procedure on images [B, H, W, C]; the last two arguments can mend it.

    It ascends the logit of `classes`, int [B], which are the predicted classes or the target; with
    `sign` -1 it descends this logit. Epsilon, step size, the bounds of the clipping and the returned
    images are in normalised units. Without steps it only clips; one step with step_size = epsilon is
    the published FGSM.
    """
    start = (images - classifier.mean) / classifier.std

    def logit(points: jax.Array) -> jax.Array:
        logits = classifier.apply_fn(classifier.variables, points)
        return jnp.take_along_axis(logits, classes[:, None], axis=1).sum()

    def step(_: Any, points: jax.Array) -> jax.Array:
        moved = points + sign * step_size * jnp.sign(jax.grad(logit)(points))
        return jnp.clip(start + jnp.clip(moved - start, -epsilon, epsilon), *bounds)

    return jnp.clip(jax.lax.fori_loop(0, num_steps, step, start), *bounds)


def measure(study: Study) -> dict[str, Any]:
    """Adds the facts of both procedures, for those of report A's networks that are in the run.

    Returns:
      {"published": {network: the result of `_shown`}}.
    """
    found = {}
    for name in [name for name in ("mlp", "cnn") if name in study.config.models]:
        compare = functools.partial(_compare, study, name)
        study.run.measure(f"as published and as defined, {name}", compare)
        record = functools.partial(_shown, study, name)
        kept = study.run.stages.remember(f"pictures as published, {name}", record)
        found[name] = kept | {"images": decode_array(kept["images"])}
    return {"published": found}


def _published(
    study: Study, name: str, classes: Any, attack: str, sign: int, clips_pixels: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the test photographs after a procedure, in normalised units, and their logits."""
    config, classifier = study.config, study.base(name)
    num_steps = {"none": 0, "FGSM": 1, "PGD": config.num_steps}[attack]
    step_size = config.step_size if attack == "PGD" else config.epsilon
    ends: tuple[Any, ...] = (jnp.zeros(3), jnp.ones(3))
    if clips_pixels:
        ends = tuple((end - classifier.mean) / classifier.std for end in ends)
    images, steps = study.pixels(name), (config.epsilon, step_size, num_steps, sign)
    found = as_published(classifier, images, classes, *steps, ends)
    logits = classifier.apply_fn(classifier.variables, found)
    return np.asarray(found), np.asarray(logits)


def _compare(study: Study, name: str, facts: studies.Facts, _: Any) -> None:
    """Adds success, norms, and the change of the predicted or targeted class's logit."""
    classifier, labels = study.base(name), study.test(name).labels
    start = np.asarray((study.pixels(name) - classifier.mean) / classifier.std)
    clean = np.asarray(classifier.apply_fn(classifier.variables, jnp.asarray(start)))
    for targeted in (False, True):
        classes = np.full_like(labels, study.target) if targeted else clean.argmax(axis=1)
        counted = labels != study.target if targeted else classes == labels
        found = {}
        for attack, procedure, sign, clips_pixels in PROCEDURES:
            if sign > 0 or not targeted:  # with a target the published sign is right
                shown, logits = _published(study, name, classes, attack, sign, clips_pixels)
                found[attack, procedure] = (shown - start, logits)
        for attack in ("FGSM", "PGD"):
            report = study.attack(study.make(attack, targeted=targeted), name)
            change = (report.images - report.clean_images) / np.asarray(classifier.std)
            found[attack, "as_defined"] = (change, report.logits)
        for (attack, procedure), (change, logits) in found.items():
            keys = {"network": name, "attack": attack, "procedure": procedure, "targeted": targeted}
            answers = logits.argmax(axis=1)
            fooled = answers == study.target if targeted else answers != labels
            facts.add("procedure success", keys, outcomes=fooled[counted])
            flat = change[counted].reshape(counted.sum(), change[0].size)
            raised = np.take_along_axis(logits - clean, classes[:, None], axis=1)[counted]
            if counted.any():
                l2, linf = np.linalg.norm(flat, axis=1), np.abs(flat).max(axis=1)
                facts.add("procedure l2", keys, value=l2.mean())
                facts.add("procedure linf", keys, value=linf.mean())
                facts.add("procedure logit change", keys, value=raised.mean())


def _shown(study: Study, name: str, _: Any) -> dict[str, Any]:
    """Returns three photographs that the network has right, before and after both kinds of FGSM."""
    base, report = study.base(name), study.attack(study.make("FGSM"), name)
    published, logits = _published(study, name, report.clean_predictions, "FGSM", 1, False)
    pixels = np.clip(published * base.std + base.mean, 0, 1)
    chosen = studies.spread(report.attacked, 3)
    images = np.stack([report.clean_images, pixels, report.images])[:, chosen].astype(np.float32)
    answers = np.stack([report.clean_predictions, logits.argmax(axis=1), report.predictions])
    kept = {"chosen": chosen, "answers": answers[:, chosen].T.tolist()}
    return kept | {"images": encode_array(images.swapaxes(0, 1))}
