"""Statistical tests and intervals for paired models, seeds and timings.

Two models on the same images are paired, and so are two methods on the same seeds. Images that both
models classify correctly say nothing about which one is better, and the tests here leave them out.
"""

import math
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np

from jaxrobust.evaluation.rates import rate


class Contingency(TypedDict):
    """On how many of N images two models agree, and McNemar's p-value for their disagreements."""

    n: int
    both: int
    only_a: int
    only_b: int
    neither: int
    p_value: float


class Difference(TypedDict):
    """A difference of two paired proportions with its 95 % interval."""

    n: int
    difference: float
    low: float
    high: float


class Mean(TypedDict):
    """A mean with its 95 % interval; low and high are None without spread, std is None for n = 1."""

    n: int
    mean: float
    std: float | None
    low: float | None
    high: float | None


class MeanDifference(Mean):
    """The mean of paired differences with its 95 % interval and the p-value of the paired t-test."""

    p_value: float | None


class Median(TypedDict):
    """A median with its 95 % interval; low and high are None for n below 6."""

    n: int
    median: float
    low: float | None
    high: float | None


def mcnemar(right_a: Any, right_b: Any) -> Contingency:
    """Tests with the exact McNemar test whether two models differ in accuracy on the same images.

    Only images count that one model classifies correctly and the other does not. If the models are
    equally good, each of these images falls to either model with probability 1/2.

    Args:
      right_a: bool [N], whether model a classifies each image correctly, with N at least 1.
      right_b: bool [N], the same for model b on the same images.

    Returns:
      {"n", "both", "only_a", "only_b", "neither", "p_value"}: the counts of images and the two-sided
      binomial p-value, which is 1 if the models differ on no image.

    Raises:
      TypeError: An array is not bool.
      ValueError: The arrays are not both [N] with N at least 1.

    Example:
      >>> mcnemar([True] * 9 + [False], [True] * 3 + [False] * 7)["p_value"]
      0.03125

    References:
      McNemar, "Note on the Sampling Error of the Difference between Correlated Proportions or
      Percentages", Psychometrika 1947; the exact form is the sign test.
    """
    from scipy import stats

    both, only_a, only_b, neither = _paired_counts(right_a, right_b)
    differing = only_a + only_b
    p_value = float(stats.binomtest(only_a, differing, 0.5).pvalue) if differing else 1.0
    return {
        "n": both + differing + neither,
        "both": both,
        "only_a": only_a,
        "only_b": only_b,
        "neither": neither,
        "p_value": p_value,
    }


def paired_difference(right_a: Any, right_b: Any) -> Difference:
    """Computes the difference in accuracy of two models on the same images, with a 95 % interval.

    The interval combines the Wilson intervals of both models and takes their correlation into account.
    Unlike the textbook interval it does not have length 0 where the models agree, and it stays in
    [-1, 1]. As an approximation it may just include 0 where `mcnemar` has p < .05, or the reverse.

    Args:
      right_a: bool [N], whether model a classifies each image correctly, with N at least 1.
      right_b: bool [N], the same for model b on the same images.

    Returns:
      {"n", "difference": the accuracy of a minus that of b, "low", "high"}.

    Raises:
      TypeError: An array is not bool.
      ValueError: The arrays are not both [N] with N at least 1.

    References:
      Newcombe, "Improved Confidence Intervals for the Difference between Binomial Proportions Based
      on Paired Data", Statistics in Medicine 1998, method 10.
    """
    both, only_a, only_b, neither = _paired_counts(right_a, right_b)
    n = both + only_a + only_b + neither
    below_a, above_a = _reach(both + only_a, n)
    below_b, above_b = _reach(both + only_b, n)
    correlation = _correlation(both, only_a, only_b, neither)
    difference = (only_a - only_b) / n

    def joined(of_a: float, of_b: float) -> float:
        # No less than 0 but for rounding: the correlation lies in [-1, 1].
        return math.sqrt(max(0.0, of_a**2 - 2 * correlation * of_a * of_b + of_b**2))

    return {
        "n": n,
        "difference": difference,
        "low": max(-1.0, difference - joined(below_a, above_b)),
        "high": min(1.0, difference + joined(above_a, below_b)),
    }


def _reach(count: int, n: int) -> tuple[float, float]:
    """How far the Wilson interval extends below the share and above it, for n at least 1."""
    wilson = rate(count, n)
    assert wilson["low"] is not None and wilson["high"] is not None
    return count / n - wilson["low"], wilson["high"] - count / n


def _correlation(both: int, only_a: int, only_b: int, neither: int) -> float:
    """The phi coefficient of a 2 x 2 table, with Newcombe's continuity correction."""
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    if margins == 0:
        return 0.0
    n = both + only_a + only_b + neither
    numerator: float = both * neither - only_a * only_b
    if numerator > 0:
        numerator = max(0.0, numerator - n / 2)
    return numerator / math.sqrt(margins)


def mean_interval(values: Sequence[float] | np.ndarray) -> Mean:
    """Computes the mean over seeds with its 95 % Student-t interval.

    If the seeds share one test set, the interval covers the randomness of training, but not that of the
    choice of test images.

    Args:
      values: [N], one figure for each seed, with N at least 1.

    Returns:
      {"n", "mean", "std", "low", "high"}. std is the sample standard deviation (N - 1), or None for one
      value. low and high are None for one value and for values that are all equal up to rounding,
      because an interval of length 0 would show the resolution of the figure, not its certainty.

    Raises:
      ValueError: There are no values, or they are not finite and [N].

    Example:
      >>> interval = mean_interval([0.84, 0.88, 0.86])
      >>> round(interval["low"], 3), round(interval["high"], 3)
      (0.81, 0.91)

    References:
      Student, "The Probable Error of a Mean", Biometrika 1908.
    """
    array = _figures("values", values)
    return _mean_interval(array, float(np.abs(array).max()))


