"""Makes the source's fooling images by its own procedure and by the library's attacks.

The source takes one step of "targeted PGD" from a truck that its network has right. The result is an
image that the network calls an automobile. The source reports a difference of norm 91 over 3 x 32 x 32
values from 0 to 255, which is 91 / 255 = 0.357 for pixels from 0 to 1, as they are here.

The procedure as published adds a step of that norm along the gradient of the target's score. With small
steps until the network predicts the target, it also shows how far the target is. The attacks as defined
are PGD, FAB and Carlini-Wagner of the library, which stay in a ball or look for its smallest radius.
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
    """Changes images by gradient ascent on the target's score, until the target is predicted.

    Each step along the gradient has the l2 length `step_size`; images stay in [0, 1].

    Returns:
      Images [B, H, W, C] and numbers of steps [B], which are `num_steps` if the target is not reached.
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
    """Returns the attacks, all in l2; targeted ones aim at the source's target."""
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
    """Attacks a classifier, and adds the results to the run's facts.

    Returns:
      Names for the report: the classes "start" and "goal" of the source's fooling image (truck and
      automobile, which are the last and the second class), records of the attacks, the sanity checks
      and pictures.
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
    """Returns the record of an attack and the median norm; for FAB a curve too, for PGD pictures."""
    images, labels = dataset.test.images[rows], dataset.test.labels[rows]
    options: Any = {"key": run.key, "targets": goal if attack.targeted else None}
    options["execution"] = Execution(progress=progress)
    report = evaluation.attack_dataset(attack, classifier, images, labels, **options)
    moved = report.fools & report.attacked  # at any norm: some attacks look for the smallest norm
    if report.targets is not None:  # images already taken for the target need no change
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
    """Adds the median l2 norm of the successes, if any, in pixels of [0, 1] and in grey levels."""
    for measure, scale in (("norm", 1), ("levels", 255)) if norm else ():
        bounds = {end: norm[end] and scale * norm[end] for end in ("low", "high")}
        facts.add(measure, of, value=scale * norm["median"], n=norm["n"], **bounds)


def ascents_of(
    classifier: models.Classifier, split: data.Split, pair: tuple[int, int], num_shown: int
) -> dict[str, Any]:
    """Runs the source's procedure, from the first class to the second, on all images that are right.

    Returns:
      JSON values for each of `ASCENTS`: "fooled" and "norm" of every image, and "images", the results
      for the test images "rows", which are shown. {} if no image of the first class is right.
    """
    rows = np.flatnonzero(split.labels == pair[0])
    rows = rows[evaluation.logits(classifier, split.images[rows]).argmax(axis=1) == pair[0]]
    images, targets = jnp.asarray(as_float(split.images[rows])), jnp.full(len(rows), pair[1])
    result = {}
    for name, (step_size, num_steps) in ASCENTS.items() if len(rows) else ():
        ends = np.asarray(ascend(classifier, images, targets, step_size, num_steps)[0])
        fooled = evaluation.logits(classifier, ends).argmax(axis=1) == pair[1]
        norms = np.sqrt(((ends - np.asarray(images)) ** 2).sum(axis=(1, 2, 3)))
        # Successes first, because the source shows a success.
        order = np.argsort(~fooled, kind="stable")[:num_shown]
        result[name] = {"fooled": fooled.tolist(), "norm": norms.tolist()}
        result[name] |= {"rows": rows[order].tolist(), "images": encode_array(ends[order])}
    return result
