"""Report A's attacks as published beside FGSM and PGD as defined, on the same networks.

As published: each step adds the sign of the gradient of one class's logit, the target's, or without a
target the predicted class's own, which strengthens that class where an attack should weaken it; all of
this on images normalised by mean and deviation, which are then clipped to [0, 1]. Normalised pixels go
from -2.1 to 2.6, so the clipping wipes out every pixel darker than the mean. On report A's own
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
    sign: jax.Array | float = 1.0,
    bounds: tuple[Any, Any] = (0.0, 1.0),
) -> jax.Array:
    """The published procedure on normalised images; its last two arguments mend it.

    Args:
      classifier: Whose mean and std normalise; its network is called on normalised images.
      images: float32 [B, H, W, C] in [0, 1].
      classes: int [B], whose logit is ascended: the predicted classes, or the target's.
      epsilon: Radius of the linf ball, in normalised units; the clipping leaves it.
      step_size: Of each step, in normalised units.
      num_steps: 0 only clips; 1 with step_size = epsilon is its FGSM.
      sign: 1 as published; -1 descends the logit, as an untargeted attack should.
      bounds: Of the clipping, each [C] or a scalar: 0 and 1 as published.

    Returns:
      float32 [B, H, W, C]: what the network is shown, in normalised units.
    """
    start = (images - classifier.mean) / classifier.std

    def logit(points: jax.Array) -> jax.Array:
        logits = classifier.apply_fn(classifier.variables, points)
        return jnp.take_along_axis(logits, classes[:, None], axis=1).sum()

    def step(_: Any, points: jax.Array) -> jax.Array:
        moved = points + sign * step_size * jnp.sign(jax.grad(logit)(points))
        return jnp.clip(start + jnp.clip(moved - start, -epsilon, epsilon), *bounds)

    return jnp.clip(jax.lax.fori_loop(0, num_steps, step, start), *bounds)


def section(study: Study) -> list[dict[str, Any]]:
    """The comparison, for the networks of report A where they are part of the run."""
    names = [name for name in ("mlp", "cnn") if name in study.config.models]
    if not names:
        return []
    return [study.stages.remember("as published, as defined", lambda _: _compare(study, names))]


def _compare(study: Study, names: Sequence[str]) -> dict[str, Any]:
    rows, grid, sentences = [], [], []
    for name in names:
        found, shown = _procedures(study, name)
        rows += found
        sentences += _sentences(study, name, {(row[1], row[2]): row[3] for row in found})
        grid += _grid(study, name, shown)
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
                "All on the same networks and photographs. The last column is the mean change of "
                "the logit that the attack is about: the predicted class's, which should fall; "
                "with a target the target's, which should rise. Report A prints l2 norms of 17 "
                "to 66, 4 to 6 of 10 successes without a target and 0 of 10 with one.",
            ),
            blocks.pictures(
                grid,
                "What the network is shown, back in pixels. Clipping normalised values to [0, 1] "
                "turns all that is darker than the mean to the mean, and all that is more than a "
                "deviation brighter to that: the published perturbation is this flattening, and the "
                "step of the attack is lost in it.",
                columns=["photograph", "as published", "its change", "as defined", "its change"],
            ),
        ],
        part=PART,
        text=[
            "Report A's procedure differs from the definition in three ways. Without a target it "
            "adds the gradient of the predicted class's own logit, which makes that class "
            "stronger. It clips normalised images to [0, 1]. And its epsilon is in normalised "
            "units, where 0.03 is 0.007 of a pixel's range. The rows between mend the sign and the "
            'clipping; from the last of them to "as defined" the unit of epsilon, the loss (the '
            "cross-entropy instead of a logit) and PGD's random start change together. On its own "
            "network this reading of it gives the logits and norms that it prints, to the last digit.",
            *sentences,
        ],
    )


def _procedures(study: Study, name: str) -> tuple[list[list[Any]], tuple[Any, Any]]:
    """Rows of the table for one network, and its published FGSM: (images, answers)."""
    config, classifier, test = study.config, study.base(name), study.test(name)
    images = jnp.asarray(test.images / np.float32(255))
    start = np.asarray((images - classifier.mean) / classifier.std)
    clean = np.asarray(classifier.apply_fn(classifier.variables, jnp.asarray(start)))
    predicted = clean.argmax(axis=1)
    white = jnp.asarray((1 - classifier.mean) / classifier.std, jnp.float32)
    black = jnp.asarray(-classifier.mean / classifier.std, jnp.float32)
    rows, shown = [], None
    for targeted in (False, True):
        classes = np.full_like(predicted, study.target) if targeted else predicted
        counted = test.labels != study.target if targeted else predicted == test.labels
        aim = f" to {config.target}" if targeted else ""
        mended = 1.0 if targeted else -1.0
        pixels: tuple[Any, Any] = (black, white)
        wrong: tuple[Any, Any] = (jnp.zeros(3), jnp.ones(3))
        published = [
            ("no step, clipping alone", "as published", 0, 0.0, 1.0, wrong),
            ("FGSM", "as published", 1, config.epsilon, 1.0, wrong),
            ("PGD", "as published", config.num_steps, config.step_size, 1.0, wrong),
            ("PGD", "its clipping mended", config.num_steps, config.step_size, 1.0, pixels),
        ]
        if not targeted:
            published += [
                ("PGD", "its sign mended", config.num_steps, config.step_size, mended, wrong),
                ("PGD", "both mended", config.num_steps, config.step_size, mended, pixels),
            ]
        for words, procedure, num_steps, step_size, sign, bounds in published:
            found = np.asarray(
                as_published(
                    classifier,
                    images,
                    jnp.asarray(classes),
                    jnp.float32(config.epsilon),
                    jnp.float32(step_size),
                    jnp.int32(num_steps),
                    jnp.float32(sign),
                    bounds,
                )
            )
            logits = np.asarray(classifier.apply_fn(classifier.variables, jnp.asarray(found)))
            answers = logits.argmax(axis=1)
            fooled = answers == study.target if targeted else answers != test.labels
            rows.append(
                [
                    name,
                    words + aim,
                    procedure,
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
                    type(attack).__name__ + aim,
                    "as defined",
                    evaluation.success_rate(report),
                    *_norms(change, counted),
                    _change(report.logits, clean, classes, counted),
                ]
            )
    assert shown is not None  # the loop has passed the untargeted FGSM
    return rows, shown


def _sentences(study: Study, name: str, rates: dict[tuple[str, str], evaluation.Rate]) -> list[str]:
    """What the rows of one network say of report A's conclusions."""

    def count(words: str, procedure: str) -> str:
        rate = rates[words, procedure]
        return f"{rate['count']} of {rate['n']}"

    aim = f" to {study.config.target}"
    return [
        f"{name}: clipping alone, without any attack, fools "
        f"{count('no step, clipping alone', 'as published')}; the published PGD "
        f"{count('PGD', 'as published')}, PGD as defined {count('PGD', 'as defined')}. To "
        f"{study.config.target} the published PGD brings {count('PGD' + aim, 'as published')}, PGD "
        f"as defined {count('PGD' + aim, 'as defined')}."
    ]


def _grid(study: Study, name: str, shown: tuple[Any, Any]) -> list[Any]:
    classifier, defined = study.base(name), report_of(study, study.fgsm(), name)
    right = np.flatnonzero(defined.clean_predictions == defined.labels)
    chosen = right[np.linspace(0, len(right) - 1, 3).astype(int)] if len(right) else right
    return [
        _row(study, name, int(index), shown, defined, classifier) for index in np.unique(chosen)
    ]


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
