"""Blur, preprocessing with its gradients, ensembles, expectations; and attacks on all of them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import Counted
from scipy import ndimage

from jaxrobust.attacks import FGSM, PGD
from jaxrobust.defenses import (
    JPEG,
    BitDepth,
    Ensemble,
    Expectation,
    GaussianBlur,
    MedianSmoothing,
    Preprocessed,
    Smoothed,
    confidence_score,
    detection_threshold,
    gaussian_blur,
    jpeg,
    squeezing_score,
)
from jaxrobust.models import Classifier

SHAPE = (6, 8, 8, 3)
# Eager operations compile one by one, so what is measured runs inside jit where it can.
IMAGES = jax.random.uniform(jax.random.key(0), SHAPE, minval=0.2, maxval=0.8)


def linear(variables, images):
    """Two classes, of which the second wins where w.x + b is positive."""
    margin = images.reshape(len(images), -1) @ variables["w"] + variables["b"]
    return jnp.stack([-margin / 2, margin / 2], axis=1)


def linear_classifier(seed: int = 0) -> Classifier:
    """Smooth weights: noise, blur and JPEG leave what they look at."""
    w = jax.random.normal(jax.random.key(seed), (1, 2, 2, 3))
    w = jax.image.resize(w, (1, *SHAPE[1:]), "bilinear").ravel()
    return Classifier(linear, {"w": w, "b": -jnp.median(IMAGES.reshape(len(IMAGES), -1) @ w)})


def two_layers(variables, images):
    hidden = jnp.tanh(images.reshape(len(images), -1) @ variables["first"])
    return hidden @ variables["second"]


def network(seed: int = 0) -> Classifier:
    first, second = jax.random.split(jax.random.key(seed))
    size = SHAPE[1] * SHAPE[2] * SHAPE[3]
    variables = {
        "first": jax.random.normal(first, (size, 5)) / 8,
        "second": jax.random.normal(second, (5, 4)),
    }
    return Classifier(two_layers, variables)


NETWORK = network()


def gradient_of(logits_fn, images=IMAGES):
    return jax.jit(jax.grad(lambda x: logits_fn(x)[:, 1].sum()))(images)


# Blur


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.3])
def test_blur_is_scipys(sigma):
    images = jax.random.uniform(jax.random.key(1), (2, 5, 9, 2))  # narrower than the kernel
    expected = ndimage.gaussian_filter(
        np.asarray(images, np.float64), (0, sigma, sigma, 0), mode="nearest", truncate=3.0
    )
    np.testing.assert_allclose(gaussian_blur(images, sigma), expected, atol=2e-6)


def test_blur_of_sigma_zero_is_the_identity():
    np.testing.assert_array_equal(gaussian_blur(IMAGES, 0.0), IMAGES)


def test_a_smaller_sigma_blurs_exactly_in_the_same_program():
    blur = jax.jit(lambda blur, x: blur(x))
    wide = GaussianBlur(2.0)
    blur(wide, IMAGES)
    for sigma in (0.0, 0.7, 1.3):
        narrow = dataclasses.replace(wide, sigma=sigma)
        np.testing.assert_allclose(
            blur(narrow, IMAGES), gaussian_blur(IMAGES, sigma), rtol=0, atol=1e-6
        )
    assert blur._cache_size() == 1
    with pytest.raises(ValueError, match="`radius` must be at least 9 for a `sigma` of 3, got 6"):
        dataclasses.replace(wide, sigma=3.0)
    with pytest.raises(ValueError, match="`radius`, in pixels, must not be None"):
        jax.jit(gaussian_blur)(IMAGES, 1.0)


def test_a_traced_sigma_that_does_not_fit_is_nan_and_no_weaker_blur():
    blur = jax.jit(lambda sigma: gaussian_blur(IMAGES, sigma, radius=3))
    # Up to 3 * sigma = 3.5, which rounds to 4.
    np.testing.assert_allclose(blur(1.166), gaussian_blur(IMAGES, 1.166), atol=1e-6)
    for sigma in (1.17, 5.0, -0.1, jnp.nan):
        assert np.isnan(blur(sigma)).all()
    many = jax.vmap(lambda sigma: gaussian_blur(IMAGES, sigma, radius=3))(jnp.array([0.7, 2.0]))
    np.testing.assert_allclose(many[0], gaussian_blur(IMAGES, 0.7), atol=1e-6)
    assert np.isnan(many[1]).all()


def test_whatever_radius_a_known_sigma_needs_fits():
    """Around the ties, where compiled code could round otherwise than the host."""
    ties = (np.arange(1, 7, dtype=np.float32) - np.float32(0.5)) / np.float32(3)
    for sigma in np.concatenate([ties, np.nextafter(ties, 0), np.nextafter(ties, 99)]):
        reach = GaussianBlur(sigma).radius
        image = jnp.ones((1, 1, 1, 1))
        np.testing.assert_allclose(blurred_to(image, sigma, radius=reach), 1.0, rtol=1e-5)


@functools.partial(jax.jit, static_argnames="radius")
def blurred_to(images, sigma, radius):
    return gaussian_blur(images, sigma, radius=radius)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["known", "traced"])
def test_sigma_is_a_scalar(transform):
    blur = transform(lambda sigma: gaussian_blur(IMAGES, sigma, radius=3))
    with pytest.raises(ValueError, match=r"`sigma` must be a scalar, got shape \(3,\)"):
        blur(jnp.ones(3))


def test_blur_is_differentiable_by_sigma():
    def spread(sigma):
        return gaussian_blur(IMAGES, sigma, radius=4).std()

    expected = (spread(1.05) - spread(0.95)) / 0.1
    np.testing.assert_allclose(jax.grad(spread)(1.0), expected, rtol=0.02)


# Preprocessed


def test_forward_is_exact():
    for backward in ("identity", "true"):
        for preprocess in (JPEG(50), GaussianBlur(1.0), lambda x: jnp.round(4 * x) / 4):
            defended = Preprocessed(NETWORK, preprocess, backward)
            np.testing.assert_array_equal(defended(IMAGES), NETWORK(preprocess(IMAGES)))


@pytest.mark.parametrize("preprocess", [JPEG(50), GaussianBlur(1.0), jnp.round])
def test_identity_gradient_is_that_of_the_undefended_at_the_preprocessed_point(preprocess):
    found = gradient_of(Preprocessed(NETWORK, preprocess))
    np.testing.assert_allclose(found, gradient_of(NETWORK, preprocess(IMAGES)), atol=1e-6)


def test_true_gradient_of_a_blur_is_the_blurred_gradient():
    weights = jnp.zeros(SHAPE[1:]).at[4, 4, 1].set(1.0)
    fn = Preprocessed(
        lambda x: jnp.stack([x[:, 0, 0, 0], (x * weights).sum((1, 2, 3))], axis=1),
        GaussianBlur(0.6),
        backward="true",
    )
    # The kernel is symmetric, so the blur is its own transpose away from the edges.
    expected = jnp.broadcast_to(gaussian_blur(weights[None], 0.6), SHAPE)
    np.testing.assert_allclose(gradient_of(fn), expected, atol=1e-6)


def test_jpeg_is_masked_only_where_rounding_is():
    masked = Preprocessed(NETWORK, lambda x: jpeg(x, 75, rounding="exact"), backward="true")
    np.testing.assert_array_equal(gradient_of(masked), 0.0)
    through = gradient_of(Preprocessed(NETWORK, JPEG(75), backward="true"))
    assert float(jnp.abs(through).max()) > 0.01
    identity = gradient_of(Preprocessed(NETWORK, JPEG(75)))
    assert not np.allclose(through, identity, atol=1e-3)


def test_preprocessed_refuses():
    with pytest.raises(ValueError, match="`backward` must be one of"):
        Preprocessed(NETWORK, JPEG(), "straight")
    with pytest.raises(TypeError, match="`preprocess` must be callable"):
        Preprocessed(NETWORK, 75)
    with pytest.raises(TypeError, match="`logits_fn` must be callable"):
        Preprocessed(None, JPEG())
    with pytest.raises(ValueError, match="must keep the shape of the images"):
        Preprocessed(NETWORK, lambda x: x[:, ::2])(IMAGES)


# Averages


def test_ensemble_of_probabilities_is_their_mean():
    members = [network(0), network(1), network(2)]
    logits = Ensemble(tuple(members))(IMAGES)
    mean = np.mean([jax.nn.softmax(member(IMAGES)) for member in members], axis=0)
    np.testing.assert_allclose(jax.nn.softmax(logits), mean, atol=1e-6)
    np.testing.assert_allclose(logits, np.log(mean), atol=1e-5)


def test_ensemble_of_logits_is_their_mean():
    logits = Ensemble((network(0), network(1)), average="logits")(IMAGES)
    np.testing.assert_allclose(logits, (network(0)(IMAGES) + network(1)(IMAGES)) / 2, atol=1e-6)


def test_the_two_averages_differ():
    """A member that is sure outvotes in logits and does not in probabilities."""
    sure, unsure = (lambda x: jnp.array([[0.0, 50.0, 0.0]])), (lambda x: jnp.array([[60.0, 0, 0]]))
    three = (sure, sure, unsure)
    image = jnp.zeros((1, 2, 2, 1))
    assert Ensemble(three)(image).argmax() == 1
    np.testing.assert_allclose(Ensemble(three)(image)[0, :2], np.log([1 / 3, 2 / 3]), atol=1e-5)
    four = (unsure, unsure, sure)
    assert Ensemble(four, "logits")(image).argmax() == 0


def test_ensemble_survives_extreme_logits():
    far = Ensemble((lambda x: jnp.array([[1e4, -1e4]]), lambda x: jnp.array([[1e4, 0.0]])))
    np.testing.assert_allclose(far(jnp.zeros((1, 1, 1, 1))), [[0.0, -1e4 - np.log(2)]], rtol=1e-5)


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_a_nan_row_of_a_member_spoils_no_other_row(average):
    broken = lambda x: network(1)(x).at[2, 0].set(jnp.nan)  # noqa: E731
    ensemble = Ensemble((network(0), broken), average)
    bad = np.isnan(ensemble(IMAGES)).any(axis=1)
    np.testing.assert_array_equal(bad, np.arange(len(IMAGES)) == 2)


def test_ensemble_refuses():
    with pytest.raises(ValueError, match="at least one"):
        Ensemble(())
    with pytest.raises(
        TypeError, match="`logits_fns` must be a sequence of functions, got Classif"
    ):
        Ensemble(network())
    with pytest.raises(TypeError, match="`logits_fn` must be callable"):
        Ensemble((network(), 3))
    with pytest.raises(ValueError, match="`average` must be one of"):
        Ensemble((network(),), "votes")
    with pytest.raises(ValueError, match="must all return the same shape"):
        Ensemble((network(), linear_classifier()))(IMAGES)


def shifted(key, images):
    """A network behind a random shift of brightness."""
    return NETWORK(images + 0.3 * jax.random.normal(key))


@pytest.mark.parametrize(("average", "chunk_size"), [("probabilities", 1), ("logits", 2)])
def test_expectation_is_the_mean_over_its_keys(average, chunk_size):
    key, count = jax.random.key(5), 3  # 2 does not divide 3
    draw = jax.jit(lambda s: 0.3 * jax.random.normal(jax.random.fold_in(key, s)))
    members = [lambda x, shift=shift: NETWORK(x + shift) for shift in map(draw, range(count))]
    expected = Ensemble(tuple(members), average)
    found = Expectation(shifted, key, count, average, chunk_size)
    np.testing.assert_allclose(found(IMAGES), jax.jit(expected)(IMAGES), atol=1e-5)
    np.testing.assert_allclose(gradient_of(found), gradient_of(expected), atol=1e-5)


def test_expectation_keeps_no_activations_of_all_draws():
    """The temporary memory of its gradient grows with the draws by less than a draw's activations."""
    first, second = jnp.ones((192, 512)), jnp.ones((512, 2))

    def wide(key, x):
        x = x.reshape(len(x), -1) + jax.random.normal(key)
        return jnp.tanh(x @ first) @ second

    def temporary(count):
        fn = Expectation(wide, jax.random.key(0), count)
        compiled = jax.jit(lambda x: gradient_of(fn, x)).lower(jnp.ones((64, 8, 8, 3))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    activations = 64 * 512 * 4
    assert temporary(36) - temporary(4) < 32 * activations / 4


def test_expectation_refuses():
    with pytest.raises(TypeError, match="`stochastic_fn` must be callable"):
        Expectation(3, jax.random.key(0), 4)
    with pytest.raises(ValueError, match="`num_samples` must be at least 1"):
        Expectation(shifted, jax.random.key(0), 0)


# Attacks


DEFENCES = {
    "jpeg": lambda c: Preprocessed(c, JPEG(90)),
    "blur": lambda c: Preprocessed(c, GaussianBlur(0.8), backward="true"),
    "depth": lambda c: Preprocessed(c, BitDepth(5)),
    "median": lambda c: Preprocessed(c, MedianSmoothing(3), backward="true"),
    "ensemble": lambda c: Ensemble((c, Preprocessed(c, GaussianBlur(0.5)))),
    "smoothed": lambda c: Smoothed(c, 0.1, 3, jax.random.key(3)),
    "expectation": lambda c: Expectation(
        lambda key, x: c(x + 0.1 * jax.random.normal(key)), jax.random.key(3), 5
    ),
}


@pytest.mark.parametrize("name", DEFENCES)
def test_a_defence_of_a_linear_model_is_no_defence_against_who_knows_it(name):
    """Each of these keeps a smooth linear model near itself, so the attack should win as often."""
    classifier = linear_classifier()
    defended = DEFENCES[name](classifier)
    attack = PGD(0.1, 0.02, 8, random_start=False, keep="last")
    rates = []
    for fn in (classifier, defended):
        labels = jax.jit(fn)(IMAGES).argmax(axis=1)
        result = attack(jax.random.key(1), fn, IMAGES, labels)
        after = jax.jit(fn)(result.images).argmax(axis=1)
        np.testing.assert_array_equal(result.success, after != labels)
        rates.append(float(result.success.mean()))
    assert rates == [1.0, 1.0]


def test_masking_stops_the_naive_gradient_and_bpda_does_not():
    classifier = linear_classifier()
    codec = JPEG(90, rounding="exact")
    masked = Preprocessed(classifier, codec, backward="true")
    known = Preprocessed(classifier, codec)
    labels = known(IMAGES).argmax(axis=1)
    attack = FGSM(0.1)
    assert not attack(jax.random.key(0), masked, IMAGES, labels).success.any()
    assert attack(jax.random.key(0), known, IMAGES, labels).success.all()


@pytest.mark.parametrize("name", ["jpeg", "smoothed"])
def test_other_weights_compile_nothing_anew(name):
    @Counted
    def apply_fn(variables, images):
        return two_layers(variables, images)

    traces = apply_fn.traces

    def attack(seed, epsilon):
        classifier = dataclasses.replace(network(seed), apply_fn=apply_fn)
        labels = jnp.zeros(len(IMAGES), jnp.int32)
        return FGSM(epsilon)(jax.random.key(0), DEFENCES[name](classifier), IMAGES, labels)

    first = attack(0, 0.1)
    count = len(traces)
    assert count > 0
    second = attack(1, 0.2)
    assert len(traces) == count
    assert not np.array_equal(first.images, second.images)


# Detection


@pytest.mark.parametrize("size", [1, 2, 3])
def test_median_is_scipys(size):
    images = jax.random.uniform(jax.random.key(1), (2, 5, 9, 2))
    expected = ndimage.median_filter(np.asarray(images), (1, size, size, 1), mode="reflect")
    np.testing.assert_array_equal(MedianSmoothing(size)(images), expected)


def test_depth_keeps_as_many_levels_as_its_bits_allow():
    pixels = jnp.linspace(0, 1, 1000).reshape(1, 10, 100, 1)
    assert len(np.unique(BitDepth(3)(pixels))) == 8
    assert float(jnp.abs(BitDepth(3)(pixels) - pixels).max()) <= 0.5 / 7 + 1e-6
    with pytest.raises(ValueError, match="`bits` must be at least 1, got 0"):
        BitDepth(0)
    with pytest.raises(ValueError, match="`bits` must be a finite number at most 16, got 40"):
        BitDepth(40)
    with pytest.raises(ValueError, match="`size` must be at least 1, got 0"):
        MedianSmoothing(0)


def test_scores_are_those_of_the_papers():
    one, two, three = np.random.default_rng(0).normal(size=(3, 6, 4))
    p, q, r = (np.exp(each) / np.exp(each).sum(1, keepdims=True) for each in (one, two, three))
    expected = np.maximum(np.abs(p - q).sum(1), np.abs(p - r).sum(1))
    np.testing.assert_allclose(squeezing_score(one, two, three), expected, rtol=1e-5)
    np.testing.assert_allclose(confidence_score(jnp.asarray(one)), 1 - p.max(1), rtol=1e-5)
    for given in ((one,), (one, two[:5]), (one[0], two[0])):
        with pytest.raises(ValueError, match=r"must have the same shape \[B, K\], got"):
            squeezing_score(*given)


@pytest.mark.parametrize("count, rate, above", [(100, 0.05, 5), (319, 0.05, 15), (10, 0.05, 0)])
def test_no_more_clean_images_than_asked_are_above_the_threshold(count, rate, above):
    scores = np.random.default_rng(0).permutation(count) / 100
    threshold = detection_threshold(scores, rate)
    assert (scores > threshold).sum() == above
    assert detection_threshold(np.zeros(7), rate) == 0  # equal scores are not above


@pytest.mark.parametrize(
    "scores, got",
    [
        ([], r"shape \(0,\)"),
        ([[1.0]], r"shape \(1, 1\)"),
        (0.5, r"shape \(\)"),
        ([1.0, np.nan], "nan at 1"),
        ([-np.inf, 1.0], "-inf at 0"),
    ],
)
def test_a_threshold_needs_finite_scores(scores, got):
    message = rf"`clean_scores` must be one or more finite numbers \[N\], got {got}\."
    with pytest.raises(ValueError, match=message):
        detection_threshold(scores)


def test_confidence_is_of_a_batch():
    with pytest.raises(ValueError, match=r"`logits` must be \[B, K\], got shape \(3,\)"):
        confidence_score(jnp.zeros(3))
