"""Saliency and Grad-CAM against closed forms, and on layers by path."""

import warnings

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
        features = Active(name="relu")(nn.Conv(4, (3, 3), name="conv")(images))
        return nn.Dense(3, use_bias=False, name="head")(features.mean((1, 2)))


class Active(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return nn.relu(inputs)


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


def test_maps_that_are_zero_everywhere_are_warned_about(tiny):
    """A logit that falls with every activation has no positive part."""
    network, variables, images = tiny
    params = variables["params"] | {"head": {"kernel": -jnp.ones((4, 3))}}
    classifier = Classifier(network.apply, {"params": params})
    labels = jnp.zeros(len(images), int)
    with pytest.warns(UserWarning, match="5 of 5 maps of `grad_cam` are zero .* `layer_cam`"):
        maps = attribution.grad_cam(classifier, images, labels, layer="relu")
    assert not maps.any()
    # Under a transformation nobody can look, and nothing is said.
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*zero everywhere")
        jax.jit(lambda x: attribution.grad_cam(classifier, x, labels, layer="relu"))(images)
        attribution.grad_cam(Classifier(network.apply, variables), images, layer="relu")


def test_maps_do_not_depend_on_the_batch(tiny):
    network, variables, images = tiny
    classifier = Classifier(network.apply, variables)
    for function in (attribution.saliency, attribution.grad_cam):
        whole, part = function(classifier, images), function(classifier, images[:2])
        np.testing.assert_allclose(part, whole[:2], atol=1e-6)


def test_layers_are_listed_in_order(tiny):
    network, variables, _ = tiny
    classifier = Classifier(network.apply, variables)
    found = attribution.layers(classifier, jax.ShapeDtypeStruct((1, 6, 6, 2), jnp.float32))
    shapes = [(layer.name, layer.shape) for layer in found if "images" not in layer.name]
    assert shapes[-3:] == [("conv", (6, 6, 4)), ("relu", (6, 6, 4)), ("head", (3,))]
    assert [line.split(maxsplit=2) for line in str(found).splitlines()[-2:]] == [
        ["relu", "float32[6,6,4]", "6 x 6 (default)"],
        ["head", "float32[3]", "no: its entries have no positions of their own"],
    ]


def test_wrong_layers(tiny):
    network, variables, images = tiny
    classifier = Classifier(network.apply, variables)
    with pytest.raises(
        ValueError, match=r"'conv7' is not a layer of the network; .* conv \[6, 6, 4\]"
    ):
        attribution.grad_cam(classifier, images, layer="conv7")
    with pytest.raises(
        ValueError, match=r"'head' has the output \[3\], which is not a map of one image"
    ):
        attribution.grad_cam(classifier, images, layer="head")
    mlp = models.create("mlp", widths=(8,))
    mlp_classifier = Classifier(mlp.apply, mlp.init(jax.random.key(0), images))
    with pytest.raises(TypeError, match="`layer` must be the name of a layer or None, got int"):
        attribution.grad_cam(classifier, images, layer=0)
    with pytest.raises(ValueError, match="no layer that is a map of one image, .* block_0/dense"):
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
    """It is seen at its last call, whose mean the logits are: the gradient is that of a mean."""
    images = tiny[2]
    network = Twice()
    classifier = Classifier(network.apply, network.init(jax.random.key(0), images))
    labels = jnp.zeros(5, int)
    once = nn.Conv(2, (3, 3))
    outputs = once.apply({"params": classifier.variables["params"]["conv"]}, images)
    outputs = once.apply({"params": classifier.variables["params"]["conv"]}, outputs)
    found = attribution.grad_cam(classifier, images, labels, layer="conv")
    np.testing.assert_allclose(found, jax.nn.relu(outputs[..., 0]) / 36, atol=1e-6)


def test_default_layer_can_be_asked_for(tiny):
    network, variables, _ = tiny
    classifier = Classifier(network.apply, variables)
    images = jax.ShapeDtypeStruct((7, 6, 6, 2), jnp.float32)
    assert attribution.layers(classifier, images).default == "relu"
    assert attribution.layers(lambda x: x.mean((1, 2)), images).default is None
    with pytest.raises(TypeError, match="`images` must be an array or .* got tuple"):
        attribution.layers(classifier, (6, 6, 2))
    with pytest.raises(ValueError, match=r"`images` must be .* got \(6, 6, 2\)"):
        attribution.layers(classifier, jnp.ones((6, 6, 2)))


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
