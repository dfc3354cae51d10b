"""The pictures of the report: weights drawn as images, and the source's fooling images."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.cifar_mlp.network import Params
from jaxrobust import data, evaluation, models
from jaxrobust.evaluation.answers import as_float
from jaxrobust.evaluation.classification import softmax
from jaxrobust.reports.pictures import decode_array

NUM_UNITS = 18  # of the hidden layer, shown


def templates(weights: np.ndarray, dataset: data.Dataset) -> np.ndarray:
    """Draws weights [D, N] as images [N, H, W, C]: 0 is grey; clipped at the 99th percentile."""
    largest = np.maximum(np.quantile(np.abs(weights), 0.99, axis=0), 1e-12)
    return (0.5 + 0.5 * weights / largest).T.reshape(-1, *dataset.image_shape)


def class_means(split: data.Split) -> list[np.ndarray]:
    """Returns the mean image of each class."""
    return [split.images[split.labels == k].mean(axis=0) / 255 for k in np.unique(split.labels)]


def units(params: Params, dataset: data.Dataset) -> list[dict[str, Any]]:
    """Returns the strongest units of the hidden layer, and the class that each supports most."""
    first, last = params
    strength = np.linalg.norm(last.weights, axis=1) * np.linalg.norm(first.weights, axis=0)
    chosen = np.argsort(-strength)[:NUM_UNITS]
    drawn = templates(first.weights[:, chosen], dataset)
    return [
        {"number": i + 1, "image": drawn[i], "class": dataset.class_names[last.weights[u].argmax()]}
        for i, u in enumerate(chosen)
    ]


def fooled(
    ascent: Mapping[str, Any], classifier: models.Classifier, dataset: data.Dataset
) -> list[dict[str, Any]]:
    """Returns images before and after an ascent of `fooling.ascents_of`, predictions and changes."""
    names, rows, found = dataset.class_names, ascent["rows"], decode_array(ascent["images"])
    clean, labels = as_float(dataset.test.images[rows]), dataset.test.labels[rows]
    answers = [softmax(evaluation.logits(classifier, images)) for images in (clean, found)]
    entries = []
    for i, row in enumerate(rows):
        said = [f"{names[a[i].argmax()]} ({100 * a[i].max():.0f} %)" for a in answers]
        entry = {
            "row": row,
            "label": names[labels[i]],
            "images": (clean[i], found[i]),
            "said": said,
        }
        norm = float(np.linalg.norm(found[i] - clean[i]))
        entry |= {"change": np.abs(found[i] - clean[i]), "norm": norm, "levels": 255 * norm}
        entries.append(entry)
    return entries
