"""Images, layers and methods of which bounds are tested."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrobust.certificates import crown_bounds, ibp_bounds

RNG = np.random.default_rng(0)
SHAPE = (4, 4, 2)
IMAGES = RNG.uniform(size=(3, *SHAPE)).astype(np.float32)
KEY = jax.random.key(0)
EPSILON = 0.05

full_crown = functools.partial(crown_bounds, num_rows=32)
crown_ibp = functools.partial(crown_bounds, intermediate="ibp")
METHODS = {"ibp": ibp_bounds, "crown-ibp": crown_ibp, "crown": full_crown}


def kernel(*shape, seed=0):
    weights = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(weights / np.sqrt(np.prod(shape[:-1])), jnp.float32)


def convolve(images, channels=4, size=3, seed=0, **options):
    weights = kernel(size, size, images.shape[-1], channels, seed=seed)
    names = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(images, weights, (1, 1), "SAME", dimension_numbers=names)


def dense(features, width, seed=7):
    flat = features.reshape(len(features), -1)
    return flat @ kernel(flat.shape[1], width, seed=seed)


def box(images, epsilon):
    images = np.asarray(images, np.float64)
    return np.clip(images - epsilon, 0, 1), np.clip(images + epsilon, 0, 1)


def corners(images, epsilon, count, seed=0):
    """Random corners of the boxes and points between, [count, B, H, W, C]."""
    generator = np.random.default_rng(seed)
    shares = generator.uniform(-1, 1, size=(count, *images.shape))
    shares[: count // 2] = np.sign(shares[: count // 2])
    return np.clip(images + epsilon * shares, 0, 1).astype(np.float32)


def residual(images):
    features = jax.nn.relu(convolve(images))
    return dense(jax.nn.relu(convolve(features, seed=1) + features), 3)
