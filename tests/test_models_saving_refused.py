"""What cannot be saved as a model, and what the error says to do."""

import functools
import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from saved_networks import (
    HERE,
    Net,
    Widths,
    linear,
    make_classifier,
    make_equinox,
    make_function,
    make_linear,
    of,
    shrunk,
    trained_nnx,
    zoo,
)

from jaxrobust import models

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
        r"called with {}, raised KeyError: 'key' \(saved_networks.py, line",
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
