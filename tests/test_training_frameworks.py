"""One small network in linen, nnx, equinox and haiku, each trained as it is."""

import dataclasses
import functools
from typing import NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrobust import evaluation
from jaxrobust.attacks import PGD
from jaxrobust.training import (
    EMA,
    TRADES,
    Constant,
    Data,
    KLAscent,
    Network,
    Recipe,
    create_state,
    fit,
    initial_variables,
    load_run,
    train_step,
)


class Linen(nn.Module):
    """A convolution, BatchNorm, dropout and a dense layer."""

    @nn.compact
    def __call__(self, images, train=False):
        hidden = nn.Conv(4, (3, 3))(images)
        hidden = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(hidden))
        hidden = nn.Dropout(0.1, deterministic=not train)(hidden.reshape(len(images), -1))
        return nn.Dense(2)(hidden)


class Nnx(nnx.Module):
    """Likewise."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(64, 2, rngs=rngs)

    def __call__(self, images):
        hidden = nnx.relu(self.norm(self.conv(images))).reshape(len(images), -1)
        return self.head(self.dropout(hidden))


class Equinox(eqx.Module):
    """Likewise, of one image, channels first."""

    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(1, 4, 3, padding=1, key=keys[0])
        self.norm = eqx.nn.BatchNorm(4, "batch", momentum=0.9, mode="ema")
        self.dropout = eqx.nn.Dropout(0.1)
        self.head = eqx.nn.Linear(64, 2, key=keys[1])

    def __call__(self, image, state, key):
        hidden, state = self.norm(self.conv(image), state)
        hidden = self.dropout(jax.nn.relu(hidden).reshape(-1), key=key)
        return self.head(hidden), state


def haiku(images, train):
    """Likewise, a function."""
    hidden = hk.Conv2D(4, 3)(images)
    hidden = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(hidden, train)).reshape(len(images), -1)
    hidden = hk.dropout(hk.next_rng_key(), 0.1, hidden) if train else hidden
    return hk.Linear(2)(hidden)


def of_equinox():
    def init(key, images):
        model, state = eqx.nn.make_with_state(Equinox)(key)
        return {"params": eqx.filter(model, eqx.is_inexact_array), "batch_stats": state}

    model, _ = eqx.nn.make_with_state(Equinox)(jax.random.key(0))
    rest = eqx.partition(model, eqx.is_inexact_array)[1]

    def apply(variables, images, train, rngs):
        model = eqx.combine(variables["params"], rest)
        model = eqx.nn.inference_mode(model, not train)
        keys = jax.random.split(rngs["dropout"], len(images)) if train else None
        batched = jax.vmap(model, (0, None, 0), (0, None), axis_name="batch")
        return batched(images.transpose(0, 3, 1, 2), variables["batch_stats"], keys)

    return init, apply


def of_haiku():
    network = hk.transform_with_state(haiku)

    def init(key, images):
        params, state = network.init(key, images, True)
        return {"params": params, "batch_stats": state}

    def apply(variables, images, train, rngs):
        given = variables["params"], variables["batch_stats"]
        return network.apply(*given, rngs.get("dropout"), images, train)

    return init, apply


MODELS = {
    "linen": Linen,
    "nnx": lambda: Nnx(nnx.Rngs(0)),
    "equinox": of_equinox,
    "haiku": of_haiku,
}


def examples(count, seed=0):
    """The class is the half of the image that is bright."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, count)
    images = random.integers(0, 120, (count, 4, 4, 1))
    images[labels == 0, :2] += 100
    images[labels == 1, 2:] += 100
    return images.astype(np.uint8), labels


TRAIN, VALIDATION = examples(64), examples(32, seed=1)
DATA = Data(TRAIN, VALIDATION, mean=0.5, std=0.25)
PGD_2 = PGD(4 / 255, 2 / 255, num_steps=2)
RECIPE = Recipe(num_epochs=4, batch_size=16, schedule=Constant(0.01), adversary=PGD_2)


def same(left, right):
    return jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), left, right))


@pytest.mark.parametrize("name", MODELS)
def test_each_framework_is_trained_resumed_and_attacked(name, tmp_path):
    model = MODELS[name]()
    fitted = fit(model, DATA, RECIPE, run_dir=tmp_path / "run", progress=False)
    assert fitted.history[-1]["validation_accuracy"] > 0.9
    first, last = initial_variables(model, (4, 4, 1), RECIPE.seed), fitted.variables
    assert not same(first["batch_stats"], last["batch_stats"])
    again = fit(model, DATA, RECIPE, run_dir=tmp_path / "run", progress=False)
    assert same(again.state, fitted.state)
    images = jnp.asarray(VALIDATION[0]) / np.float32(255)

    def logits_fn(images):
        return fitted.model((images - 0.5) / 0.25)

    report = evaluation.evaluate(logits_fn, images, VALIDATION[1])
    assert report["accuracy"]["rate"] == fitted.history[-1]["validation_accuracy"]
    found = PGD_2(jax.random.key(0), logits_fn, images, jnp.asarray(VALIDATION[1]))
    assert float(found.success.mean()) < 0.2
    leaves, found = jax.tree.leaves(load_run(tmp_path / "run")[0]), jax.tree.leaves(last)
    assert len(leaves) == len(found)


