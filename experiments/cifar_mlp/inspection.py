"""What the classifiers have learnt: accuracies beside the source's, templates, mistakes."""

from typing import Any

import numpy as np

from experiments.cifar_mlp import source
from experiments.cifar_mlp.network import Params
from experiments.cifar_mlp.study import Curves, Study, mean_of, stage_of
from jaxrobust import evaluation, studies
from jaxrobust.studies import blocks

WIDTH = next(a for a in source.ABLATIONS if a.parameter == "width")
# (name, place in its program, units, what the source reports)
MODELS = (
    ("one layer", 0, 0, source.ONE_LAYER_ACCURACY),
    ("hidden layer", 1, 100, source.HIDDEN_ACCURACY),
    ("hidden layer, 200 units", 3, 200, WIDTH.published[3]),
)
NUM_UNITS, UNITS_IN_A_ROW = 18, 9  # of the hidden layer, shown


def params_of(study: Study, name: str) -> Params:
    """The first seed's weights of one of `MODELS`."""
    _, place, width, _ = next(model for model in MODELS if model[0] == name)
    stage = stage_of(WIDTH) if width else "train one layer"
    return study.params(stage, place, width)


def _curves(study: Study, width: int) -> Curves:
    return study.ablation(WIDTH) if width else study.main_one_layer()


def model_entries(study: Study) -> list[dict[str, Any]]:
    """The classifiers as result.json has them."""
    entries = []
    for name, place, width, _ in MODELS:
        curves, params = _curves(study, width), params_of(study, name)
        settings = source.HIDDEN if width else source.ONE_LAYER
        test = study.dataset.test
        entry = studies.model_entry(
            name,
            study.classifier(params),
            test.images,
            test.labels,
            study.dataset.class_names,
            params=params,
            history=_history(curves, place, settings),
            description=_description(settings, width, curves["train_loss"].shape[2]),
        )
        rates = curves["test_accuracy"][:, place]
        entry["seeds"] = [
            {"seed": seed, "accuracy": evaluation.rate(round(float(r) * len(test)), len(test))}
            for seed, r in zip(study.seeds, rates, strict=True)
        ]
        entries.append(entry)
    return entries


def _description(settings: dict[str, float], width: int, num_epochs: int) -> str:
    layers = f"{width} hidden units with ReLU" if width else "one linear layer"
    return (
        f"{layers}; SGD for {num_epochs} epochs, learning rate {settings['learning_rate']:g} times "
        f"{settings['decay']:g} after each epoch, batches of {settings['batch_size']:g}, no regularizer"
    )


def _history(curves: Curves, place: int, settings: dict[str, float]) -> list[dict[str, Any]]:
    """The first seed's epochs."""
    names = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
    columns = {name: curves[name][0, place] for name in names}
    return [
        {"epoch": epoch + 1}
        | {name: float(values[epoch]) for name, values in columns.items()}
        | {"learning_rate": settings["learning_rate"] * settings["decay"] ** epoch}
        for epoch in range(len(columns["train_loss"]))
    ]


def accuracies(study: Study, *, part: str) -> dict[str, Any]:
    """The source's test accuracies beside ours."""
    rows = []
    for name, place, width, published in MODELS:
        curves = _curves(study, width)
        rows.append(
            [
                name,
                published,
                mean_of(curves["test_accuracy"][:, place]),
                mean_of(curves["validation_accuracy"][:, place, -1]),
                mean_of(curves["train_accuracy"][:, place, -1]),
            ]
        )
    return blocks.section(
        "accuracies",
        "Test accuracy, the source's and ours",
        [
            blocks.table(
                [
                    "Classifier",
                    blocks.column("Source 002", "%", 2, group="Test accuracy"),
                    blocks.column("here", "%", 2, group="Test accuracy"),
                    blocks.column("Validation accuracy", "%", 1),
                    blocks.column("Training accuracy", "%", 1),
                ],
                rows,
                f"Means over {study.config.num_seeds} seeds with 95 % intervals, after the last epoch.",
            )
        ],
        part=part,
        text=[data_note(study)],
    )


