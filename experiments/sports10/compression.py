"""Problem C: sparsity, files, int8, time, single layers and lottery tickets."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.sports10 import folds, pruned_attacks
from experiments.sports10.folds import Variant
from experiments.sports10.study import Study, masked
from jaxrobust import data, evaluation, models, pruning, studies, training
from jaxrobust.studies import ANY, comparison, records

TOLERATED = 0.04  # the largest loss of accuracy that is accepted for a smaller network
TICKET_NETWORK = (
    "simple_cnn"  # report B claims a ticket of it, and it is small enough to train often
)
ROUNDS = 2  # of pruning for the lottery ticket


def measure(study: Study) -> dict[str, Any]:
    """Measures all of problem C.

    Returns:
      Names for problem_c.md.j2 and verdicts_c.md.j2: the rows of their tables, and the choice of a
      sparsity.
    """
    names = study.config.models
    for name in names:
        study.run.measure(
            f"accuracy and size, {name}", functools.partial(_accuracy_and_size, study, name)
        )
    _compare_seeds(study)
    _compare_folds(study)
    for name in names[:1] if study.config.quick else names:
        study.run.measure(f"single layers, {name}", functools.partial(_layers, study, name))
    for name in names:
        study.run.measure(f"times, {name}", functools.partial(_times, study, name))
    if TICKET_NETWORK in study.folded:
        study.run.measure(
            f"tickets, {TICKET_NETWORK}", functools.partial(_tickets, study, TICKET_NETWORK)
        )
        _compare_tickets(study)
    return {
        "compressed": {name: _variants(study, name) for name in names},
        "judged": [variant for name in study.folded for variant in folds.variants(study, name)],
        "ticket_variant": Variant(TICKET_NETWORK, "pruned", study.config.sparsities[-1]),
        "sparsity_choice": _choice(study),
        **pruned_attacks.measure(study),
    }


def _variants(study: Study, name: str) -> list[Variant]:
    """Returns the dense and pruned variants, and int8 variants of the dense and the sparsest."""
    sparsest = Variant(name, "int8", study.config.sparsities[-1])
    return [*pruned_attacks.variants(study, name), sparsest]


def _accuracy_and_size(study: Study, name: str, facts: studies.Facts, progress: Any) -> None:
    """Adds the accuracy of every seed, and the file sizes of the first seed's networks."""
    first, test, judged = study.config.seed, study.test(name), _variants(study, name)
    for done, variant in enumerate(judged, start=1):
        seeds = [first] if variant.kind == "int8" else study.seeds_at(name, variant.sparsity)
        for seed in seeds:
            used = pruning.dequantize(folds.weights(study, variant, seed))
            right = study.right(name, used, test)
            facts.add("test accuracy", variant, seed=seed, outcomes=right)
        if variant.kind == "pruned":
            dense = study.trained(name, first).variables
            layerwise = pruning.layerwise_magnitude(dense["params"], variant.sparsity)
            right = study.right(name, masked(dense, layerwise), test)
            facts.add("test accuracy cut by layer", variant, outcomes=right)
            right = study.right(name, study.pruned(name, variant.sparsity, first)[1], test)
            facts.add("test accuracy cut", variant, outcomes=right)
        stored = folds.weights(study, variant, first)
        params = pruning.dequantize(stored)["params"]
        counts = pruning.parameter_counts(params)
        facts.add("zeros of kernels", variant, value=pruning.sparsity_of(params))
        facts.add("zeros", variant, value=1 - counts["nonzero"] / counts["size"])
        facts.add("nonzero parameters", variant, value=counts["nonzero"])
        sizes = {kind: _file_size(study, variant, stored, kind) for kind in ("dense", "sparse")}
        for kind, size in sizes.items():
            facts.add(f"{kind} file", variant, value=size)
        whole = facts.of("dense file", Variant(name)).value or 0.0
        facts.add("times smaller", variant, value=whole / sizes["sparse"])
        progress(variant.label, done, len(judged))


def _file_size(study: Study, variant: Variant, stored: Any, kind: str) -> float:
    """Saves a network, and returns the size of its file in KiB."""
    path = (
        study.run.folder
        / "models"
        / f"{studies.plain(f'{variant.network} {variant.label} {kind}')}.jrw"
    )
    names, classifier = study.class_names, study.classifier(variant.network, stored)
    return models.save(path, classifier, class_names=names, sparse=kind == "sparse") / 1024


