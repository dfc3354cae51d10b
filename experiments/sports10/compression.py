"""Problem C: sparsity, fine-tuning, files, int8 and latency."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from experiments.sports10 import folds
from experiments.sports10.study import Study, percent, plain
from jaxrobust import data, evaluation, models, pruning
from jaxrobust.evaluation.classification import predictions
from jaxrobust.studies import blocks

PART = "c"


def sections(study: Study) -> list[dict[str, Any]]:
    """The sections of this part that are about accuracy, size and time."""
    found = [
        study.section(f"compress {name}", functools.partial(_table, study, name))
        for name in study.compressed
    ]
    found.append(study.section("sparsity over seeds and folds", lambda _: _certainty(study)))
    found.append(study.stages.remember("layers", lambda progress: _layers(study, progress)))
    found.append(study.section("latency", lambda progress: _latency(study, progress)))
    return found


def accuracy(study: Study, name: str, variables: Any) -> Any:
    """On the test photographs."""
    test = study.test(name)
    answers = predictions(evaluation.logits(study.classifier(name, variables), test.images))
    return evaluation.rate(int((answers == test.labels).sum()), len(test))


def quantised(study: Study, name: str, variables: Any) -> models.Classifier:
    """A network with int8 kernels, which the compiled program multiplies out itself."""
    classifier = study.classifier(name, variables)
    return dataclasses.replace(
        classifier,
        apply_fn=pruning.quantized_apply(classifier.apply_fn),
        variables=pruning.quantize(variables),
    )


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
    return dict(variables) | {"params": pruning.apply_masks(variables["params"], masks)}


def _sizes(study: Study, name: str, words: str, variables: Any, stored: Any) -> list[Any]:
    """[KiB of the dense file, share of zeros, nonzero parameters, KiB of the sparse file]."""
    counts = pruning.parameter_counts(variables["params"])
    kib = []
    for sparse in (False, True):
        kind = "sparse" if sparse else "dense"
        path = study.folder / "models" / f"{plain(f'{name} {words} {kind}')}.jrw"
        pruning.save_sparse(path, stored, _metadata(study, name), sparse=sparse)
        kib.append(path.stat().st_size / 1024)
    return [kib[0], 1 - counts["nonzero"] / counts["size"], counts["nonzero"], kib[1]]


def _metadata(study: Study, name: str) -> dict[str, Any]:
    dataset = study.dataset(name)
    return {
        "model": name,
        "num_classes": dataset.num_classes,
        "mean": dataset.mean.tolist(),
        "std": dataset.std.tolist(),
        "class_names": list(dataset.class_names),
    }


def _certainty(study: Study) -> tuple[dict[str, Any], dict[str, Any]]:
    """Accuracy over sparsity with seeds and folds: is any gain or loss real?"""
    seed_rows, fold_rows, lines, tests = [], [], [], []
    facts: dict[str, Any] = {"seeds": {}, "folds": {}, "robust": {}}
    for name in study.compressed:
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
        right = {k: np.array(v, bool) for k, v in found["right"].items()}
        robust = {k: np.array(v, bool) for k, v in found["robust"].items()}
        for variant in right:
            row = [
                name,
                variant,
                evaluation.rate(int(right[variant].sum()), len(right[variant])),
                None,
                None,
                evaluation.rate(int(robust[variant].sum()), len(robust[variant]))
                if len(right) > 1
                else None,
                None,
            ]
            row += [None, None]
            if variant != "dense":
                row[3] = _gap(right[variant], right["dense"])
                held = _held_against_attack(right, robust, variant)
                row[6:] = [held["n"], 100 * held["difference"], held["p_value"]]
                tests.append(evaluation.mcnemar(right[variant], right["dense"])["p_value"])
            fold_rows.append(row)
        facts["robust"][name] = {
            variant: _held_against_attack(right, robust, variant)
            for variant in right
            if variant != "dense"
        }
        facts["folds"][name] = {
            row[1]: {"accuracy": row[2], "gap": row[3]} for row in fold_rows if row[0] == name
        }
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
                "After fine-tuning, on the mean of the seeds that the table names. One photograph of "
                "one seed is two points.",
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
                    f"Right under PGD at {folds.EPSILON:g}",
                    blocks.column("n", decimals=0, group="Under PGD, of those both have right"),
                    blocks.column(
                        "difference",
                        unit="points",
                        decimals=1,
                        group="Under PGD, of those both have right",
                    ),
                    blocks.column("p", decimals=3, group="Under PGD, of those both have right"),
                ],
                fold_rows,
                f"Cross-validation: the {len(next(iter(study.fold_rows()))[0])} or so photographs "
                "of the other folds train and fine-tune, the held-out fold counts. Differences are "
                "paired with Newcombe's 95 % intervals; p is McNemar's, with Holm's correction. "
                f"PGD: {folds.NUM_STEPS} steps, white box on each variant; its p is not "
                "corrected here, but in the answers above.",
                title="Folds",
            ),
        ],
        part=PART,
    )
    return section, facts


def _mean(accuracies: list[dict[str, Any]]) -> float:
    return float(np.mean([a["rate"] for a in accuracies]))


def _gap(a: np.ndarray, b: np.ndarray) -> Any:
    gap = evaluation.paired_difference(a, b)
    return blocks.estimate(gap["difference"], gap["low"], gap["high"], 100)


def _held_against_attack(
    right: dict[str, np.ndarray], robust: dict[str, np.ndarray], variant: str
) -> dict[str, Any]:
    """Of the photographs that both have right: is the variant or the dense one right under attack?"""
    both = right[variant] & right["dense"]
    if not both.any():
        return {"n": 0, "difference": 0.0, "p_value": 1.0}
    a, b = robust[variant][both], robust["dense"][both]
    gap = evaluation.paired_difference(a, b)["difference"]
    return {
        "n": int(both.sum()),
        "difference": gap,
        "p_value": evaluation.mcnemar(a, b)["p_value"],
    }


def _layers(study: Study, progress: Any) -> dict[str, Any]:
    """Where global pruning takes its weights, and how much each layer matters."""
    found = []
    names = study.compressed
    for done, name in enumerate(names, start=1):
        params = study.trained(name, study.config.seed).variables["params"]
        shares = {
            sparsity: pruning.layer_sparsity(
                params, study.pruned(name, sparsity, study.config.seed)[0]
            )
            for sparsity in study.config.sparsities
        }
        rows = [
            [
                path,
                entry["size"],
                *(100 * shares[sparsity][path]["sparsity"] for sparsity in study.config.sparsities),
            ]
            for path, entry in shares[study.config.sparsities[0]].items()
        ]
        found.append(
            blocks.table(
                [
                    "Kernel",
                    blocks.column("Weights", decimals=0),
                    *(
                        blocks.column(
                            percent(s), decimals=1, group="Zeros, %, at a global sparsity of"
                        )
                        for s in study.config.sparsities
                    ),
                ],
                rows,
                title=f"{name}: zeros of each layer",
                folded=True,
            )
        )
        found.append(_sensitivity(study, name))
        progress(done, len(names))
    charts = [block for block in found if block["kind"] == "chart"]
    tables = [block for block in found if block["kind"] == "table"]
    return blocks.section(
        "layers",
        "Layer by layer",
        [*charts, *tables],
        part=PART,
        text=[
            "One layer is pruned at a time, by magnitude and without fine-tuning; the others stay "
            "dense. A line that falls early belongs to a layer that global pruning should spare."
        ],
    )


def _sensitivity(study: Study, name: str) -> dict[str, Any]:
    seed = study.config.seed
    if name in study.folded:
        rows, held_out = study.fold_rows()[0]
        variables = study.fit(
            name,
            f"train {name}, fold 0",
            dataclasses.replace(study.recipe(name), seed=seed),
            rows=rows,
        ).variables
        train = study.dataset(name).train
        images, labels = train.images[held_out], train.labels[held_out]
        words = f"{len(labels)} held-out photographs"
    else:
        variables, test = study.trained(name, seed).variables, study.test(name)
        images, labels, words = test.images, test.labels, f"{len(test)} test photographs"

    def score(params: Any) -> float:
        classifier = study.classifier(name, dict(variables) | {"params": params})
        return float((predictions(evaluation.logits(classifier, images)) == labels).mean())

    sparsities = (0.9,) if study.config.quick else (0.5, 0.7, 0.8, 0.9, 0.95)
    scores = pruning.sensitivity(variables["params"], sparsities, score)
    base = score(variables["params"])
    lines = []
    paths = pruning.kernel_paths(variables["params"])
    for path in paths:
        points = [(row["sparsity"], row["score"]) for row in scores if row["layer"] == path]
        label = path.removesuffix("/kernel").removesuffix("/conv")
        lines.append(
            blocks.line(label, [0.0, *(p for p, _ in points)], [base, *(v for _, v in points)])
        )
    # More than eight lines are no picture: those that fall deepest are.
    lines = sorted(lines, key=lambda line: line["y"][-1])[:8]
    return blocks.chart(
        f"{name}: sensitivity of its layers",
        "sparsity of the one layer",
        "accuracy",
        lines,
        f"On {words}." + (" The eight most sensitive layers." if len(paths) > 8 else ""),
        percent=True,
        percent_x=True,
    )


def _latency(study: Study, progress: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Dense, masked and quantised, interleaved; the quantised one multiplies its weights out."""
    rows, costs = [], []
    told: dict[str, dict[str, list[Any]]] = {name: {} for name in study.compressed}
    for done, name in enumerate(study.compressed, start=1):
        variants: dict[str, Any] = dict(study.variants(name))
        dense = study.trained(name, study.config.seed).variables
        variants["int8"] = quantised(study, name, dense)
        test = study.test(name)
        for batch_size in (1,) if study.config.quick else (1, 16):
            example = test.images[:batch_size].astype(np.float32) / 255
            example = (
                example
                if len(example) == batch_size
                else np.resize(example, (batch_size, *example.shape[1:]))
            )
            found = evaluation.compare_latency(
                variants, example, runs=study.config.latency_runs, reference="dense"
            )
            for variant, entry in found["variants"].items():
                gap = entry["difference"]
                told[name].setdefault(variant, []).append([batch_size, _words(gap)])
                rows.append(
                    [
                        name,
                        variant,
                        batch_size,
                        {"value": entry["mean_ms"], "deviation": entry["std_ms"]},
                        entry["median_ms"],
                        entry["p95_ms"],
                        None
                        if gap is None
                        else blocks.estimate(gap["median_ms"], gap["low_ms"], gap["high_ms"]),
                        _words(gap),
                    ]
                )
                if variant in ("dense", "int8"):
                    costs.append(
                        [
                            name,
                            variant,
                            batch_size,
                            _mega(entry["flops"]),
                            _mega(entry["bytes_accessed"]),
                            _mega(entry["peak_memory_bytes"]),
                            entry["compile_seconds"],
                        ]
                    )
        progress(done, len(study.compressed))
    section = blocks.section(
        "latency",
        "Latency",
        [
            blocks.table(
                [
                    "Network",
                    "Variant",
                    blocks.column("Batch", decimals=0),
                    blocks.column("Mean ± sd", unit="ms", decimals=2),
                    blocks.column("Median", unit="ms", decimals=2),
                    blocks.column("95th percentile", unit="ms", decimals=2),
                    blocks.column("Against dense", unit="ms", decimals=3),
                    "Verdict",
                ],
                rows,
                f"{study.config.latency_runs} runs of each after 10 of warm-up, compiled ahead of "
                "time, the variants taking turns, so that drift of the machine hits all alike. "
                "Against dense: the median of the differences within a round, with a 95 % "
                "interval. The verdict also asks that the difference exceeds the one between the "
                "dense network and itself.",
            ),
            blocks.table(
                [
                    "Network",
                    "Variant",
                    blocks.column("Batch", decimals=0),
                    blocks.column("Operations", unit="MFLOP", decimals=1),
                    blocks.column("Moved", unit="MB", decimals=1),
                    blocks.column("Memory at most", unit="MB", decimals=1),
                    blocks.column("Compilation", unit="s", decimals=1),
                ],
                costs,
                "What XLA says of the compiled programs. Masked networks run the dense program.",
                folded=True,
                title="Cost of the compiled programs",
            ),
            _from_disk(study),
        ],
        part=PART,
        text=[
            "Zeros that are stored as zeros are multiplied like any other number, so a mask cannot "
            "make a dense program faster. The reports measured one variant after the other, saw "
            "differences of up to 0.2 ms (A) and 9 ms (B), and explained them by luck and by the "
            "overhead of sparse tensors; here the variants take turns."
        ],
    )
    return section, {"latency": told}


