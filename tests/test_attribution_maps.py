"""Every map against a closed form, a numpy computation or a plain loop."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import Counted
from jax.tree_util import Partial

from jaxrobust import attribution
from jaxrobust.attribution import METHODS, class_activation


def linear(weights, images):
    """Logits of a linear classifier with weights [K, H, W, C]."""
    return jnp.einsum("bhwc,khwc->bk", images, weights)


@pytest.fixture(scope="module")
def weights():
    return jax.random.normal(jax.random.key(0), (3, 4, 5, 2))


@pytest.fixture(scope="module")
def images():
    return jax.random.uniform(jax.random.key(1), (3, 4, 5, 2))


LABELS = jnp.array([2, 0, 1])


def test_smooth_grad_of_a_linear_classifier_is_its_weights(weights, images):
    maps = attribution.smooth_grad(
        Partial(linear, weights), images, LABELS, key=jax.random.key(2), num_samples=3
    )
    np.testing.assert_allclose(maps, jnp.abs(weights).max(-1)[LABELS], rtol=1e-5)


def sines(images):
    """Logits whose gradient is 3 cos(3 x) for class 0, and 3 times that for class 1."""
    return jnp.stack([1.0, 3.0]) * jnp.sin(3 * images).sum((1, 2, 3))[:, None]


def test_smooth_grad_averages_signed_gradients(images):
    """The mean of cos(3 (x + n)) under Gaussian noise is cos(3 x) exp(-(3 std)^2 / 2)."""
    images = images[:2, :, :, :1]
    options = {"key": jax.random.key(0), "num_samples": 1000}
    maps = attribution.smooth_grad(sines, images, jnp.array([0, 0]), noise_std=0.4, **options)
    expected = 3 * jnp.cos(3 * images[..., 0]) * np.exp(-((3 * 0.4) ** 2) / 2)
    np.testing.assert_allclose(maps, jnp.abs(expected), atol=0.3)
    without = attribution.smooth_grad(sines, images, jnp.array([0, 0]), noise_std=0.0, **options)
    by_saliency = attribution.saliency(sines, images, jnp.array([0, 0]))
    np.testing.assert_allclose(without, by_saliency, rtol=1e-4, atol=1e-5)


def test_input_x_gradient_of_a_linear_classifier_sums_to_the_logit(weights, images):
    maps = attribution.input_x_gradient(Partial(linear, weights), images, LABELS)
    np.testing.assert_allclose(maps, (images * weights[LABELS]).sum(-1), rtol=1e-5, atol=1e-6)
    logits = linear(weights, images)[jnp.arange(3), LABELS]
    np.testing.assert_allclose(maps.sum((1, 2)), logits, rtol=1e-4)


@pytest.mark.parametrize("baseline", [0.0, [0.2, 0.7]])
def test_integrated_gradients_of_a_quadratic_are_exact(weights, images, baseline):
    """The gradient is linear along the way, which the midpoint rule integrates exactly."""

    def quadratic(weights, images):
        return jnp.einsum("bhwc,khwc->bk", images**2, weights)

    maps = attribution.integrated_gradients(
        Partial(quadratic, weights), images, LABELS, baseline=jnp.array(baseline), num_steps=2
    )
    expected = ((images**2 - jnp.array(baseline) ** 2) * weights[LABELS]).sum(-1)
    np.testing.assert_allclose(maps, expected, atol=1e-5)


def test_integrated_gradients_are_complete(images):
    """They sum to f(x) - f(baseline) for a function that is no polynomial, with a baseline each."""
    baseline = jax.random.uniform(jax.random.key(5), images.shape)
    maps = attribution.integrated_gradients(sines, images, baseline=baseline, num_steps=60)
    predicted = jnp.argmax(sines(images), axis=1)
    difference = (sines(images) - sines(baseline))[jnp.arange(3), predicted]
    np.testing.assert_allclose(maps.sum((1, 2)), difference, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (2, 1), (3, 2), (4, 4)])
def test_occlusion_of_a_linear_classifier(weights, images, size, stride):
    """The drop of a patch is the sum of w (x - fill); each pixel has the mean of its patches."""
    fill = np.array([0.1, 0.8], np.float32)
    maps = attribution.occlusion(
        Partial(linear, weights), images, LABELS, patch_size=size, stride=stride, fill=fill
    )
    parts = (np.asarray(weights)[LABELS] * (images - fill)).sum(-1)
    total, count = np.zeros((3, 4, 5)), np.zeros((4, 5))
    for row in sorted({*range(0, 4 - size, stride), 4 - size}):
        for column in sorted({*range(0, 5 - size, stride), 5 - size}):
            patch = np.s_[row : row + size, column : column + size]
            total[:, *patch] += parts[:, *patch].sum((1, 2))[:, None, None]
            count[patch] += 1
    np.testing.assert_allclose(maps, total / count, atol=1e-5)


def test_occlusion_sizes_by_default():
    """An eighth of the shorter side: 1 pixel of 8, 2 of 17 in steps of 1."""
    for side, size in ((8, 1), (17, 2)):
        images = jax.random.uniform(jax.random.key(0), (1, side, side + 1, 1))
        by_default = attribution.occlusion(sines, images)
        chosen = attribution.occlusion(sines, images, patch_size=size, stride=1)
        np.testing.assert_allclose(by_default, chosen)


class Same(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return 1.0 * inputs


class Active(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return nn.relu(inputs)


class Direct(nn.Module):
    """The layer's output is the image, and its gradient the weights [K, H, W, C]."""

    @nn.compact
    def __call__(self, images):
        weights = self.param("weights", nn.initializers.normal(), (3, *images.shape[1:]))
        return linear(weights, Same(name="layer")(images))