def paired_mean_difference(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray
) -> MeanDifference:
    """Computes the mean of a - b over shared seeds, with its 95 % interval and the paired t-test.

    If the seeds share one test set, the interval covers the randomness of training, but not that of the
    choice of test images.

    Args:
      a: [N], one figure of method a for each seed, with N at least 1.
      b: [N], the figures of method b for the same seeds, in the same order.

    Returns:
      {"n", "mean", "std", "low", "high", "p_value"} of a - b. std is the sample standard deviation, or
      None for N = 1. low, high and p_value are None for N = 1 and if all differences are equal, because
      the t-test is then undefined.

    Raises:
      ValueError: There are no values, the lengths differ, or the values are not finite and [N].
    """
    from scipy import stats

    first, second = _figures("a", a), _figures("b", b)
    if first.shape != second.shape:
        raise ValueError(
            f"`a` and `b` must have one value per seed each, got {len(first)} and {len(second)}."
        )
    differences = first - second
    interval = _mean_interval(differences, float(np.abs([first, second]).max()))
    p_value = None
    if interval["low"] is not None:
        p_value = float(stats.ttest_1samp(differences, 0.0).pvalue)
    return {**interval, "p_value": p_value}  # type: ignore[typeddict-item]


def median_interval(values: Sequence[float] | np.ndarray) -> Median:
    """Computes the median with the interval of the sign test, whose ends are two of the values.

    For independent values of any continuous distribution, the interval contains the true median with a
    probability of at least 95 %. Outliers do not matter.

    Args:
      values: [N], with N at least 1. A value may be infinite, such as the norm of a perturbation that
        was not found, which is only known to be larger than the others.

    Returns:
      {"n", "median", "low", "high"}, each of which may be infinite if values are. low and high are None
      for fewer than 6 values, which cannot bound a median at 95 %.

    Raises:
      ValueError: There are no values, a value is NaN, or they are not [N].

    Example:
      >>> median_interval([5, 3, 1, 2, 4, 6])
      {'n': 6, 'median': 3.5, 'low': 1.0, 'high': 6.0}

    References:
      David, Nagaraja, "Order Statistics", 3rd edition, 2003, section 7.1.
    """
    from scipy import stats

    array = np.sort(_figures("values", values, infinite=True))
    n = len(array)
    # The largest rank, from 1, that the count of values below the median reaches with at least 97.5 %.
    rank = int(stats.binom.ppf(0.025, n, 0.5))
    low, high = (float(array[rank - 1]), float(array[n - rank])) if rank else (None, None)
    return {"n": n, "median": float(np.median(array)), "low": low, "high": high}


def holm(p_values: Sequence[float] | np.ndarray) -> list[float]:
    """Adjusts the p-values of several comparisons by Holm's method.

    If each adjusted p-value is compared with a level such as .05, the probability of any false positive
    is at most that level.

    Args:
      p_values: [N], one for each comparison, in [0, 1].

    Returns:
      The N adjusted p-values, in the same order.

    Raises:
      ValueError: The values are not [N], or lie outside [0, 1].

    Example:
      >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
      [0.03, 0.06, 0.06]

    References:
      Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of
      Statistics 1979.
    """
    array = np.asarray(p_values, float)
    if array.ndim != 1:
        raise ValueError(f"`p_values` must be [N], got shape {array.shape}.")
    if not np.all((array >= 0) & (array <= 1)):
        raise ValueError(f"`p_values` must lie in [0, 1], got {array.tolist()}.")
    order = np.argsort(array, kind="stable")
    adjusted = np.empty_like(array)
    steps = array[order] * np.arange(len(array), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted.tolist()


def _mean_interval(values: np.ndarray, magnitude: float) -> Mean:
    """Computes `mean_interval` of values whose rounding is that of figures of size `magnitude`."""
    from scipy import stats

    n, mean = len(values), float(values.mean())
    std = float(values.std(ddof=1)) if n > 1 else None
    # Equal differences leave a spread of rounding: .9 - .8 is not .8 - .7.
    if std is None or std <= 1e-12 * magnitude:
        return {"n": n, "mean": mean, "std": std, "low": None, "high": None}
    half = float(stats.t.ppf(0.975, n - 1)) * std / math.sqrt(n)
    return {"n": n, "mean": mean, "std": std, "low": mean - half, "high": mean + half}


def _figures(name: str, values: Any, infinite: bool = False) -> np.ndarray:
    array = np.asarray(values, float)
    known = ~np.isnan(array) if infinite else np.isfinite(array)
    if array.ndim != 1 or not array.size or not known.all():
        finite = "number, which may be infinite" if infinite else "finite number"
        raise ValueError(f"`{name}` must be at least one {finite}, [N], got {values!r}.")
    return array


def _paired_counts(right_a: Any, right_b: Any) -> tuple[int, int, int, int]:
    """(both, only a, only b, neither)."""
    a, b = np.asarray(right_a), np.asarray(right_b)
    for name, array in (("right_a", a), ("right_b", b)):
        if array.size and array.dtype != bool:
            raise TypeError(f"`{name}` must be bool, got {array.dtype}.")
    if a.ndim != 1 or a.shape != b.shape or not a.size:
        raise ValueError(
            "`right_a` and `right_b` must be [N] for the same N images, at least one, got shapes "
            f"{a.shape} and {b.shape}."
        )
    return int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum()), int((~a & ~b).sum())
