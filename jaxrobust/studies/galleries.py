"""Makes the records of pictures: images with their saliency and Grad-CAM, clean and attacked."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrobust import attribution
from jaxrobust.evaluation import AttackReport, attack_label, logits, records
from jaxrobust.evaluation.answers import as_float
from jaxrobust.evaluation.classification import softmax
from jaxrobust.reports.pictures import as_bytes, encode_array
from jaxrobust.types import LogitsFn

# The entries of an attack's record of an image that a picture needs.
_RECORDED = (
    *("index", "label", "target", "success", "adversarial_prediction", "adversarial_confidence"),
    *("l2", "linf", "num_steps"),
)


def explanations(
    logits_fn: LogitsFn,
    images: Any,
    labels: Any,
    indices: Sequence[int],
    *,
    model: str,
    class_names: Sequence[str],
    layer: str | None = None,
) -> list[dict[str, Any]]:
    """Explains a model's predictions; `reports.evaluations.explanations` draws the records.

    The maps explain the predicted class, whether it is right or wrong.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K].
      images: uint8, or floating point in [0, 1], [N, H, W, C].
      labels: int [N].
      indices: The indices of the images to explain.
      model: The model's name.
      class_names: K names.
      layer: The layer for Grad-CAM; None takes the default of `attribution.layers`, or leaves Grad-CAM
        out if there is none.

    Returns:
      One record for each image.
    """
    if len(indices) == 0:
        return []
    chosen, of_class = as_float(images)[list(indices)], np.asarray(labels)[list(indices)].tolist()
    probabilities = softmax(logits(logits_fn, chosen))
    # The predicted class is explained, whether it is right or not.
    layer = layer or attribution.layers(logits_fn, chosen).default
    maps = _maps(logits_fn, chosen, probabilities.argmax(axis=1), layer)
    return [
        {
            "model": model,
            "class": class_names[true],
            "index": int(index),
            "label": true,
            **answer_record(row),
            "image": encode_array(as_bytes(image)),
            **({} if layer is None else {"layer": layer}),
            **drawn,
        }
        for index, true, row, image, drawn in zip(
            indices, of_class, probabilities, chosen, maps, strict=True
        )
    ]


def answer_record(probabilities: np.ndarray, prefix: str = "") -> dict[str, Any]:
    """Returns a model's "prediction" and "confidence" for an image from its probabilities [K]."""
    likeliest, most = int(probabilities.argmax()), float(probabilities.max())
    return {f"{prefix}prediction": likeliest, f"{prefix}confidence": most}


def gallery(
    logits_fn: LogitsFn,
    report: AttackReport,
    indices: Sequence[int],
    *,
    model: str,
    layer: str | None = None,
) -> list[dict[str, Any]]:
    """Records images before and after an attack; `reports.evaluations.gallery` draws the records.

    The maps explain the predicted class, before and after the attack.

    Args:
      logits_fn: The model that was attacked.
      report: The report of the attack.
      indices: The indices of the images to record.
      model: The model's name.
      layer: The layer for Grad-CAM; None takes the default of `attribution.layers`, or leaves Grad-CAM
        out if there is none.

    Returns:
      One record for each image.
    """
    if len(indices) == 0:
        return []
    rows, recorded = list(indices), records(report)
    layer = layer or attribution.layers(logits_fn, report.images).default
    # The same layer before and after the attack, so that the maps can be compared.
    before = _maps(logits_fn, report.clean_images[rows], report.clean_predictions[rows], layer)
    after = _maps(logits_fn, report.images[rows], report.predictions[rows], layer)
    entries = []
    for index, clean_maps, maps in zip(rows, before, after, strict=True):
        record = recorded[index]
        entry = {name: record[name] for name in _RECORDED if name in record}
        entry |= {"model": model, "attack": attack_label(report.attack)}
        entry |= {name: record[f"clean_{name}"] for name in ("prediction", "confidence")}
        entry |= {"image": encode_array(as_bytes(report.clean_images[index]))} | clean_maps
        entry |= {"adversarial": encode_array(report.images[index])}
        entries.append(entry | {f"adversarial_{name}": drawn for name, drawn in maps.items()})
    return entries


def right_and_wrong(predictions: np.ndarray, labels: np.ndarray, num_classes: int) -> list[int]:
    """Chooses images to explain: for some classes, one that the model has right and one it has wrong.

    Args:
      predictions: int [N].
      labels: int [N].
      num_classes: The number of classes to choose images from. Classes with both kinds of images come
        first. If they are too few, classes that the model has all right or all wrong follow, with one
        image each.

    Returns:
      The indices of the images, class by class.
    """
    chosen = []
    for k in np.unique(labels):
        right = np.flatnonzero((labels == k) & (predictions == k))
        wrong = np.flatnonzero((labels == k) & (predictions != k))
        chosen.append([int(found[0]) for found in (right, wrong) if len(found)])
    chosen.sort(key=lambda images: -len(images))
    return [index for images in chosen[:num_classes] for index in images]


def spread(mask: np.ndarray, count: int) -> list[int]:
    """Chooses positions at which a mask is True, spread evenly, so that they come from all classes.

    Args:
      mask: bool [N].
      count: The largest number of positions.

    Returns:
      The positions, in ascending order.
    """
    positions = np.flatnonzero(mask)
    if len(positions) <= count:
        return positions.tolist()
    return positions[np.linspace(0, len(positions) - 1, count).round().astype(int)].tolist()


def _maps(
    logits_fn: LogitsFn, images: np.ndarray, classes: np.ndarray, layer: str | None
) -> list[dict[str, Any]]:
    """Returns the encoded maps of each image."""
    pixels, labels = jnp.asarray(images), jnp.asarray(classes)
    maps = {"saliency": np.asarray(attribution.saliency(logits_fn, pixels, labels))}
    if layer is not None:
        maps["grad_cam"] = np.asarray(attribution.grad_cam(logits_fn, pixels, labels, layer))
    return [
        {name: encode_array(of_all[place]) for name, of_all in maps.items()}
        for place in range(len(images))
    ]
