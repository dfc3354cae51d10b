"""Tests and intervals, against published figures, scipy and exact enumeration."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from jaxrobust import evaluation

counts = st.integers(0, 12)
tables = st.tuples(counts, counts, counts, counts).filter(lambda table: sum(table) > 0)


def pair(both, only_a, only_b, neither):
    """Two models' answers that make up this table."""
    right_a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    right_b = np.repeat([True, False, True, False], [both, only_a, only_b, neither])
    return right_a, right_b


@given(tables)
def test_mcnemar_counts_and_sums_the_binomial(table):
    result = evaluation.mcnemar(*pair(*table))
    _, only_a, only_b, _ = table
    assert [result[k] for k in ("both", "only_a", "only_b", "neither")] == list(table)
    assert result["n"] == sum(table)
    n = only_a + only_b
    tail = sum(math.comb(n, i) for i in range(min(only_a, only_b) + 1)) / 2**n
    np.testing.assert_allclose(result["p_value"], min(1.0, 2 * tail), rtol=1e-12)
    json.dumps(result)


@pytest.mark.parametrize(
    "table, expected",
    [
        # Fagerland, Lydersen, Laake, "Statistical Analysis of Contingency Tables" (2017), chapter 8.
        ((59, 6, 16, 80), (-0.0621, -0.1186, -0.0046)),
        ((1, 1, 7, 12), (-0.286, -0.507, -0.026)),
        # Altman et al., "Statistics with Confidence" (2000), chapter 6.
        ((14, 5, 0, 22), (0.122, 0.011, 0.226)),
    ],
)
def test_paired_difference_as_published(table, expected):
    result = evaluation.paired_difference(*pair(*table))
    got = [result["difference"], result["low"], result["high"]]
    np.testing.assert_allclose(got, expected, atol=6e-4)


@given(tables)
def test_paired_difference_is_antisymmetric_and_bounded(table):
    right_a, right_b = pair(*table)
    there = evaluation.paired_difference(right_a, right_b)
    back = evaluation.paired_difference(right_b, right_a)
    np.testing.assert_allclose(there["low"], -back["high"], atol=1e-12)
    assert -1 <= there["low"] <= there["difference"] <= there["high"] <= 1
    np.testing.assert_allclose(there["difference"], right_a.mean() - right_b.mean(), atol=1e-12)
    assert there["high"] > there["low"]


