"""Time and size: the source's tables 3, 4, 12 and 17, of networks that are really smaller."""

from typing import Any

import numpy as np

from experiments.pruned_benchmark import networks, published
from experiments.pruned_benchmark.networks import SHORT
from experiments.pruned_benchmark.study import Study, Variant
from jaxrobust import evaluation
from jaxrobust.studies import blocks

PART = "cost"
BATCH_SIZES = (32, 64)  # the source's
_MB = 1e6


def sections(study: Study) -> list[dict[str, Any]]:
    """Latency and sizes."""
    timed = study.stages.remember("latency", lambda progress: _times(study, progress))
    return [_latency(study, timed), _sizes(study)]


def _times(study: Study, progress: Any) -> list[dict[str, Any]]:
    """Dense and shrunk networks of a base network taking turns, at both batch sizes."""
    found = []
    total = len(study.config.networks) * len(BATCH_SIZES)
    for network in study.config.networks:
        variants = [Variant(network), *study.pruned(network, study.shown_criterion)]
        for batch_size in BATCH_SIZES:
            example = np.resize(study.test.images, (batch_size, *study.dataset.image_shape))
            compared = evaluation.compare_latency(
                {variant.words: study.classifier(variant) for variant in variants},
                example.astype(np.float32) / 255,
                runs=study.config.latency_runs,
                reference="base",
                controls=1 if study.config.quick else 3,
            )
            kept = ("mean_ms", "std_ms", "median_ms", "difference")
            found.append(
                {
                    "network": network,
                    "batch": batch_size,
                    "floor": compared["noise_floor_ms"],
                    "variants": {
                        words: {name: entry[name] for name in kept}
                        for words, entry in compared["variants"].items()
                    },
                }
            )
            progress(len(found), total)
    return found


def _latency(study: Study, timed: list[dict[str, Any]]) -> dict[str, Any]:
    rows: list[list[Any]] = []
    groups: dict[str, dict[str, Any]] = {}
    for entry in timed:
        items, network = dict[str, Any](), entry["network"]
        for words, times in entry["variants"].items():
            mean, median, difference, verdict = blocks.latency(times)
            gap, base = times["difference"], entry["variants"]["base"]["median_ms"]
            rows.append(
                [
                    network,
                    words,
                    entry["batch"],
                    mean,
                    median,
                    difference,
                    entry["floor"],
                    verdict,
                    base / median if gap is None or gap["different"] else None,
                    *_source_time(study, network, words, entry["batch"]),
                ]
            )
            items[words] = mean
        groups[f"{network}, batch {entry['batch']}"] = items
    return blocks.section(
        "inference-time",
        "Inference time",
        [
            blocks.bars("Time of a batch, ms", groups, "Means with their deviations."),
            blocks.table(
                [
                    "Network",
                    "Variant",
                    blocks.column("Batch", decimals=0),
                    blocks.column("Mean ± sd", unit="ms", decimals=2),
                    blocks.column("Median", unit="ms", decimals=2),
                    blocks.column("Against base", unit="ms", decimals=2),
                    blocks.column("Noise floor", unit="ms", decimals=2),
                    "Verdict",
                    blocks.column("Times faster", decimals=2),
                    *(["Source, ms"] if study.source_data == "cifar10" else []),
                ],
                rows,
                f"{study.config.latency_runs} rounds after 10 of warm-up, compiled ahead of time, the "
                "variants taking turns. Against base: the median of the differences within a round, "
                "with its 95 % interval; the verdict also asks that it exceeds what the base network "
                "differs from itself by, the noise floor. The source's are of its full-size networks, "
                "by OpenVINO on another CPU (its tables 12 and 3), one variant after the other, so "
                "that differences and drift cannot be told apart, and without intervals.",
            ),
        ],
        part=PART,
    )


def _source_time(study: Study, network: str, words: str, batch_size: int) -> list[str]:
    """The cell of the source's column, if it has one."""
    if study.source_data != "cifar10":
        return []
    by_words = {"base": 0.0} | {v.words: v.sparsity for v in study.pruned(network, "l2")}
    sparsity = by_words.get(words)
    if sparsity not in published.LATENCY_SPARSITIES:
        return [""]
    place = published.LATENCY_SPARSITIES.index(sparsity)
    mean, deviation = published.LATENCY[batch_size][study.family(network)][place]
    return [f"{mean:.1f} ± {deviation:.1f}"]


def _sizes(study: Study) -> dict[str, Any]:
    rows: list[list[Any]] = []
    groups: dict[str, dict[str, Any]] = {}
    criterion = study.shown_criterion
    for network in study.config.networks:
        variants, items = [Variant(network), *study.pruned(network, criterion)], {}
        base = study.facts[Variant(network)]
        for variant in variants:
            facts = study.facts[variant]
            size = facts["bytes"] / _MB
            rows.append(
                [
                    network,
                    variant.words,
                    facts["parameters"],
                    1 - facts["parameters"] / base["parameters"],
                    size,
                    1 - facts["bytes"] / base["bytes"],
                ]
            )
            items[variant.words] = size
        groups[network] = items
    tables = [
        blocks.bars("Size of the file, MB", groups),
        blocks.table(
            [
                "Network",
                "Variant",
                blocks.column("Parameters", decimals=0),
                blocks.column("Removed", unit="%", decimals=1),
                blocks.column("File", unit="MB", decimals=3),
                blocks.column("Smaller by", unit="%", decimals=1),
            ],
            rows,
            "Real files: float32 weights, BatchNorm's statistics and a header, no optimizer. Half of "
            "the filters on both sides of a kernel are three quarters of its weights. The networks of "
            "the other criteria are of the same sizes, as every layer loses the same share.",
            title="Parameters and files",
        ),
    ]
    if study.source_data in published.SIZES:
        tables.append(_source_sizes(study))
    return blocks.section(
        "sizes",
        "Sizes",
        tables,
        part=PART,
        text=[
            "The source's pruned files are of one size from 10 to 50 %, and 66 % smaller than its base "
            "files. Filters that are set to zero make no file smaller: its pruned files are the size "
            "of all float32 weights of the unpruned network, its base files of about three times "
            "these, as weights with two more copies would be. (Adam keeps two, the SGD with momentum "
            "that it names one.)"
        ],
    )


def _source_sizes(study: Study) -> dict[str, Any]:
    """The source's files beside what its networks' weights take."""
    rows = []
    for family, (base, pruned) in published.SIZES[study.source_data or ""].items():
        count = networks.published_parameters(family, study.dataset.num_classes)
        weights = 4 * count / _MB
        rows.append(
            [SHORT[family], base, pruned, 1 - pruned / base, count, weights, base / weights]
        )
        rows[-1].append(pruned / weights)
    return blocks.table(
        [
            "Network",
            blocks.column("base", unit="MB", decimals=1, group="Source's files"),
            blocks.column("pruned", unit="MB", decimals=1, group="Source's files"),
            blocks.column("smaller by", unit="%", decimals=1, group="Source's files"),
            blocks.column("Parameters, unpruned", decimals=0),
            blocks.column("As float32", unit="MB", decimals=1),
            blocks.column("base", decimals=2, group="Times the weights"),
            blocks.column("pruned", decimals=2, group="Times the weights"),
        ],
        rows,
        "Parameters: of this library's networks of these names, for 32x32 pixels, whose number may "
        "differ a little from the source's.",
        title="What the source's files hold",
    )
