"""Problem C: sparsity, fine-tuning, files and int8."""

import functools
from typing import Any

import numpy as np

from experiments.sports10 import folds
from experiments.sports10.study import Study, masked, percent, plain, points, rate_of, right
from jaxrobust import evaluation, models, pruning
from jaxrobust.studies import blocks

PART = "c"
_AGAINST_CONTROL = "Against the control, of those both have right"


def sections(study: Study) -> list[dict[str, Any]]:
    """The sections of this part that are about accuracy and size."""
    found = [
        study.section(f"compress {name}", functools.partial(_table, study, name))
        for name in study.config.models
    ]
    return [*found, study.section("sparsity over seeds and folds", lambda _: _certainty(study))]


def accuracy(study: Study, name: str, variables: Any) -> Any:
    """On the test photographs."""
    return rate_of(right(study.classifier(name, variables), study.test(name)))


def quantised(study: Study, name: str, variables: Any) -> models.Classifier:
    """A network with int8 kernels, which the compiled program multiplies out itself."""
    return study.classifier(name, pruning.quantize(variables))


def rounded(variables: Any) -> Any:
    """Weights rounded to int8 and multiplied out: the numbers that `quantised` computes with.

    They are constants for an attack, so its gradient passes straight through the rounding and is the
    exact gradient of the quantised network.
    """
    return pruning.dequantize(pruning.quantize(variables))


