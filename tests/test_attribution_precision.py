"""Class-activation maps of networks that compute in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attribution, models

NETWORK = models.create("simple_cnn", 4, widths=(8, 8, 8), hidden_width=8)
VARIABLES = NETWORK.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
HALF = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), VARIABLES)
IMAGES = jax.random.uniform(jax.random.key(1), (2, 16, 16, 3))


@pytest.mark.parametrize("name", [n for n, one in attribution.METHODS.items() if one.needs_layer])
def test_maps_of_a_bfloat16_network_are_float32_and_nearly_those_of_float32(name):
    method = getattr(attribution, name)
    whole = method(lambda images: NETWORK.apply(VARIABLES, images), IMAGES)
    half = method(lambda images: NETWORK.apply(HALF, images.astype(jnp.bfloat16)), IMAGES)
    assert half.dtype == whole.dtype == jnp.float32
    correlation = np.corrcoef(np.ravel(whole), np.ravel(half))[0, 1]
    assert correlation > 0.999
