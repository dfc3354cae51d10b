"""Deletion, insertion, cascading randomisation and shifts of maps, against plain computations."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import Counted
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.tree_util import Partial
from scipy import ndimage, stats

from jaxrobust import attribution
from jaxrobust.attribution import METHODS
from jaxrobust.models import Classifier


def two_classes(weights, images):
    """Logits [w x, 0] of weights [H, W, C]."""
    score = jnp.einsum("bhwc,hwc->b", images, weights)
    return jnp.stack([score, jnp.zeros_like(score)], axis=1)


IMAGES = jax.random.uniform(jax.random.key(0), (3, 4, 5, 2))
WEIGHTS = jax.random.normal(jax.random.key(1), (4, 5, 2))
MAPS = jax.random.normal(jax.random.key(2), (3, 4, 5))
LABELS = jnp.array([0, 1, 0])


def by_hand(start, end, num_steps):
    """Probabilities while pixels of `end` replace those of `start`, the most important first."""
    curves = np.zeros((3, num_steps + 1))
    for row in range(3):
        ordered = sorted(np.ndindex(4, 5), key=lambda pixel: -float(MAPS[row][pixel]))
        for step in range(num_steps + 1):
            mixed = np.array(start[row])
            for pixel in ordered[: round(20 * step / num_steps)]:
                mixed[pixel] = end[row][pixel]
            score = (mixed * np.asarray(WEIGHTS)).sum()
            curves[row, step] = 1 / (1 + np.exp(-score if LABELS[row] == 0 else score))
    return curves


@pytest.mark.parametrize("curve", [attribution.deletion_curve, attribution.insertion_curve])
def test_curves_of_a_linear_classifier(curve):
    baseline = np.array([0.3, 0.9], np.float32)
    found = curve(
        Partial(two_classes, WEIGHTS), IMAGES, MAPS, LABELS, num_steps=6, baseline=baseline
    )
    images, constant = np.asarray(IMAGES), np.broadcast_to(baseline, IMAGES.shape)
    deletes = curve is attribution.deletion_curve
    expected = by_hand(*((images, constant) if deletes else (constant, images)), 6)
    fractions = np.round(20 * np.arange(7) / 6) / 20
    np.testing.assert_allclose(found["fractions"], fractions, atol=1e-6)
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-5)
    areas = ((expected[:, 1:] + expected[:, :-1]) / 2 * np.diff(fractions)).sum(1)
    np.testing.assert_allclose(found["auc"], areas, atol=1e-5)


def test_insertion_starts_at_a_blurred_image():
    """The blur is scipy's with the weights that fall outside shared out among the rest."""
    images = jax.random.uniform(jax.random.key(0), (1, 32, 40, 1))
    weights = jax.random.normal(jax.random.key(1), (32, 40, 1))
    maps = attribution.random_maps(jax.random.key(2), (1, 32, 40))
    found = attribution.insertion_curve(
        Partial(two_classes, weights), images, maps, jnp.array([0]), num_steps=1
    )

    def blur(values):
        return ndimage.gaussian_filter(values, 2.0, mode="constant", truncate=30)

    blurred = blur(np.asarray(images[0, ..., 0], np.float64)) / blur(np.ones((32, 40)))
    logits = two_classes(weights, jnp.stack([blurred[None, ..., None], images])[:, 0])
    np.testing.assert_allclose(found["probabilities"][0], jax.nn.softmax(logits)[:, 0], atol=1e-4)


def test_the_true_map_beats_the_random_one():
    classifier, labels = Partial(two_classes, WEIGHTS), jnp.zeros(3, int)
    truth = attribution.occlusion(classifier, IMAGES, labels, patch_size=1, fill=0.5)
    control = attribution.random_maps(jax.random.key(7), truth.shape)
    for curve, sign in ((attribution.deletion_curve, 1), (attribution.insertion_curve, -1)):
        true_area, random_area, wrong_area = (
            sign * curve(classifier, IMAGES, maps, labels, baseline=0.5)["auc"]
            for maps in (truth, control, -truth)
        )
        assert bool((true_area < random_area).all()) and bool((random_area < wrong_area).all())


