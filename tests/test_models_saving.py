"""Saved models: one file that says what it is, and comes back bit for bit."""

import dataclasses
import functools
import importlib
import json
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import freeze
from saved_networks import (
    HERE,
    MEAN,
    NAMES,
    STD,
    Configured,
    Net,
    Nnx,
    bits,
    call,
    linear,
    make_classifier,
    make_equinox,
    make_gelu,
    of,
    pruned,
    quantised,
    shrunk,
    trained_nnx,
    zoo,
)

from jaxrobust import models, pruning, studies
from jaxrobust.models import storage
from jaxrobust.models.building import CREATE
from jaxrobust.models.zoo import arguments_of
from jaxrobust.types import QuantizedKernel

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