def _words(gap: Any) -> str:
    if gap is None:
        return ""
    if not gap["different"]:
        return "no difference"
    return "faster" if gap["median_ms"] < 0 else "slower"


def _mega(value: float | None) -> float | None:
    return None if value is None else value / 1e6


def _pixels(size: int, path: Path) -> np.ndarray:
    return data.read_image(path, size) / np.float32(255)


def _from_disk(study: Study) -> dict[str, Any]:
    """One photograph, and 100, from the files to the answers (source 004's protocols)."""
    rows = []
    listing = study.test_files
    for name in study.compressed:
        size = study.dataset(name).image_shape[0]
        for count in (1, 100):
            found = evaluation.disk_latency(
                functools.partial(_pixels, size),
                study.base(name),
                listing,
                batch_size=count,
                runs=3 if study.config.quick else 20,
            )
            rows.append(
                [
                    name,
                    count,
                    {"value": found["mean_ms"], "deviation": found["std_ms"]},
                    found["median_ms"],
                ]
            )
    return blocks.table(
        [
            "Network",
            blocks.column("Photographs", decimals=0),
            blocks.column("Mean ± sd", unit="ms", decimals=1),
            blocks.column("Median", unit="ms", decimals=1),
        ],
        rows,
        "From the JPEG files (224x224; the 50 test files, twice for 100) to the answers: reading, "
        "decoding, resizing and the network. The files are in the operating system's cache.",
        title="From disk to answer",
    )
