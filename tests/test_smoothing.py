"""Randomised smoothing against the closed form of a linear classifier, and its certificate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import Counted
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from jaxrobust.defenses import (
    ABSTAIN,
    Certificate,
    Sampling,
    Smoothed,
    certified_within,
    certify_smoothed,
    lower_confidence_bound,
    predict,
    smoothed_counts,
)
from jaxrobust.models import Classifier

KEY = jax.random.key(0)
SHAPE = (4, 4, 1)
SIGMA = 0.5
W = np.linspace(-1.0, 1.2, 16).astype(np.float32)


def linear(variables, images):
    margin = images.reshape(len(images), -1) @ variables["w"] + variables["b"]
    return jnp.stack([-margin / 2, margin / 2], axis=1)


CLASSIFIER = Classifier(linear, {"w": jnp.asarray(W), "b": jnp.float32(0.0)})


def at_distances(distances):
    """Images inside [0, 1] at these signed distances from the classifier's boundary."""
    middle = np.full(16, 0.5)
    middle -= W * (W @ middle) / (W @ W)  # a point of the boundary
    points = middle + np.asarray(distances)[:, None] * W / np.linalg.norm(W)
    assert points.min() >= 0 and points.max() <= 1
    return jnp.asarray(points.reshape(-1, *SHAPE), jnp.float32)


DISTANCES = np.array([-0.35, -0.1, 0.05, 0.2, 0.3])
IMAGES = at_distances(DISTANCES)
PROBABILITIES = stats.norm.cdf(DISTANCES / SIGMA)  # of the second class


def test_class_probabilities_are_the_closed_form():
    count = 4000
    counts = np.asarray(smoothed_counts(KEY, CLASSIFIER, IMAGES, SIGMA, count))
    assert counts.dtype == np.int32
    np.testing.assert_array_equal(counts.sum(axis=1), count)
    deviation = np.sqrt(PROBABILITIES * (1 - PROBABILITIES) / count)
    assert (np.abs(counts[:, 1] / count - PROBABILITIES) < 4 * deviation).all()
    # Independent draws: five equal deviations would be one draw in use for all.
    assert len(set(np.round((counts[:, 1] / count - PROBABILITIES) / deviation, 3))) == 5


@pytest.mark.parametrize("batch_size", [1, 64, 1000])
def test_counts_do_not_depend_on_batches_or_neighbours(batch_size):
    expected = smoothed_counts(KEY, CLASSIFIER, IMAGES, SIGMA, 33)
    found = smoothed_counts(KEY, CLASSIFIER, IMAGES, SIGMA, 33, batch_size=batch_size)
    np.testing.assert_array_equal(found, expected)
    part = smoothed_counts(KEY, CLASSIFIER, IMAGES[3:], SIGMA, 33, indices=np.array([3, 4]))
    np.testing.assert_array_equal(part, expected[3:])


def test_more_samples_only_add_to_the_first_ones():
    few, many = (smoothed_counts(KEY, CLASSIFIER, IMAGES, SIGMA, n) for n in (20, 50))
    assert (many >= few).all()


def test_sigma_zero_is_the_base_classifier():
    counts = smoothed_counts(KEY, CLASSIFIER, IMAGES, 0.0, 9)
    np.testing.assert_array_equal(counts.argmax(axis=1), CLASSIFIER(IMAGES).argmax(axis=1))
    assert int(counts.max(axis=1).min()) == 9


def test_noise_is_not_clipped():
    outside = lambda x: jnp.stack([0 * x[:, 0, 0, 0], x.max((1, 2, 3)) - 1.0], axis=1)  # noqa: E731
    assert int(smoothed_counts(KEY, outside, IMAGES, 1.0, 50)[:, 1].min()) > 40


def test_a_nan_counts_for_no_class():
    def sometimes(x):
        return jnp.where(x[:, :1, 0, 0] > 0.5, jnp.nan, 1.0) * CLASSIFIER(x)

    counts = smoothed_counts(KEY, sometimes, IMAGES, SIGMA, 200).sum(axis=1)
    assert (counts > 20).all() and (counts < 180).all()


