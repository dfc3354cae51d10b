"""Groups of channels are found in any network, and what they say holds: masked equals shrunk."""

import bodies
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from frameworks import perturbed

from jaxrobust import models, pruning

IMAGES = jax.random.uniform(jax.random.key(1), (2, 8, 8, 3))


@pytest.mark.parametrize("framework", ["linen", "nnx", "equinox"])
@pytest.mark.parametrize("name", bodies.BODIES)
def test_groups_are_found_and_masked_is_shrunk(name, framework, monkeypatch):
    _, sizes, coupled = bodies.BODIES[name]
    function, weights = bodies.built(framework, name, IMAGES)
    bodies.loose(monkeypatch)
    weights = jax.tree.map(lambda leaf: leaf, weights)
    groups = pruning.channel_groups(function, weights, IMAGES)
    layers = {group.removeprefix("layers/").replace(".", "/"): one for group, one in groups.items()}
    assert {layer: one.size for layer, one in layers.items()} == sizes
    assert tuple(layer for layer, one in layers.items() if one.coupled) == coupled
    moved = perturbed(weights)
    for group, one in groups.items():
        keep = {group: np.arange(0, one.size, 2)}
        masks = pruning.filter_masks(moved, groups, keep)
        masked = function(pruning.apply_masks(moved, masks), IMAGES)
        small = pruning.shrink(moved, groups, keep)
        if framework == "nnx" and name == "group_norm" and one.coupled:
            small.layers["norm"].group_size = len(keep[group])  # an attribute that says the old width
        shrunk = function(small, IMAGES)
        difference = float(jnp.abs(masked - shrunk).max() / jnp.abs(masked).max())
        assert difference < 1e-5 or one.coupled, group
        assert np.array_equal(pruning.kept_filters(masks, groups)[group], keep[group])
    if framework != "linen" and not coupled:
        pruning.check_shrinking(function, moved, groups, IMAGES, tolerance=1e-4)