def direct(weights):
    return Partial(Direct().apply, {"params": {"weights": jnp.asarray(weights)}})


def test_maps_from_activation_and_gradient_by_hand():
    """Two positions, two channels: A = [[1, .5], [.5, .25]], g = [[2, -4], [-1, 8]]."""
    image = jnp.array([[[[1.0, 0.5], [0.5, 0.25]]]])
    gradient = jnp.array([[[2.0, -4.0], [-1.0, 8.0]]])
    classifier, label = direct(jnp.stack([gradient, -gradient, 0 * gradient])), jnp.array([0])
    expected = {
        # weights (2 - 1) / 2 and (8 - 4) / 2
        "grad_cam": [0.5 * 1 + 2 * 0.5, 0.5 * 0.5 + 2 * 0.25],
        "hires_cam": [0, -0.5 + 2],  # 2 - 2 and -.5 + 2
        "layer_cam": [2, 2],  # 2 * 1 and 8 * .25
        # sums of channels 1.5 and .75: weights 2 / (2 + 1.5 * 2) and 8 / (2 + .75 * 8)
        "grad_cam_plus_plus": [0.4 * 1 + 1 * 0.5, 0.4 * 0.5 + 1 * 0.25],
    }
    for name, values in expected.items():
        maps = METHODS[name](None, classifier, image, label, layer="layer")
        np.testing.assert_allclose(maps, [[values]], rtol=1e-6, err_msg=name)


def test_grad_cam_plus_plus_against_derivatives_of_the_exponential(images):
    """Alpha from second and third derivatives of Y = exp(f), taken one activation at a time."""
    weights = jax.random.normal(jax.random.key(3), (3, *images.shape[1:])) / 10
    maps = attribution.grad_cam_plus_plus(direct(weights), images, LABELS, layer="layer")
    image, label = images[0], LABELS[0]

    def score(delta, position):
        return jnp.exp(linear(weights, image.at[tuple(position)].add(delta)[None])[0, label])

    def derivatives(position):
        first = jax.grad(score)
        second = jax.grad(first)
        return jnp.stack([f(0.0, position) for f in (first, second, jax.grad(second))])

    positions = np.indices(image.shape).reshape(3, -1).T
    one, two, three = jax.jit(jax.vmap(derivatives, out_axes=1))(positions)
    alpha = two / (2 * two + jnp.tile(image.sum((0, 1)), 20) * three)
    # The map leaves the factor exp(f) out.
    positive = jnp.maximum(one, 0) / jnp.exp(linear(weights, image[None])[0, label])
    channel_weights = (alpha * positive).reshape(20, 2).sum(0)
    np.testing.assert_allclose(maps[0], np.maximum(image @ channel_weights, 0), rtol=1e-3)


class Signed(nn.Module):
    """As `Direct`, with the image less 1 as the layer's output: no value of it is positive."""

    @nn.compact
    def __call__(self, images):
        weights = self.param("weights", nn.initializers.normal(), (2, *images.shape[1:]))
        return linear(weights, Same(name="layer")(images - 1))


