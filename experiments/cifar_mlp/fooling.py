"""The source's fooling images: its own procedure, and the library's attacks beside it.

The source takes one step of "targeted PGD" from a truck that its network has right, ends at an image
that the network calls an automobile, and reports a difference of norm 91 over 3 x 32 x 32 values from 0
to 255. That is 91 / 255 = 0.357 in the unit of everything here, pixels from 0 to 1.

As published: the image plus a step of that norm along the gradient of the target's score; and the
same in small steps until the network answers with the target, which says how long the way is. As
defined: PGD, FAB and Carlini-Wagner of the library, which keep to a ball or look for its smallest
radius.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cifar_mlp.source import DIFFERENCE_NORM
from experiments.cifar_mlp.study import Study
from jaxrobust import compilation, evaluation, models, studies
from jaxrobust.attacks import FAB, FGSM, PGD, CarliniWagner, RandomNoise
from jaxrobust.evaluation.answers import as_float
from jaxrobust.evaluation.classification import softmax
from jaxrobust.studies import blocks
from jaxrobust.types import Attack

NETWORK = "hidden layer"
EPSILON = DIFFERENCE_NORM / 255  # l2, of pixels in [0, 1]
NUM_STEPS = 40
SMALL_STEP, MOST_STEPS = 2 / 255, 1000  # of the ascent that stops at the target
CURVE = tuple(EPSILON * share for share in (0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3))


class Ascent(NamedTuple):
    """Where an ascent ended, and after how many steps."""

    images: Any
    num_steps: Any


@compilation.jit
def ascend(
    classifier: models.Classifier,
    images: jax.Array,
    targets: jax.Array,
    step_size: jax.Array | float,
    num_steps: jax.Array | int,
) -> Ascent:
    """Gradient ascent on the target's score, by the image, until the target is the answer.

    Args:
      classifier: Images -> logits.
      images: float32 [B, H, W, C] in [0, 1].
      targets: int [B].
      step_size: The l2 length of a step: each is along the gradient, over its length.
      num_steps: At most.

    Returns:
      Images clipped to [0, 1], and steps [B]; of an image that never gets there, all of them.
    """

    def score(points: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = classifier(points)
        return jnp.take_along_axis(logits, targets[:, None], axis=1).sum(), logits

    def step(_: Any, state: Ascent) -> Ascent:
        slope, logits = jax.grad(score, has_aux=True)(state.images)
        going = logits.argmax(axis=1) != targets
        length = jnp.sqrt(jnp.sum(slope**2, axis=(1, 2, 3), keepdims=True)) + 1e-12
        moved = jnp.clip(state.images + step_size * slope / length, 0.0, 1.0)
        kept = jnp.where(going[:, None, None, None], moved, state.images)
        return Ascent(kept, state.num_steps + going)

    start = Ascent(images, jnp.zeros(len(images), jnp.int32))
    return jax.lax.fori_loop(0, num_steps, step, start)


def attacks() -> list[tuple[Attack, bool]]:
    """(attack, whether it aims at the source's target), all l2."""
    step = 2.5 * EPSILON / NUM_STEPS
    return [
        (RandomNoise(EPSILON, NUM_STEPS, "l2"), False),
        (FGSM(EPSILON, "l2"), False),
        (PGD(EPSILON, step, NUM_STEPS, "l2"), False),
        (FAB(EPSILON, norm="l2"), False),
        (FGSM(EPSILON, "l2", targeted=True), True),
        (PGD(EPSILON, step, NUM_STEPS, "l2", targeted=True), True),
        (CarliniWagner(0.0, 0.01, 0.1, 200, 6, targeted=True), True),
    ]


def typed(study: Study, classifier: models.Classifier) -> dict[str, Any]:
    """The attacks, gallery, curve and sanity checks, as result.json has places for them."""
    rows = studies.spread(np.ones(len(study.dataset.test), bool), study.config.num_attacked)
    images, labels = study.dataset.test.images[rows], study.dataset.test.labels[rows]
    target = study.pair[1]
    found = []
    for attack, aimed in attacks():
        if study.config.quick and isinstance(attack, CarliniWagner):
            attack = CarliniWagner(0.0, 0.01, 1.0, 20, 3, targeted=True)
        label = evaluation.attack_label(attack)
        name = f"{label} to {study.dataset.class_names[target]}" if aimed else label

        def compute(progress: Any, attack: Any = attack, aimed: bool = aimed) -> dict[str, Any]:
            report = evaluation.attack_dataset(
                attack,
                classifier,
                images,
                labels,
                key=study.key,
                targets=target if aimed else None,
                progress=progress,
            )
            moved = (
                report.fools & report.attacked
            )  # at any norm: some attacks look for the smallest
            if report.targets is not None:  # what is taken for the target already needs no change
                moved &= report.clean_predictions != report.targets
            norms = report.l2[moved]
            result: dict[str, Any] = {
                "entry": evaluation.summarise(report, NETWORK, study.dataset.class_names),
                "norm": evaluation.median_interval(norms) if len(norms) else None,
            }
            for record, row in zip(result["entry"]["records"], rows, strict=True):
                record["index"] = int(row)
            if isinstance(attack, FAB):
                result["curve"] = evaluation.curve_from_norms(report, CURVE, model=NETWORK)
            if isinstance(attack, PGD):
                shown = studies.spread(report.success & report.attacked, study.config.num_shown)
                pictures = studies.gallery(classifier, report, shown, model=NETWORK)
                result["gallery"] = [p | {"index": int(rows[p["index"]])} for p in pictures]
            return result

        found.append((attack, study.stages.remember(name, compute)))

    def sane(progress: Any) -> dict[str, Any]:
        return evaluation.sanity(
            classifier,
            images,
            labels,
            EPSILON,
            key=study.key,
            norm="l2",
            num_images=min(50, len(images)),
            progress=progress,
        )

    return {
        "attacks": [result["entry"] for _, result in found],
        "norms": [result["norm"] for _, result in found],
        "gallery": [entry for _, result in found for entry in result.get("gallery", [])],
        "curves": [result["curve"] for _, result in found if "curve" in result],
        "diagnostics": [{"model": NETWORK} | study.stages.remember("sanity checks", sane)],
    }


def section(
    study: Study, classifier: models.Classifier, found: dict[str, Any], *, part: str
) -> dict[str, Any]:
    """The source's procedure, its images and its norm, with the library's attacks beside them."""
    published = study.stages.remember(
        "the source's fooling images", lambda _: _published(study, classifier)
    )
    first, second = (study.dataset.class_names[k] for k in study.pair)
    rows = [
        *published["rows"],
        *(
            [
                f"{entry['label']}{f' to {second}' if 'target' in entry else ''}",
                entry["success"],
                *_both_units(norm),
            ]
            for entry, norm in zip(found["attacks"], found["norms"], strict=True)
        ),
    ]
    levels = DIFFERENCE_NORM / np.sqrt(np.prod(study.dataset.image_shape))
    return blocks.section(
        "fooling",
        "Fooling images",
        [
            blocks.table(
                [
                    "Procedure",
                    "Success",
                    blocks.column("of 0 to 1", decimals=3, group="Norm of the difference, median"),
                    blocks.column(
                        "of 0 to 255", decimals=1, group="Norm of the difference, median"
                    ),
                ],
                rows,
                "The norm is l2 over all values of an image, of the images that were fooled; in "
                "brackets the 95 % interval of the median. The source reports "
                f"{DIFFERENCE_NORM:g} of 0 to 255 for its one image. FAB and Carlini-Wagner look "
                "for the smallest norm, however large it is: FAB's success is within the "
                "source's norm, Carlini-Wagner's at any. Success without a target is of the "
                "images that the network has right; with one it is of those of other classes, "
                "and counts those that are taken for the target already, which the norms leave "
                "out.",
            ),
            blocks.pictures(
                [(row["label"], row["tiles"]) for row in published["pictures"]],
                f"One step of norm {DIFFERENCE_NORM:g} towards {second} from pictures of {first} "
                "that the network has right, as in the source's figures: the image, the fooled "
                "image, and their difference as the source draws it, which looks black, and "
                "amplified around grey.",
                columns=["image", "after the step", "difference", "difference, amplified"],
            ),
        ],
        part=part,
        text=[
            f"The source ascends from a picture of a truck to the class automobile (here {first} "
            f"and {second}); the difference of its image has norm {DIFFERENCE_NORM:g} in grey "
            f"levels over all values, {EPSILON:.3f} in pixels from 0 to 1. Spread evenly it would "
            f"change each value by {levels:.1f} of 255 levels. {published['words']}"
        ],
    )


def verdict(study: Study, found: dict[str, Any]) -> dict[str, Any]:
    """Is the network robust, as the source asks?"""
    pgd = next(e for e in found["attacks"] if e["name"] == "PGD" and "target" not in e)
    noise = next(e for e in found["attacks"] if e["name"] == "RandomNoise")
    rate, still = pgd["robust_accuracy"], pgd["success"]["rate"]
    norm = next(
        norm
        for entry, norm in zip(found["attacks"], found["norms"], strict=True)
        if entry["name"] == "FAB"
    )
    if still is None:
        answer = "Not decided: the network has no attacked image right."
    elif still > 0.5:
        answer = (
            "No, as the source found it: most images are fooled by a change that is hardly seen."
        )
    else:
        answer = "Not as the source says: most images withstand a change of the size of its own."
    typical = ""
    if norm is not None:
        typical = f" The median smallest change found has norm {255 * norm['median']:.0f}."
    return blocks.verdict(
        "Is the network robust?",
        answer,
        f"PGD, {NUM_STEPS} steps, {pgd['success']['n']} test images that it has right. "
        f"{found['diagnostics'][0]['reason']}",
        [("fooling images", "fooling"), ("attacks", "attacks")],
        details=f"At the source's norm of {DIFFERENCE_NORM:g} of 0 to 255 PGD fools "
        f"{_percent(pgd['success'])} of the images that it has right, and random noise "
        f"{_percent(noise['success'])}; {_percent(rate)} of all images are still right under PGD."
        f"{typical}",
    )


def _published(study: Study, classifier: models.Classifier) -> dict[str, Any]:
    """The source's procedure on every test image of its class, and in small steps until it works."""
    test = study.dataset.test
    start, target = study.pair
    first, second = (study.dataset.class_names[k] for k in study.pair)
    right = evaluation.logits(classifier, test.images).argmax(axis=1) == test.labels
    rows = np.flatnonzero((test.labels == start) & right)
    if not len(rows):
        words = f"The network has no test image of {first} right, so there is nothing to fool."
        return {"rows": [], "pictures": [], "words": words}
    images = jnp.asarray(as_float(test.images[rows]))
    targets = jnp.full(len(rows), target)
    table, shown = [], None
    for words, step_size, num_steps in (
        (f"one step of norm {DIFFERENCE_NORM:g}", EPSILON, 1),
        ("small steps until it answers so", SMALL_STEP, MOST_STEPS),
    ):
        found = np.asarray(ascend(classifier, images, targets, step_size, num_steps).images)
        answers = evaluation.logits(classifier, found).argmax(axis=1)
        success = answers == target
        norms = np.sqrt(((found - np.asarray(images)) ** 2).sum(axis=(1, 2, 3)))
        median = evaluation.median_interval(norms[success]) if success.any() else None
        table.append(
            [
                f"As published, {first} to {second}: {words}",
                evaluation.rate(int(success.sum()), len(rows)),
                *_both_units(median),
            ]
        )
        shown = shown or (found, success)
    assert shown is not None  # the loop has run
    count, share = table[0][1]["count"], table[0][1]["rate"]
    typical = table[1][3]
    words = (
        f"That one step turns {count} of the {len(rows)} test pictures of {first} that our "
        f"network has right into {second} ({100 * share:.0f} %)."
    )
    if typical is not None:
        middle = typical["value"] if isinstance(typical, dict) else typical
        words += (
            f" Of those that get there in small steps, half do so within a norm of {middle:.0f}."
        )
    return {"rows": table, "pictures": _pictures(study, classifier, rows, *shown), "words": words}


def _pictures(
    study: Study,
    classifier: models.Classifier,
    rows: np.ndarray,
    found: np.ndarray,
    success: np.ndarray,
) -> list[dict[str, Any]]:
    test, names = study.dataset.test, study.dataset.class_names
    # Successes first: what the source shows is one.
    order = np.argsort(~success, kind="stable")[: study.config.num_shown]
    clean = as_float(test.images[rows[order]])
    before, after = (
        softmax(evaluation.logits(classifier, batch)) for batch in (clean, found[order])
    )

    def said(probabilities: np.ndarray) -> str:
        best = int(probabilities.argmax())
        return f"{names[best]} ({100 * probabilities[best]:.0f} %)"

    lines = []
    for i, position in enumerate(order):
        change = found[position] - clean[i]
        norm = float(np.linalg.norm(change))
        lines.append(
            {
                "label": f"{names[study.pair[0]]}, image {rows[position]}",
                "tiles": [
                    blocks.tile(clean[i], text=said(before[i])),
                    blocks.tile(found[position], text=said(after[i])),
                    blocks.tile(np.abs(change), text=f"norm {norm:.3f}, {255 * norm:.0f} of 255"),
                    blocks.tile(found[position], style="difference", against=clean[i]),
                ],
            }
        )
    return lines


def _both_units(norm: Any) -> list[Any]:
    """A median norm in pixels of 0 to 1 and in grey levels, as two cells."""
    if norm is None:
        return [None, None]
    return [
        blocks.estimate(norm["median"], norm["low"], norm["high"], scale) for scale in (1.0, 255.0)
    ]


def _percent(rate: Any) -> str:
    return "none" if rate["rate"] is None else f"{100 * rate['rate']:.1f} %"
