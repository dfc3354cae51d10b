"""Rows of images, and shares of them over seeds as cells."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrobust import data, evaluation
from jaxrobust.studies import blocks


def interval_of(values: Sequence[float], scale: float = 100.0) -> Any:
    """A mean over seeds as a cell: with Student's 95 % interval where there are several."""
    mean = evaluation.mean_interval(values)
    return blocks.estimate(mean["mean"], mean["low"], mean["high"], scale)


def share_over_seeds(shares: Sequence[float]) -> Any:
    """`interval_of` shares, as shares: what Student's interval has beyond 0 and 1 is cut off."""
    mean = interval_of(shares, 1.0)
    if isinstance(mean, dict):
        mean = mean | {"low": max(0.0, mean["low"]), "high": min(1.0, mean["high"])}
    return mean


def spread_rows(size: int, most: int | None, part: tuple[int, int] = (0, 1)) -> np.ndarray:
    """At most so many rows, spread evenly: of images in the order of their classes a fair share.

    Args:
      size: Rows that there are.
      most: Rows at most; None: all.
      part: (number, of how many): parts share no row where there are enough of them.

    Example:
      >>> [spread_rows(12, 3, (number, 2)).tolist() for number in (0, 1)]
      [[1, 5, 9], [3, 7, 11]]
    """
    count = size if most is None else min(most, size)
    number, parts = part
    shifted = np.arange(count) + (number + 0.5) / parts
    return np.unique((shifted * size / max(count, 1)).astype(int))


def validation_rows(config: Any, size: int) -> np.ndarray:
    """The rows of so many training images that are not trained on."""
    return spread_rows(size, min(config.num_validation, max(1, size // 10)))


def part_of(split: data.Split, rows: np.ndarray) -> data.Split:
    """Some of the images of a split."""
    names = tuple(split.files[row] for row in rows)
    return data.Split(split.images[rows], split.labels[rows], names)