def _table(study: Study, name: str, _: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    seed = study.config.seed
    dense = study.trained(name, seed).variables
    whole, *size = _sizes(study, name, "dense", dense, dense)
    rows = [["dense", None, None, accuracy(study, name, dense), 0.0, *size]]
    last = dense
    for sparsity in study.config.sparsities:
        masks, cut, last = study.pruned(name, sparsity, seed)
        rows.append(
            [
                percent(sparsity),
                accuracy(study, name, _layer_by_layer(dense, sparsity)),
                accuracy(study, name, cut),
                accuracy(study, name, last),
                pruning.sparsity_of(masks),
                *_sizes(study, name, percent(sparsity), last, last)[1:],
            ]
        )
    for words, variables in (
        ("int8", dense),
        (f"{percent(study.config.sparsities[-1])}, int8", last),
    ):
        rows.append(
            [
                words,
                None,
                None,
                accuracy(study, name, rounded(variables)),
                pruning.sparsity_of(rounded(variables)["params"]),
                *_sizes(study, name, words, rounded(variables), pruning.quantize(variables))[1:],
            ]
        )
    for row in rows:
        row.append(whole / row[-1])
    facts = {f"size of {name}": {row[0]: {"sparse": row[-2], "times": row[-1]} for row in rows}}
    section = blocks.section(
        f"compress-{plain(name).replace('_', '-')}",
        f"{name}, pruned and quantised",
        [
            blocks.table(
                [
                    "Variant",
                    blocks.column("pruned layer by layer", group="Right of the test photographs"),
                    blocks.column("pruned", group="Right of the test photographs"),
                    blocks.column("and fine-tuned", group="Right of the test photographs"),
                    blocks.column("kernels", unit="%", decimals=2, group="Zeros among"),
                    blocks.column("all", unit="%", decimals=2, group="Zeros among"),
                    blocks.column("Nonzero", decimals=0),
                    blocks.column("KiB", decimals=1, group="Sparse file"),
                    blocks.column("times smaller", decimals=2, group="Sparse file"),
                ],
                rows,
                "One threshold over all convolution and dense kernels, an exact count; then "
                f"{study.fine_tuning(name).num_epochs} epochs under the mask. For comparison, "
                "without fine-tuning, the same share cut from each layer by itself. A dense file has "
                f"{whole:.1f} KiB. Sizes are "
                "those of files on the disk: the weights, BatchNorm's statistics and a header; "
                "without the optimizer. Sparse: one bit for each weight of a kernel and the values "
                "that are not zero. int8: one scale for each output channel.",
            )
        ],
        part=PART,
        text=[_LAYERWISE] if name == "cnn" else [],
    )
    return section, facts


_LAYERWISE = (
    "Report A says that it prunes by one threshold over all layers. Its own trained network "
    "gives the counts that it prints (39, 23 and 5 of 50 before fine-tuning) when each layer is "
    "pruned by itself; by one threshold the same network keeps 40, 40 and 14. The collapse at 50 % "
    "is therefore one of the criterion, not of the sparsity."
)


def _layer_by_layer(variables: Any, sparsity: float) -> Any:
    """Pruned to one sparsity in every kernel, as report A seems to have done (_LAYERWISE)."""
    masks = pruning.layerwise_magnitude(variables["params"], sparsity)
    return masked(variables, masks)


def _sizes(study: Study, name: str, words: str, variables: Any, stored: Any) -> list[Any]:
    """[KiB of the dense file, share of zeros, nonzero parameters, KiB of the sparse file]."""
    counts = pruning.parameter_counts(variables["params"])
    kib = []
    for sparse in (False, True):
        kind = "sparse" if sparse else "dense"
        path = study.folder / "models" / f"{plain(f'{name} {words} {kind}')}.jrw"
        class_names = study.dataset(name).class_names
        classifier = study.classifier(name, stored)
        models.save(path, classifier, class_names=class_names, sparse=sparse)
        kib.append(path.stat().st_size / 1024)
    return [kib[0], 1 - counts["nonzero"] / counts["size"], counts["nonzero"], kib[1]]


def _certainty(study: Study) -> tuple[dict[str, Any], dict[str, Any]]:
    """Accuracy over sparsity with seeds and folds: is any gain or loss real?"""
    seed_rows, fold_rows, lines, tests = [], [], [], []
    facts: dict[str, Any] = {"seeds": {}, "folds": {}, "robust": {}}
    for name in study.config.models:
        dense = {
            seed: accuracy(study, name, study.trained(name, seed).variables)
            for seed in study.seeds_of(name)
        }
        changes = [0.0]
        for sparsity in study.config.sparsities:
            seeds = study.seeds_at(name, sparsity)
            tuned = [accuracy(study, name, study.pruned(name, sparsity, seed)[2]) for seed in seeds]
            parents = [dense[seed] for seed in seeds]
            gap = evaluation.paired_mean_difference(
                [a["rate"] for a in tuned], [a["rate"] for a in parents]
            )
            changes.append(100 * gap["mean"])
            facts["seeds"].setdefault(name, {})[percent(sparsity)] = gap
            seed_rows.append(
                [
                    name,
                    percent(sparsity),
                    len(seeds),
                    _mean(parents),
                    _mean(tuned),
                    blocks.estimate(gap["mean"], gap["low"], gap["high"], 100),
                    ", ".join(str(a["count"]) for a in parents),
                    ", ".join(str(a["count"]) for a in tuned),
                ]
            )
        lines.append(blocks.line(name, [0.0, *study.config.sparsities], changes))
    for name in study.folded:
        found = folds.outcomes(study, name)
        right_ones = {k: np.array(v, bool) for k, v in found["right"].items()}
        robust = {k: np.array(v, bool) for k, v in found["robust"].items()}
        facts["folds"][name], facts["robust"][name] = {}, {}
        for variant, outcomes in right_ones.items():
            row = [name, variant, rate_of(outcomes), None, None, None, None, None, None]
            if len(right_ones) > 1:
                row[5] = rate_of(robust[variant])
            if variant != "dense":
                row[3] = points(evaluation.paired_difference(outcomes, right_ones["dense"]))
                tests.append(evaluation.mcnemar(outcomes, right_ones["dense"])["p_value"])
            if variant not in ("dense", folds.CONTROL):
                held = _held_against_attack(right_ones, robust, variant)
                row[6:] = [held["n"], 100 * held["difference"], held["p_value"]]
                facts["robust"][name][variant] = held
                facts["folds"][name][variant] = row[3]
            fold_rows.append(row)
    adjusted = iter(evaluation.holm(tests) if tests else [])
    for row in fold_rows:
        if row[1] != "dense":
            row[4] = next(adjusted)
    section = blocks.section(
        "sparsity",
        "Accuracy over sparsity, over seeds and folds",
        [
            blocks.chart(
                "Test photographs: change to the dense parents",
                "sparsity",
                "points",
                lines,
                "After fine-tuning, on the mean of the seeds that the table counts, which for a slow "
                "network is one seed but at the highest sparsity. One photograph of one seed is two "
                "points.",
                percent_x=True,
            ),
            blocks.table(
                [
                    "Network",
                    "Sparsity",
                    blocks.column("Seeds", decimals=0),
                    blocks.column("Dense", unit="%", decimals=1),
                    blocks.column("Fine-tuned", unit="%", decimals=1),
                    blocks.column("Difference", unit="points", decimals=1),
                    blocks.column("dense", group="Right of the test set, seed by seed"),
                    blocks.column("fine-tuned", group="Right of the test set, seed by seed"),
                ],
                seed_rows,
                "Means over the seeds, paired with their dense parents; brackets: 95 % Student "
                "intervals of the difference.",
                title="Seeds",
            ),
            blocks.table(
                [
                    "Network",
                    "Variant",
                    "Held-out accuracy",
                    blocks.column("Difference to dense", unit="points", decimals=1),
                    blocks.column("p", decimals=3),
                ],
                [row[:5] for row in fold_rows],
                f"Cross-validation: the {len(next(iter(study.fold_rows()))[0])} or so photographs "
                "of the other folds train and fine-tune, the held-out fold counts. "
                f"{folds.CONTROL} has had the fine-tuning and no pruning: the control. Differences "
                "are paired with Newcombe's 95 % intervals; p is McNemar's, with Holm's correction.",
                title="Folds",
            ),
            blocks.table(
                [
                    "Network",
                    "Variant",
                    f"Right under PGD at {folds.EPSILON:g}",
                    blocks.column("n", decimals=0, group=_AGAINST_CONTROL),
                    blocks.column("difference", unit="points", decimals=1, group=_AGAINST_CONTROL),
                    blocks.column("p", decimals=4, group=_AGAINST_CONTROL),
                ],
                [row[:2] + row[5:] for row in fold_rows if row[5] is not None],
                f"PGD with {folds.num_steps(study)} steps, white box on each variant. Pruned "
                "networks are compared with the control, so that a difference is of the pruning "
                "alone, on the n photographs that both have right without an attack; p is "
                "McNemar's, not corrected here, but in the answers above.",
                title="Folds, under attack",
            ),
        ],
        part=PART,
    )
    return section, facts


def _mean(accuracies: list[dict[str, Any]]) -> float:
    return float(np.mean([a["rate"] for a in accuracies]))


def _held_against_attack(
    right: dict[str, np.ndarray], robust: dict[str, np.ndarray], variant: str
) -> dict[str, Any]:
    """Of the photographs that both have right: does the variant or the control withstand the attack?"""
    both = right[variant] & right[folds.CONTROL]
    if not both.any():
        return {"n": 0, "difference": 0.0, "p_value": 1.0}
    a, b = robust[variant][both], robust[folds.CONTROL][both]
    gap = evaluation.paired_difference(a, b)["difference"]
    return {
        "n": int(both.sum()),
        "difference": gap,
        "p_value": evaluation.mcnemar(a, b)["p_value"],
    }
