"""Finds which images a classifier has right, and stores and counts these outcomes."""

from typing import Any

import numpy as np

from jaxrobust import evaluation
from jaxrobust.evaluation.classification import predictions


def right_ones(classifier: Any, images: Any, labels: np.ndarray) -> np.ndarray:
    """Finds which images a classifier has right.

    Args:
      classifier: Images in [0, 1] -> logits [B, K].
      images: [N, H, W, C], uint8 or floats in [0, 1].
      labels: int [N].

    Returns:
      bool [N].
    """
    return predictions(evaluation.logits(classifier, images)) == labels


def pack(outcomes: np.ndarray) -> str:
    """Converts bool [N] to hexadecimal digits, for JSON.

    Example:
      >>> unpack(pack(np.array([True, False, True])), 3).tolist()
      [True, False, True]
    """
    return np.packbits(outcomes).tobytes().hex()


def unpack(digits: str, count: int) -> np.ndarray:
    """Converts the digits of `pack` back to bool [count]."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8), count=count)
    return bits.astype(bool)


def rate_of(outcomes: np.ndarray) -> evaluation.Rate:
    """Returns the rate of True among bool [N], with its 95 % interval."""
    return evaluation.rate(int(outcomes.sum()), len(outcomes))