def data_note(study: Study) -> str:
    """On which images all figures are, in a sentence."""
    name = study.dataset.name
    if name == "cifar10":
        return "All of it is on CIFAR-10, the source's data."
    if name == "cifar10_jpeg":
        return (
            "All of it is on CIFAR-10 encoded anew as JPEG, to train on and to test on; the source's "
            "figures are of the original. JPEG changes the pixels, so the figures can differ a little "
            "for that alone."
        )
    return (
        f"This run is on {name}, not on CIFAR-10: the source's figures are shown beside it, but say "
        "nothing about these."
    )


def templates(study: Study, *, part: str) -> dict[str, Any]:
    """The linear classifier's weights as images, and the strongest units of the hidden layer."""
    names, shape = study.dataset.class_names, study.dataset.image_shape
    (layer,) = params_of(study, "one layer")
    train = study.dataset.train
    means = [train.images[train.labels == k].mean(axis=0) / 255 for k in range(len(names))]
    rows = [
        ("weights", [_template(layer.weights[:, k], shape) for k in range(len(names))]),
        ("mean image", [blocks.tile(mean) for mean in means]),
    ]
    first, last = params_of(study, "hidden layer")
    strength = np.linalg.norm(last.weights, axis=1) * np.linalg.norm(first.weights, axis=0)
    units = np.argsort(-strength)[:NUM_UNITS]
    lines = []
    for start in range(0, len(units), UNITS_IN_A_ROW):
        group = units[start : start + UNITS_IN_A_ROW]
        label = f"units {start + 1} to {start + len(group)}"
        lines.append((label, [_unit(first, last, unit, study) for unit in group]))
    return blocks.section(
        "templates",
        "What the weights look like",
        [
            blocks.pictures(
                rows,
                "One layer: the logit of a class is the product of the image with these weights, drawn "
                "around grey (0) and clipped at their 99th percentile. Below, the mean of the class's "
                "training images, which a template resembles where the class has one typical look.",
                columns=names,
                title="Templates of the classes",
            ),
            blocks.pictures(
                lines,
                "Hidden layer of 100: the units with the largest product of the norms of their weights "
                "in and out, and below each the class that it speaks for most.",
                title="Templates of hidden units",
            ),
        ],
        part=part,
    )


def _template(weights: np.ndarray, shape: tuple[int, ...], text: str = "") -> dict[str, Any]:
    largest = max(float(np.quantile(np.abs(weights), 0.99)), 1e-12)
    return blocks.tile((0.5 + 0.5 * weights / largest).reshape(shape), text=text)


def _unit(first: Any, last: Any, unit: int, study: Study) -> dict[str, Any]:
    best = study.dataset.class_names[int(last.weights[unit].argmax())]
    return _template(first.weights[:, unit], study.dataset.image_shape, text=best)


def mistakes(study: Study, entries: list[dict[str, Any]], *, part: str) -> dict[str, Any]:
    """Which classes are easy, and what is taken for what most often."""
    rows = []
    for entry in entries:
        matrix = np.array(entry["evaluation"]["confusion_matrix"], float)
        recall = np.diag(matrix) / np.maximum(matrix.sum(axis=1), 1)
        np.fill_diagonal(matrix, 0)
        names = study.dataset.class_names
        best, worst = (names[int(k)] for k in (recall.argmax(), recall.argmin()))
        for place in np.argsort(-matrix, axis=None, kind="stable")[:3]:
            true, taken = np.unravel_index(place, matrix.shape)
            rows.append(
                [
                    entry["name"],
                    f"{best} ({100 * recall.max():.0f} %)",
                    f"{worst} ({100 * recall.min():.0f} %)",
                    f"{names[true]} for {names[taken]}",
                    int(matrix[true, taken]),
                ]
            )
    return blocks.section(
        "mistakes",
        "The most frequent mistakes",
        [
            blocks.table(
                ["Classifier", "Best class", "Worst class", "Takes", "Test images"],
                rows,
                "The first seed's classifiers; the share in brackets is of the class's test images.",
            )
        ],
        part=part,
    )
