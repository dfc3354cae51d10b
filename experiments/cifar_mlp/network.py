"""The classifier of source 002 as pure functions: its logits, its loss, its update.

With one layer x W + b is the logits; with a hidden layer relu(x W1 + b1) W2 + b2. A batch has the loss

    L = mean_i [ log sum_k exp z_ik - z_(i, y_i) ] + reg / 2 * sum of all squared weights

whose gradient, by the formula that the source implements as its backward pass, is for one layer

    dL/dW = x^T (softmax(z) - onehot(y)) / B + reg * W        dL/db = mean (softmax(z) - onehot(y))

and SGD takes W <- W - rate * dL/dW. `jax.grad` finds the same (tests/test_cifar_mlp.py compares).
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrobust import losses


class Layer(NamedTuple):
    """One linear map: weights float32 [D, H] and bias float32 [H]."""

    weights: Any
    bias: Any


Params = tuple[Layer, ...]


def initial(key: jax.Array, sizes: Sequence[int], scale: Any, width: Any = None) -> Params:
    """Weights drawn from a normal distribution of deviation `scale`, biases of zero.

    Of the hidden units only `width`, which may be traced, are there. The others are padding: with zeros
    on both sides a unit answers 0, gets a gradient of 0 and stays zero, so nothing has to mask it.
    """
    keys = jax.random.split(key, len(sizes) - 1)
    layers = [
        Layer(scale * jax.random.normal(k, shape), jnp.zeros(shape[1]))
        for k, shape in zip(keys, itertools.pairwise(sizes), strict=True)
    ]
    if width is not None:
        first, last = layers
        there = jnp.arange(sizes[1]) < width
        layers = [
            first._replace(weights=jnp.where(there, first.weights, 0.0)),
            last._replace(weights=jnp.where(there[:, None], last.weights, 0.0)),
        ]
    return tuple(layers)


def logits(params: Params, images: jax.Array) -> jax.Array:
    """The logits [B, K] of normalised images [B, D], or [K] of one image [D]."""
    first, *rest = params
    return after_first(rest, images @ first.weights + first.bias)


def after_first(layers: Sequence[Layer], values: jax.Array) -> jax.Array:
    """What the layers behind the first make of its outputs [B, H]."""
    for layer in layers:
        values = jax.nn.relu(values) @ layer.weights + layer.bias
    return values


def data_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean cross-entropy of the softmax, in nats, of logits [B, K]."""
    return jnp.mean(jax.vmap(losses.cross_entropy)(logits, labels))


def penalty(params: Params, regularizer: jax.Array | float) -> jax.Array:
    """Half the regularizer times the sum of all squared weights; biases are free."""
    squares = jnp.stack([jnp.sum(layer.weights**2) for layer in params])
    return 0.5 * regularizer * jnp.sum(squares)


def update(params: Params, gradient: Params, rate: jax.Array | float) -> Params:
    """One step of SGD: against the gradient, `rate` times its length."""
    return jax.tree.map(lambda value, slope: value - rate * slope, params, gradient)
