"""Problem A: every method of attribution on one network, and whether its maps can be trusted."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.sports10.study import Study, estimate
from jaxrobust import attribution, evaluation, studies
from jaxrobust.evaluation.classification import predictions
from jaxrobust.studies import blocks

PART = "a"


def section(study: Study) -> dict[str, Any]:
    """The section of this module."""
    return study.stages.remember("attribution methods", lambda progress: _section(study, progress))


def _section(study: Study, progress: Any) -> dict[str, Any]:
    """All methods of attribution on one network: pictures and figures."""
    name = study.chosen
    classifier, test = study.base(name), study.test(name)
    methods = {method: attribution.METHODS[method] for method in study.methods(name)}
    images = jnp.asarray(test.images / np.float32(255))
    predicted = jnp.asarray(predictions(evaluation.logits(classifier, test.images)))
    steps = 5 if study.config.quick else 20
    maps, scores = {}, {}
    total = len(methods) + 2
    for done, (method, function) in enumerate(methods.items(), start=1):
        maps[method] = np.asarray(function(study.key, classifier, images, predicted))
        scores[method] = _faithfulness(classifier, images, maps[method], predicted, steps)
        progress(done, total)
    control = attribution.random_maps(study.key, images.shape[:3])
    scores["random"] = _faithfulness(classifier, images, control, predicted, steps)
    rows = [_faithfulness_row(method, scores) for method in [*methods, "random"]]

    chosen = studies.right_and_wrong(np.asarray(predicted), test.labels, num_classes=3)
    grid = []
    for index in chosen:
        label = study.class_names[test.labels[index]]
        said = study.class_names[int(predicted[index])]
        tiles = [blocks.tile(test.images[index], title="image", text=said)]
        tiles += [
            blocks.tile(
                test.images[index],
                title=method.replace("_", " "),
                values=maps[method][index],
                style="heat" if method in _FINE else "overlay",
            )
            for method in methods
        ]
        verdict = "right" if said == label else "wrong"
        grid.append((f"{label}, image {index}: {verdict}", tiles))

    layers, lines = _cascade(study, name, images[:: 15 if study.config.quick else 3])
    return blocks.section(
        "attribution",
        "What the answers rest on, measured",
        [
            blocks.pictures(
                grid,
                f"Maps of {name} for the class that it names. Fine maps are bright where a pixel "
                "matters; the others lie over the image in grey and cover what matters. Each map "
                "is stretched to its own range.",
                title="Every method on the same images",
            ),
            blocks.table(
                [
                    "Method",
                    blocks.column("Deletion AUC", decimals=3, group="Lower is better"),
                    blocks.column("against random", decimals=3, group="Lower is better"),
                    blocks.column("Insertion AUC", decimals=3, group="Higher is better"),
                    blocks.column("against random", decimals=3, group="Higher is better"),
                ],
                rows,
                "The named class's probability as the pixels that a map ranks highest are deleted "
                f"or inserted, averaged over {steps} steps and {len(images)} photographs, with 95 % "
                "intervals (each by itself, not corrected for their number); the differences to a "
                "random map are paired. A method whose interval holds 0 is not shown to point "
                "better than chance.",
                title="Deletion and insertion",
            ),
            blocks.chart(
                "Cascading randomisation",
                "layers randomised, from the output down",
                "rank correlation",
                lines,
                "Rank correlation with the trained network's map. A map that explains the "
                "network must change when the network's weights are "
                "replaced by noise: a line that stays high belongs to a method that draws the "
                f"image rather than the network. Layers in order: {', '.join(layers)}.",
            ),
        ],
        part=PART,
        text=[
            "The reports describe their maps with adjectives (focused, diffuse, meaningful). These "
            "are the figures for such words."
        ],
    )


_FINE = ("saliency", "smooth_grad", "integrated_gradients", "input_x_gradient")
_CASCADED = ("saliency", "integrated_gradients", "grad_cam", "hires_cam", "eigen_cam")


def _faithfulness(
    classifier: Any, images: jax.Array, maps: Any, labels: jax.Array, steps: int
) -> dict[str, np.ndarray]:
    curves = {
        "deletion": attribution.deletion_curve(classifier, images, maps, labels, num_steps=steps),
        "insertion": attribution.insertion_curve(classifier, images, maps, labels, num_steps=steps),
    }
    return {name: np.asarray(curve["auc"]) for name, curve in curves.items()}


def _faithfulness_row(method: str, scores: dict[str, dict[str, np.ndarray]]) -> list[Any]:
    row: list[Any] = [method.replace("_", " ")]
    for kind in ("deletion", "insertion"):
        values = scores[method][kind]
        row.append(estimate(values))
        gap = values - scores["random"][kind]
        row.append(None if method == "random" else estimate(gap))
    return row


def _cascade(study: Study, name: str, images: jax.Array) -> tuple[list[str], list[dict[str, Any]]]:
    """(layers, a line for each method) of the cascading randomisation."""
    classifier = study.base(name)
    lines, layers = [], []
    chosen = [method for method in _CASCADED if method in study.methods(name)]
    for method in chosen[:1] if study.config.quick else chosen:
        found = attribution.cascading_randomisation(
            study.key,
            attribution.METHODS[method],
            lambda variables: dataclasses.replace(classifier, variables=variables),
            classifier.variables,
            images,
        )
        layers = list(found["layers"])
        correlations = np.asarray(found["rank_correlation"])
        values = [estimate(row) for row in correlations]
        lines.append(blocks.line(method.replace("_", " "), list(range(1, len(values) + 1)), values))
    return layers, lines
