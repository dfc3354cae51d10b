"""The classifier of source 002 as pure functions: its logits, its loss and its update.

The logits are z = x W + b with one layer, and z = relu(x W1 + b1) W2 + b2 with a hidden layer. The loss
of a batch is

    L = mean_i [ log sum_k exp z_ik - z_(i, y_i) ] + reg / 2 * sum of all squared weights

For one layer, its gradient by the formulas that the source implements as its backward pass is

    dL/dW = x^T (softmax(z) - onehot(y)) / B + reg * W        dL/db = mean (softmax(z) - onehot(y))

SGD takes W <- W - rate * dL/dW. `jax.grad` computes the same gradient (tests/test_cifar_mlp.py compares
them).
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
    """Draws weights from a normal distribution with standard deviation `scale`; biases are zero.

    Only the first `width` hidden units are used; `width` may be traced. The others are padding. Their
    weights are zero on both sides, so they output 0, get a gradient of 0 and stay zero without a mask.
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
    """Returns the logits [B, K] of normalised images [B, D], or [K] of one image [D]."""
    first, *rest = params
    return after_first(rest, images @ first.weights + first.bias)


def after_first(layers: Sequence[Layer], values: jax.Array) -> jax.Array:
    """Applies the layers after the first to its outputs [B, H]; returns logits [B, K]."""
    for layer in layers:
        values = jax.nn.relu(values) @ layer.weights + layer.bias
    return values


def data_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy in nats of the softmax of logits [B, K]."""
    return jnp.mean(jax.vmap(losses.cross_entropy)(logits, labels))


def penalty(params: Params, regularizer: jax.Array | float) -> jax.Array:
    """Returns half the regularizer times the sum of all squared weights, without biases."""
    squares = jnp.stack([jnp.sum(layer.weights**2) for layer in params])
    return 0.5 * regularizer * jnp.sum(squares)


def update(params: Params, gradient: Params, rate: jax.Array | float) -> Params:
    """Takes a step of SGD: subtracts `rate` times the gradient."""
    return jax.tree.map(lambda value, slope: value - rate * slope, params, gradient)
