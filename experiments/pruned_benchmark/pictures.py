"""What the attacks make of an image, with the source's parameters and at 8/255."""

from typing import Any

import numpy as np

from experiments.pruned_benchmark import crafting, threats
from experiments.pruned_benchmark.study import Study, Variant
from jaxrobust import evaluation
from jaxrobust.studies import blocks

PART = "robustness"


def section(study: Study) -> dict[str, Any]:
    """One image of the first base network under every attack."""
    return study.stages.remember("pictures", lambda _: _section(study))


def _section(study: Study) -> dict[str, Any]:
    network = study.config.networks[0]
    right = np.flatnonzero(study.right_of_attacked(Variant(network)))
    index = int(right[len(right) // 2]) if len(right) else 0
    clean = study.attacked.images[index] / np.float32(255)
    classifier, rows = study.classifier(Variant(network)), []
    for name in threats.NAMES:
        tiles = [blocks.tile(clean, text=_said(study, classifier, clean))]
        for setting in threats.SETTINGS:
            found = crafting.images_of(study, network, setting, name)[index]
            tiles.append(blocks.tile(found, text=_said(study, classifier, found)))
            tiles.append(blocks.tile(found, style="difference", against=clean))
        rows.append((name, tiles))
    label = study.dataset.class_names[int(study.attacked.labels[index])]
    return blocks.section(
        "pictures",
        "What the attacks look like",
        [
            blocks.pictures(
                rows,
                "Below each image what the base network says. Differences are amplified by the stated "
                "factor.",
                columns=["image", "source's", "its change", "8/255", "its change"],
            )
        ],
        part=PART,
        text=[f"One test image ({label}) of {network}, crafted with either parameters."],
    )


def _said(study: Study, classifier: Any, image: np.ndarray) -> str:
    return study.dataset.class_names[int(evaluation.logits(classifier, image[None])[0].argmax())]
