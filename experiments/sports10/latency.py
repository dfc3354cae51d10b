"""Problem C, time: dense, masked and int8 networks, and the way from the file to the answer."""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from experiments.sports10.compression import quantised
from experiments.sports10.study import Study
from jaxrobust import data, evaluation
from jaxrobust.studies import blocks

PART = "c"


def section(study: Study) -> dict[str, Any]:
    """The section of this module; its verdicts are among the study's facts."""
    return study.section("latency", lambda progress: _section(study, progress))


def _section(study: Study, progress: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Dense, masked and quantised, interleaved; the quantised one multiplies its weights out."""
    rows, costs = [], []
    told: dict[str, dict[str, list[Any]]] = {name: {} for name in study.config.models}
    for done, name in enumerate(study.config.models, start=1):
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
                variants,
                example,
                runs=study.config.latency_runs,
                reference="dense",
                controls=1 if study.config.quick else 3,
            )
            for variant, entry in found["variants"].items():
                mean, median, difference, verdict = blocks.latency(entry)
                told[name].setdefault(variant, []).append([batch_size, verdict])
                rows.append(
                    [name, variant, batch_size, mean, median, entry["p95_ms"], difference, verdict]
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
        progress(done, len(study.config.models))
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


def _mega(value: float | None) -> float | None:
    return None if value is None else value / 1e6


def _pixels(size: int, path: Path) -> np.ndarray:
    return data.read_image(path, size) / np.float32(255)


def _from_disk(study: Study) -> dict[str, Any]:
    """One photograph, and 100, from the files to the answers (source 004's protocols)."""
    rows = []
    listing = study.test_files
    for name in study.config.models:
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
        f"From the JPEG files to the answers: reading, decoding, resizing and the network. The "
        f"{len(listing)} test files take turns, and are in the operating system's cache.",
        title="From disk to answer",
    )
