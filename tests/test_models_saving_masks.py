"""Masks of saved models, in the structure of the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import freeze
from saved_networks import (
    HERE,
    IMAGES,
    call,
    make_dict,
    make_equinox,
    make_linear,
    make_nnx,
    make_normalised_nnx,
    pruned,
    quantised,
    zoo,
)

from jaxrobust import models, pruning


def test_masks_come_back_exactly(tmp_path):
    classifier = pruned(zoo())
    masks = pruning.global_magnitude(classifier.variables["params"], 0.8)
    # A weight that is kept although it is zero, and one that is removed although it is not.
    kernel = np.array(masks["head"]["kernel"])
    kernel[0], kernel[1] = ~kernel[0], True
    masks = {**masks, "head": {**masks["head"], "kernel": jnp.asarray(kernel)}}
    without = models.save(tmp_path / "a", classifier)
    size = models.save(tmp_path / "a", classifier, masks=freeze(masks))
    found = models.load(tmp_path / "a").masks
    assert jax.tree.structure(found) == jax.tree.structure(masks)
    jax.tree.map(np.testing.assert_array_equal, found, masks)
    assert all(leaf.dtype == bool for leaf in jax.tree.leaves(found))
    leaves = jax.tree.leaves(masks)
    assert size - without < sum(leaf.size / 8 + 180 for leaf in leaves)


MASKED = {
    "nnx": (lambda: make_nnx(), "make_nnx", lambda model: model),
    "normalised nnx": (
        lambda: make_normalised_nnx(),
        "make_normalised_nnx",
        lambda model: model.variables,
    ),
    "equinox": (lambda: make_equinox(), "make_equinox", lambda model: model),
    "partial": (lambda: make_linear(), "make_linear", lambda model: model.args[0]),
    "whole partial": (lambda: make_linear(), "make_linear", lambda model: model),
    "zoo": (zoo, None, lambda model: model.variables),
    "lists": (make_dict, "make_dict", lambda model: model.variables["params"]),
    "int8": (lambda: quantised(zoo()), None, lambda model: model.variables["params"]),
}


@pytest.mark.parametrize("case", MASKED)
def test_masks_come_back_in_the_structure_of_the_weights(tmp_path, case):
    make, build, weights_of = MASKED[case]
    model, rng = make(), np.random.default_rng(0)
    weights = weights_of(model)
    # What is no array has a scalar, True.
    masks = jax.tree.map(
        lambda leaf: rng.random(leaf.shape) < 0.7 if leaf.ndim else leaf, pruning.keep_all(weights)
    )
    build = None if build is None else f"{HERE}:{build}"
    models.save(tmp_path / "a", model, masks=masks, build=build)
    saved = models.load(tmp_path / "a", trust=True)
    loaded = weights_of(saved.classifier)
    assert jax.tree.structure(saved.masks) == jax.tree.structure(loaded)
    jax.tree.map(np.testing.assert_array_equal, *map(jax.tree.leaves, (saved.masks, masks)))
    pruned = pruning.apply_masks(loaded, saved.masks)
    for mine, theirs in zip(
        *map(jax.tree.leaves, (pruned, pruning.apply_masks(weights, masks))), strict=True
    ):
        if isinstance(mine, jax.Array) and not jnp.issubdtype(mine.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(mine, theirs)


def test_masks_of_a_modules_channels_or_of_its_parameters(tmp_path):
    model = make_nnx()
    model.eval()
    groups = pruning.channel_groups(call, model, jnp.asarray(IMAGES))
    (name,) = [name for name, size in groups.sizes.items() if size == 4]
    masks = pruning.filter_masks(model, groups, {name: [0, 2]})
    models.save(tmp_path / "a", model, build=f"{HERE}:make_nnx", masks=masks)
    saved = models.load(tmp_path / "a", trust=True)
    assert pruning.kept_filters(saved.masks, groups)[name].tolist() == [0, 2]
    # The state of the parameters lacks the statistics, which are kept.
    state = nnx.state(masks, nnx.Param)
    models.save(tmp_path / "b", model, build=f"{HERE}:make_nnx", masks=state)
    saved = models.load(tmp_path / "b", trust=True)
    pruning.apply_masks(saved.classifier, saved.masks)
    np.testing.assert_array_equal(saved.masks.conv.kernel[...], masks.conv.kernel[...])
    assert saved.masks.norm.mean[...].all()


def test_masks_of_the_weights_before_they_were_int8_and_of_some(tmp_path):
    classifier = quantised(zoo())
    masks = pruning.keep_all(zoo().variables["params"])
    models.save(tmp_path / "a", classifier, masks=masks)
    found = models.load(tmp_path / "a").masks
    assert jax.tree.structure(found) == jax.tree.structure(masks)
    some = {"head": {"kernel": masks["head"]["kernel"]}}
    models.save(tmp_path / "a", classifier, masks=some)
    found = models.load(tmp_path / "a").masks
    assert jax.tree.structure(found) == jax.tree.structure(some)
    np.testing.assert_array_equal(found["head"]["kernel"], some["head"]["kernel"])
    assert models.load(tmp_path / "a", build=zoo_of_five).masks.keys() == {"head"}


def zoo_of_five(**_):
    return models.create("mlp", 5)