def _compare_seeds(study: Study) -> None:
    """Adds means over the seeds of each sparsity, paired with the dense networks before pruning."""
    facts = study.facts
    for name in study.config.models:
        facts.add("gain of seeds", Variant(name), value=0.0)  # the first point of the chart's line
    tuned = facts.where("test accuracy", network=ANY, kind="pruned", sparsity=ANY, seed=ANY)
    dense = [facts.of("test accuracy", _dense(fact.keys)) for fact in tuned]
    parents = [dataclasses.replace(d, keys=t.keys) for d, t in zip(dense, tuned, strict=True)]
    facts.extend(comparison.means(tuned, "seed", "mean test accuracy"))
    facts.extend(comparison.means(parents, "seed", "mean test accuracy of parents"))
    facts.extend(comparison.over_seeds(facts, tuned, _dense, "gain of seeds", correct=False))


def _dense(keys: dict[str, Any]) -> dict[str, Any]:
    return keys | {"kind": "dense", "sparsity": 0.0}


def _compare_folds(study: Study) -> None:
    """Compares held-out accuracy with the dense network's, and robust accuracy with the control's."""
    facts, kinds = study.facts, ("control", "pruned")
    tuned = facts.where("right of held-out", network=ANY, kind=kinds, sparsity=ANY)
    facts.extend(comparison.over_images(facts, tuned, _dense, "gain of held-out"))
    gaps = comparison.over_images(
        facts,
        facts.where("robust of held-out", network=ANY, kind="pruned", sparsity=ANY),
        lambda keys: keys | {"kind": "control", "sparsity": 0.0},
        "robust gain",
        among=lambda keys: np.asarray(facts.of("right of held-out", keys).outcomes),
        correct=False,
    )
    facts.extend(gaps)
    # For the verdict: with Holm's correction, and without comparisons over no image.
    cases = comparison.corrected([gap for gap in gaps if gap.n])
    facts.extend(dataclasses.replace(case, measure="robust gain, corrected") for case in cases)


def _layers(study: Study, name: str, facts: studies.Facts, _: Any) -> None:
    """Adds how many weights global pruning removes from each layer, and each layer's sensitivity."""
    first = study.config.seed
    variables, split = study.trained(name, first).variables, study.test(name)
    for variant in folds.pruned(study, name):
        masks = study.pruned(name, variant.sparsity, first)[0]
        for layer, entry in pruning.layer_sparsity(variables["params"], masks).items():
            facts.add("zeros of layer", variant, layer=layer, value=entry["sparsity"])
    if name in study.folded:
        variables, split = study.trained(name, first, 0).variables, study.held_out(name, 0)

    def score(params: Any) -> float:
        return float(study.right(name, dict(variables) | {"params": params}, split).mean())

    base = {"value": score(variables["params"]), "n": len(split)}
    for layer, entry in pruning.layer_sparsity(variables["params"]).items():
        facts.add("weights of layer", network=name, layer=layer, value=entry["size"])
        facts.add("accuracy without", network=name, layer=layer, sparsity=0.0, **base)
    sparsities = (0.9,) if study.config.quick else (0.5, 0.7, 0.8, 0.9, 0.95)
    for row in pruning.sensitivity(variables["params"], sparsities, score):
        keys = {"network": name, "layer": row["layer"], "sparsity": row["sparsity"]}
        facts.add("accuracy without", keys, value=row["score"], n=len(split))


def _times(study: Study, name: str, facts: studies.Facts, _: Any) -> None:
    """Times the dense, masked and quantised networks in turns; the last dequantises its weights."""
    config, images = study.config, study.test(name).images
    timed = {str(variant): variant for variant in pruned_attacks.variants(study, name)}
    programs = {
        words: study.classifier(name, folds.weights(study, variant, config.seed))
        for words, variant in timed.items()
    }
    batches, controls = ((1,), 1) if config.quick else ((1, 16), 3)
    options: Any = {"runs": config.latency_runs, "controls": controls}
    for batch in batches:
        example = np.resize(images, (batch, *images.shape[1:])).astype(np.float32) / 255
        found = evaluation.compare_latency(programs, example, **options)["variants"]
        for words, variant in timed.items():
            entry, keys = found[words], dataclasses.asdict(variant) | {"batch": batch}
            records.add_latency(facts, entry, keys)
            facts.add("95th percentile of latency", keys, value=entry["p95_ms"])
            gap = entry["difference"]
            if gap is not None:  # -1: faster, 1: slower, 0: no difference shown
                facts.add("direction", keys, value=gap["different"] * np.sign(gap["median_ms"]))
            if variant.kind != "pruned":  # masked networks run the dense program
                for figure in ("flops", "bytes_accessed", "peak_memory_bytes", "compile_seconds"):
                    facts.add(figure, keys, value=entry[figure])

    def read(path: Path) -> np.ndarray:
        return data.read_image(path, images.shape[1]) / np.float32(255)

    runs, files = 3 if config.quick else 20, _test_files(study)
    for count in (1, 100):
        entry = evaluation.disk_latency(read, study.base(name), files, batch_size=count, runs=runs)
        keys = {"network": name, "photographs": count}
        records.add_latency(facts, entry | {"difference": None}, keys)


