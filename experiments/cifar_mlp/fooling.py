"""The source's fooling images: its own procedure, and the library's attacks beside it.

The source takes one step of "targeted PGD" from a truck that its network has right, ends at an image
that the network calls an automobile, and reports a difference of norm 91 over 3 x 32 x 32 values from 0
to 255. That is 91 / 255 = 0.357 in the unit of everything here, pixels from 0 to 1.

As published: the image plus a step of that norm along the gradient of the target's score, and small
steps until the network answers with the target, which say how long the way is. As defined: PGD, FAB and
Carlini-Wagner of the library, which keep to a ball or look for its smallest radius.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cifar_mlp import pictures
from jaxrobust import compilation, data, evaluation, models, studies
from jaxrobust.attacks import FAB, FGSM, PGD, Attack, CarliniWagner, RandomNoise
from jaxrobust.evaluation import Execution
from jaxrobust.evaluation.answers import as_float
from jaxrobust.reports.pictures import encode_array
from jaxrobust.studies import Facts, Run, records

NETWORK = "hidden layer"
LEVELS = 91.0  # the norm of the source's difference, in grey levels of 0 to 255
EPSILON = LEVELS / 255  # l2, of pixels in [0, 1]
NUM_STEPS = 40
SMALL_STEP, MOST_STEPS = 2 / 255, 1000  # of the ascent that stops at the target
ASCENTS = {"one step": (EPSILON, 1), "small steps": (SMALL_STEP, MOST_STEPS)}
CURVE = tuple(EPSILON * share for share in (0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3))


@compilation.jit
def ascend(
    classifier: Any, images: jax.Array, targets: jax.Array, step_size: Any, num_steps: Any
) -> tuple[jax.Array, jax.Array]:
    """Gradient ascent on the target's score, by the image, until the target is the answer.

    Each step along the gradient has the l2 length `step_size`; images stay in [0, 1].

    Returns:
      Images [B, H, W, C] and steps [B]; of an image that never gets there, all of them.
    """

    def score(points: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = classifier(points)
        return jnp.take_along_axis(logits, targets[:, None], axis=1).sum(), logits

    def step(_: Any, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        points, taken = state
        slope, logits = jax.grad(score, has_aux=True)(points)
        going = logits.argmax(axis=1) != targets
        length = jnp.sqrt(jnp.sum(slope**2, axis=(1, 2, 3), keepdims=True)) + 1e-12
        moved = jnp.clip(points + step_size * slope / length, 0.0, 1.0)
        return jnp.where(going[:, None, None, None], moved, points), taken + going

    return jax.lax.fori_loop(0, num_steps, step, (images, jnp.zeros(len(images), jnp.int32)))


def attacks(quick: bool = False) -> list[Attack]:
    """All l2; those with a target aim at the source's."""
    step = 2.5 * EPSILON / NUM_STEPS
    search = (1.0, 20, 3) if quick else (0.1, 200, 6)
    return [
        RandomNoise(EPSILON, NUM_STEPS, "l2"),
        FGSM(EPSILON, "l2"),
        PGD(EPSILON, step, NUM_STEPS, "l2"),
        FAB(EPSILON, norm="l2"),
        FGSM(EPSILON, "l2", targeted=True),
        PGD(EPSILON, step, NUM_STEPS, "l2", targeted=True),
        CarliniWagner(0.0, 0.01, *search, targeted=True),
    ]


