"""Networks of every kind that are saved, and the functions that build them anew, for tests."""

import dataclasses
import functools
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrobust import models, pruning

HERE = "saved_networks"
IMAGES = np.random.default_rng(0).uniform(size=(3, 16, 16, 3)).astype(np.float32)
NAMES = ("é", "b", "", "b")
MEAN, STD = np.float32([0.1, 0.2, 0.7]), np.float32([0.3, 1 / 3, 0.5])


class Net(nn.Module):
    """A network of a user's own."""

    num_classes: int = 4
    widths: tuple[int, ...] = (6, 7)
    activation: Any = nn.relu
    kind: Any = jnp.float32

    @nn.compact
    def __call__(self, images, train=False):
        for width in self.widths:
            images = self.activation(nn.Dense(width, dtype=self.kind)(images.mean((1, 2))))
            images = images[:, None, None]
        return nn.Dense(self.num_classes)(images.mean((1, 2)))


class Widths(NamedTuple):
    first: int
    last: int


class Configured(nn.Module):
    """A network with a field of fields, which it takes apart as it was given."""

    config: Any

    @nn.compact
    def __call__(self, images, train=False):
        assert hash(self.config["a"]) and self.config["b"][1]["c"] + () == (3,)
        return nn.Dense(self.config["a"][1])(images.mean((1, 2)))


class Nnx(nnx.Module):
    def __init__(self, width, rngs):
        self.conv = nnx.Conv(3, width, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.heads = nnx.List([nnx.Linear(width, 5, rngs=rngs)])

    def __call__(self, images):
        hidden = nnx.relu(self.norm(self.conv(images))).mean((1, 2))
        return self.heads[0](self.drop(hidden))


class Equinox(eqx.Module):
    mlp: eqx.nn.MLP
    drop: eqx.nn.Dropout

    def __call__(self, images):
        return jax.vmap(lambda image: self.mlp(self.drop(image.mean((0, 1)))))(images)


def make_nnx(width=4):
    return Nnx(width, nnx.Rngs(7))


def call(model, images):
    return model(images)


def make_normalised_nnx(width=4):
    return models.Classifier(call, make_nnx(width))


def make_equinox(depth=1, inference=True):
    mlp = eqx.nn.MLP(3, 4, 6, depth, key=jax.random.key(7))
    return Equinox(mlp, eqx.nn.Dropout(0.3, inference=inference))


def linear(weights, images):
    return images.mean((1, 2)) @ weights["kernel"]


def make_linear():
    return jax.tree_util.Partial(linear, {"kernel": jnp.zeros((3, 2))})


def make_gelu(widths=(6, 7)):
    return Net(widths=widths, activation=nn.gelu, kind=jnp.bfloat16)


def make_function():
    return lambda images: images.mean((1, 2))


def make_raising():
    return {}["key"]


def make_classifier():
    return models.Classifier(linear, {"kernel": jnp.zeros((3, 2))})


def of(network, mean=MEAN, std=STD, seed=0):
    variables = jax.jit(network.init)(jax.random.key(seed), IMAGES[:1])
    return models.Classifier(network.apply, variables, mean, std)


@functools.cache
def zoo(**changes):
    return of(models.create("cnn", 4, widths=(8, 9, 10, 11, 12)), **changes)


def pruned(classifier):
    params = classifier.variables["params"]
    params = pruning.apply_masks(params, pruning.global_magnitude(params, 0.8))
    return dataclasses.replace(classifier, variables={**classifier.variables, "params": params})


def quantised(classifier):
    return dataclasses.replace(classifier, variables=pruning.quantize(classifier.variables))


def trained_nnx():
    """In training mode, with weights and statistics of its own."""
    model = Nnx(4, nnx.Rngs(1))
    model(IMAGES)
    return model


def shrunk():
    """A network of the zoo as pruning leaves it, at other sizes than its name says."""
    network = models.create("resnet_small", 4, widths=(16, 24, 32))
    return of(network.clone(widths=(8, 12, 16), inner_widths=(4, 8, 8, 12, 12, 16)))


def bits(classifier):
    return np.asarray(jax.jit(lambda images: classifier(images))(IMAGES))


def make_dict(network=None):
    """A Classifier with a number, a list and a None among its weights."""
    weights = {"layers": [jnp.ones((3, 4)), None, jnp.ones((4, 2))], "power": 1.5}
    return models.Classifier(listed, {"params": weights})


def listed(variables, images):
    first, _, last = variables["params"]["layers"]
    return (images.mean((1, 2)) @ first) ** variables["params"]["power"] @ last