def test_equal_pixels_are_not_removed_from_the_top():
    top = jnp.zeros((8, 8, 1)).at[:2].set(1.0)
    found = attribution.deletion_curve(
        Partial(two_classes, top),
        jnp.ones((1, 8, 8, 1)),
        jnp.zeros((1, 8, 8)),
        jnp.array([0]),
        num_steps=4,
        baseline=0.0,
    )
    score = jax.scipy.special.logit(found["probabilities"][0, 1])
    assert 8 < float(score) < 16  # of 16 pixels that count; by position none would be left


def test_a_map_with_nan_has_no_curve():
    classifier = Partial(two_classes, WEIGHTS)
    whole = attribution.deletion_curve(classifier, IMAGES, MAPS, LABELS, num_steps=6)
    spoilt = MAPS.at[1, 0, 0].set(jnp.nan)
    found = attribution.deletion_curve(classifier, IMAGES, spoilt, LABELS, num_steps=6)
    for name in ("probabilities", "auc"):
        assert bool(jnp.isnan(found[name][1]).all())
        np.testing.assert_array_equal(found[name][::2], whole[name][::2])


def test_wrong_input_to_curves():
    classifier = Partial(two_classes, WEIGHTS)
    for curve in (attribution.deletion_curve, attribution.insertion_curve):
        with pytest.raises(
            ValueError, match=r"`maps` must have shape \(3, 4, 5\), got \(2, 4, 5\)"
        ):
            curve(classifier, IMAGES, MAPS[:2], LABELS)
        with pytest.raises(TypeError, match=r"`maps` must be a floating-point array .* got int32"):
            curve(classifier, IMAGES, MAPS.astype(int), LABELS)
        with pytest.raises(TypeError, match="`labels` must be the classes that `maps` explain"):
            curve(classifier, IMAGES, MAPS, None)
        with pytest.raises(ValueError, match="`num_steps` must be at least 1, got 0"):
            curve(classifier, IMAGES, MAPS, LABELS, num_steps=0)
        with pytest.raises(ValueError, match=r"`baseline` must lie in \[0, 1\]"):
            curve(classifier, IMAGES, MAPS, LABELS, baseline=2.0)
        with pytest.raises(ValueError, match=r"`images` must lie in \[0, 1\]"):
            curve(classifier, IMAGES * 255, MAPS, LABELS)


def test_random_maps():
    maps = attribution.random_maps(jax.random.key(0), (3, 8, 8))
    part = attribution.random_maps(jax.random.key(0), (2, 8, 8))
    np.testing.assert_array_equal(part, maps[:2])
    assert not np.allclose(maps[0], maps[1]) and 0 <= float(maps.min()) < float(maps.max()) < 1
    with pytest.raises(ValueError, match=r"`shape` must be \(B, H, W\)"):
        attribution.random_maps(jax.random.key(0), (8, 8))


# Whole numbers of which many are equal.
ranked = hnp.arrays(np.float32, (2, 3, 4), elements=st.integers(-3, 3).map(float))


@settings(max_examples=60, deadline=None)
@given(ranked, ranked)
def test_rank_correlation_against_scipy(maps, others):
    found = np.asarray(attribution.rank_correlation(maps, others))
    for row in range(2):
        if np.ptp(maps[row]) == 0 or np.ptp(others[row]) == 0:
            assert np.isnan(found[row])
        else:
            expected = stats.spearmanr(maps[row].ravel(), others[row].ravel()).statistic
            assert found[row] == pytest.approx(expected, abs=1e-5)


def test_map_shift_by_hand():
    """A block moves 2 rows down and 3 columns left; a copy moves nowhere at any scale."""
    block = np.zeros((8, 8), np.float32)
    block[1:3, 4:6] = [[1, 2], [3, 4]]
    moved = np.roll(block, (2, -3), axis=(0, 1))
    shift = attribution.map_shift(np.stack([block, block]), np.stack([moved, block * 1e-25]))
    np.testing.assert_allclose(shift["cosine"], [0, 1], atol=1e-6)
    expected = stats.spearmanr(block.ravel(), moved.ravel()).statistic
    np.testing.assert_allclose(shift["rank_correlation"], [expected, 1], atol=1e-5)
    np.testing.assert_allclose(shift["centre_of_mass"], [[2, -3], [0, 0]], atol=1e-5)