@pytest.mark.parametrize("near", [0.0, 1e-6, -3e-5])
def test_grad_cam_plus_plus_where_its_denominator_vanishes(near):
    """A = [-1, 0, -.5], g = [2, 1, 1]: with the sum S = -1.5 a gradient of 4/3 makes 2 + S g zero."""
    image = jnp.array([[[[0.0], [1.0], [0.5]]]])
    gradient = jnp.array([[[4 / 3 + near], [1.0], [-2.0]]])
    classifier = Partial(Signed().apply, {"params": {"weights": jnp.stack([gradient, -gradient])}})
    maps = attribution.grad_cam_plus_plus(classifier, image, jnp.array([0]), layer="layer")
    # Only the second position has a weight, 1 / (2 - 1.5) = 2: what is positive of 2 A is nothing.
    np.testing.assert_allclose(maps, 0.0, atol=1e-6)
    other = attribution.grad_cam_plus_plus(classifier, image, jnp.array([1]), layer="layer")
    # Of -g only 2 is positive: its weight is 2 / (2 - 1.5 * 2) = -2.
    np.testing.assert_allclose(other, [[[2.0, 0.0, 1.0]]], rtol=1e-6)


class Plain(nn.Module):
    """A convolution of one position and ReLU as a plain function behind it."""

    @nn.compact
    def __call__(self, images):
        return nn.relu(nn.Conv(3, (1, 1), name="conv")(images)).mean((1, 2))


def test_a_module_is_seen_before_a_plain_activation_and_the_default_layer_behind_it():
    network = Plain()
    classifier = Partial(network.apply, network.init(jax.random.key(0), PICTURES))
    assert attribution.layers(classifier, PICTURES).default == "conv:relu"
    (variables,) = classifier.args
    kernel, bias = (variables["params"]["conv"][name] for name in ("kernel", "bias"))
    before = jnp.einsum("bhwc,ck->bhwk", PICTURES, kernel[0, 0]) + bias
    assert float(before.min()) < 0
    found = attribution.hires_cam(classifier, PICTURES, LABELS, layer="conv")
    chosen = jnp.take_along_axis(before, LABELS[:, None, None, None], axis=-1)[..., 0]
    np.testing.assert_allclose(found, jnp.maximum(chosen, 0) / 64, atol=1e-6)
    # Averaged gradients let what the ReLU stops into the map; at each position by itself it is not.
    averaged = attribution.grad_cam(classifier, PICTURES, LABELS, layer="conv")
    share = (chosen > 0).mean((1, 2), keepdims=True)
    np.testing.assert_allclose(averaged, jnp.maximum(chosen * share, 0) / 64, atol=1e-6)
    behind = attribution.grad_cam(classifier, PICTURES, LABELS)
    np.testing.assert_allclose(behind, jnp.maximum(chosen, 0) / 64, atol=1e-6)


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (6, 6)])
def test_the_first_projection_is_that_of_the_singular_value_decomposition(shape):
    matrix = np.random.default_rng(0).normal(0.5, 1, shape)
    _, _, right = np.linalg.svd(matrix)
    expected = matrix @ right[0]
    found = np.asarray(class_activation._first_projection(jnp.asarray(matrix, jnp.float32)))
    np.testing.assert_allclose(found * np.sign(found @ expected), expected, atol=1e-5)


class Tiny(nn.Module):
    """A convolution that halves the image, ReLU as a layer, then a mean or all positions to dense."""

    average: bool = True

    @nn.compact
    def __call__(self, images):
        features = Active(name="relu")(nn.Conv(4, (3, 3), (2, 2), name="conv")(images))
        features = features.mean((1, 2)) if self.average else features.reshape(len(images), -1)
        return nn.Dense(3, name="head")(features)


PICTURES = jax.random.uniform(jax.random.key(4), (3, 8, 8, 2)).at[:, 0, 0].set(0.0)


@functools.cache
def tiny(average=True):
    network = Tiny(average)
    return Partial(network.apply, network.init(jax.random.key(0), PICTURES))


def activations(classifier):
    (variables,) = classifier.args
    _, state = classifier.func(variables, PICTURES, capture_intermediates=True)
    return np.asarray(state["intermediates"]["relu"]["__call__"][0])


def enlarged(heat):
    return jax.image.resize(jax.nn.relu(heat), (len(heat), 8, 8), "bilinear")