AVERAGED = {"averaging": EMA(0.5)}
TRADED = {"objective": TRADES(), "adversary": KLAscent(4 / 255, 2 / 255, num_steps=1)}
ROUNDED = {"precision": "bfloat16"}


@pytest.mark.parametrize(
    ("name", "changes"),
    # Equinox's BatchNorm does not mix float32 statistics with bfloat16 images.
    [
        *(("nnx", one) for one in (AVERAGED, TRADED, ROUNDED)),
        *(("equinox", one) for one in (AVERAGED, TRADED)),
        *(("haiku", one) for one in (AVERAGED, ROUNDED)),
    ],
)
def test_each_framework_is_trained_by_other_recipes(name, changes):
    recipe = dataclasses.replace(RECIPE, num_epochs=1, **changes)
    assert np.isfinite(fit(MODELS[name](), DATA, recipe, progress=False).history[0]["train_loss"])


@pytest.mark.parametrize("name", ["nnx", "equinox", "haiku"])
def test_each_framework_goes_into_a_loop_of_ones_own(name):
    model = MODELS[name]()
    network = Network(model, 0.5, 0.25)
    state = create_state(initial_variables(model, (4, 4, 1), 0), RECIPE)
    step = functools.partial(train_step, recipe=RECIPE, network=network, steps_per_epoch=1)
    after, _ = jax.jit(step)(state, (TRAIN[0][:16], TRAIN[1][:16]), jax.random.key(0))
    assert not same(after.variables, state.variables)


def broken(**changes):
    """The pair of haiku, with another init or apply."""
    init, apply = of_haiku()
    return changes.get("init", lambda *given: init(*given)), changes.get("apply", apply)


@pytest.mark.parametrize(
    ("pair", "error", "words"),
    [
        (broken(init=lambda *_: ()), TypeError, r"what `init` returns, must be .*got tuple"),
        (broken(init=lambda *_: {"w": jnp.ones(1)}), ValueError, r'must hold "params".*\(\'w\',\)'),
        (
            broken(apply=lambda *_: jnp.ones((2, 2))),
            TypeError,
            r"must return \(logits, the new state",
        ),
        (broken(apply=lambda v, x, *_: (x, {})), ValueError, r"`model` must return \[B, K\]"),
        (
            broken(apply=lambda v, x, *_: (x.mean((1, 2)) + jnp.ones(2), {})),
            ValueError,
            r"with the structure and shapes of variables\['batch_stats'\]",
        ),
        ((1, 2), TypeError, r"a pair of functions \(init, apply\), got \(1, 2\)"),
        (Nnx, TypeError, "Nnx is a class: make one of it"),
        (Linen().apply, TypeError, "`model` must be a linen module"),
    ],
)
def test_what_is_no_model_is_refused(pair, error, words):
    with pytest.raises(error, match=words):
        fit(pair, DATA, RECIPE, progress=False)


class Weights(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


def test_parameters_that_are_no_dict_are_trained_under_masks():
    """As those of equinox; the masks may be of the parameters or of the variables."""

    def init(key, images):
        return {
            "params": Weights(jnp.ones((1, 2)), jnp.zeros(2)),
            "batch_stats": {"n": jnp.ones(2)},
        }

    def apply(variables, images, train, rngs):
        params, state = variables["params"], variables["batch_stats"]
        return images.mean((1, 2)) @ params.kernel + params.bias, state

    masks = Weights(jnp.array([[True, False]]), jnp.ones(2, bool))
    recipe = dataclasses.replace(RECIPE, num_epochs=1)
    whole = {"params": masks, "batch_stats": {"n": jnp.ones(2, bool)}}
    for given in (masks, {"params": masks}, whole):
        params = fit((init, apply), DATA, recipe, masks=given, progress=False).variables["params"]
        assert params.kernel[0, 1] == 0 and params.kernel[0, 0] != 1 and params.bias.all()


def test_an_edited_pair_is_another_run(tmp_path):
    def pair(factor, offset):
        def init(key, images):
            return {"params": {"kernel": jnp.ones((1, 2))}}

        def apply(variables, images, train, rngs):
            logits = images.mean((1, 2)) @ variables["params"]["kernel"]
            return logits * factor if train else logits + offset, {}

        return init, apply

    recipe = dataclasses.replace(RECIPE, num_epochs=1)
    fit(pair(1.0, 0.0), DATA, recipe, run_dir=tmp_path, progress=False)
    fit(pair(1.0, 0.0), DATA, recipe, run_dir=tmp_path, progress=False)
    for edited in (pair(2.0, 0.0), pair(1.0, 1.0)):
        with pytest.raises(ValueError, match=r"programs\.model was"):
            fit(edited, DATA, recipe, run_dir=tmp_path, progress=False)
