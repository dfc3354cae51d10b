"""The logits and the accuracy of a classifier on clean images, overall and for each class."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrobust import checks
from jaxrobust.evaluation.answers import answers, check_company, check_images, check_processes
from jaxrobust.evaluation.rates import rate
from jaxrobust.programs.company import unusual
from jaxrobust.types import LogitsFn


def logits(logits_fn: LogitsFn, images: Any, batch_size: int = 256, draw: int = 0) -> np.ndarray:
    """Computes the logits of many images, in batches of one size.

    The variables that the classifier closes over are read at each call, so changed weights are used,
    and nothing is compiled again if only arrays have changed. One batch at a time is on the device.
    The processes of `jax.distributed` share the batches. So each of them must make the same call: a
    process that makes it alone waits for the others, and warns after a minute.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K]. A `Stochastic` classifier
        answers image i with keys that depend on i alone.
      images: [N, H, W, C], uint8 or floating point in [0, 1].
      batch_size: How many images to evaluate at a time, at least 1.
      draw: The number of the draw, for a `Stochastic` classifier; other numbers give other samples.

    Returns:
      float32 [N, K], whatever type the classifier computes in.

    Raises:
      TypeError: The classifier cannot be called or traced or does not return an array, or the images
        are neither uint8 nor floating point.
      ValueError: The logits are not [B, K], images are outside [0, 1], or the classifier's answer to an
        image depends on the other images, as that of BatchNorm in training mode does.
    """
    checks.integer("batch_size", batch_size, minimum=1)
    images = check_images(images)
    check_processes(logits_fn, images)
    found = answers(logits_fn, images, batch_size, draw)
    if draw == 0:
        check_company(logits_fn, images, batch_size, found, thorough=False)
        for sentence in unusual(found):
            warnings.warn(sentence, stacklevel=2)
    return found


def predictions(values: np.ndarray) -> np.ndarray:
    """Returns the predicted classes, int [N], of logits [N, K]; -1 where a logit is NaN."""
    return np.where(np.isnan(values).any(axis=1), -1, values.argmax(axis=1))


def cross_entropies(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Computes cross-entropies [N] in nats from logits [N, K] and labels [N]."""
    values = values.astype(np.float64)
    largest = values.max(axis=1)
    normaliser = largest + np.log(np.exp(values - largest[:, None]).sum(axis=1))
    losses: np.ndarray = normaliser - values[np.arange(len(labels)), labels]
    return losses


def softmax(values: np.ndarray) -> np.ndarray:
    """Computes probabilities [N, K] from logits [N, K]."""
    shifted = np.exp(values - values.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def mistakes(confusion_matrix: Any) -> list[tuple[int, int, int]]:
    """Lists the confusions of a classifier, the most frequent first.

    Args:
      confusion_matrix: int [K, K] with true classes as rows, as `evaluate` returns it.

    Returns:
      A list of (true class, predicted class, count), one for each confusion that occurred. Equally
      frequent ones are in the order of the matrix.

    Example:
      >>> mistakes([[8, 1, 0], [0, 9, 0], [3, 0, 7]])
      [(2, 0, 3), (0, 1, 1)]
    """
    matrix = np.asarray(confusion_matrix)
    wrong = np.where(np.eye(len(matrix), dtype=bool), 0, matrix)
    order = np.argsort(-wrong, axis=None, kind="stable")[: np.count_nonzero(wrong)]
    places = np.stack(np.unravel_index(order, wrong.shape), axis=1).tolist()
    return [(true, taken, int(wrong[true, taken])) for true, taken in places]


def evaluate(
    logits_fn: LogitsFn,
    images: Any,
    labels: Any,
    class_names: Sequence[str] | None = None,
    batch_size: int = 256,
) -> dict[str, Any]:
    """Computes accuracy, confusion matrix, and precision, recall and F1 of each class.

    The processes of `jax.distributed` share the images, and each of them must make the same call.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K].
      images: [N, H, W, C], uint8 or floating point in [0, 1], with N at least 1.
      labels: int [N], the true classes in 0 .. K - 1.
      class_names: The names of the K classes; by default their indices.
      batch_size: How many images to evaluate at a time, at least 1.

    Returns:
      {"accuracy": a rate, "loss": the mean cross-entropy in nats, "confusion_matrix": counts [K][K]
      with true classes as rows, "per_class": [{"class", "precision", "recall", "f1", "support"}],
      "macro": {"precision", "recall", "f1"}}, and "warnings": a list of sentences if the figures may be
      wrong, as with probabilities in place of logits. The precision of a class that is never predicted
      is 0. An image with NaN logits counts as wrong and is in no column of the matrix.

    Raises:
      TypeError: The labels are not integers.
      ValueError: There are no images, the lengths differ, or labels or class names do not fit K.
    """
    labels = np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer) and labels.size:
        raise TypeError(f"`labels` must be integers, got {labels.dtype}.")
    if len(labels) == 0 or len(labels) != len(images):
        raise ValueError(
            f"`labels` must have one entry for each image and at least one, got {len(labels)} labels "
            f"for {len(images)} images."
        )
    values = logits(logits_fn, images, batch_size)
    num_classes = values.shape[1]
    checks.label_range("labels", labels, num_classes)
    names = [str(i) for i in range(num_classes)] if class_names is None else list(class_names)
    if len(names) != num_classes:
        raise ValueError(f"`class_names` must have {num_classes} names, got {len(names)}.")
    predicted = predictions(values)
    matrix, answered = np.zeros((num_classes, num_classes), np.int64), predicted >= 0
    np.add.at(matrix, (labels[answered], predicted[answered]), 1)
    right, named = matrix.diagonal(), matrix.sum(axis=0)
    support = np.bincount(labels.astype(np.int64), minlength=num_classes)
    # If a class is never predicted or has no images, its numerators are 0 too.
    figures = {
        "precision": right / np.maximum(named, 1),
        "recall": right / np.maximum(support, 1),
        "f1": 2 * right / np.maximum(named + support, 1),
    }
    per_class = [
        {"class": names[k]}
        | {name: float(of[k]) for name, of in figures.items()}
        | {"support": int(support[k])}
        for k in range(num_classes)
    ]
    result = {
        "accuracy": rate(int((predicted == labels).sum()), len(labels)),
        "loss": float(cross_entropies(values, labels).mean()),
        "confusion_matrix": matrix.tolist(),
        "per_class": per_class,
        "macro": {name: float(of.mean()) for name, of in figures.items()},
    }
    noticed = list(unusual(values))
    return result | {"warnings": noticed} if noticed else result