@pytest.mark.parametrize(
    "shares", [(0.7, 0.1, 0.1, 0.1), (0.6, 0.2, 0.05, 0.15), (0.9, 0.05, 0, 0.05)]
)
def test_paired_difference_covers(shares):
    """The probability that the interval holds the truth, summed over every table of 16 images."""
    n, truth, covered = 16, shares[1] - shares[2], 0.0
    for a, b, c in itertools.product(range(n + 1), repeat=3):
        if a + b + c > n:
            continue
        table = (a, b, c, n - a - b - c)
        probability = stats.multinomial.pmf(table, n, shares)
        if probability < 1e-7:
            continue
        interval = evaluation.paired_difference(*pair(*table))
        covered += probability * (interval["low"] <= truth <= interval["high"])
    assert covered > 0.93


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8))
def test_mean_interval_equals_scipy(values):
    assume(np.ptp(values) > 1e-6)
    result = evaluation.mean_interval(values)
    theirs = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    np.testing.assert_allclose([result["low"], result["high"]], theirs, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(result["std"], np.std(values, ddof=1))


def test_one_seed_has_no_interval():
    result = evaluation.mean_interval([0.8])
    assert result == {"n": 1, "mean": 0.8, "std": None, "low": None, "high": None}
    assert evaluation.paired_mean_difference([0.8], [0.7])["p_value"] is None


def test_paired_mean_difference_is_the_paired_t_test():
    a, b = [0.86, 0.84, 0.88, 0.90, 0.86], [0.84, 0.84, 0.82, 0.88, 0.82]
    result = evaluation.paired_mean_difference(a, b)
    theirs = stats.ttest_rel(a, b)
    np.testing.assert_allclose(result["p_value"], theirs.pvalue)
    np.testing.assert_allclose(
        [result["low"], result["high"]], theirs.confidence_interval(0.95), atol=1e-12
    )
    assert result["n"] == 5 and abs(result["mean"] - 0.028) < 1e-12
    json.dumps(result)


def test_equal_values_have_no_interval():
    """.1 + .2 and .3, as .9 - .8 and .8 - .7, differ by rounding alone."""
    for values in ([0.8, 0.8, 0.8], [0.1 + 0.2, 0.3], [0.0, 0.0]):
        result = evaluation.mean_interval(values)
        assert (result["low"], result["high"]) == (None, None)
        assert abs(result["std"]) < 1e-15 and result["n"] == len(values)
    for b in ([0.8, 0.7], [0.9, 0.8]):
        gap = evaluation.paired_mean_difference([0.9, 0.8], b)
        assert (gap["low"], gap["high"], gap["p_value"]) == (None, None, None)
    # A spread that is small, yet no rounding, is one.
    assert evaluation.mean_interval([0.8, 0.8 + 1e-9])["low"] is not None


@pytest.mark.parametrize("n", [6, 7, 20, 51, 200])
def test_median_interval_is_the_shortest_that_covers(n):
    """The ranks low .. high hold the median unless fewer than `low` values are below it, or above."""
    result = evaluation.median_interval(np.arange(1, n + 1)[::-1])
    rank = int(result["low"])
    assert result["high"] == n + 1 - rank and result["median"] == (n + 1) / 2
    assert stats.binom.cdf(rank - 1, n, 0.5) <= 0.025 < stats.binom.cdf(rank, n, 0.5)


def test_median_of_few_values_is_not_bounded():
    result = evaluation.median_interval([1, 2, 3, 4, 5])
    assert result == {"n": 5, "median": 3.0, "low": None, "high": None}


def test_the_median_of_values_that_are_not_known_to_the_end():
    result = evaluation.median_interval([1, 2, 3, 4, 5, np.inf])
    assert result == {"n": 6, "median": 3.5, "low": 1.0, "high": np.inf}
    assert evaluation.median_interval([1, np.inf, 2, np.inf])["median"] == np.inf
    with pytest.raises(ValueError, match="`values`"):
        evaluation.median_interval([1, np.nan])


@given(st.lists(st.floats(0, 1), max_size=6))
def test_holm_rejects_as_the_procedure_does(p_values):
    adjusted = evaluation.holm(p_values)
    for level in (0.01, 0.05, 0.3):
        rejected = [False] * len(p_values)
        for step, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
            if p_values[i] * (len(p_values) - step) > level:
                break
            rejected[i] = True
        assert [p <= level for p in adjusted] == rejected


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: evaluation.mcnemar([True], [True, False]),
            ValueError,
            r"shapes \(1,\) and \(2,\)",
        ),
        (lambda: evaluation.mcnemar([], []), ValueError, "for the same N images, at least one"),
        (
            lambda: evaluation.paired_difference([1], [0]),
            TypeError,
            "`right_a` must be bool, got int",
        ),
        (lambda: evaluation.mean_interval([]), ValueError, "`values` must be at least one finite"),
        (lambda: evaluation.mean_interval([np.nan]), ValueError, "`values` must be at least one"),
        (
            lambda: evaluation.paired_mean_difference([1, 2], [1]),
            ValueError,
            "one value per seed each, got 2 and 1",
        ),
        (lambda: evaluation.holm([1.5]), ValueError, r"`p_values` must lie in \[0, 1\]"),
        (
            lambda: evaluation.holm([[0.1, 0.2]]),
            ValueError,
            r"`p_values` must be \[N\], got shape \(1, 2\)",
        ),
    ],
)
def test_statistics_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
