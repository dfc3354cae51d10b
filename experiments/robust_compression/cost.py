"""Time of one image and of 100 (algorithms 4 and 5, figures 4.7 and D.1), and the files."""

from typing import Any

import numpy as np

from experiments.robust_compression.study import METHOD_WORDS, Study
from jaxrobust import evaluation
from jaxrobust.studies import blocks

PART = "cost"
SIZES = (1, 100)  # images at a time, the source's
_KB = 1e3


def sections(study: Study) -> list[dict[str, Any]]:
    """Latency and sizes."""
    return [latency(study), sizes(study)]


def times(study: Study) -> list[dict[str, Any]]:
    """[{"network", "batch", "variants": {share: figures of `dataset_latency`}}, ...], once."""
    if study.timed is None:
        study.timed = study.stages.remember("latency", lambda progress: _times(study, progress))
    return study.timed


def _times(study: Study, progress: Any) -> list[dict[str, Any]]:
    found = []
    work = len(study.config.networks) * len(SIZES)
    count = study.config.num_timed
    for network in study.config.networks:
        variants = study.pair(network, study.config.radii[0])
        fns = {variant.share: study.classifier(variant) for variant in variants}
        for size in SIZES:
            images = study.test.images
            wanted = size * count
            if len(images) < wanted:  # the same again: times do not depend on what is seen
                images = np.resize(images, (wanted, *images.shape[1:]))
            timed = evaluation.dataset_latency(
                fns,
                images[:wanted],
                size,
                in_memory=size == 1,
                controls=1 if study.config.quick else 3,
            )
            kept = ("mean_ms", "std_ms", "median_ms", "flops", "difference")
            found.append(
                {
                    "network": network,
                    "batch": size,
                    "floor": timed["noise_floor_ms"],
                    "variants": {
                        share: {name: entry[name] for name in kept}
                        for share, entry in timed["variants"].items()
                    },
                }
            )
            progress(len(found), work)
    return found


def latency(study: Study) -> dict[str, Any]:
    """Means with deviations, and which differences are more than noise."""
    rows: list[list[Any]] = []
    groups: dict[str, dict[str, Any]] = {}
    for entry in times(study):
        dense = entry["variants"]["dense"]["median_ms"]
        items = dict[str, Any]()
        for share, figures in entry["variants"].items():
            cells = blocks.latency(figures)
            faster = dense / figures["median_ms"]
            rows.append([entry["network"], share, entry["batch"], *cells, faster])
            items[share] = cells[0]
        words = "one image" if entry["batch"] == 1 else f"{entry['batch']} images, loaded"
        groups[f"{entry['network']}, {words}"] = items
    return blocks.section(
        "latency",
        "Time of one image and of 100",
        [
            blocks.bars("Mean time, ms", groups, "With deviations."),
            blocks.table(
                [
                    "Network",
                    "Kept",
                    blocks.column("Images", decimals=0),
                    blocks.column("Mean ± sd", unit="ms", decimals=3),
                    blocks.column("Median", unit="ms", decimals=3),
                    blocks.column("Against dense", unit="ms", decimals=3),
                    "Verdict",
                    blocks.column("Times faster", decimals=2),
                ],
                rows,
                "One image: on the device when the clock starts (algorithm 4), "
                f"{study.config.num_timed} images. 100 images: read from the host's memory, made "
                "floats and brought to the device within the time (algorithm 5), "
                f"{study.config.num_timed} batches. Networks take turns; the verdict asks that the "
                "interval of the differences excludes 0 and that they exceed what the dense network "
                "differs from itself by. The programs multiply zeros like any other number: of single "
                "weights that are 0 they know nothing.",
                title="Latency",
            ),
        ],
        part=PART,
    )


def sizes(study: Study) -> dict[str, Any]:
    """Real files, and what is zero in them."""
    rows: list[list[Any]] = []
    shown = [*study.compared(study.seeds[0])]
    for network in study.config.networks[1:]:
        shown += study.pair(network, study.config.radii[0])
    for variant in shown:
        facts = study.facts[variant]
        rows.append(
            [
                f"{variant.network}, {METHOD_WORDS[variant.method]}",
                variant.kept,
                facts["weights"],
                facts["weights"] - facts["zeros"],
                (facts["weights"] - facts["zeros"]) / facts["weights"],
                facts["parameters"],
                facts["bytes"] / _KB,
                facts["dense_bytes"] / facts["bytes"],
            ]
        )
    return blocks.section(
        "sizes",
        "Sizes",
        [
            blocks.table(
                [
                    "Network",
                    blocks.column("Asked to keep", unit="%", decimals=1),
                    blocks.column("Weights", decimals=0, group="Prunable"),
                    blocks.column("not 0", decimals=0, group="Prunable"),
                    blocks.column("share", unit="%", decimals=3, group="Prunable"),
                    blocks.column("All parameters", decimals=0),
                    blocks.column("File", unit="kB", decimals=1),
                    blocks.column("Smaller than dense, times", decimals=2),
                ],
                rows,
                "Counted in the saved files, which hold a bit for each weight and those that are not "
                "0. Dense: the same weights, zeros written out. Prunable are all kernels but stem and "
                "classifier.",
                title="What the files hold",
            )
        ],
        part=PART,
    )


def compressed(variants: dict[str, Any]) -> dict[str, Any]:
    """Those of a record of `times` that are not the dense network."""
    return {share: figures for share, figures in variants.items() if share != "dense"}