def measure(run: Run, dataset: data.Dataset, classifier: models.Classifier) -> dict[str, Any]:
    """Attacks a classifier, and adds what came of it to the run's facts.

    Returns:
      Names for the report: the classes "start" and "goal" of the source's fooling image, truck and
      automobile, here the last and the second; records of the attacks, the sanity checks, pictures.
    """
    facts, remember, test = run.facts, run.stages.remember, dataset.test
    pair = (dataset.num_classes - 1, 1)
    start, goal = (dataset.class_names[k] for k in pair)
    rows = studies.spread(np.ones(len(test), bool), run.settings.num_attacked)
    found = []
    for attack in attacks(run.settings.quick):
        label = evaluation.attack_label(attack)
        compute = functools.partial(_attacked, run, dataset, classifier, rows, pair[1], attack)
        found.append(remember(f"{label} to {goal}" if attack.targeted else label, compute))
        of = {"attack": type(attack).__name__, "target": goal if attack.targeted else None}
        records.add_attack(facts, found[-1]["entry"], of)
        _add_norm(facts, of, found[-1]["norm"])
        if "curve" in found[-1]:
            records.add_curve(facts, found[-1]["curve"], of)
    given: Any = (classifier, test.images[rows], test.labels[rows], EPSILON)
    check = functools.partial(evaluation.sanity, *given, key=run.key, norm="l2", num_images=50)
    sanity = remember(
        "sanity checks", lambda progress: check(execution=Execution(progress=progress))
    )
    ascent = functools.partial(ascents_of, classifier, test, pair, run.settings.num_shown)
    ascents = remember("ascents to the target", lambda _: ascent())
    for name, record in ascents.items():
        of = {"attack": name, "target": goal}
        fooled, norms = np.array(record["fooled"]), np.array(record["norm"])
        facts.add("success", of, outcomes=fooled)
        _add_norm(facts, of, evaluation.median_interval(norms[fooled]) if fooled.any() else None)
    _add_norm(facts, {"source": "002"}, {"median": EPSILON, "n": 1, "low": None, "high": None})
    facts.add("even change", value=LEVELS / np.sqrt(np.prod(dataset.image_shape)))
    shown = pictures.fooled(ascents["one step"], classifier, dataset) if ascents else []
    named = {"start": start, "goal": goal, "attacks": found, "fooled": shown}
    return named | {"sanity": {"model": NETWORK} | sanity}


def _attacked(
    run: Run,
    dataset: data.Dataset,
    classifier: Any,
    rows: Any,
    goal: int,
    attack: Attack,
    progress: Any,
) -> dict[str, Any]:
    """What an attack makes of images, and the median norm; of FAB a curve besides, of PGD pictures."""
    images, labels = dataset.test.images[rows], dataset.test.labels[rows]
    options: Any = {"key": run.key, "targets": goal if attack.targeted else None}
    options["execution"] = Execution(progress=progress)
    report = evaluation.attack_dataset(attack, classifier, images, labels, **options)
    moved = report.fools & report.attacked  # at any norm: some attacks look for the smallest
    if report.targets is not None:  # what is taken for the target already needs no change
        moved &= report.clean_predictions != report.targets
    result: dict[str, Any] = {
        "entry": evaluation.summarise(report, NETWORK, dataset.class_names),
        "norm": evaluation.median_interval(report.l2[moved]) if moved.any() else None,
    }
    if isinstance(attack, FAB):
        result["curve"] = evaluation.curve_from_norms(report, CURVE, model=NETWORK)
    if isinstance(attack, PGD):
        shown = studies.spread(report.success & report.attacked, run.settings.num_shown)
        result["gallery"] = studies.gallery(classifier, report, shown, model=NETWORK)
    for record in (*result["entry"]["records"], *result.get("gallery", [])):
        record["index"] = int(rows[record["index"]])  # of the test split
    return result


def _add_norm(facts: Facts, of: Any, norm: Any) -> None:
    """The median l2 norm of what fooled, where anything did, of pixels in [0, 1] and of grey levels."""
    for measure, scale in (("norm", 1), ("levels", 255)) if norm else ():
        bounds = {end: norm[end] and scale * norm[end] for end in ("low", "high")}
        facts.add(measure, of, value=scale * norm["median"], n=norm["n"], **bounds)


def ascents_of(
    classifier: models.Classifier, split: data.Split, pair: tuple[int, int], num_shown: int
) -> dict[str, Any]:
    """The source's procedure, from the first class to the second, on all images that are right.

    Returns:
      JSON values of each of `ASCENTS`: "fooled" and "norm" of every image; "images", the ends of those
      at "rows", to be shown. {} where no image of the first class is right.
    """
    rows = np.flatnonzero(split.labels == pair[0])
    rows = rows[evaluation.logits(classifier, split.images[rows]).argmax(axis=1) == pair[0]]
    images, targets = jnp.asarray(as_float(split.images[rows])), jnp.full(len(rows), pair[1])
    result = {}
    for name, (step_size, num_steps) in ASCENTS.items() if len(rows) else ():
        ends = np.asarray(ascend(classifier, images, targets, step_size, num_steps)[0])
        fooled = evaluation.logits(classifier, ends).argmax(axis=1) == pair[1]
        norms = np.sqrt(((ends - np.asarray(images)) ** 2).sum(axis=(1, 2, 3)))
        # Successes first: what the source shows is one.
        order = np.argsort(~fooled, kind="stable")[:num_shown]
        result[name] = {"fooled": fooled.tolist(), "norm": norms.tolist()}
        result[name] |= {"rows": rows[order].tolist(), "images": encode_array(ends[order])}
    return result
