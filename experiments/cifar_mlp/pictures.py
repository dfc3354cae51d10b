"""Pictures of the report: what weights look like, and the source's fooling images."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.cifar_mlp.network import Params
from jaxrobust import data, evaluation, models
from jaxrobust.evaluation.answers import as_float
from jaxrobust.evaluation.classification import softmax
from jaxrobust.reports import blocks
from jaxrobust.reports.pictures import decode_array

NUM_UNITS, UNITS_IN_A_ROW = 18, 9  # of the hidden layer, shown


def templates(params: Params, dataset: data.Dataset) -> blocks.Block:
    """The linear classifier's weights as images, above the mean images of the classes."""
    names, train = dataset.class_names, dataset.train
    means = [train.images[train.labels == k].mean(axis=0) / 255 for k in range(len(names))]
    rows = [
        ("weights", [_template(column, dataset) for column in params[0].weights.T]),
        ("mean image", [blocks.tile(mean) for mean in means]),
    ]
    return blocks.pictures(rows, columns=names, title="Templates of the classes")


def units(params: Params, dataset: data.Dataset) -> blocks.Block:
    """The strongest units of the hidden layer, and the class that each speaks for most."""
    first, last = params
    strength = np.linalg.norm(last.weights, axis=1) * np.linalg.norm(first.weights, axis=0)
    tiles = [
        _template(first.weights[:, u], dataset, dataset.class_names[last.weights[u].argmax()])
        for u in np.argsort(-strength)[:NUM_UNITS]
    ]
    rows = [
        (f"units {i + 1} to {i + UNITS_IN_A_ROW}", tiles[i : i + UNITS_IN_A_ROW])
        for i in range(0, NUM_UNITS, UNITS_IN_A_ROW)
    ]
    return blocks.pictures(rows, title="Templates of hidden units")


def _template(weights: np.ndarray, dataset: data.Dataset, text: str = "") -> Any:
    """Weights around grey, clipped at their 99th percentile."""
    largest = max(float(np.quantile(np.abs(weights), 0.99)), 1e-12)
    return blocks.tile((0.5 + 0.5 * weights / largest).reshape(dataset.image_shape), text=text)


def fooled(
    ascent: Mapping[str, Any], classifier: models.Classifier, dataset: data.Dataset
) -> blocks.Block:
    """Images before and after an ascent of `fooling.ascents_of`, and their difference."""
    rows, names = [], dataset.class_names
    clean = as_float(dataset.test.images[ascent["rows"]])
    found = decode_array(ascent["images"])
    answers = [softmax(evaluation.logits(classifier, images)) for images in (clean, found)]
    for i, row in enumerate(ascent["rows"]):
        said = [f"{names[a[i].argmax()]} ({100 * a[i].max():.0f} %)" for a in answers]
        norm = float(np.linalg.norm(found[i] - clean[i]))
        tiles = [
            blocks.tile(clean[i], text=said[0]),
            blocks.tile(found[i], text=said[1]),
            blocks.tile(
                np.abs(found[i] - clean[i]), text=f"norm {norm:.3f}, {255 * norm:.0f} of 255"
            ),
            blocks.tile(found[i], style="difference", against=clean[i]),
        ]
        rows.append((f"{names[dataset.test.labels[row]]}, image {row}", tiles))
    columns = ["image", "after the step", "difference", "difference, amplified"]
    return blocks.pictures(rows, columns=columns)
