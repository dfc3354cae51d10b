"""Saliency and Grad-CAM against closed forms, and on layers by path."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import Counted

from jaxrobust import attribution, models
from jaxrobust.models import Classifier


def linear(weights):
    """Logits of a linear classifier with weights [K, H, W, C]."""
    return lambda images: jnp.einsum("bhwc,khwc->bk", images, weights)


def test_saliency_of_a_linear_classifier_is_its_weights():
    weights = jax.random.normal(jax.random.key(0), (3, 4, 5, 2))
    images = jax.random.uniform(jax.random.key(1), (6, 4, 5, 2))
    labels = jnp.array([0, 1, 2, 0, 1, 2])
    maps = attribution.saliency(linear(weights), images, labels)
    np.testing.assert_allclose(maps, jnp.abs(weights).max(-1)[labels], rtol=1e-6)
    predicted = jnp.argmax(linear(weights)(images), axis=1)
    by_default = attribution.saliency(linear(weights), images)
    np.testing.assert_allclose(by_default, jnp.abs(weights).max(-1)[predicted], rtol=1e-6)


class Tiny(nn.Module):
    """One convolution, ReLU as a layer, global average, dense: Grad-CAM has a closed form."""

    @nn.compact
    def __call__(self, images, train=False):
        features = nn.relu(nn.Conv(4, (3, 3), name="conv")(images))
        features = Same(name="relu")(features)
        return nn.Dense(3, use_bias=False, name="head")(features.mean((1, 2)))


class Same(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return inputs


@pytest.fixture(scope="module")
def tiny():
    images = jax.random.uniform(jax.random.key(1), (5, 6, 6, 2))
    network = Tiny()
    return network, network.init(jax.random.key(0), images), images


def test_grad_cam_behind_a_global_average_is_cam(tiny):
    """There the gradient is the head's weight over the number of positions (Selvaraju, section 3)."""
    network, variables, images = tiny
    labels = jnp.array([0, 1, 2, 0, 1])
    classifier = Classifier(network.apply, variables)
    maps = attribution.grad_cam(classifier, images, labels, layer="relu")
    _, state = network.apply(variables, images, capture_intermediates=True)
    activations = state["intermediates"]["relu"]["__call__"][0]
    weights = variables["params"]["head"]["kernel"].T[labels] / 36
    expected = jax.nn.relu(jnp.einsum("bhwc,bc->bhw", activations, weights))
    np.testing.assert_allclose(maps, expected, atol=1e-6)


def test_grad_cam_takes_a_plain_function_and_defaults(tiny):
    network, variables, images = tiny
    maps = attribution.grad_cam(lambda x: network.apply(variables, x), images)
    predicted = jnp.argmax(network.apply(variables, images), axis=1)
    classifier = Classifier(network.apply, variables)
    last = attribution.grad_cam(classifier, images, predicted, layer="relu")
    np.testing.assert_allclose(maps, last, atol=1e-6)


def test_grad_cam_enlarges_to_the_image_and_is_not_negative():
    network = models.create("resnet_small", widths=(8, 8, 16))
    images = jax.random.uniform(jax.random.key(1), (3, 16, 16, 3))
    classifier = Classifier(network.apply, network.init(jax.random.key(0), images))
    for layer in ("stem", "stage_1_block_0", "stage_2_block_1/conv_0"):
        maps = attribution.grad_cam(classifier, images, layer=layer)
        assert maps.shape == (3, 16, 16)
        assert float(maps.min()) >= 0
    assert float(maps.max()) > 0


def test_maps_do_not_depend_on_the_batch(tiny):
    network, variables, images = tiny
    classifier = Classifier(network.apply, variables)
    for function in (attribution.saliency, attribution.grad_cam):
        whole, part = function(classifier, images), function(classifier, images[:2])
        np.testing.assert_allclose(part, whole[:2], atol=1e-6)


def test_layers_are_listed_in_order(tiny):
    network, variables, _ = tiny
    classifier = Classifier(network.apply, variables)
    shapes = attribution.layer_shapes(classifier, (6, 6, 2))
    assert list(shapes.items()) == [("conv", (6, 6, 4)), ("relu", (6, 6, 4)), ("head", (3,))]


def test_wrong_layers(tiny):
    network, variables, images = tiny
    classifier = Classifier(network.apply, variables)
    with pytest.raises(
        ValueError, match=r"'conv7' is no layer of the network; .* conv \[6, 6, 4\]"
    ):
        attribution.grad_cam(classifier, images, layer="conv7")
    with pytest.raises(ValueError, match=r"'head' has no output of \[H, W, C\]"):
        attribution.grad_cam(classifier, images, layer="head")
    mlp = models.create("mlp", widths=(8,))
    mlp_classifier = Classifier(mlp.apply, mlp.init(jax.random.key(0), images))
    with pytest.raises(ValueError, match="no layer with an output of .* block_0/dense"):
        attribution.grad_cam(mlp_classifier, images)


def test_a_network_that_is_already_compiled(tiny):
    network, variables, images = tiny
    expected = attribution.grad_cam(Classifier(network.apply, variables), images)
    compiled = jax.jit(lambda x: network.apply(variables, x))
    compiled(images[:1])  # jax now has it in its cache
    np.testing.assert_allclose(attribution.grad_cam(compiled, images), expected, atol=1e-6)


class Twice(nn.Module):
    @nn.compact
    def __call__(self, images):
        layer = nn.Conv(2, (3, 3), name="conv")
        return layer(layer(images)).mean((1, 2))


def test_a_layer_that_is_called_twice(tiny):
    images = tiny[2]
    network = Twice()
    classifier = Classifier(network.apply, network.init(jax.random.key(0), images))
    with pytest.raises(ValueError, match="'conv' is called 2 times"):
        attribution.grad_cam(classifier, images, layer="conv")


def test_default_layer_can_be_asked_for(tiny):
    network, variables, _ = tiny
    classifier = Classifier(network.apply, variables)
    assert attribution.default_layer(classifier, (6, 6, 2)) == "relu"
    assert attribution.default_layer(lambda x: x.mean((1, 2)), (6, 6, 2)) is None


def test_wrong_input(tiny):
    network, variables, images = tiny
    classifier = Classifier(network.apply, variables)
    with pytest.raises(TypeError, match="divide uint8 images by 255"):
        attribution.saliency(classifier, jnp.zeros((1, 6, 6, 2), jnp.uint8))
    with pytest.raises(ValueError, match=r"`labels` must have shape \(5,\)"):
        attribution.saliency(classifier, images, jnp.zeros(3, int))
    for function in (attribution.saliency, attribution.grad_cam):
        with pytest.raises(ValueError, match=r"`labels` must lie in 0 .. 2 for 3 classes"):
            function(classifier, images, jnp.full(5, 3))
        with pytest.raises(ValueError, match=r"`images` must lie in \[0, 1\]"):
            function(classifier, images * 255)


def test_other_weights_compile_nothing(tiny):
    network, variables, images = tiny

    @Counted
    def counted(variables, x):
        return network.apply(variables, x)

    traces = counted.traces

    for function in (attribution.saliency, attribution.grad_cam):
        function(Classifier(counted, variables), images)
        first = len(traces)
        function(Classifier(counted, jax.tree.map(lambda leaf: 2 * leaf, variables)), images)
        assert len(traces) == first
