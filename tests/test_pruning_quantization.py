"""Int8 kernels: error bounds, zeros, straight-through gradients, and the reference network."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxrobust import compilation, losses, pruning
from jaxrobust.models import Classifier
from jaxrobust.pruning import QuantizedKernel

FLOATS = st.floats(-100, 100, width=32) | st.sampled_from([0.0, -0.0, 1e-45, 1e-39, -3e38, 1e30])
KERNELS = hnp.arrays(np.float32, (2, 3, 4), elements=FLOATS)


@settings(max_examples=80, deadline=None)
@given(KERNELS)
def test_error_is_at_most_half_a_step_and_zeros_stay(kernel):
    quantized = pruning.quantize({"kernel": kernel})["kernel"]
    values, scale = np.asarray(quantized.values), np.asarray(quantized.scale, np.float64)
    assert values.dtype == np.int8 and values.shape == (2, 3, 4) and scale.shape == (4,)
    assert np.all(scale > 0) and np.all(np.abs(values.astype(int)) <= 127)
    error = np.abs(values * scale - kernel.astype(np.float64))
    assert np.all(error <= scale / 2 * (1 + 1e-5))
    assert np.all(values[kernel == 0] == 0)
    largest = np.abs(kernel).max((0, 1))
    ordinary = largest > 1e-30
    np.testing.assert_array_equal(np.abs(values.astype(int)).max((0, 1))[ordinary], 127)
    np.testing.assert_allclose(scale[ordinary], largest[ordinary] / 127, rtol=1e-6)
    np.testing.assert_array_equal(scale[largest == 0], 1.0)
    restored = pruning.dequantize({"kernel": quantized})["kernel"]
    assert restored.dtype == jnp.float32
    np.testing.assert_allclose(restored, values * scale, rtol=1e-6)


def test_halves_round_to_even():
    kernel = jnp.array([[127.0], [0.5], [1.5], [2.5], [-0.5], [-1.5]])
    quantized = pruning.quantize({"kernel": kernel})["kernel"]
    assert quantized.values.ravel().tolist() == [127, 0, 2, 2, 0, -2]
    assert pruning.fake_quantize(kernel).ravel().tolist() == [127, 0, 2, 2, 0, -2]


def test_quantizing_again_changes_nothing():
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 4, 5))
    once = pruning.quantize({"kernel": kernel})
    twice = pruning.quantize(pruning.dequantize(once))
    np.testing.assert_array_equal(once["kernel"].values, twice["kernel"].values)


def test_only_kernels_are_quantized():
    params = {
        "conv": {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)},
        "bn": {"scale": jnp.full(4, 1.1), "kernel": jnp.ones(4)},
    }
    quantized = pruning.quantize(params)
    assert isinstance(quantized["conv"]["kernel"], QuantizedKernel)
    assert quantized["conv"]["bias"] is params["conv"]["bias"]
    assert quantized["bn"] == params["bn"]
    assert jax.tree.structure(pruning.dequantize(quantized)) == jax.tree.structure(params)


def test_masks_survive_and_counts_see_quantized_kernels():
    params = {
        "head": {"kernel": jax.random.normal(jax.random.key(0), (20, 10)), "bias": jnp.ones(3)}
    }
    masks = pruning.global_magnitude(params, 0.7)
    quantized = pruning.quantize(pruning.apply_masks(params, masks))
    assert not np.any(quantized["head"]["kernel"].values[~masks["head"]["kernel"]])
    assert pruning.layer_sparsity(quantized)["head/kernel"]["size"] == 200
    assert pruning.sparsity_of(quantized) >= 0.7  # small weights may be rounded to 0
    assert pruning.parameter_counts(quantized)["size"] == 203
    # With masks of either structure, counts are those of the masks.
    expected = pruning.layer_sparsity(params, masks)
    assert expected["head/kernel"] == {"size": 200, "kept": 60, "sparsity": 0.7}
    assert pruning.layer_sparsity(quantized, masks) == expected
    everything = pruning.layer_sparsity(quantized, pruning.keep_all(quantized))
    assert everything["head/kernel"]["kept"] == 200
    with pytest.raises(ValueError, match="`masks` must have the shapes"):
        pruning.layer_sparsity(quantized, {"head": {**masks["head"], "kernel": jnp.array([True])}})


def test_errors():
    with pytest.raises(ValueError, match="must have kernels to quantise"):
        pruning.quantize({"bias": jnp.ones(3)})
    with pytest.raises(ValueError, match="may be quantised already"):
        pruning.quantize(pruning.quantize({"kernel": jnp.ones((2, 2))}))
    for bad in (jnp.nan, jnp.inf):
        with pytest.raises(ValueError, match="NaN or infinite weights at a/kernel"):
            pruning.quantize({"a": {"kernel": jnp.full((2, 2), bad)}})
    with pytest.raises(TypeError, match="floating point, got int32"):
        pruning.quantize({"kernel": jnp.ones((2, 2), jnp.int32)})
    with pytest.raises(TypeError, match="`kernel` must be floating point"):
        pruning.fake_quantize(jnp.ones((2, 2), jnp.int32))


def test_fake_quantization_is_the_real_one_with_the_gradient_of_the_identity():
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 4, 5)).at[..., 2].set(0.0)
    restored = pruning.dequantize(pruning.quantize({"kernel": kernel}))["kernel"]
    np.testing.assert_allclose(pruning.fake_quantize(kernel), restored, rtol=1e-6)
    weights = jax.random.normal(jax.random.key(1), kernel.shape)

    def weighted(k):
        return jnp.sum(weights * pruning.fake_quantize(k))

    # Of a weighted sum the gradient is the weights, also at the largest, which sets the scale.
    np.testing.assert_allclose(jax.grad(weighted)(kernel), weights, rtol=1e-6)
    _, tangent = jax.jvp(weighted, (kernel,), (jnp.ones_like(kernel),))
    np.testing.assert_allclose(tangent, weights.sum(), rtol=1e-4)
    half = pruning.fake_quantize(kernel.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16


def test_a_classifier_in_int8_shares_compiled_code_and_keeps_int8():
    traces = []

    def dense(variables, images):
        traces.append(1)
        return images.reshape(len(images), -1) @ variables["kernel"]

    logits = compilation.jit(lambda classifier, images: classifier(images))
    images = jax.random.uniform(jax.random.key(0), (2, 2, 2, 1))
    for seed in (1, 2):
        variables = {"kernel": jax.random.normal(jax.random.key(seed), (4, 3))}
        quantized = pruning.quantize(variables)
        classifier = Classifier(dense, quantized)
        expected = images.reshape(2, 4) @ pruning.dequantize(quantized)["kernel"]
        np.testing.assert_allclose(logits(classifier, images), expected, rtol=1e-4, atol=1e-5)
    assert len(traces) == 1
    assert jax.tree.leaves(classifier.variables)[0].dtype == jnp.int8
    compiled = jax.jit(pruning.quantize)(variables)
    np.testing.assert_array_equal(compiled["kernel"].values, quantized["kernel"].values)


def test_reference_network_in_int8(reference, reference_classifier):
    variables = pruning.quantize(reference_classifier.variables)
    classifier = dataclasses.replace(reference_classifier, variables=variables)
    images, labels = jnp.float32(reference["images"]) / 255, jnp.asarray(reference["labels"])

    @compilation.jit
    def evaluate(classifier, images):
        def loss(images):
            logits = classifier(images)
            return jnp.sum(jax.vmap(losses.cross_entropy)(logits, labels)), logits

        return jax.grad(loss, has_aux=True)(images)

    gradient, logits = evaluate(classifier, images)
    right = int((jnp.argmax(logits, -1) == labels).sum())
    assert abs(right - 41) <= 1
    # What attacks need: a gradient by every image, nearly that of the float network.
    float_gradient, _ = evaluate(reference_classifier, images)
    cosine = jax.vmap(lambda a, b: jnp.vdot(a, b) / jnp.linalg.norm(a) / jnp.linalg.norm(b))(
        gradient.reshape(50, -1), float_gradient.reshape(50, -1)
    )
    assert float(jnp.median(cosine)) > 0.95
