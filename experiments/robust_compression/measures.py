"""Measures and compares the networks, and adds the results as facts."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.robust_compression import attacks, networks, trainings
from experiments.robust_compression.networks import EPSILON, NETWORKS, SCHEMES, Study, Variant
from jaxrobust import evaluation, studies
from jaxrobust.pruning.constraints import open_kernels
from jaxrobust.studies import ANY, Fact, comparison, records
from jaxrobust.studies.outcomes import unpack

MARGIN = 0.03  # the loss of accuracy that is accepted for compression
FAR = 0.05  # above this residual, the last projection changes the network considerably
LOSS = 1 / 3  # a network that loses more than this share of the dense one's accuracy has collapsed
SIZES = (1, 100)  # images at a time, as in the source
NUM_BINS = 61
RANDOM = "random_masks"
# The methods that irregular one-shot ADMM is compared with; each question has its own correction.
RIVALS = {
    "schemes": SCHEMES[1:],
    "alternatives": tuple(method for method in networks.ALTERNATIVES if method != RANDOM),
    "random": (RANDOM,),
}


def measure(study: Study) -> dict[str, Any]:
    """Trains, measures and compares all networks; returns names for the template, besides facts."""
    settings, facts = study.settings, study.run.facts
    facts.read(Path(__file__).with_name("published.csv"), source="004")
    for variant in settings.variants():
        train(study, variant)
    suite = list(attacks.auto_attack(study))
    attacks.run_suites(study)
    attacks.combine(study, suite[1])
    models = study.run.stages.remember("classify", lambda _: entries(study))
    for network in settings.networks:
        attacks.under_fgsm(study, network)
    weights(study)
    attacks.curves(study)
    shown = attacks.transfer(study, suite[1])
    pictures = attacks.panels(study)
    time(study)
    average(study)
    compare_all(study, suite[1], suite[-1])
    compare_radii(study, suite[-1])
    return {"models": models, "transfer": shown, "panels": pictures, "suite": suite}


def train(study: Study, variant: Variant) -> None:
    """Trains a network; adds its accuracy, figures of its file, its loss over epochs and the alarm."""
    facts, record = study.run.facts, trainings.train(study, variant)
    facts.add("accuracy", variant, outcomes=unpack(record["right"], len(study.test)))
    left, promised = record["weights"] - record["zeros"], record["promised"]
    found, final = _histogram(study, variant), record["final"] or {}
    figures = {
        **{name: record[name] for name in ("weights", "parameters", "bytes", "epochs", "residual")},
        **{f"accuracy {k}": final.get(f"accuracy_{k}") for k in ("before", "projected", "after")},
        "accuracy as trained": record["right_as_trained"] / len(study.test),
        "weights not 0": left,
        "share not 0": left / record["weights"],
        "zeros": record["zeros"] / record["weights"],
        "filters without weights": _empty_filters(study, variant),
        "times smaller": record["dense_bytes"] / record["bytes"],
        "weights too many": None if promised is None or variant.kept == 1 else left - promised,
        "deviation of the weights": found["std"],
        "largest weight": found["largest"],
    }
    if variant.radius:
        losses = [row.get("validation_loss") for row in record["history"]]
        for epoch, loss in enumerate(losses, start=1):
            facts.add("loss", variant, epoch=epoch, value=loss)
        alarm = evaluation.loss_alarm(losses, study.dataset.num_classes)
        figures |= {"last loss": losses[-1], "rise of the loss": alarm["rise"]}
        figures["explosion epoch"] = alarm["explosion_epoch"]
        figures["collapse epoch"] = alarm["collapse_epoch"]
    for name, value in figures.items():
        facts.add(name, variant, value=value)


def entries(study: Study) -> list[dict[str, Any]]:
    """Returns dense and irregular networks of the first seed as models of the report."""
    found, settings, test = [], study.settings, study.test
    for network in settings.networks:
        natural, pair = settings.pair(network, 0.0)[0], settings.pair(network, settings.radii[0])
        for variant in (natural, *pair):
            one = variant.but(seed=settings.seed)
            record = study.records[one]
            entry = studies.model_entry(
                f"{network}, {variant.words}",
                study.classifier(one),
                test.images,
                test.labels,
                study.dataset.class_names,
                trained=studies.Trained(record["history"], record["seconds_per_epoch"]),
                description=NETWORKS[network].words,
            )
            found.append(entry)
    return found


def weights(study: Study) -> None:
    """Adds histograms without zeros (figures 4.1, 4.2, B.2, B.3), and the spread of the weights."""
    facts, settings = study.run.facts, study.settings

    def deviations(variant: Variant) -> list[Any]:
        return [f.value for f in facts.where("deviation of the weights", variant, seed=ANY)]

    def draw(variant: Variant, scaled: bool, **look: Any) -> None:
        found = _histogram(study, variant.but(seed=settings.seed), normalise=scaled, **look)
        for middle, count in zip(found["middles"], found["counts"], strict=True):
            facts.add("weights in a bin", variant, value=count, scaled=scaled, middle=middle)

    for network in settings.networks:
        natural, pair = settings.pair(network, 0.0)[0], settings.pair(network, settings.radii[0])
        # One range for both histograms, in which the narrower one is more than a spike.
        limit = 5 * max(deviations(natural)[0], deviations(pair[0])[0])
        draw(natural, False, limit=limit)
        draw(pair[0], False, limit=limit)
        for variant in pair:
            draw(variant, True)
        gap: Any = evaluation.paired_mean_difference(
            np.log(deviations(pair[0])), np.log(deviations(natural))
        )
        ratio = {k: None if gap[k] is None else math.exp(gap[k]) for k in ("mean", "low", "high")}
        facts.add("deviation ratio", pair[0], value=ratio.pop("mean"), n=gap["n"], **ratio)


def _histogram(study: Study, variant: Variant, **look: Any) -> dict[str, Any]:
    params = study.classifier(variant).variables["params"]
    return evaluation.weight_histogram(params, NUM_BINS, exclude=variant.exclude, **look)


def _empty_filters(study: Study, variant: Variant) -> float:
    """Returns the share of the filters, of all kernels that may be pruned, that have no weights."""
    kernels = open_kernels(study.classifier(variant).variables["params"], variant.exclude)
    # The last axis of a kernel of Flax is that of its filters.
    filters = [np.asarray(leaf).reshape(-1, leaf.shape[-1]) for leaf in kernels.values()]
    return 1 - float(np.mean(np.concatenate([one.any(0) for one in filters])))


def time(study: Study) -> None:
    """Times one image and 100 images (algorithms 4 and 5, figures 4.7 and D.1)."""
    facts, settings = study.run.facts, study.settings
    for entry in study.run.stages.remember("latency", lambda progress: _times(study, progress)):
        pair, batch = settings.pair(entry["network"], settings.radii[0]), entry["batch"]
        dense, *_ = found = list(entry["variants"].values())
        for variant, times in zip(pair, found, strict=True):
            records.add_latency(facts, times, variant, batch=batch)
            speedup = dense["median_ms"] / times["median_ms"]
            facts.add("times faster", variant, batch=batch, value=speedup)


def _times(study: Study, progress: Any) -> list[dict[str, Any]]:
    found, settings = [], study.settings
    cases = list(itertools.product(settings.networks, SIZES))
    for done, (network, size) in enumerate(cases, start=1):
        pair = settings.pair(network, settings.radii[0])
        # Images are repeated if there are too few, because times do not depend on their content.
        wanted = (size * settings.num_timed, *study.test.images.shape[1:])
        timed = evaluation.dataset_latency(
            {str(one.kept): study.classifier(one.but(seed=settings.seed)) for one in pair},
            np.resize(study.test.images, wanted),
            size,
            in_memory=size == 1,
            controls=1 if settings.quick else 3,
        )
        found.append({"network": network, "batch": size, "variants": timed["variants"]})
        progress(f"{network}, {size} at a time", done, len(cases))
    return found


def average(study: Study) -> None:
    """Adds means over the seeds, or the figures themselves if there is only one seed."""
    facts, settings = study.run.facts, study.settings
    kinds = dict.fromkeys(variant.but(seed=None) for variant in settings.variants())
    measured: list[tuple[str, dict[str, Any]]] = [
        ("accuracy", {}),
        ("robust accuracy", {"after": ANY}),
        ("robust accuracy", {"attack": "PGD", "epsilon": ANY}),
        ("robust accuracy", {"attack": "FGSM", "epsilon": EPSILON}),
    ]
    for variant, (measure, keys) in itertools.product(kinds, measured):
        means = comparison.means(
            facts.where(measure, variant, seed=ANY, **keys), "seed", f"mean {measure}", alone=True
        )
        # Curves of different seeds end at different epsilons, where they fall below chance.
        full = [mean for mean in means if mean.count is None and mean.n == settings.seeds]
        facts.extend(means if settings.seeds == 1 else full)


def compare_all(study: Study, first: str, last: str) -> None:
    """Compares all methods with the dense network, and the irregular scheme with other methods.

    Also adds which networks have collapsed.
    """
    facts, settings = study.run.facts, study.settings
    dense, *compared = settings.compared()
    measures: list[tuple[str, dict[str, Any]]]
    measures = [("accuracy", {}), ("robust accuracy", {"after": first})]
    for measure, keys in measures:
        compare(study, [(variant, dense) for variant in compared], measure, **keys)
    for pair in settings.pairs():
        pairs = [(variant, pair[0]) for variant in pair[1:]]
        compare(study, pairs, "robust accuracy", after=last)
        if pair[0] != dense:
            compare(study, pairs, "accuracy")
    for question, methods in RIVALS.items():
        reaches = [0.0]
        for kept, (measure, keys) in itertools.product(settings.kept, measures):
            own = dense.but(method="irregular", kept=kept)
            others = [v for v in compared if v.method in methods and settings.asked(v) == kept]
            gaps: list[Any] = compare(study, [(own, other) for other in others], measure, **keys)
            reaches += [50 * (gap.high - gap.low) for gap in gaps if gap.low is not None]
        facts.add("widest reach", question=question, value=max(reaches))
    judged = [(pair[-1], last) for pair in settings.pairs()]
    judged += [
        (variant, first)
        for variant in compared
        if variant.method in (*SCHEMES[1:], RANDOM) and settings.asked(variant) == settings.kept[-1]
    ]
    for variant, after in judged:
        measures = [("accuracy", {}), ("robust accuracy", {"after": after})]
        sides = (
            [[facts.of(m, v, **k).value for m, k in measures] for v in (one.dense, one)]
            for one in settings.seeded(variant)
        )
        fell = np.array([has_collapsed(*pair) for pair in sides])
        facts.add("collapsed", variant, outcomes=fell)
    source = {"network": ANY, "data": "cifar10", "radius": ANY, "kept": (0.5, 0.1), "source": "004"}
    for measure, keys in (("accuracy", {}), ("robust accuracy", {"after": "Square"})):
        found, name = facts.where(measure, **source, **keys), f"{measure} difference"
        facts.extend(comparison.less(facts, found, lambda keys: keys | {"kept": 1}, name))


def compare_radii(study: Study, last: str) -> None:
    """Compares the networks of other radii of training with those of the first radius.

    "<measure> change" has the keys of the network of the other radius. n is the number of seeds for
    which both networks have a figure: curves can end before the largest epsilon.
    """
    facts, settings = study.run.facts, study.settings
    trained = [one for pair in settings.pairs() for one in pair if one.radius != settings.radii[0]]
    measured: list[tuple[str, dict[str, Any]]] = [
        ("accuracy", {}),
        ("robust accuracy", {"after": last}),
        ("robust accuracy", {"attack": "PGD", "epsilon": settings.curve_epsilons[-1]}),
    ]
    for measure, keys in measured:
        own = [f for one in trained for f in facts.where(measure, one, seed=ANY, **keys)]

        def control(keys: dict[str, Any], measure: str = measure) -> dict[str, Any] | None:
            first = keys | {"radius": settings.radii[0]}
            return first if facts.find(measure, first) else None

        # A curve has no outcomes of single images.
        over = comparison.over_seeds if "epsilon" in keys else comparison.over_seeds_or_images
        facts.extend(over(facts, own, control, f"{measure} change"))


def compare(
    study: Study, pairs: list[tuple[Variant, Variant]], measure: str, **keys: Any
) -> list[Fact]:
    """Adds the difference of the first to the second network of each pair.

    It is paired over the seeds or, with one seed, over the images. "<measure> difference" has the keys
    of the first network, and the method and share of the second as `other` and `other_kept`.
    """
    own = [
        dataclasses.replace(
            fact, keys=fact.keys | {"other": other.method, "other_kept": other.kept}
        )
        for one, other in pairs
        for fact in study.run.facts.where(measure, one, seed=ANY, **keys)
    ]

    def control(keys: dict[str, Any]) -> dict[str, Any]:
        second = {"method": keys["other"], "kept": keys["other_kept"]}
        return comparison.without(keys, "other", "other_kept") | second

    name = f"{measure} difference"
    gaps = comparison.over_seeds_or_images(study.run.facts, own, control, name)
    return study.run.facts.extend(gaps)


def has_collapsed(dense: Sequence[float], compressed: Sequence[float]) -> bool:
    """Returns whether any accuracy of a compressed network is below two thirds of the dense one's."""
    return any(c < (1 - LOSS) * d for d, c in zip(dense, compressed, strict=True))
