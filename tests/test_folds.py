"""Folds for cross-validation."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from jaxrobust import data


@given(st.lists(st.integers(2, 9), min_size=1, max_size=5), st.integers(2, 12), st.integers(0, 5))
def test_folds_are_disjoint_complete_and_even(class_sizes, num_folds, seed):
    labels = np.random.default_rng(1).permutation(
        np.repeat(np.arange(len(class_sizes)), class_sizes)
    )
    assume(num_folds <= len(labels))
    folds = data.stratified_folds(labels, num_folds, seed)
    assert len(folds) == num_folds
    together = np.concatenate([validation for _, validation in folds])
    np.testing.assert_array_equal(np.sort(together), np.arange(len(labels)))
    for train, validation in folds:
        np.testing.assert_array_equal(
            np.sort(np.concatenate([train, validation])), np.arange(len(labels))
        )
        assert set(labels[train]) == set(labels)
        assert (np.diff(train) > 0).all() and (np.diff(validation) > 0).all()
    sizes = [len(validation) for _, validation in folds]
    assert max(sizes) - min(sizes) <= 1
    for k in range(len(class_sizes)):
        counts = [int((labels[validation] == k).sum()) for _, validation in folds]
        assert max(counts) - min(counts) <= 1


def test_folds_follow_the_seed_and_shuffle():
    labels = np.repeat([3, 7], 50)
    first, again, other = (data.stratified_folds(labels, 5, seed) for seed in (0, 0, 1))
    for (_, a), (_, b) in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(not np.array_equal(a, b) for (_, a), (_, b) in zip(first, other, strict=True))
    # Not every fifth: members are dealt in random order.
    assert len(set(np.diff(first[0][1]))) > 2


@pytest.mark.parametrize(
    "labels, num_folds, error, message",
    [
        ([0, 0, 1, 1], 1, ValueError, "`num_folds` must be at least 2, got 1"),
        (
            [0, 0, 1, 1],
            5,
            ValueError,
            "`num_folds` must be at most the number of examples, 4, got 5",
        ),
        ([0, 0, 1, 1], 2.0, TypeError, "`num_folds` must be an integer"),
        ([0, 0, 1], 2, ValueError, r"at least two examples of each class.*classes \[1\]"),
        ([0.0, 1.0], 2, TypeError, "`labels` must be integers, got float64"),
        ([[0, 1]], 2, ValueError, r"`labels` must be \[N\], got shape \(1, 2\)"),
        ([], 2, ValueError, "`num_folds` must be at most the number of examples, 0"),
    ],
)
def test_fold_errors(labels, num_folds, error, message):
    with pytest.raises(error, match=message):
        data.stratified_folds(labels, num_folds)