def test_hires_cam_behind_a_global_average_is_grad_cam():
    """Draelos and Carin, section 3.3. That they differ elsewhere is in the test by hand above."""
    by_mean = attribution.grad_cam(tiny(), PICTURES, LABELS)
    by_position = attribution.hires_cam(tiny(), PICTURES, LABELS)
    np.testing.assert_allclose(by_position, by_mean, atol=1e-6)
    assert float(by_mean.max()) > 0


def test_eigen_cam_against_numpy():
    classifier = tiny()
    maps = attribution.eigen_cam(classifier, PICTURES)
    matrices = activations(classifier).reshape(3, 16, 4).astype(np.float64)
    projected = np.stack([m @ np.linalg.svd(m)[2][0] for m in matrices])
    projected *= np.where(projected.sum(1, keepdims=True) < 0, -1, 1)
    assert projected.min() > -1e-9  # all of one sign: the layer is not negative
    np.testing.assert_allclose(maps, enlarged(projected.reshape(3, 4, 4)), atol=1e-5)
    assert float(maps.min(axis=(1, 2)).max()) >= 0 and float(maps.max()) > 0.1
    np.testing.assert_array_equal(attribution.eigen_cam(classifier, PICTURES, LABELS), maps)


def test_score_cam_against_a_plain_loop():
    classifier = tiny()
    maps = attribution.score_cam(classifier, PICTURES, LABELS)
    outputs = activations(classifier)
    heats = []
    for image, label, output in zip(PICTURES, LABELS, outputs, strict=True):
        scores = []
        for channel in range(4):
            mask = np.asarray(jax.image.resize(output[..., channel], (8, 8), "bilinear"))
            spread = mask.max() - mask.min()
            mask = (mask - mask.min()) / spread if spread else np.zeros_like(mask)
            scores.append(float(classifier((image * mask[..., None])[None])[0, label]))
        shares = np.exp(scores) / np.exp(scores).sum()
        heats.append(output @ shares)
    np.testing.assert_allclose(maps, enlarged(np.stack(heats)), atol=1e-5)


def test_score_cam_survives_a_constant_channel():
    classifier = tiny()
    (variables,) = classifier.args
    dead = jax.tree.map(jnp.zeros_like, variables["params"]["conv"])
    classifier = Partial(classifier.func, {"params": {**variables["params"], "conv": dead}})
    assert float(jnp.abs(attribution.score_cam(classifier, PICTURES)).max()) == 0


class NoGradient(nn.Module):
    @nn.compact
    def __call__(self, images):
        features = Tiny(name="inner")(images)

        @jax.custom_vjp
        def stop(x):
            return x

        def refuse(*_):
            raise AssertionError("a gradient was asked for")

        stop.defvjp(lambda x: (x, None), refuse)
        return stop(features)


@pytest.mark.parametrize("name", ["eigen_cam", "score_cam"])
def test_maps_that_need_no_gradient_take_none(name):
    network = NoGradient()
    classifier = Partial(network.apply, network.init(jax.random.key(0), PICTURES))
    METHODS[name](None, classifier, PICTURES)
    with pytest.raises(AssertionError, match="a gradient was asked for"):
        attribution.grad_cam(classifier, PICTURES)


@pytest.mark.parametrize("name", METHODS)
def test_every_method(name):
    """Shape, type, sign; other weights and images trace nothing; a NaN row spoils no other."""
    network = Tiny(average=False)

    @Counted
    def poisoned(variables, images):
        poison = jnp.where(images[:, :1, :1, :1] > 0.75, jnp.nan, 1.0)
        return network.apply(variables, images * poison)

    traces = poisoned.traces

    key, classifier = jax.random.key(0), tiny(average=False)
    (variables,) = classifier.args
    options = {"patch_size": 4} if name == "occlusion" else {}

    def maps_of(variables, images):
        return METHODS[name](key, Partial(poisoned, variables), images, LABELS, **options)

    maps = maps_of(variables, PICTURES)
    first = len(traces)
    assert maps.shape == (3, 8, 8) and maps.dtype == jnp.float32
    assert bool(jnp.isfinite(maps).all()) and float(jnp.ptp(maps)) > 0
    assert (float(maps.min()) < 0) == METHODS[name].is_signed
    others = maps_of(jax.tree.map(lambda leaf: -leaf, variables), PICTURES[::-1])
    assert not np.allclose(others[::-1], maps)
    spoilt = maps_of(variables, PICTURES.at[1, 0, 0, 0].set(1.0))
    assert bool(jnp.isnan(spoilt[1]).any())
    np.testing.assert_array_equal(spoilt[::2], maps[::2])
    assert len(traces) == first