def test_map_shift_of_signed_maps():
    shift = attribution.map_shift(MAPS, -2 * MAPS)
    np.testing.assert_allclose(shift["cosine"], -1, atol=1e-5)
    np.testing.assert_allclose(shift["rank_correlation"], -1, atol=1e-5)
    np.testing.assert_allclose(shift["centre_of_mass"], 0, atol=1e-5)


def test_what_is_undefined_is_nan_and_nothing_else():
    flat, zero, spoilt = jnp.ones((4, 5)), jnp.zeros((4, 5)), MAPS[0].at[0, 0].set(jnp.nan)
    after = jnp.stack([MAPS[1], flat, zero, spoilt])
    shift = attribution.map_shift(jnp.stack([MAPS[0]] * 4), after)
    undefined = {name: np.isnan(values).tolist() for name, values in shift.items()}
    assert undefined == {
        "cosine": [False, False, True, True],
        "rank_correlation": [False, True, True, True],
        "centre_of_mass": [[False] * 2, [False] * 2, [True] * 2, [True] * 2],
    }
    with pytest.raises(
        ValueError, match=r"`maps_after` must have shape \(3, 4, 5\), got \(2, 4, 5"
    ):
        attribution.map_shift(MAPS, MAPS[:2])
    with pytest.raises(ValueError, match=r"`maps` must be \[B, H, W\], got shape \(4, 5\)"):
        attribution.rank_correlation(MAPS[0], MAPS[0])


class Net(nn.Module):
    """Two layers whose names sort against the order in which they are called."""

    @nn.compact
    def __call__(self, images):
        flat = images.reshape(len(images), -1)
        hidden = jnp.tanh(nn.Dense(16, name="z_first")(flat))
        return nn.Dense(3, name="a_last")(hidden)


PICTURES = jax.random.uniform(jax.random.key(3), (4, 8, 8, 1))


