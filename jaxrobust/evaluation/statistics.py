"""Which differences are real: tests and intervals for paired models, seeds and timings.

Two models on the same images are paired, and so are two methods on the same seeds: what both have
right says nothing about which of them is better, and the tests here leave it out.
"""

import math
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np

from jaxrobust.evaluation.rates import rate


class Contingency(TypedDict):
    """How two models agree on N images, and whether chance explains where they do not."""

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
    """A mean with its 95 % interval, None where the values have no spread; std is None for n = 1."""

    n: int
    mean: float
    std: float | None
    low: float | None
    high: float | None


class MeanDifference(Mean):
    """`Mean` of paired differences, with the p-value of the paired t-test."""

    p_value: float | None


class Median(TypedDict):
    """A median with its 95 % interval; low and high are None for n below 6."""

    n: int
    median: float
    low: float | None
    high: float | None


def mcnemar(right_a: Any, right_b: Any) -> Contingency:
    """McNemar's test, exact: do two models differ in how many of the same images they have right?

    Only the images that one has right and the other wrong count. If the models were equally good,
    each of these would fall to either like a coin.

    Args:
      right_a: bool [N], N of at least 1: whether model a has image i right.
      right_b: bool [N], model b on the same images.

    Returns:
      {"n", "both", "only_a", "only_b", "neither", "p_value"}: counts, and the two-sided binomial
      p-value, 1 where the models differ on no image.

    Raises:
      TypeError: Arrays that are not bool.
      ValueError: Arrays that are not [N] of one length of at least 1.

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
    """How much more often model a is right than model b on the same images.

    The interval joins the two Wilson intervals, less what the two models have in common. Unlike the
    textbook one it is not of length 0 where the models agree, and it stays inside [-1, 1]. It is an
    approximation of its own, and can just include 0 where `mcnemar` has p < .05 or the reverse.

    Args:
      right_a: bool [N], N of at least 1: whether model a has image i right.
      right_b: bool [N], model b on the same images.

    Returns:
      {"n", "difference": share of a minus share of b, "low", "high"}, a 95 % interval.

    Raises:
      TypeError: Arrays that are not bool.
      ValueError: Arrays that are not [N] of one length of at least 1.

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
    """How far the Wilson interval goes below the share and above it; n of at least 1."""
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
    """The mean over seeds with its 95 % Student-t interval.

    Seeds that share one test set say how much training is down to chance. The interval covers that,
    and not what other photographs would have given.

    Args:
      values: One figure per seed, [N], N of at least 1.

    Returns:
      {"n", "mean", "std", "low", "high"}: std with N - 1 below the root, None for one value. low and
      high are None for one value and for values that are all equal (but for rounding): an interval of
      length 0 would say how coarse the figure is, not how certain.

    Raises:
      ValueError: No values, values that are not [N], or not finite.

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
    """The mean of a - b over seeds that both share, with its 95 % interval and the paired t-test.

    Seeds that share one test set say how much training is down to chance. The interval covers that,
    and not what other photographs would have given.

    Args:
      a: One figure per seed, [N], N of at least 1.
      b: The other method's on the same seeds, in the same order.

    Returns:
      {"n", "mean", "std", "low", "high", "p_value"} of a - b, as `mean_interval`. low, high and p_value
      are None for N = 1 and where all differences are equal: t says nothing then.

    Raises:
      ValueError: No values, lengths that differ, or values that are not [N] and finite.
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
    """The median with the interval of the sign test: two of the values themselves.

    For independent values of any continuous distribution, outliers included, it holds the median with
    a probability of at least 95 %.

    Args:
      values: [N], N of at least 1. Infinity is a value that is only known to be more than the others:
        of a perturbation that was not found.

    Returns:
      {"n", "median", "low", "high"}, infinite where these values do not say. Fewer than 6 values cannot
      bound a median at 95 %: None.

    Raises:
      ValueError: No values, values that are not [N], or NaN.

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
    """p-values of several comparisons, adjusted so that the chance of any false alarm stays at 5 %.

    Args:
      p_values: [N], one for each comparison, in [0, 1].

    Returns:
      As many, in the same order; compare each with the level, such as .05.

    Raises:
      ValueError: Values that are not [N], or outside [0, 1].

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
    """`magnitude` is that of the figures which the values come from, and with it their rounding."""
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
        raise ValueError(f"`{name}` must be at least one finite number, [N], got {values!r}.")
    return array


def _paired_counts(right_a: Any, right_b: Any) -> tuple[int, int, int, int]:
    """(both, only a, only b, neither)."""
    a, b = np.asarray(right_a), np.asarray(right_b)
    for name, array in (("right_a", a), ("right_b", b)):
        if array.size and array.dtype != bool:
            raise TypeError(f"`{name}` must be bool, got {array.dtype}.")
    if a.ndim != 1 or a.shape != b.shape or not a.size:
        raise ValueError(
            "`right_a` and `right_b` must have one entry for each image, at least one, got shapes "
            f"{a.shape} and {b.shape}."
        )
    return int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum()), int((~a & ~b).sum())