def test_other_weights_sigmas_and_counts_compile_nothing_anew():
    @Counted
    def apply_fn(variables, images):
        return linear(variables, images)

    traces = apply_fn.traces

    def classifier(b):
        return Classifier(apply_fn, {"w": jnp.asarray(W), "b": jnp.float32(b)})

    certify_smoothed(KEY, classifier(0.0), IMAGES, 0.5, Sampling(10, 5), batch_size=16)
    first = len(traces)
    certify_smoothed(KEY, classifier(1.0), IMAGES, 0.2, Sampling(90, 7), batch_size=16)
    assert len(traces) == first
    assert {shape[0] for shape in traces} == {5, 16}  # five images are looked at beside others


# The certificate


def test_radii_of_a_linear_classifier_are_sound_and_close():
    certificate = certify_smoothed(KEY, CLASSIFIER, IMAGES, SIGMA, Sampling(num_samples=5000))
    exact = np.abs(DISTANCES)
    certain = np.abs(DISTANCES) >= 0.1
    np.testing.assert_array_equal(certificate.predictions[certain], (DISTANCES > 0)[certain])
    assert (certificate.radii <= exact).all()
    assert (certificate.radii[certain] > exact[certain] - 0.06).all()


def test_radius_is_that_of_the_bound():
    certificate = certify_smoothed(
        KEY, CLASSIFIER, IMAGES[:1], SIGMA, Sampling(num_samples=500, alpha=0.01)
    )
    _, estimation = jax.random.split(KEY)
    count = int(smoothed_counts(estimation, CLASSIFIER, IMAGES[:1], SIGMA, 500)[0, 0])
    bound = stats.beta.ppf(0.01, count, 500 - count + 1)
    np.testing.assert_allclose(certificate.lower_bounds, bound)
    np.testing.assert_allclose(certificate.radii, SIGMA * stats.norm.ppf(bound))


def test_abstains_on_the_boundary():
    image = at_distances([0.0])
    certificate = certify_smoothed(KEY, CLASSIFIER, image, SIGMA)
    assert ABSTAIN == -1
    assert certificate.predictions.tolist() == [ABSTAIN] and certificate.radii.tolist() == [0.0]
    assert predict(KEY, CLASSIFIER, image, SIGMA).tolist() == [-1]


def test_predicts_where_it_can():
    found = predict(KEY, CLASSIFIER, IMAGES, SIGMA, Sampling(num_samples=400))
    decided = found >= 0
    assert decided[[0, 3, 4]].all()
    np.testing.assert_array_equal(found[decided], (DISTANCES > 0)[decided])


def test_prediction_is_the_binomial_test():
    alphas = np.array([1e-6, 1e-3, 0.02, 0.3, 1.0])
    counts = np.sort(smoothed_counts(KEY, CLASSIFIER, IMAGES, SIGMA, 60), axis=1)
    p = np.array([stats.binomtest(int(c[1]), int(c.sum()), 0.5).pvalue for c in counts])
    seen = set()
    for alpha in alphas:
        found = predict(KEY, CLASSIFIER, IMAGES, SIGMA, Sampling(num_samples=60, alpha=alpha))
        expected = (p <= alpha) & (counts[:, 1] > counts[:, 0])
        np.testing.assert_array_equal(found >= 0, expected)
        seen |= set(expected)
    assert seen == {True, False}


@given(st.integers(1, 3000), st.floats(0, 1), st.sampled_from([1e-4, 0.001, 0.05, 0.5]))
def test_bound_is_clopper_and_pearsons(n, share, alpha):
    count = round(share * n)
    bound = float(lower_confidence_bound(count, n, alpha))
    if count == 0:
        assert bound == 0.0
    else:
        # Its definition: with that probability, so many successes have probability alpha.
        np.testing.assert_allclose(stats.binom.sf(count - 1, n, bound), alpha, rtol=1e-6)
        np.testing.assert_allclose(bound, stats.beta.ppf(alpha, count, n - count + 1), rtol=1e-9)


def test_bound_of_nothing_but_successes():
    np.testing.assert_allclose(lower_confidence_bound(100, 100, 0.001), 0.001 ** (1 / 100))


