"""How well a classifier does on clean images: logits, accuracy, per-class figures."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import checks, compilation
from jaxrobust.evaluation.rates import rate
from jaxrobust.types import LogitsFn, Stochastic, fold_keys

Progress = Callable[[int, int], None]
"""Called with (images done, images in all) as a long evaluation goes on."""


def as_float(images: Any) -> np.ndarray:
    """Images as float32 in [0, 1]: uint8 are divided by 255, floats must lie there already.

    Args:
      images: uint8 or floating [B, H, W, C].

    Raises:
      TypeError: Another type.
      ValueError: Floats outside [0, 1].
    """
    images = np.asarray(images)
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    if not np.issubdtype(images.dtype, np.floating):
        raise TypeError(f"`images` must be uint8 or floating point, got {images.dtype}.")
    checks.value_range(images)
    return images.astype(np.float32)


def padded_batches(num_images: int, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Indices of batches of one size: the last is filled up with its last index.

    One size means one compilation; what the filling computes is thrown away.

    Args:
      num_images: How many there are.
      batch_size: At least 1; reduced to num_images where it is larger.

    Yields:
      (indices int [batch_size], how many of them count).
    """
    batch_size = min(batch_size, num_images)
    for start in range(0, num_images, max(batch_size, 1)):
        indices = np.arange(start, start + batch_size)
        yield np.minimum(indices, num_images - 1), min(batch_size, num_images - start)


@compilation.jit
def _forward(
    logits_fn: LogitsFn, images: jax.Array, indices: jax.Array, draw: jax.Array
) -> jax.Array:
    if isinstance(logits_fn, Stochastic):
        return logits_fn(images, fold_keys(jax.random.fold_in(jax.random.key(0), draw), indices))
    return logits_fn(images)


def logits(logits_fn: LogitsFn, images: Any, batch_size: int = 256, draw: int = 0) -> np.ndarray:
    """The logits of many images, computed in batches of one size.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K]. A `Stochastic` one answers
        image i with keys that depend on i alone.
      images: uint8, or floating in [0, 1], [N, H, W, C].
      batch_size: Images at a time.
      draw: Which answers of a `Stochastic` classifier: other numbers are other draws.

    Returns:
      float32 [N, K].
    """
    checks.integer("batch_size", batch_size, minimum=1)
    images = as_float(images)
    function = compilation.as_argument(logits_fn)
    rows = [
        np.asarray(
            _forward(function, jnp.asarray(images[indices]), jnp.asarray(indices), jnp.int32(draw))
        )[:count]
        for indices, count in padded_batches(len(images), batch_size)
    ]
    return np.concatenate(rows) if rows else np.zeros((0, 0), np.float32)


def predictions(values: np.ndarray) -> np.ndarray:
    """Classes from logits [N, K]: int [N]; -1, which is never right, where a logit is NaN."""
    return np.where(np.isnan(values).any(axis=1), -1, values.argmax(axis=1))


def cross_entropies(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cross-entropies [N] in nats, from logits [N, K] and labels [N]."""
    largest = values.max(axis=1)
    normaliser = largest + np.log(np.exp(values - largest[:, None]).sum(axis=1))
    return normaliser - values[np.arange(len(labels)), labels]


def softmax(values: np.ndarray) -> np.ndarray:
    """Probabilities from logits, both [N, K]."""
    shifted = np.exp(values - values.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def evaluate(
    logits_fn: LogitsFn,
    images: Any,
    labels: Any,
    class_names: Sequence[str] | None = None,
    batch_size: int = 256,
) -> dict[str, Any]:
    """Accuracy, confusion matrix and per-class precision, recall and F1.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K].
      images: uint8, or floating in [0, 1], [N, H, W, C], N of at least 1.
      labels: int [N], 0 .. K - 1.
      class_names: K names; their indices by default.
      batch_size: Images at a time.

    Returns:
      {"accuracy": a rate, "loss": mean cross-entropy in nats, "confusion_matrix": [K][K] counts with
      true classes as rows, "per_class": [{"class", "precision", "recall", "f1", "support"}],
      "macro": {"precision", "recall", "f1"}}. A precision without predictions is 0. An image with NaN
      logits has no prediction: it counts as wrong and is in no column of the matrix.

    Raises:
      TypeError: Labels that are no integers.
      ValueError: No images, lengths that differ, labels or class names that do not fit K.
    """
    # Imported here: scikit-learn takes longer to load than jax.
    from sklearn import metrics

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
    classes = np.arange(num_classes)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        labels, predicted, labels=classes, zero_division=0.0
    )
    per_class = [
        {
            "class": names[k],
            "precision": float(precision[k]),
            "recall": float(recall[k]),
            "f1": float(f1[k]),
            "support": int(support[k]),
        }
        for k in classes
    ]
    return {
        "accuracy": rate(int((predicted == labels).sum()), len(labels)),
        "loss": float(cross_entropies(values, labels).mean()),
        "confusion_matrix": metrics.confusion_matrix(labels, predicted, labels=classes).tolist(),
        "per_class": per_class,
        "macro": {
            "precision": float(precision.mean()),
            "recall": float(recall.mean()),
            "f1": float(f1.mean()),
        },
    }