@pytest.mark.parametrize("name", METHODS)
def test_wrong_input_to_every_method(name):
    key, classifier = jax.random.key(0), tiny()
    with pytest.raises(TypeError, match="divide uint8 images by 255"):
        METHODS[name](key, classifier, jnp.zeros((1, 8, 8, 2), jnp.uint8))
    with pytest.raises(ValueError, match=r"`images` must lie in \[0, 1\]"):
        METHODS[name](key, classifier, PICTURES * 255)
    with pytest.raises(ValueError, match=r"`labels` must lie in 0 .. 2 for 3 classes"):
        METHODS[name](key, classifier, PICTURES, jnp.full(3, 3))
    with pytest.raises(ValueError, match=r"`labels` must have shape \(3,\)"):
        METHODS[name](key, classifier, PICTURES, jnp.zeros(2, int))
    if METHODS[name].needs_layer:
        with pytest.raises(ValueError, match=r"'conv7' is not a layer .* conv \[4, 4, 4\]"):
            METHODS[name](key, classifier, PICTURES, layer="conv7")
        with pytest.raises(ValueError, match="no layer that is a map of one image"):
            METHODS[name](key, sines, PICTURES)


def test_wrong_settings():
    key, classifier = jax.random.key(0), tiny()
    wrong = [
        ("smooth_grad", {"num_samples": 0}, ValueError, "`num_samples` must be at least 1, got 0"),
        ("smooth_grad", {"num_samples": 2.0}, TypeError, "`num_samples` must be an integer"),
        ("smooth_grad", {"noise_std": -0.1}, ValueError, "`noise_std` must be a finite number"),
        ("integrated_gradients", {"num_steps": 0}, ValueError, "`num_steps` must be at least 1"),
        ("integrated_gradients", {"baseline": "black"}, TypeError, "`baseline` .* got 'black'"),
        (
            "integrated_gradients",
            {"baseline": jnp.zeros(3)},
            ValueError,
            r"`baseline` must be a number or broadcast to .* \(3, 8, 8, 2\), got shape \(3,\)",
        ),
        (
            "integrated_gradients",
            {"baseline": 127},
            ValueError,
            r"`baseline` must lie in \[0, 1\], got values in \[127, 127\]",
        ),
        ("occlusion", {"patch_size": 9}, ValueError, "`patch_size` must be at most 8"),
        ("occlusion", {"patch_size": 0}, ValueError, "`patch_size` must be at least 1"),
        ("occlusion", {"patch_size": 2, "stride": 3}, ValueError, "`stride` must be at most .*, 2"),
        ("occlusion", {"fill": -0.5}, ValueError, r"`fill` must lie in \[0, 1\]"),
    ]
    for name, options, error, message in wrong:
        with pytest.raises(error, match=message):
            METHODS[name](key, classifier, PICTURES, **options)


def test_noise_does_not_depend_on_the_batch(images):
    labels = jnp.zeros(3, int)
    options = {"key": jax.random.key(0), "num_samples": 2}
    whole = attribution.smooth_grad(sines, images, labels, **options)
    part = attribution.smooth_grad(sines, images[:2], labels[:2], **options)
    np.testing.assert_allclose(part, whole[:2], rtol=1e-5)
    options["key"] = jax.random.key(1)
    assert not np.allclose(attribution.smooth_grad(sines, images, labels, **options), whole)
    same = attribution.smooth_grad(sines, jnp.stack([images[0]] * 3), labels, **options)
    assert not np.allclose(same[0], same[1])  # noise of its own for each


def test_the_table_of_methods():
    functions = {name for name in METHODS if callable(getattr(attribution, name))}
    assert functions == set(METHODS)
    for name, method in METHODS.items():
        assert method.function is getattr(attribution, name)
        assert method.function.__name__ == name and "Args:" in method.function.__doc__
        assert "References:" in method.function.__doc__


def test_maps_inside_compiled_code(weights, images):
    classifier = Partial(linear, weights)
    compiled = jax.jit(lambda x: attribution.integrated_gradients(classifier, x, num_steps=2))
    expected = attribution.integrated_gradients(classifier, images, num_steps=2)
    np.testing.assert_allclose(compiled(images), expected, atol=1e-6)