@pytest.fixture(scope="module")
def structured():
    """A network that looks at the image's lower right corner: its saliency is smooth."""
    variables = Net().init(jax.random.key(0), PICTURES)
    corner = (jnp.arange(64) // 8 + jnp.arange(64) % 8)[:, None] / 14.0
    params = jax.tree.map(lambda leaf: leaf + 1.0, variables["params"])
    params["z_first"]["kernel"] = 0.01 * corner**4 * params["z_first"]["kernel"]
    return {"params": params, "statistics": {"mean": jnp.zeros(3)}}


def apply(variables):
    return Classifier(Net().apply, variables)


def test_randomisation_destroys_the_map(structured):
    check = attribution.cascading_randomisation(
        jax.random.key(0), METHODS["saliency"], apply, structured, PICTURES
    )
    assert check["layers"] == ["a_last", "z_first"]
    correlations = np.asarray(check["rank_correlation"])
    assert correlations.shape == (2, 4) and check["maps"].shape == (2, 4, 8, 8)
    assert (correlations[0] > 0.8).all()  # the last layer knows no positions
    assert (np.abs(correlations[1]) < 0.4).all()
    original = METHODS["saliency"](None, apply(structured), PICTURES)
    expected = stats.spearmanr(original[2].ravel(), check["maps"][1, 2].ravel()).statistic
    assert correlations[1, 2] == pytest.approx(expected, abs=1e-5)


def test_nothing_to_shuffle_is_no_change(structured):
    """Arrays of one value stay; the key of the method stays, so its noise is no change."""
    params = structured["params"] | {
        "a_last": jax.tree.map(
            lambda leaf: jnp.full_like(leaf, 0.5), structured["params"]["a_last"]
        )
    }

    def noisy(key, logits_fn, images, labels):
        return METHODS["smooth_grad"](key, logits_fn, images, labels, num_samples=2)

    check = attribution.cascading_randomisation(
        jax.random.key(0), noisy, apply, {"params": params}, PICTURES, layers=["a_last"]
    )
    np.testing.assert_allclose(check["rank_correlation"], np.ones((1, 4)), atol=1e-6)


def test_a_map_of_the_image_alone_does_not_notice(structured):
    check = attribution.cascading_randomisation(
        jax.random.key(0),
        lambda key, logits_fn, images, labels: -images[..., 0],
        apply,
        structured,
        PICTURES,
    )
    np.testing.assert_allclose(check["rank_correlation"], 1.0, atol=1e-6)


def test_the_cascade_shuffles_from_the_top_and_nothing_else(structured):
    seen, explained = [], []

    def recording(variables):
        seen.append(variables)
        return apply(variables)

    def method(key, logits_fn, images, labels):
        explained.append(labels)
        return images[..., 0]

    attribution.cascading_randomisation(
        jax.random.key(0),
        method,
        recording,
        structured,
        PICTURES,
        layers=["a_last/kernel", "z_first"],
    )
    before, first, second = (variables["params"] for variables in seen)

    def changed(one, other):
        paths = jax.tree_util.tree_leaves_with_path(
            jax.tree.map(lambda a, b: bool((a != b).any()), one, other)
        )
        return {
            jax.tree_util.keystr(p, simple=True, separator="/") for p, differs in paths if differs
        }

    assert changed(before, first) == {"a_last/kernel"}
    assert changed(first, second) == {"z_first/kernel"}  # all values of its bias are equal
    for leaf, other in zip(jax.tree.leaves(before), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(jnp.sort(leaf.ravel()), jnp.sort(other.ravel()))
    assert all(variables["statistics"] is structured["statistics"] for variables in seen)
    predicted = jnp.argmax(apply(structured)(PICTURES), axis=1)
    assert all((labels == predicted).all() for labels in explained)


def test_checks_trace_nothing_for_other_weights(structured):
    @Counted
    def counted(variables, images):
        return Net().apply(variables, images)

    traces = counted.traces

    maps = attribution.random_maps(jax.random.key(0), (4, 8, 8))
    labels = jnp.array([0, 1, 2, 0])

    def all_checks(variables, images):
        classifier = Classifier(counted, variables)
        attribution.deletion_curve(classifier, images, maps, labels)
        attribution.insertion_curve(classifier, images, maps, labels)
        attribution.cascading_randomisation(
            jax.random.key(0),
            METHODS["saliency"],
            lambda values: dataclasses.replace(classifier, variables=values),
            variables,
            images,
            layers=["a_last", "z_first"],
        )

    all_checks(structured, PICTURES)
    first = len(traces)
    all_checks(jax.tree.map(lambda leaf: 2 * leaf, structured), PICTURES[::-1])
    assert len(traces) == first


def test_wrong_input_to_the_cascade(structured):
    def cascade(apply=apply, variables=structured, images=PICTURES, **options):
        attribution.cascading_randomisation(
            jax.random.key(0), METHODS["saliency"], apply, variables, images, **options
        )

    with pytest.raises(ValueError, match='`variables` must be {"params": nested dict'):
        cascade(variables=structured["params"])
    with pytest.raises(TypeError, match="`apply` must return a callable pytree .* got function"):
        cascade(apply=lambda variables: lambda images: Net().apply(variables, images))
    with pytest.raises(TypeError, match="`apply` must be callable, got int"):
        cascade(apply=3)
    with pytest.raises(TypeError, match="`layers` must be a sequence of paths, got the string"):
        cascade(layers="a_last")
    with pytest.raises(ValueError, match="got 'head'; the top level has a_last, z_first"):
        cascade(layers=["head"])
    with pytest.raises(ValueError, match="`layers` must name at least one layer"):
        cascade(layers=[])
    with pytest.raises(ValueError, match=r"`images` must lie in \[0, 1\]"):
        cascade(images=PICTURES * 255)
    variables = {"params": {"weights": WEIGHTS, "idle": jnp.ones(2)}}
    plain = Partial(lambda values, images: two_classes(values["params"]["weights"], images))
    with pytest.raises(ValueError, match="`layers` must be given, .* not use idle"):
        cascade(lambda values: Partial(plain, values), variables, IMAGES)


def test_a_map_of_a_real_network_beats_a_random_one(reference, reference_classifier):
    images = jnp.asarray(reference["images"][:8] / 255.0, jnp.float32)
    labels = jnp.argmax(reference_classifier(images), axis=1)
    maps = attribution.occlusion(reference_classifier, images, labels, patch_size=8)
    found, control = (
        attribution.deletion_curve(reference_classifier, images, values, labels, num_steps=10)
        for values in (maps, attribution.random_maps(jax.random.key(0), maps.shape))
    )
    assert float(found["auc"].mean()) < float(control["auc"].mean()) - 0.05