def test_certified_accuracy_counts():
    certificate = Certificate(
        np.array([1, 0, -1, 2]), np.array([0.5, 0.25, 0.0, 0.9]), np.array([0.8, 0.7, 0.4, 0.95])
    )
    # The last prediction is wrong; an abstention is wrong even for a label of -1.
    rows = certified_within([1, 0, -1, 0], certificate, [0.0, 0.25, 0.4, 1.0])
    assert [row["count"] for row in rows] == [2, 2, 1, 0]
    assert {row["n"] for row in rows} == {4} and rows[1]["radius"] == 0.25


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"alpha": 0.0}, "`alpha` .* above 0"),
        ({"alpha": 1.0}, "`alpha` must be below 1"),
        ({"sigma": -1.0}, "`sigma` .* at least 0"),
        ({"num_samples": 0}, "`num_samples` must be at least 1"),
        ({"num_samples": 2**30}, r"`num_samples` must be less than 2\^31"),
        ({"indices": np.arange(3)}, "`indices` must be integers of shape"),
        ({"images": 2 * IMAGES + 1}, "must lie in"),
    ],
)
def test_refuses(change, words):
    given = {"logits_fn": CLASSIFIER, "images": IMAGES, "sigma": SIGMA, "num_samples": 10} | change
    of_sampling = {name: given.pop(name) for name in ("num_samples", "alpha") if name in given}
    with pytest.raises(ValueError, match=words):
        certify_smoothed(KEY, sampling=Sampling(**of_sampling), **given)


def test_fractions_are_refused():
    with pytest.raises(TypeError, match="`indices` must be integers, got float"):
        smoothed_counts(KEY, CLASSIFIER, IMAGES, SIGMA, 10, indices=np.arange(5.0))
    with pytest.raises(TypeError, match="`counts` must be integers, got float"):
        lower_confidence_bound([3.5], 10, 0.01)
    with pytest.raises(ValueError, match=r"`counts` must be in 0 .. 10, got 3 .. 11"):
        lower_confidence_bound([3, 11], 10, 0.01)
    assert lower_confidence_bound([], 10, 0.01).shape == (0,)


# The soft smoothed classifier


def test_soft_is_the_mean_of_probabilities():
    """For steep logits, the share of the noise that falls on the class's side."""
    steep = Classifier(linear, {"w": 1e4 * jnp.asarray(W), "b": jnp.float32(0.0)})
    probabilities = jnp.exp(Smoothed(steep, SIGMA, 2000, KEY)(IMAGES))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(probabilities[:, 1], PROBABILITIES, atol=0.04)


def test_soft_is_deterministic_and_fixed_by_the_key():
    smooth = Smoothed(CLASSIFIER, SIGMA, 8, KEY)
    np.testing.assert_array_equal(smooth(IMAGES), smooth(IMAGES))
    other = Smoothed(CLASSIFIER, SIGMA, 8, jax.random.key(1))
    assert not np.allclose(smooth(IMAGES), other(IMAGES))


def test_noise_is_each_images_own_or_common():
    same = jnp.repeat(IMAGES[:1], 3, axis=0)
    own = np.asarray(Smoothed(CLASSIFIER, SIGMA, 4, KEY)(same))
    assert not np.allclose(own[0], own[1])
    np.testing.assert_allclose(Smoothed(CLASSIFIER, SIGMA, 4, KEY)(same[:2]), own[:2], atol=1e-6)
    common = Smoothed(CLASSIFIER, SIGMA, 4, KEY, common_noise=True)
    np.testing.assert_allclose(common(same), np.broadcast_to(common(same[:1]), (3, 2)), atol=1e-6)
    np.testing.assert_allclose(common(IMAGES[::-1])[::-1], common(IMAGES), atol=1e-6)


def test_chunks_change_nothing():
    expected = Smoothed(CLASSIFIER, SIGMA, 5, KEY)(IMAGES)
    found = Smoothed(CLASSIFIER, SIGMA, 5, KEY, chunk_size=2)(IMAGES)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_nan_image_spoils_no_other():
    smooth = Smoothed(CLASSIFIER, SIGMA, 4, KEY)
    damaged = smooth(IMAGES.at[1].set(jnp.nan))
    np.testing.assert_array_equal(np.isnan(damaged).any(axis=1), np.arange(5) == 1)
    np.testing.assert_allclose(damaged[2:], smooth(IMAGES)[2:], atol=1e-6)
