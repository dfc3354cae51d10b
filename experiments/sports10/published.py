"""Source 000's attacks as published beside FGSM and PGD as defined, on the same networks.

As published: each step adds the sign of the gradient of one class's logit, the target's, or without a
target the predicted class's own, which strengthens that class where an attack should weaken it; all of
this on images normalised by mean and deviation, which are then clipped to [0, 1]. Normalised pixels go
from -2.1 to 2.6, so the clipping wipes out every pixel darker than the mean. On source 000's own
network this gives the logits and the norms that it prints, to the last digit
(tests/test_sports10_published.py).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.sports10.robustness import report_of
from experiments.sports10.study import Study
from jaxrobust import compilation, evaluation
from jaxrobust.models import Classifier
from jaxrobust.studies import blocks

PART = "b"


@compilation.jit
def as_published(
    classifier: Classifier,
    images: jax.Array,
    classes: jax.Array,
    epsilon: jax.Array,
    step_size: jax.Array,
    num_steps: jax.Array,
) -> jax.Array:
    """The published procedure on normalised images.

    Args:
      classifier: Whose mean and std normalise; it is called on normalised images without them.
      images: float32 [B, H, W, C] in [0, 1].
      classes: int [B], whose logit is ascended: the predicted classes, or the target's.
      epsilon: Radius of the linf ball, in normalised units; the last clipping leaves it.
      step_size: Of each step, in normalised units.
      num_steps: 0 only clips; 1 with step_size = epsilon is its FGSM.

    Returns:
      float32 [B, H, W, C]: what the network is shown, in normalised units.
    """
    start = (images - classifier.mean) / classifier.std

    def logit(points: jax.Array) -> jax.Array:
        logits = classifier.apply_fn(classifier.variables, points)
        return jnp.take_along_axis(logits, classes[:, None], axis=1).sum()

    def step(_: Any, points: jax.Array) -> jax.Array:
        moved = points + step_size * jnp.sign(jax.grad(logit)(points))
        return jnp.clip(start + jnp.clip(moved - start, -epsilon, epsilon), 0.0, 1.0)

    return jnp.clip(jax.lax.fori_loop(0, num_steps, step, start), 0.0, 1.0)


def section(study: Study) -> list[dict[str, Any]]:
    """The comparison, for the networks of source 000 where they are part of the run."""
    names = [name for name in ("mlp", "cnn") if name in study.config.models]
    if not names:
        return []
    return [study.stages.remember("as published, as defined", lambda _: _compare(study, names))]


def _compare(study: Study, names: Sequence[str]) -> dict[str, Any]:
    rows, grid = [], []
    config = study.config
    for name in names:
        classifier, test = study.base(name), study.test(name)
        images = jnp.asarray(test.images / np.float32(255))
        start = np.asarray((images - classifier.mean) / classifier.std)
        clean = np.asarray(classifier.apply_fn(classifier.variables, jnp.asarray(start)))
        predicted = clean.argmax(axis=1)
        procedures = {
            "no step, clipping alone": (0, 0.0),
            "FGSM": (1, config.epsilon),
            f"PGD, {config.num_steps} steps": (config.num_steps, config.step_size),
        }
        for targeted in (False, True):
            classes = np.full_like(predicted, study.target) if targeted else predicted
            counted = test.labels != study.target if targeted else predicted == test.labels
            aim = f" to {config.target}" if targeted else ""
            for words, (num_steps, step_size) in procedures.items():
                found = np.asarray(
                    as_published(
                        classifier,
                        images,
                        jnp.asarray(classes),
                        jnp.float32(config.epsilon),
                        jnp.float32(step_size),
                        jnp.int32(num_steps),
                    )
                )
                logits = np.asarray(classifier.apply_fn(classifier.variables, jnp.asarray(found)))
                answers = logits.argmax(axis=1)
                fooled = answers == study.target if targeted else answers != test.labels
                rows.append(
                    [
                        name,
                        f"{words}{aim}",
                        "as published",
                        evaluation.rate(int((fooled & counted).sum()), int(counted.sum())),
                        *_norms(found - start, counted),
                        _change(logits, clean, classes, counted),
                    ]
                )
                if words == "FGSM" and not targeted:
                    shown = (found, answers)
            for attack in (study.fgsm(targeted=targeted), study.pgd(targeted=targeted)):
                report = report_of(study, attack, name)
                change = (report.images - report.clean_images) / np.asarray(classifier.std)
                rows.append(
                    [
                        name,
                        evaluation.attack_label(attack).split(",")[0]
                        + (f", {config.num_steps} steps" if attack.num_steps > 1 else "")
                        + aim,
                        "as defined",
                        evaluation.success_rate(report),
                        *_norms(change, counted),
                        _change(report.logits, clean, classes, counted),
                    ]
                )
        defined = report_of(study, study.fgsm(), name)
        for index in np.flatnonzero(predicted == test.labels)[:: max(1, len(predicted) // 4)][:3]:
            grid.append(_row(study, name, int(index), start, shown, defined, classifier))
    return blocks.section(
        "published",
        "As published, as defined",
        [
            blocks.table(
                [
                    "Network",
                    "Attack",
                    "Procedure",
                    "Success",
                    blocks.column("l2", decimals=2, group="Mean norm, normalised units"),
                    blocks.column("linf", decimals=2, group="Mean norm, normalised units"),
                    blocks.column("The class's logit changes by", decimals=2),
                ],
                rows,
                "Both on the same networks and photographs. The last column is the mean change "
                "of the logit "
                "that the attack is about: the predicted class's, which should fall; with a "
                "target the target's, "
                "which should rise. Source 000 prints l2 norms of 26 to 66, 5 of 10 successes "
                "untargeted and "
                "0 of 10 targeted.",
            ),
            blocks.pictures(
                grid,
                "What the network is shown, back in pixels. Clipping normalised values to [0, 1] "
                "turns all that is darker than the mean to the mean: the published perturbation "
                "is that "
                "flattening, and the step of the attack is lost in it.",
                columns=["photograph", "as published", "its change", "as defined", "its change"],
            ),
        ],
        part=PART,
        text=[
            "Source 000 reports that FGSM and PGD fool half of the photographs, that targeted attacks "
            "never succeed, and that swimming resists. Its procedure differs from the "
            "definition in two "
            "ways: without a target it adds the gradient of the predicted class's own logit, "
            "which makes "
            "that class stronger, and it clips normalised images to [0, 1]. The rows without "
            "any step show how "
            "much of its success is clipping alone.",
            "Done as defined, in pixels and with the sign that the definition has, nearly every "
            "photograph "
            "falls and most go to the target: the conclusions that targeted attacks fail and that "
            "some classes resist do not survive.",
        ],
    )


def _norms(change: np.ndarray, counted: np.ndarray) -> list[float | None]:
    if not counted.any():
        return [None, None]
    flat = change[counted].reshape(counted.sum(), -1)
    return [float(np.linalg.norm(flat, axis=1).mean()), float(np.abs(flat).max(axis=1).mean())]


def _change(
    logits: np.ndarray, clean: np.ndarray, classes: np.ndarray, counted: np.ndarray
) -> float | None:
    rows = np.arange(len(classes))
    change = (logits - clean)[rows, classes][counted]
    return float(change.mean()) if len(change) else None


def _row(
    study: Study,
    name: str,
    index: int,
    start: np.ndarray,
    published: tuple[np.ndarray, np.ndarray],
    defined: Any,
    classifier: Classifier,
) -> tuple[str, list[dict[str, Any]]]:
    mean, std = np.asarray(classifier.mean), np.asarray(classifier.std)
    clean = defined.clean_images[index]
    seen = np.clip(published[0][index] * std + mean, 0, 1)
    names = study.class_names
    label = names[defined.labels[index]]
    before = names[int(defined.clean_predictions[index])]
    return f"{name}: {label}, image {index}", [
        blocks.tile(clean, title="photograph", text=before),
        blocks.tile(seen, title="as published", text=names[int(published[1][index])]),
        blocks.tile(seen, title="its change", style="difference", against=clean),
        blocks.tile(
            defined.images[index], title="as defined", text=names[int(defined.predictions[index])]
        ),
        blocks.tile(defined.images[index], title="its change", style="difference", against=clean),
    ]
