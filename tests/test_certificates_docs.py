"""docs/certificates.md runs as written, and certified <= AutoAttack <= clean on what it trains."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxrobust import certificates, evaluation

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "certificates.md").read_text()


@pytest.fixture(scope="module")
def scope():
    left = {}
    for code in re.findall(r"```python\n(.*?)```", TEXT, flags=re.S):
        exec(code, left)
    return left


def test_certified_is_at_most_robust_and_that_at_most_clean(scope):
    """Image by image, at several epsilons, by each method; more is certified by the tighter one."""
    classifier, images, labels = (scope[name] for name in ("classifier", "images", "labels"))
    counts = []
    for epsilon in (0.003, 0.01, 0.03, 0.1):
        robust = scope["attacked"].robust
        if epsilon != 0.03:
            suite = evaluation.auto_attack(
                classifier, images, labels, epsilon, key=jax.random.key(0)
            )
            robust = suite.robust
        certified = {
            method: certificates.certify(
                classifier, images, labels, epsilon=epsilon, method=method
            ).certified
            for method in ("ibp", "crown-ibp", "crown")
        }
        right = evaluation.logits(classifier, images).argmax(axis=1) == labels
        assert (robust <= right).all()
        for proved in certified.values():
            assert (proved <= robust).all()
        for looser, tighter in (("ibp", "crown-ibp"), ("crown-ibp", "crown")):
            assert certified[looser].sum() <= certified[tighter].sum()
        counts.append([int(proved.sum()) for proved in certified.values()] + [int(robust.sum())])
    counts = np.array(counts)
    assert (np.diff(counts, axis=0) <= 0).all()  # fewer at a larger epsilon
    # The invariant is not met by certifying nothing.
    assert counts[0, 2] >= 30 and counts[2, 2] > counts[2, 0]


def test_the_rates_of_the_page(scope):
    certified, robust, clean = scope["certified"], scope["robust"], scope["clean"]
    assert certified["n"] == robust["n"] == clean["n"] == 40
    assert 0 < certified["count"] <= robust["count"] <= clean["count"]
    assert certified["low"] < certified["rate"] < certified["high"]
    report = scope["report"]
    assert certified["count"] == int(report.certified.sum())
    assert ((report.margins > 0).all(axis=1) == report.certified).all()


def test_bounds_hold_for_what_autoattack_found(scope):
    """Every adversarial image lies in the box, so its margins are not below the bounds."""
    report, attacked = scope["report"], scope["attacked"]
    labels = scope["labels"]
    margins = attacked.logits[np.arange(40), labels][:, None] - attacked.logits
    margins[np.arange(40), labels] = np.inf
    assert attacked.robust.sum() < (attacked.fooled_by != -2).sum()  # some were fooled
    assert (report.margins <= margins).all()


def test_the_smoothed_classifier_beside_it(scope):
    rows = scope["rows"]
    assert [row["n"] for row in rows] == [8, 8]
    assert rows[1]["count"] <= rows[0]["count"] and rows[0]["count"] > 4
    assert (scope["lower"] < scope["upper"]).all() and scope["lower"].shape == (4, 10)