def _test_files(study: Study) -> list[Path]:
    """Returns the paths of the test photographs."""
    root = study.config.data_dir.expanduser()
    root = root / "sports10" if (root / "sports10").is_dir() else root
    split = next(name for name in ("valid", "test", "val") if (root / name).is_dir())
    return [root / split / file for file in study.test(study.chosen).files]


def _tickets(study: Study, name: str, facts: studies.Facts, progress: Any) -> None:
    """Trains with one-shot, iterative, rewound and random masks, and judges on the first fold."""
    seed, sparsity = study.config.seed, study.config.sparsities[-1]
    rows, split = study.fold_rows()[0][0], study.held_out(name, 0)
    recipe, tuning = study.recipe(name, seed), study.fine_tuning(name, seed)
    dense = study.trained(name, seed, 0).variables
    network, shape = study.network(name), split.images.shape[1:]
    initial, others = (training.initial_variables(network, shape, seed + i) for i in range(2))
    schedule = pruning.geometric_schedule(sparsity, 1 if study.config.quick else ROUNDS)

    def judge(method: str, variables: Any, used: training.Recipe, rounds: int = 0) -> None:
        outcomes = study.right(name, variables, split)
        facts.add("ticket accuracy", method=method, outcomes=outcomes)
        facts.add("ticket epochs", method=method, value=used.num_epochs)
        facts.add("ticket rounds", method=method, value=rounds)
        progress(method, len(facts), 21)

    def retrain(words: str, start: Any, masks: Any, used: training.Recipe) -> Any:
        run, start = f"{name} {words}", masked(start, masks)
        return study.fit(name, run, used, rows=rows, variables=start, masks=masks).variables

    def iterate(words: str, start: Any, used: training.Recipe) -> tuple[Any, Any]:
        """Returns (variables, masks); a round begins with `start` or the result of the last round."""
        variables, masks = dense, None
        for i, level in enumerate(schedule):
            masks = pruning.global_magnitude(variables["params"], level, masks=masks)
            variables = retrain(f"{words}, round {i}", start or variables, masks, used)
        return variables, masks

    one_shot, _, tuned = study.pruned(name, sparsity, seed, 0)
    random = pruning.random(jax.random.key(seed), dense["params"], sparsity)
    judge("dense", dense, recipe)
    judge("one-shot", tuned, tuning)
    judge("iterative", iterate("iterative", None, tuning)[0], tuning, len(schedule))
    ticket, masks = iterate("rewound", initial, recipe)
    judge("ticket", ticket, recipe, len(schedule))
    judge("other weights", retrain("ticket, other weights", others, masks, recipe), recipe)
    judge("random mask", retrain("random mask", initial, random, recipe), recipe)
    judge("one-shot mask", retrain("one-shot mask", initial, one_shot, recipe), recipe)


def _compare_tickets(study: Study) -> None:
    """Compares each network with the dense one, and the ticket with the networks it must beat."""
    facts = study.facts
    found = facts.where("ticket accuracy", method=ANY)[1:]
    gaps = comparison.over_images(facts, found, lambda _: {"method": "dense"}, "ticket gain")
    facts.extend(gaps)
    ticket = facts.of("ticket accuracy", method="ticket")
    gaps = [comparison.paired(ticket, o, "ticket advantage", o.keys) for o in found[-3:]]
    facts.extend(comparison.corrected(gaps))


def _choice(study: Study) -> dict[str, Any]:
    """Chooses the highest sparsity of the best network at which the loss of accuracy is accepted.

    The loss is that over the seeds and, if measured, over the folds.
    """
    facts = study.facts

    def change(variant: Variant) -> float:
        found = [facts.find(f"gain of {what}", variant) for what in ("seeds", "held-out")]
        return min(fact.value or 0.0 for fact in found if fact is not None)

    name = max(
        study.folded,
        key=lambda name: facts.of("right of held-out", Variant(name)).value or 0.0,
        default=study.config.models[-1],
    )
    # The small number allows for rounding, because differences of fiftieths are not exact.
    accepted = [v for v in folds.pruned(study, name) if change(v) >= -TOLERATED - 1e-9]
    variant = accepted[-1] if accepted else None
    return {"network": name, "variant": variant, "tolerated_points": 100 * TOLERATED}
