"""Folds for cross-validation, in which each example is used for validation once."""

from typing import Any

import numpy as np

from jaxrobust import checks


def stratified_folds(
    labels: Any, num_folds: int, seed: int = 0
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Splits examples into folds for cross-validation, with equal shares of every class.

    The sizes of two folds, and their numbers of examples of one class, differ by at most one. A class
    with fewer examples than folds is missing from the validation part of some folds.

    Near-duplicates, such as two photographs of one scene, are not detected. One may be trained on and
    the other validated on, which makes the model look better than it is.

    Args:
      labels: int [N], the classes; any integers.
      num_folds: The number of folds, from 2 to N.
      seed: The seed of the shuffling; the same seed gives the same folds.

    Returns:
      (train_indices, validation_indices) for each fold, int64 and ascending. Together they are
      0 .. N - 1, and the validation parts of all folds are disjoint.

    Raises:
      TypeError: The labels are not integers.
      ValueError: The labels are not [N], the number of folds is not in 2 .. N, or a class has a single
        example: the fold that validates on it could not train on the class.

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
            f"`labels` must have at least two examples of each class, got one of the classes {single}."
        )
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    fold = np.empty(len(labels), np.int64)
    # Dealt like cards, each class on from where the last one ended: any run of cards is shared out
    # evenly, be it a class or the whole pack.
    fold[by_class] = np.arange(len(labels)) % num_folds
    return [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(num_folds)]
