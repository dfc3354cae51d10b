"""Cross-validation: every example is validated on once, by a model that did not train on it."""

from typing import Any

import numpy as np

from jaxrobust import checks


def stratified_folds(
    labels: Any, num_folds: int, seed: int = 0
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Divides examples into folds that hold every class in equal shares.

    Of any one class, two folds differ by at most one example, and so they do in size. A class of fewer
    examples than folds is in some folds' validation part not at all.

    Near-duplicates, such as two photographs of one scene, are not detected: one may be trained on and
    the other validated on, which flatters the model.

    Args:
      labels: int [N], any integers.
      num_folds: From 2 to N.
      seed: Of the shuffling; the same seed gives the same folds.

    Returns:
      For each fold (train_indices, validation_indices), int64 and ascending; together they are
      0 .. N - 1, and the validation parts of all folds are disjoint.

    Raises:
      TypeError: Labels that are no integers.
      ValueError: Labels that are not [N], a number of folds outside 2 .. N, or a class of a single
        example, which one fold would have to validate without having trained on any.

    Example:
      >>> for train, validation in stratified_folds([0, 0, 0, 1, 1, 1], 3):
      ...     print(len(train), len(validation))
      4 2
      4 2
      4 2

    References:
      Kohavi, "A Study of Cross-Validation and Bootstrap for Accuracy Estimation and Model Selection",
      IJCAI 1995.
    """
    labels = np.asarray(labels)
    if labels.size:
        checks.integers("labels", labels)
    if labels.ndim != 1:
        raise ValueError(f"`labels` must be [N], got shape {labels.shape}.")
    checks.integer("num_folds", num_folds, minimum=2)
    checks.integer("seed", seed, minimum=0)
    if num_folds > len(labels):
        raise ValueError(
            f"`num_folds` must be at most the number of examples, {len(labels)}, got {num_folds}."
        )
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < 2:
        single = classes[counts < 2].tolist()
        raise ValueError(
            f"`labels` must hold every class at least twice, got classes with one example: {single}."
        )
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    fold = np.empty(len(labels), np.int64)
    # Dealt like cards, each class on from where the last one ended: any run of cards is shared out
    # evenly, be it a class or the whole pack.
    fold[by_class] = np.arange(len(labels)) % num_folds
    return [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(num_folds)]
