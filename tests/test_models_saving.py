"""Saved models: one file that says what it is, and comes back bit for bit."""

import dataclasses
import functools
import importlib
import json
import math
import os
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import freeze

from jaxrobust import models, pruning, studies
from jaxrobust.models import storage
from jaxrobust.models.building import CREATE
from jaxrobust.models.zoo import arguments_of
from jaxrobust.types import QuantizedKernel

HERE = "test_models_saving"
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


CASES = {
    "zoo": (zoo, {}),
    "sparse": (lambda: pruned(zoo()), {}),
    "dense": (lambda: pruned(zoo()), {"sparse": False}),
    "int8": (lambda: quantised(pruned(zoo())), {}),
    "shrunk": (shrunk, {}),
    "numbers": (lambda: zoo(mean=0.0, std=1.0), {}),
    "own": (lambda: of(Net(widths=[5, 3])), {}),
    "own int8": (lambda: quantised(of(Net())), {}),
    "own by build": (
        lambda: of(make_gelu((5,))),
        {"build": f"{HERE}:make_gelu", "sizes": {"widths": [5]}},
    ),
    "equinox": (
        lambda: make_equinox(depth=2),
        {"build": f"{HERE}:make_equinox", "sizes": {"depth": 2}},
    ),
    "partial": (
        lambda: jax.tree_util.Partial(linear, {"kernel": jnp.arange(6.0).reshape(3, 2)}),
        {"build": f"{HERE}:make_linear"},
    ),
    "other shapes": (
        lambda: jax.tree_util.Partial(linear, {"kernel": jnp.arange(15.0).reshape(3, 5)}),
        {"build": f"{HERE}:make_linear"},
    ),
    "classifier by build": (
        lambda: models.Classifier(linear, {"kernel": jnp.arange(6.0).reshape(3, 2)}, MEAN, STD),
        {"build": f"{HERE}:make_classifier"},
    ),
    "int8 by build": (
        lambda: quantised(
            models.Classifier(linear, {"kernel": jnp.arange(6.0).reshape(3, 2)}, MEAN, STD)
        ),
        {"build": f"{HERE}:make_classifier"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_saved_answers_as_before_bit_for_bit(tmp_path, case):
    make, options = CASES[case]
    model, path = make(), tmp_path / "folder" / "model.jrw"
    size = models.save(path, model, class_names=NAMES, metadata={"seed": 3}, **options)
    assert size == path.stat().st_size
    saved = models.load(path, trust=True)
    assert saved.class_names == NAMES and saved.metadata == {"seed": 3}
    assert saved.masks is None
    np.testing.assert_array_equal(bits(saved.classifier), bits(model))
    # Of what came back nothing is missing: saved again it is the same file.
    models.save(tmp_path / "again", saved.classifier, class_names=NAMES,
                metadata={"seed": 3}, **options)  # fmt: skip
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("make", ["make_nnx", "make_normalised_nnx"])
def test_an_nnx_module_comes_back_in_evaluation_mode(tmp_path, make):
    model = trained_nnx()
    wrapped = models.Classifier(call, model, MEAN, STD) if "normalised" in make else model
    models.save(tmp_path / "nnx", wrapped, build=f"{HERE}:{make}")
    model.eval()
    saved = models.load(tmp_path / "nnx", trust=True)
    np.testing.assert_array_equal(bits(saved.classifier), bits(wrapped))
    assert studies.num_parameters(saved.classifier)


def test_a_shrunk_nnx_module_comes_back(tmp_path):
    model = Nnx(2, nnx.Rngs(1))
    models.save(tmp_path / "a", model, build=f"{HERE}:make_nnx", sizes={"width": 2})
    with pytest.raises(ValueError, match="Give the arguments `sizes=` with which"):
        models.save(tmp_path / "b", model, build=f"{HERE}:make_nnx")
    model.eval()
    found = models.load(tmp_path / "a", trust=True).classifier
    np.testing.assert_array_equal(bits(found), bits(model))


@pytest.mark.parametrize("name", models.MODELS)
def test_every_network_of_the_zoo_is_known_by_its_name(name):
    assert arguments_of(models.create(name, 7)) == {"name": name, "num_classes": 7}
    found = arguments_of(models.MODELS[name].clone(num_classes=10, name="other"))
    assert found == {"name": name, "num_classes": 10}


def test_sizes_of_a_shrunk_network_are_those_that_differ():
    network = models.create("resnet50", 10, widths=(64, 128, 256, 512), inner_widths=(3,) * 16)
    found = arguments_of(network)
    assert found == {
        "name": "resnet50",
        "num_classes": 10,
        "widths": (64, 128, 256, 512),
        "inner_widths": (3,) * 16,
    }
    assert models.create(**found) is network
    assert arguments_of(models.CNN(num_classes=1)) is None and arguments_of(Net()) is None


def test_a_network_of_the_zoo_needs_no_trust_and_any_other_does(tmp_path):
    models.save(tmp_path / "zoo", zoo())
    assert models.load(tmp_path / "zoo").classifier.apply_fn == zoo().apply_fn
    own = of(Net(widths=(2,)))
    models.save(tmp_path / "own", own)
    with pytest.raises(ValueError, match=f"with '{HERE}:Net'.* `load\\(path, trust=True\\)`"):
        models.load(tmp_path / "own")
    found = models.load(tmp_path / "own", build=Net).classifier
    np.testing.assert_array_equal(bits(found), bits(own))


def test_nothing_that_a_strangers_file_names_is_called(tmp_path):
    target = tmp_path / "executed"
    network = {"build": "os:mkdir", "sizes": {"path": str(target)}}
    forged(tmp_path / "evil", network=network)
    with pytest.raises(ValueError, match="with 'os:mkdir'"):
        models.load(tmp_path / "evil")
    assert not target.exists()
    for build in ("jaxrobust.models:load", "jaxrobust.models:create.__wrapped__", "os:getcwd"):
        forged(tmp_path / "evil", network={"build": build, "sizes": {}})
        with pytest.raises(ValueError, match="build its network with '"):
            models.load(tmp_path / "evil")


def forged(path, **changes):
    """A file of the zoo whose header says something else, with valid checksums."""
    facts = {"network": {"build": CREATE, "sizes": {"name": "mlp", "num_classes": 4}}}
    facts |= {"mean": [0.5], "std": [1.0], "class_names": [], "metadata": {}}
    storage.write(path, facts | changes, {"params": {"a": jnp.ones(1)}}, None, True)


@pytest.mark.parametrize(
    "changes",
    [
        {"network": None},
        {"network": {"build": 3, "sizes": {}}},
        {"network": {"build": CREATE, "sizes": []}},
        {"class_names": "abc"},
        {"class_names": [1]},
        {"mean": "0"},
        {"mean": [[0.0]]},
        {"std": [None]},
        {"std": True},
        {"std": 10**400},
    ],
)
def test_headers_that_say_nothing_are_refused(tmp_path, changes):
    forged(tmp_path / "a")
    models.load(tmp_path / "a")  # otherwise what follows would pass on anything
    forged(tmp_path / "a", **changes)
    with pytest.raises(ValueError, match="its header does not describe its network"):
        models.load(tmp_path / "a")


@pytest.mark.parametrize(
    "sizes",
    [
        {"name": "none", "num_classes": 4},
        {"name": "mlp", "num_classes": 1},
        {"name": "mlp", "num_classes": 4, "widths": "x"},
        {"name": "mlp", "num_classes": 4, "depth": 2},
        {"num_classes": 4},
        {"name": "mlp", "num_classes": 4, "widths": [[[]]]},
    ],
)
def test_sizes_that_make_no_network_are_named(tmp_path, sizes):
    forged(tmp_path / "a", network={"build": CREATE, "sizes": sizes})
    with pytest.raises(ValueError, match=r"The network of .*a cannot be built: `build`"):
        models.load(tmp_path / "a")


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


def make_dict(network=None):
    """A Classifier with a number, a list and a None among its weights."""
    weights = {"layers": [jnp.ones((3, 4)), None, jnp.ones((4, 2))], "power": 1.5}
    return models.Classifier(listed, {"params": weights})


def listed(variables, images):
    first, _, last = variables["params"]["layers"]
    return (images.mean((1, 2)) @ first) ** variables["params"]["power"] @ last


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


def test_fields_within_dicts_come_back_as_tuples(tmp_path):
    classifier = of(Configured({"a": (1, 2), "b": [0, {"c": [3]}]}))
    models.save(tmp_path / "a", classifier)
    found = models.load(tmp_path / "a", trust=True).classifier
    assert found.apply_fn.__self__.config == {"a": (1, 2), "b": (0, {"c": (3,)})}
    models.save(tmp_path / "b", classifier, build=f"{HERE}:Configured",
                sizes={"config": {"a": [1, 2], "b": [0, {"c": [3]}]}})  # fmt: skip
    with pytest.raises(ValueError, match="its config is .*, got {'a': 1}"):
        models.save(
            tmp_path / "b", classifier, build=f"{HERE}:Configured", sizes={"config": {"a": 1}}
        )


def test_none_among_the_weights_comes_back(tmp_path):
    classifier = of(Net(widths=(5,)))
    variables = {**classifier.variables, "batch_stats": {"a": None, "b": {"c": None}}}
    classifier = dataclasses.replace(classifier, variables=variables)
    models.save(tmp_path / "a", classifier, masks=pruning.keep_all(variables))
    saved = models.load(tmp_path / "a", trust=True)
    for found in (saved.classifier.variables, saved.masks):
        assert jax.tree.structure(found) == jax.tree.structure(variables)
    np.testing.assert_array_equal(bits(saved.classifier), bits(classifier))


def test_a_scale_in_bfloat16_is_refused_and_the_advice_helps(tmp_path):
    classifier = quantised(zoo())

    def scaled(kind):
        return jax.tree.map(
            lambda leaf: (
                QuantizedKernel(leaf.values, leaf.scale.astype(kind))
                if isinstance(leaf, QuantizedKernel)
                else leaf
            ),
            classifier,
            is_leaf=lambda leaf: isinstance(leaf, QuantizedKernel),
        )

    with pytest.raises(TypeError, match=r"bfloat16\[\d+\] at params/.*scale.astype\(jnp.float32\)"):
        models.save(tmp_path / "a", scaled(jnp.bfloat16))
    assert not (tmp_path / "a").exists()
    models.save(tmp_path / "a", scaled(jnp.float32))
    models.load(tmp_path / "a")


def test_names_types_and_boxes_of_any_kind(tmp_path):
    class_of = {"a/b": 1, "a.b": 2, "": 3, "é": 4}
    variables = {
        "params": {name: {"kernel": jnp.full((2, 2), n)} for name, n in class_of.items()},
        "numbers": {3: jnp.ones(2, jnp.bfloat16), 10: jnp.zeros(3, jnp.float16)},
        "empty": {},
    }
    boxed = jax.tree.map(lambda leaf: nn.Partitioned(leaf, (None,) * leaf.ndim), variables)
    for stored in (variables, freeze(variables), boxed):
        models.save(tmp_path / "a", models.Classifier(Net().apply, stored))
        found = models.load(tmp_path / "a", trust=True).classifier.variables
        assert jax.tree.structure(found) == jax.tree.structure(variables)
        for mine, theirs in zip(*map(jax.tree.leaves, (found, variables)), strict=True):
            assert mine.dtype == theirs.dtype
            np.testing.assert_array_equal(mine, theirs)


def test_files_of_the_earlier_format_are_models_too(tmp_path):
    classifier = quantised(zoo())
    facts = {"model": "cnn", "num_classes": 4, "sizes": {"widths": [8, 9, 10, 11, 12]}}
    facts |= {"mean": MEAN.tolist(), "std": STD.tolist(), "class_names": ["a", "b"]}
    write_version_1(tmp_path / "old", classifier.variables, facts)
    saved = models.load(tmp_path / "old")
    np.testing.assert_array_equal(bits(saved.classifier), bits(classifier))
    assert saved.class_names == ("a", "b") and saved.metadata == facts
    write_version_1(tmp_path / "bare", classifier.variables, {"model": "cnn"})
    with pytest.raises(ValueError, match="lack num_classes, mean, std: load it with"):
        models.load(tmp_path / "bare")
    network = models.create("cnn", 4, widths=(8, 9, 10, 11, 12))
    bare = models.load(tmp_path / "bare", build=lambda: network).classifier
    scaled = dataclasses.replace(bare, mean=MEAN, std=STD)
    np.testing.assert_array_equal(bits(scaled), bits(classifier))
    write_version_1(tmp_path / "odd", classifier.variables, facts | {"sizes": [3]})
    with pytest.raises(ValueError, match="its header does not describe its network"):
        models.load(tmp_path / "odd")


def write_version_1(path, variables, metadata):
    """As `pruning.save_sparse` did."""
    version, storage.VERSION = storage.VERSION, 1
    try:
        storage.write(path, {"metadata": metadata}, variables, None, True)
    finally:
        storage.VERSION = version


LOCAL = "must be importable by another program"
NEITHER = r"of a linen network, or come with `build='module:function'`"
WRONG = {
    "no function": (lambda: 3, {}, TypeError, "`model` must be callable"),
    "no weights": (lambda: Net(), {}, TypeError, "`model` is a Net without its weights"),
    "closure": (lambda: lambda images: images, {}, TypeError, f"{NEITHER}.* function like it"),
    "nnx": (trained_nnx, {}, TypeError, f"{NEITHER}.* Nnx like it"),
    "lambda": (
        lambda: models.Classifier(lambda v, x: x, {"a": jnp.ones(1)}),
        {},
        TypeError,
        NEITHER,
    ),
    "partial apply": (
        lambda: models.Classifier(functools.partial(Net().apply, train=False), {}),
        {},
        TypeError,
        NEITHER,
    ),
    "local class": (
        lambda: of(type("Local", (Net,), {"__qualname__": "f.<locals>.Local"})()),
        {},
        TypeError,
        LOCAL,
    ),
    "array as a field": (
        lambda: of(Net(widths=np.array([5, 3]))),
        {},
        TypeError,
        r"its widths is array\(\[5, 3\]\), got \(5, 3\). Give `build=",
    ),
    "tuple with names": (
        lambda: of(Net(widths=Widths(5, 3))),
        {},
        TypeError,
        r"its widths is Widths\(first=5, last=3\), got \(5, 3\). Give `build=",
    ),
    "single array": (
        lambda: models.Classifier(linear, jnp.zeros((3, 2))),
        {"build": f"{HERE}:make_classifier"},
        TypeError,
        "`model` must have its weights in a container .*, got a single array",
    ),
    "no JSON": (
        lambda: of(Net(activation=nn.gelu)),
        {},
        TypeError,
        r"that cannot be rebuilt from its fields: .*function as model\['activation'\]. Give `build=",
    ),
    "sizes alone": (zoo, {"sizes": {}}, TypeError, "`sizes` must be None without `build`"),
    "build of a function": (zoo, {"build": zoo}, TypeError, "`build` must be 'module:function'"),
    "no colon": (make_linear, {"build": "linear"}, ValueError, "must be named 'module:function'"),
    "no module": (make_linear, {"build": "no_one:f"}, ValueError, "ModuleNotFoundError"),
    "no name": (make_linear, {"build": f"{HERE}:f"}, ValueError, "has no 'f'"),
    "raises": (
        make_linear,
        {"build": f"{HERE}:make_raising"},
        ValueError,
        r"called with {}, raised KeyError: 'key' \(test_models_saving.py, line",
    ),
    "no pytree": (make_linear, {"build": "builtins:dict"}, ValueError, "callable pytree, got dict"),
    "path": (
        make_equinox,
        {"build": f"{HERE}:make_equinox", "sizes": {"depth": 2}},
        ValueError,
        "has an array, and `model` has none, at mlp/layers/2/bias",
    ),
    "fewer": (
        lambda: make_equinox(3),
        {"build": f"{HERE}:make_equinox", "sizes": {"depth": 2}},
        ValueError,
        "has no array at mlp/layers/3/bias",
    ),
    "numbers": (
        make_equinox,
        {"build": f"{HERE}:make_equinox", "sizes": {"inference": False}},
        ValueError,
        "got False at drop/inference instead of True",
    ),
    "another class": (
        make_classifier,
        {"build": f"{HERE}:make_linear"},
        ValueError,
        "must return a Classifier, like `model`, got a Partial",
    ),
    "another module": (
        lambda: of(Net()),
        {"build": f"{HERE}:make_gelu"},
        ValueError,
        "must return the linen module of `model`: its activation is .*, got <",
    ),
    "no linen": (
        make_classifier,
        {"build": f"{HERE}:make_gelu"},
        ValueError,
        "linen module of `model`: that is nothing of linen, got a Net",
    ),
    "no arrays": (
        make_function,
        {"build": f"{HERE}:make_function"},
        TypeError,
        "`model` must be a pytree with its weights as leaves, got a function without leaves",
    ),
    "masks of numbers": (
        zoo,
        {"masks": {"a": jnp.ones(1)}},
        TypeError,
        "boolean arrays, got float",
    ),
    "masks of what": (zoo, {"masks": {"a": {"b": 1}}}, TypeError, "arrays, got int at a/b"),
    "masks flat": (
        zoo,
        {"masks": jnp.ones(1, bool)},
        TypeError,
        "`masks` must .*, got a single leaf",
    ),
    "masks of others": (
        zoo,
        {"masks": {"head": {"kernel": np.ones((12, 4), bool), "scale": np.ones(4, bool)}}},
        ValueError,
        "`masks` must have the structure of the weights, which have no array at head/scale",
    ),
    "masks of other shapes": (
        zoo,
        {"masks": {"params": {"head": {"bias": np.ones(3, bool)}}}},
        ValueError,
        r"the shapes of the weights, got \(3,\) for \(4,\) at params/head/bias",
    ),
    "number of names": (
        lambda: shrunk(),
        {"class_names": ("a", "b")},
        ValueError,
        "`class_names` must name the 4 classes of `model`, or none, got 2 names",
    ),
    "name": (zoo, {"class_names": "abc"}, TypeError, "`class_names` must be a sequence of strings"),
    "names": (zoo, {"class_names": (1, 2)}, TypeError, "`class_names` must be a sequence"),
    "metadata": (zoo, {"metadata": [1]}, TypeError, "`metadata` must be a JSON object"),
    "function": (zoo, {"metadata": {"f": len}}, TypeError, r"as metadata\['f'\]"),
    "nan": (zoo, {"metadata": {"a": math.nan}}, ValueError, "`metadata` must be JSON"),
    "mean": (
        lambda: zoo(mean=math.nan),
        {},
        ValueError,
        r"cannot hold nan, got it as model\['mean'\]",
    ),
    "leaf": (
        lambda: models.Classifier(Net().apply, {"a": {"b": 1.5}}),
        {},
        TypeError,
        "`model` must hold arrays, got float at a/b",
    ),
    "flat": (
        lambda: models.Classifier(Net().apply, jnp.ones(1)),
        {},
        TypeError,
        "`variables` must be nested dicts",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_saved_says_what_to_do_and_leaves_the_old_file(tmp_path, case):
    make, options, error, message = WRONG[case]
    path = tmp_path / "model"
    path.write_bytes(b"old")
    with pytest.raises(error, match=message) as caught:
        models.save(path, make(), **options)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_arrays_in_metadata_are_lists(tmp_path):
    models.save(tmp_path / "a", zoo(), metadata={"a": np.float32([0.5]), "b": np.int64(3)})
    assert models.load(tmp_path / "a").metadata == {"a": [0.5], "b": 3}


def test_what_does_not_fit_is_named_when_it_is_loaded(tmp_path):
    models.save(tmp_path / "a", make_equinox(), build=f"{HERE}:make_equinox")
    with pytest.raises(ValueError, match="has an array, and `model` has none, at mlp/layers/2"):
        models.load(tmp_path / "a", build=functools.partial(make_equinox, depth=2))
    models.save(tmp_path / "a", make_classifier(), build=f"{HERE}:make_classifier")
    with pytest.raises(
        ValueError, match="must return a Classifier, like the one that was saved, got Partial"
    ):
        models.load(tmp_path / "a", build=lambda: jax.tree_util.Partial(linear, {"kernel": MEAN}))


def test_size_is_bounded_and_absent_files_are_absent(tmp_path):
    models.save(tmp_path / "a", zoo())
    with pytest.raises(ValueError, match="more than `max_nbytes`, 100"):
        models.load(tmp_path / "a", max_nbytes=100)
    with pytest.raises(FileNotFoundError):
        models.load(tmp_path / "absent")


def test_a_kill_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    models.save(tmp_path / "a", zoo())
    before = (tmp_path / "a").read_bytes()

    def fail(_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        models.save(tmp_path / "a", zoo(seed=1))
    assert (tmp_path / "a").read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_the_header_adds_little_to_the_arrays(tmp_path):
    names = [f"class {k}" for k in range(10)]
    classifier = of(models.create("cnn"))
    size = models.save(tmp_path / "a", classifier, class_names=names)
    facts = {"model": "cnn", "num_classes": 10, "sizes": {}, "class_names": names}
    facts |= {"mean": MEAN.tolist(), "std": STD.tolist()}
    write_version_1(tmp_path / "old", classifier.variables, facts)
    assert size - (tmp_path / "old").stat().st_size < 100
    data = (tmp_path / "a").read_bytes()
    header = json.loads(data[16 : 16 + int.from_bytes(data[8:12], "little")])
    assert header["network"] == {"build": CREATE, "sizes": {"name": "cnn", "num_classes": 10}}


def test_kernels_in_int8_stay_int8_and_are_multiplied_out_when_called(tmp_path):
    classifier = quantised(zoo())
    models.save(tmp_path / "a", classifier)
    found = models.load(tmp_path / "a").classifier
    kernel = found.variables["params"]["head"]["kernel"]
    assert isinstance(kernel, QuantizedKernel) and kernel.values.dtype == jnp.int8
    expected = dataclasses.replace(found, variables=pruning.dequantize(found.variables))
    np.testing.assert_allclose(bits(found), bits(expected), rtol=1e-5, atol=1e-6)


def test_loaded_twice_shares_compiled_code(tmp_path):
    for seed in (0, 1):
        models.save(tmp_path / str(seed), zoo(seed=seed))
    first, second = (models.load(tmp_path / str(seed)).classifier for seed in (0, 1))
    assert jax.tree.structure(first) == jax.tree.structure(second)


def test_a_build_that_says_something_else_than_the_model_is_refused(tmp_path, monkeypatch):
    code = (
        "from flax import nnx\nfrom jaxrobust import models\n"
        "class Net(nnx.Module):\n"
        "    def __init__(self, stride=1):\n"
        "        self.conv = nnx.Conv(3, 4, (3, 3), strides=stride, rngs=nnx.Rngs(0))\n"
        "    def __call__(self, images):\n"
        "        return self.conv(images).mean((1, 2))\n"
        "def function(net, images):\n    return net(images)\n"
        "def other(net, images):\n    return 2 * net(images)\n"
        "def build(stride=1):\n    return models.Classifier(function, Net(stride))\n"
    )
    (tmp_path / "strided_net.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    net = importlib.import_module("strided_net")
    path, strided = tmp_path / "net.jrw", models.Classifier(net.function, net.Net(2))
    with pytest.raises(ValueError, match="a static field, such as a stride"):
        models.save(path, strided, build="strided_net:build")
    models.save(path, strided, build="strided_net:build", sizes={"stride": 2})
    with pytest.raises(ValueError, match="a Classifier of other, got function"):
        models.save(path, models.Classifier(net.other, net.Net()), build="strided_net:build")
