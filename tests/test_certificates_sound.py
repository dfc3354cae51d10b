"""No point of the ball is outside the bounds: of single layers, and of the library's networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bounded_networks import (
    EPSILON,
    IMAGES,
    KEY,
    METHODS,
    convolve,
    corners,
    crown_ibp,
    dense,
    kernel,
    residual,
)
from jax import lax
from small_networks import SMALL

from jaxrobust import models
from jaxrobust.attacks import PGD
from jaxrobust.certificates import ibp_bounds, margin_bounds
from jaxrobust.models import Classifier


def windows(images, function, initial, size=3, stride=2, padding="SAME"):
    shape = (1, size, size, 1)
    return lax.reduce_window(images, initial, function, shape, (1, stride, stride, 1), padding)


NETWORKS = {
    "residual": residual,
    "leaky": lambda x: dense(jnp.maximum(f := convolve(x), 0.2 * f), 3),
    "tanh": lambda x: dense(jnp.tanh(3 * dense(x, 6)), 3),
    "sigmoid": lambda x: dense(jax.nn.sigmoid(4 * dense(x, 6)), 3),
    "swish": lambda x: dense((f := dense(x, 6)) * jax.nn.sigmoid(f), 3),
    "gelu": lambda x: dense(jax.nn.gelu(2 * dense(x, 6), approximate=False), 3),
    "tanh gelu": lambda x: dense(jax.nn.gelu(2 * dense(x, 6)), 3),
    "exp": lambda x: dense(jnp.exp(dense(x, 6)), 3),
    "log": lambda x: dense(jnp.log(1.5 + jnp.tanh(dense(x, 6))), 3),
    "sqrt": lambda x: dense(jnp.sqrt(1 + dense(x, 6) ** 2), 3),
    "square": lambda x: dense(jnp.square(dense(x, 6)), 3),
    "abs": lambda x: dense(jnp.abs(dense(x, 6)), 3),
    "relu6": lambda x: dense(jax.nn.relu6(9 * dense(x, 6)), 3),
    "clip": lambda x: dense(jnp.clip(3 * convolve(x), -0.5, 0.5), 3),
    "min": lambda x: dense(jnp.minimum(f := dense(x, 6), f[:, ::-1]), 3),
    "max pool": lambda x: dense(windows(convolve(x), lax.max, -jnp.inf), 3),
    "average pool": lambda x: dense(jax.nn.relu(windows(convolve(x), lax.add, 0.0) / 9), 3),
    "global max": lambda x: dense(convolve(x, 7).max((1, 2)), 3),
    "channel max": lambda x: dense(convolve(x, 7).max(-1), 3),
    "two branches": lambda x: dense(
        jnp.concatenate([jax.nn.relu(convolve(x)), -convolve(x, 2, seed=3)], axis=-1), 3
    ),
    "split": lambda x: dense(jnp.stack(jnp.split(jax.nn.relu(convolve(x)), 2, -1)).sum(0), 3),
    "log softmax": lambda x: jax.nn.log_softmax(dense(jax.nn.relu(dense(x, 6)), 3)),
    "remat": lambda x: dense(jax.checkpoint(lambda y: jax.nn.relu(convolve(y)))(x), 3),
    "constant": lambda x: jnp.ones((len(x), 3)),
    "einsum": lambda x: dense(jax.nn.relu(jnp.einsum("bhwc,hk->bkwc", x, kernel(4, 5))), 3),
    "gate": lambda x: dense(
        (f := jax.nn.relu(convolve(x))) * jax.nn.sigmoid(f.mean((1, 2), keepdims=True)), 3
    ),
    "above the mean": lambda x: dense(
        jnp.maximum(f := convolve(x), f.mean((1, 2), keepdims=True)), 3
    ),
    "less the mean": lambda x: dense(
        jax.nn.relu((f := convolve(x)) - f.mean((1, 2), keepdims=True)), 3
    ),
    "gather": lambda x: dense(jax.nn.relu(dense(x, 6))[:, np.array([0, 0, 5, 2])], 3),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_no_point_of_the_ball_is_outside(name):
    network = NETWORKS[name]
    check_sound(network, IMAGES, EPSILON)


def check_sound(network, images, epsilon):
    """Samples and what PGD finds are within; linear bounds are nowhere looser than intervals."""
    apply = jax.jit(network)
    logits = np.stack([apply(points) for points in corners(images, epsilon, 100)])
    bounds = {name: method(network, images, epsilon) for name, method in METHODS.items()}
    for lower, upper in bounds.values():
        assert np.isfinite(lower).all() and np.isfinite(upper).all()
        assert (lower <= logits.min(axis=0)).all() and (logits.max(axis=0) <= upper).all()
    for outer, inner in (("ibp", "crown-ibp"), ("ibp", "crown")):
        assert (bounds[inner].lower >= bounds[outer].lower).all()
        assert (bounds[inner].upper <= bounds[outer].upper).all()
    # A gradient follows what bounds say cannot be passed.
    labels = jnp.asarray(np.asarray(apply(images)).argmax(axis=1))
    found = PGD(epsilon, epsilon / 4, num_steps=20)(KEY, network, jnp.asarray(images), labels)
    adversarial = np.asarray(apply(found.images))
    own = adversarial[np.arange(len(labels)), labels][:, None]
    margins = margin_bounds(network, images, labels, epsilon, method="crown", num_rows=32)
    assert (np.where(np.isinf(margins), 0, margins) <= own - adversarial).all()
    return bounds


# Of the others full CROWN takes minutes; what it does to their layers is in `NETWORKS`.
@pytest.mark.parametrize("name", ["mlp", "simple_cnn", "photo_cnn"])
def test_the_librarys_networks(name):
    images = np.random.default_rng(1).uniform(size=(2, 16, 16, 3)).astype(np.float32)
    network = models.create(name, **SMALL[name])
    variables = jax.jit(network.init)(KEY, images)
    classifier = Classifier(network.apply, variables, np.float32([0.4, 0.5, 0.6]), 0.25)
    bounds = check_sound(classifier, images, 0.01)
    # Not merely as tight.
    widths = {method: float((b.upper - b.lower).mean()) for method, b in bounds.items()}
    assert widths["crown"] < 0.8 * widths["ibp"]


@pytest.mark.parametrize(
    "name",
    [
        "cnn",
        "resnet_small",
        "preact_resnet18",
        "vgg19",
        "mobilenet_v1",
        "mobilenet_v2",
        "densenet121",
        "resnet50",
    ],
)
def test_the_other_networks_have_bounds_too(name):
    images = np.random.default_rng(1).uniform(size=(1, 16, 16, 3)).astype(np.float32)
    network = models.create(name, **SMALL[name])
    classifier = Classifier(network.apply, jax.jit(network.init)(KEY, images), 0.5, 0.25)
    apply = jax.jit(lambda c, x: c(x))
    logits = np.stack([apply(classifier, points) for points in corners(images, 1e-3, 20)])
    for method in (ibp_bounds, crown_ibp):
        lower, upper = method(classifier, images, 1e-3)
        assert (lower <= logits.min(axis=0)).all() and (logits.max(axis=0) <= upper).all()
