"""Bounds where they are known, what is certified, and errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bounded_networks import (
    EPSILON,
    IMAGES,
    KEY,
    METHODS,
    SHAPE,
    box,
    crown_ibp,
    dense,
    full_crown,
    kernel,
    residual,
)
from counting import Counted
from jax import lax

from jaxrobust import certificates, data, models
from jaxrobust.attacks import APGD
from jaxrobust.certificates import certify, crown_bounds, ibp_bounds, margin_bounds
from jaxrobust.certificates.intervals import Interval, propagate
from jaxrobust.certificates.reader import operations_of
from jaxrobust.models import Classifier
from jaxrobust.types import Stochastic

# Where bounds are known


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("epsilon", [0.0, 0.05, 0.3])
def test_an_affine_network_has_exact_bounds(method, epsilon):
    def logits_fn(images):
        return dense((images - 0.3) / 0.7 + jnp.pad(images, 1)[1:-1, 1:-1, 1:-1, 1:-1], 3) + 1

    weights = np.asarray(kernel(32, 3, seed=7), np.float64)
    low, high = (end.reshape(3, -1) for end in box(IMAGES, epsilon))
    # x / .7 + x, less the mean.
    slope, offset = 1 / 0.7 + 1, 1 - 0.3 / 0.7 * weights.sum(axis=0)
    positive, negative = np.maximum(weights, 0), np.minimum(weights, 0)
    lower = slope * (low @ positive + high @ negative) + offset
    upper = slope * (high @ positive + low @ negative) + offset
    bounds = METHODS[method](logits_fn, IMAGES, epsilon)
    # Outward, by no more than what float32 leaves open.
    for outward in (lower - bounds.lower, bounds.upper - upper):
        assert (outward >= 0).all() and outward.max() < 5e-4


def test_many_terms_that_cancel_do_not_round_inwards():
    weights = 100 * np.asarray(kernel(3072, 5), np.float64)
    images = np.random.default_rng(3).uniform(size=(8, 32, 32, 3)).astype(np.float32)
    low, high = (end.reshape(8, -1) for end in box(images, 1e-4))
    weights = weights.astype(np.float32).astype(np.float64)
    lower = low @ np.maximum(weights, 0) + high @ np.minimum(weights, 0)
    function = Classifier(lambda w, x: x.reshape(len(x), -1) @ w, jnp.asarray(weights, jnp.float32))
    for bounds in (ibp_bounds(function, images, 1e-4), crown_ibp(function, images, 1e-4)):
        assert (bounds.lower <= lower).all()
        # What is given away is little of the terms, whose absolute values sum up to thousands.
        assert (lower - bounds.lower).max() < 2e-3 * np.abs(weights).sum(axis=0).max()


def test_single_operations_do_not_round_inwards():
    """Of a small slope and a large constant nearly all digits are rounded away."""
    slope, large, divisor = np.float32(1e-3), np.float32(1000.1), np.float32(7e3)

    def logits_fn(images):
        pixel = images.reshape(len(images), 1)
        return jnp.concatenate([pixel * slope + large, large - pixel / divisor], axis=1)

    images = np.random.default_rng(5).uniform(0.2, 0.8, size=(500, 1, 1, 1)).astype(np.float32)
    pixels = Interval(images - np.float32(1e-3), images + np.float32(1e-3))
    low, high = (np.asarray(end, np.float64).reshape(-1) for end in pixels)
    large, slope, divisor = float(large), float(slope), float(divisor)
    lower = np.stack([low * slope + large, large - high / divisor], axis=1)
    upper = np.stack([high * slope + large, large - low / divisor], axis=1)
    # The intervals themselves: what `ibp_bounds` adds for its sums would hide it.
    operations = operations_of(
        jax.tree_util.Partial(logits_fn), jax.ShapeDtypeStruct(images.shape, images.dtype)
    )
    found = propagate(operations, Interval(*map(jnp.asarray, pixels)))[-1]
    for outward in (lower - np.asarray(found.lower), np.asarray(found.upper) - upper):
        assert outward.dtype == np.float64
        assert (outward >= 0).all() and outward.max() < 5e-4


def twins(arrays, images):
    first, second, bias = arrays
    return jax.nn.relu(images.reshape(len(images), -1) @ first) @ second + bias


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown"])
def test_coefficients_that_cancel_on_the_way_back_do_not_round_inwards(method):
    """Pairs of units that are nearly the same, of opposite large weights: what is left is rounding."""
    epsilon, gaps = 1e-6, []
    for seed in range(20):
        generator = np.random.default_rng(seed)
        first = generator.uniform(0.5, 1, size=(48, 32)).astype(np.float32)
        twin = first * (1 + 3e-7 * generator.normal(size=first.shape))
        first = np.concatenate([first, twin.astype(np.float32)], axis=1)
        large = generator.uniform(500, 1000, size=32).astype(np.float32)
        second = np.stack([np.concatenate([large, -large]), np.zeros(64)], axis=1)
        image = generator.uniform(0.3, 0.7, size=(1, 4, 4, 3)).astype(np.float32)
        # No unit is ever shut: the least margin is that of an affine function.
        slope = first.astype(np.float64) @ second[:, 0]
        least = slope @ image.reshape(-1).astype(np.float64) - epsilon * np.abs(slope).sum()
        for worst in (-0.01 * abs(least), -0.1 * abs(least), 100.0):
            bias = np.float32([worst - least, 0])
            arrays = (first, second.astype(np.float32), bias)
            classifier = Classifier(twins, tuple(jnp.asarray(array) for array in arrays))
            report = certify(classifier, image, np.array([0]), epsilon=epsilon, method=method)
            exact = least + float(bias[0])
            assert report.margins[0, 1] <= exact
            assert not (report.certified[0] and exact < 0)
            gaps.append(exact - report.margins[0, 1])
            # It is not met by certifying nothing.
            assert exact < 0 or method == "ibp" or report.certified[0]
    # About a million is what cancels: linear bounds give away little of it.
    assert method == "ibp" or max(gaps) < 50


def two_pixels(seed, hidden=4):
    """A network with one hidden layer on two pixels, and its arrays."""
    generator = np.random.default_rng(seed)
    first, second = generator.normal(size=(2, hidden)), generator.normal(size=(hidden, 2))
    bias = generator.normal(size=hidden) / 4
    arrays = tuple(jnp.asarray(array, jnp.float32) for array in (first, bias, second))
    return Classifier(one_hidden_layer, arrays), (first, bias, second)


def one_hidden_layer(arrays, images):
    first, bias, second = arrays
    return jax.nn.relu(images.reshape(len(images), -1) @ first + bias) @ second


@pytest.mark.parametrize("seed", range(5))
def test_one_hidden_layer_against_a_grid_and_the_published_formula(seed):
    classifier, (first, bias, second) = two_pixels(seed)
    image = np.float32([[0.4, 0.6]]).reshape(1, 1, 2, 1)
    epsilon = 0.2
    axis = np.linspace(-epsilon, epsilon, 101)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2) + np.array([0.4, 0.6])
    values = np.maximum(grid @ first + bias, 0) @ second
    # Zhang et al. 2018, corollary 3.3, for two layers: all by hand.
    centre = np.array([0.4, 0.6]) @ first + bias
    radius = epsilon * np.abs(first).sum(axis=0)
    low, high = centre - radius, centre + radius
    mixed = (low < 0) & (high > 0)
    steeper = np.where(mixed, high / (high - low), low >= 0)
    slope = np.where(mixed, high > -low, low >= 0)
    for sign in (1, -1):
        weights = sign * second
        positive, negative = np.maximum(weights, 0), np.minimum(weights, 0)
        combined = slope[:, None] * positive + steeper[:, None] * negative
        offset = bias @ combined - np.where(mixed, steeper * low, 0) @ negative
        least = np.array([0.4, 0.6]) @ first @ combined + offset
        least -= epsilon * np.abs(first @ combined).sum(axis=0)
        by_intervals = np.maximum(low, 0) @ positive + np.maximum(high, 0) @ negative
        expected = np.maximum(least, by_intervals)
        assert (expected <= (sign * values).min(axis=0) + 1e-9).all()
        bounds = full_crown(classifier, image, epsilon)
        found = bounds.lower if sign == 1 else -bounds.upper
        np.testing.assert_allclose(found[0], expected, rtol=0, atol=3e-4)
        assert (np.asarray(found[0]) <= expected).all()
    intervals = ibp_bounds(classifier, image, epsilon)
    np.testing.assert_allclose(-intervals.upper[0], by_intervals, rtol=0, atol=3e-4)


def test_units_that_never_change_sign_cost_nothing():
    # All units open or shut in the whole box: the network is affine there.
    _, (first, _, second) = two_pixels(0)
    bias = np.array([9.0, 9.0, -9.0, 9.0])
    arrays = tuple(jnp.asarray(array, jnp.float32) for array in (first, bias, second))
    image = np.full((1, 1, 2, 1), 0.5, np.float32)
    bounds = full_crown(Classifier(one_hidden_layer, arrays), image, 0.1)
    matrix = (first * (bias > 0)) @ second
    values = np.full(2, 0.5) @ matrix + np.maximum(bias, 0) @ second
    radius = 0.1 * np.abs(matrix).sum(axis=0)
    np.testing.assert_allclose(bounds.lower[0], values - radius, rtol=0, atol=2e-3)
    np.testing.assert_allclose(bounds.upper[0], values + radius, rtol=0, atol=2e-3)


def test_margins_are_tighter_than_the_logits_that_they_are_of():
    # Both logits have the same large part, which cancels in the margin.
    def logits_fn(images):
        hidden = jax.nn.relu(dense(images, 8))
        return hidden @ kernel(8, 3, seed=5) + 3 * images.sum((1, 2, 3))[:, None]

    labels = jnp.array([0, 1, 2])
    bounds = full_crown(logits_fn, IMAGES, EPSILON)
    own = bounds.lower[jnp.arange(3), labels][:, None]
    for method in METHODS:
        margins = np.asarray(margin_bounds(logits_fn, IMAGES, labels, EPSILON, method=method))
        others = ~np.eye(3, dtype=bool)
        assert np.isinf(margins[~others]).all()
        assert (margins > np.asarray(own - bounds.upper) + 1)[others].all()


def test_each_image_has_its_own_epsilon_and_neighbours_do_not_matter():
    epsilon = np.array([0.0, 0.02, 0.1], np.float32)
    together = full_crown(residual, IMAGES, epsilon)
    for index in range(3):
        alone = full_crown(residual, IMAGES[index : index + 1], float(epsilon[index]))
        np.testing.assert_allclose(together.lower[index], alone.lower[0], rtol=0, atol=1e-5)
    width = np.asarray(together.upper - together.lower).mean(axis=1)
    assert width[0] < 1e-3 < width[1] < width[2]


# What is certified


def test_certify_goes_through_batches_and_counts_only_the_proved():
    labels = np.asarray(residual(IMAGES)).argmax(axis=1)
    labels[2] = (labels[2] + 1) % 3  # wrong when clean
    seen = []
    report = certify(
        residual,
        IMAGES,
        labels,
        epsilon=1e-4,
        method="crown-ibp",
        batch_size=2,
        progress=lambda what, done, of: seen.append((done, of)),
    )
    assert report.certified.tolist() == [True, True, False]
    assert seen == [(2, 3), (3, 3)] and report.epsilon.tolist() == [1e-4] * 3
    assert report.margins.shape == (3, 3) and report.method == "crown-ibp"
    logits = np.asarray(residual(IMAGES))
    clean = logits[np.arange(3), labels][:, None] - logits
    clean[np.arange(3), labels] = np.inf
    np.testing.assert_allclose(report.margins, clean, atol=5e-3)


def test_what_the_compiled_classifier_gets_wrong_is_not_certified():
    def logits_fn(
        images,
    ):  # answers two images at a time in another way than the one that is bounded
        score = images.sum((1, 2, 3)) * (1 if len(images) == 1 else -1)
        return jnp.stack([score, -score], axis=1)

    labels = np.array([0, 0, 0])
    for size, expected in ((1, [True] * 3), (2, [False] * 3)):
        report = certify(logits_fn, IMAGES, labels, epsilon=0.01, batch_size=size, method="ibp")
        assert report.certified.tolist() == expected
        assert (report.margins > 0).all()


def test_certified_is_at_most_robust_and_that_at_most_clean():
    """Image by image, of a small convolutional network that was trained."""
    digits = data.load("digits", image_size=8)
    train = jnp.asarray(digits.train.images[::5, ..., :1], jnp.float32) / 255
    targets = jnp.asarray(digits.train.labels[::5])

    def apply(kernels, images):
        names = ("NHWC", "HWIO", "NHWC")
        for weights in kernels[:2]:
            images = lax.conv_general_dilated(
                images, weights, (2, 2), "SAME", dimension_numbers=names
            )
            images = jax.nn.relu(images)
        return images.reshape(len(images), -1) @ kernels[2]

    @jax.jit
    def step(kernels):
        def loss(kernels):
            return -jax.nn.log_softmax(apply(kernels, train))[
                jnp.arange(len(train)), targets
            ].mean()

        return jax.tree.map(lambda w, g: w - 0.5 * g, kernels, jax.grad(loss)(kernels))

    kernels = (kernel(3, 3, 1, 6), kernel(3, 3, 6, 8, seed=1), kernel(32, 10, seed=2))
    for _ in range(100):
        kernels = step(kernels)
    classifier = Classifier(apply, kernels)
    images = np.asarray(digits.test.images[::6, ..., :1], np.float32) / 255
    labels = digits.test.labels[::6]
    right = np.asarray(classifier(images)).argmax(axis=1) == labels
    counts = []
    for epsilon in (0.01, 0.03, 0.1):
        attack = APGD(epsilon, num_iterations=20)
        found = attack(KEY, classifier, jnp.asarray(images), jnp.asarray(labels))
        robust = right & ~np.asarray(found.success)
        proved = [
            certify(classifier, images, labels, epsilon=epsilon, method=method).certified
            for method in ("ibp", "crown")
        ]
        assert all((certified <= robust).all() for certified in proved)
        counts.append([*(int(certified.sum()) for certified in proved), int(robust.sum())])
    # It is not met by certifying nothing, nor by an attack that finds nothing.
    assert right.sum() > 0.8 * len(labels)
    assert counts[0][1] > 0.5 * len(labels) and counts[1][1] > counts[1][0]
    assert counts[-1][-1] < 0.5 * right.sum()


def test_nan_certifies_nothing():
    classifier, _ = two_pixels(0)
    arrays = (classifier.variables[0], classifier.variables[1].at[0].set(jnp.nan))
    broken = Classifier(one_hidden_layer, (*arrays, classifier.variables[2]))
    images = np.full((2, 1, 2, 1), 0.5, np.float32)
    for method in METHODS:
        report = certify(broken, images, np.array([0, 1]), epsilon=0.01, method=method)
        assert not report.certified.any()


def test_other_weights_and_epsilons_compile_nothing_anew():
    @Counted
    def apply_fn(arrays, images):
        return one_hidden_layer(arrays, images)

    traces = apply_fn.traces

    def margins(seed, epsilon, method):
        classifier = Classifier(apply_fn, two_pixels(seed)[0].variables)
        images = np.full((2, 1, 2, 1), 0.5, np.float32)
        return certify(classifier, images, np.array([0, 1]), epsilon=epsilon, method=method).margins

    for method in METHODS:
        first = margins(0, 0.1, method)
        count = len(traces)
        assert count > 0
        assert not np.array_equal(margins(0, np.array([0.1, 0.2]), method), first)
        assert not np.array_equal(margins(1, 0.1, method), first)
        assert len(traces) == count


def test_bounds_are_part_of_a_larger_program():
    """Interval bounds can be differentiated by the weights, as training for them would."""
    classifier, _ = two_pixels(0)
    image = np.full((1, 1, 2, 1), 0.5, np.float32)

    @jax.jit
    def width(classifier):
        lower, upper = ibp_bounds(classifier, image, 0.1)
        return jnp.sum(upper - lower)

    gradient = jax.grad(width)(classifier)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert float(jnp.abs(gradient.variables[2]).sum()) > 0


# Errors


class Sorting(models.layers.nn.Module):
    @models.layers.nn.compact
    def __call__(self, images):
        return Head(name="head")(jnp.sort(images.reshape(len(images), -1)))


class Head(models.layers.nn.Module):
    @models.layers.nn.compact
    def __call__(self, features):
        return models.layers.nn.leaky_relu(features)


def test_what_has_no_bounds_is_named_with_its_layer():
    with pytest.raises(NotImplementedError, match="'sort' in .*docs/certificates.md"):
        ibp_bounds(functools.partial(Sorting().apply, {}), IMAGES, 0.1)
    head = functools.partial(Head().apply, {})
    with pytest.raises(NotImplementedError, match="'ge' in .*Head"):
        ibp_bounds(lambda images: head(dense(images, 3)), IMAGES, 0.1)
    attention = lambda x: jnp.einsum("bhwc,bHwc->bhH", x, x)[:, 0]  # noqa: E731
    with pytest.raises(NotImplementedError, match="'dot_general'"):
        ibp_bounds(attention, IMAGES, 0.1)
    with pytest.raises(NotImplementedError, match="'convert_element_type' to bfloat16"):
        ibp_bounds(lambda x: dense(x.astype(jnp.bfloat16), 3), IMAGES, 0.1)


@pytest.mark.parametrize(
    ("error", "match", "change"),
    [
        (ValueError, "`method` must be one of", {"method": "milp"}),
        (ValueError, "`epsilon` must be a finite number at least 0", {"epsilon": -0.1}),
        (ValueError, "`epsilon` must be a scalar or have shape", {"epsilon": np.ones(2)}),
        (ValueError, r"`images` must lie in \[0, 1\]", {"images": 2 * np.ones_like(IMAGES)}),
        (TypeError, "divide uint8 images by 255", {"images": np.zeros((3, *SHAPE), np.uint8)}),
        (ValueError, "at least one image", {"images": IMAGES[:0], "labels": np.zeros(0, int)}),
        (ValueError, "`labels` must lie in 0 .. 2", {"labels": np.array([0, 1, 3])}),
        (TypeError, "`labels` must be integers", {"labels": np.zeros(3)}),
        (ValueError, "`batch_size` must be at least 1", {"batch_size": 0}),
        (ValueError, "`num_rows` must be at least 1", {"num_rows": 0}),
        (ValueError, "`logits_fn` must return", {"logits_fn": lambda x: x.mean((1, 2, 3))}),
        (TypeError, "`logits_fn` must be callable", {"logits_fn": 3}),
    ],
)
def test_arguments_out_of_range(error, match, change):
    arguments = {"logits_fn": residual, "images": IMAGES, "labels": np.array([0, 1, 2])}
    with pytest.raises(error, match=match):
        certify(**{**arguments, "epsilon": 0.1, **change})
    noisy = Stochastic(jax.tree_util.Partial(lambda keys, images: residual(images)))
    for function in (noisy, jax.tree_util.Partial(lambda inner, images: inner(images), noisy)):
        with pytest.raises(TypeError, match="`logits_fn` .* got a Stochastic"):
            certify(function, IMAGES, np.array([0, 1, 2]), epsilon=0.1)
        with pytest.raises(TypeError, match="`logits_fn` .* got a Stochastic"):
            ibp_bounds(function, IMAGES, 0.1)
    with pytest.raises(ValueError, match="`intermediate` must be one of"):
        crown_bounds(residual, IMAGES, 0.1, intermediate="zonotope")


def test_the_names_that_are_public():
    assert {"certify", "Certified", "Bounds"} < set(certificates.__all__)
