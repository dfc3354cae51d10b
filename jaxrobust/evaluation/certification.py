"""The share of images that are certified, with its interval."""

from jaxrobust.certificates import Certified
from jaxrobust.evaluation.rates import Rate, rate


def certified_accuracy(report: Certified) -> Rate:
    """Computes the share of all images that are proved to be classified correctly within epsilon.

    It is at most the robust accuracy under any attack of the same epsilon and norm, which is at most
    the clean accuracy.

    Args:
      report: The result of `certificates.certify`.

    Returns:
      {"count", "n", "rate", "low", "high"}, with a 95 % interval.

    Example:
      >>> import numpy as np
      >>> margins = np.array([[np.inf, 0.5], [-0.1, np.inf]], np.float32)
      >>> epsilon = np.array([0.1, 0.1])
      >>> certified_accuracy(
      ...     Certified(np.array([True, False]), margins, np.array([0, 1]), epsilon, "crown")
      ... )["rate"]
      0.5
    """
    return rate(int(report.certified.sum()), len(report.certified))
