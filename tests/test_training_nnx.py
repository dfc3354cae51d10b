"""`fit` of modules of flax nnx: as they are, and as their linen twins."""

import dataclasses
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import num_compiled
from flax import nnx

from jaxrobust import evaluation, export, pruning
from jaxrobust.attacks import PGD
from jaxrobust.training import (
    ADMM,
    AWP,
    EMA,
    TRADES,
    Constant,
    Data,
    FreeReplays,
    Hydra,
    KLAscent,
    Network,
    Recipe,
    RigL,
    Validation,
    create_state,
    fit,
    initial_variables,
    load_run,
    reestimate_batch_stats,
    with_variables,
)
from jaxrobust.training.run import loop


class Twin(nn.Module):
    """What `Skip` is, in linen, by the same names."""

    rate: float = 0.0

    @nn.compact
    def __call__(self, images, train=False):
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        hidden = nn.relu(norm(name="norm_0")(nn.Conv(6, (3, 3), name="stem")(images)))
        inner = nn.relu(norm(name="norm_1")(nn.Conv(6, (3, 3), name="block")(hidden)))
        pooled = (hidden + inner).mean((2,)).reshape(images.shape[0], -1)
        pooled = nn.Dropout(self.rate, deterministic=not train)(pooled)
        return nn.Dense(2, name="head")(pooled)


class Skip(nnx.Module):
    """Convolutions, BatchNorm, a skip connection, dropout, a dense layer."""

    def __init__(self, seed=0, rate=0.0, width=6, momentum=0.9):
        rngs = nnx.Rngs(seed)
        self.stem = nnx.Conv(1, width, (3, 3), rngs=rngs)
        self.block = nnx.Conv(width, width, (3, 3), rngs=rngs)
        self.norm_0 = nnx.BatchNorm(width, momentum=momentum, rngs=rngs)
        self.norm_1 = nnx.BatchNorm(width, momentum=momentum, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.head = nnx.Linear(4 * width, 2, rngs=rngs)

    def __call__(self, images):
        hidden = nnx.relu(self.norm_0(self.stem(images)))
        inner = nnx.relu(self.norm_1(self.block(hidden)))
        return self.head(self.dropout((hidden + inner).mean((2,)).reshape(images.shape[0], -1)))


class Count(nnx.Variable):
    """Of the passes in training mode."""


class Odd(nnx.Module):
    """State of its own, a list, names with dots and slashes, constants, two kinds of noise."""

    def __init__(self, seed=0):
        rngs = nnx.Rngs(seed)
        self.layers = nnx.List([nnx.Linear(16, 16, rngs=rngs) for _ in range(11)])
        self.named = nnx.Dict({"a.b": nnx.Linear(16, 16, rngs=rngs)})
        self.named["c/d%2E"] = nnx.Linear(16, 2, rngs=rngs)
        self.first, self.second = (nnx.Dropout(0.5, rngs=rngs) for _ in range(2))
        self.passes = Count(jnp.int32(0))
        self.seen = nnx.Variable(jnp.zeros((2, 16)))
        self.scale = jnp.full(16, 0.5)
        self.shift = np.ones(16, np.float32)
        self.sizes = [3, 4]
        self.training = False

    def train(self, **attributes):
        self.training = True
        super().train(**attributes)

    def eval(self, **attributes):
        self.training = False
        super().eval(**attributes)

    def __call__(self, images):
        hidden = images.reshape(images.shape[0], -1) * self.scale + self.shift
        if self.training:
            self.passes[...] += 1
            ones = jnp.ones((1, 16))
            self.seen[...] = jnp.concatenate([self.first(ones), self.second(ones)])
        for layer in self.layers:
            hidden = hidden + 0.1 * layer(hidden)
        return self.named["c/d%2E"](self.second(self.named["a.b"](hidden)))


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
RECIPE = Recipe(num_epochs=2, batch_size=16, schedule=Constant(0.01))
QUIET = {"progress": False}
SHAPE = (4, 4, 1)


def same(left, right):
    return jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), left, right))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"adversary": PGD_2, "validation": Validation(PGD_2), "averaging": EMA(0.9)},
        {"objective": TRADES(), "adversary": AWP(KLAscent(4 / 255, 2 / 255, num_steps=1))},
        {"adversary": FreeReplays(4 / 255, num_replays=2)},
        {"compression": RigL(kept=0.5)},
        {"compression": Hydra(kept=0.5)},
    ],
)
def test_the_linen_twin_has_the_same_log_bit_for_bit(tmp_path, changes):
    recipe, module = dataclasses.replace(RECIPE, **changes), Skip()
    start = initial_variables(module, SHAPE, 0)
    twin = fit(Twin(), DATA, recipe, variables=start, run_dir=tmp_path / "linen", **QUIET)
    found = fit(module, DATA, recipe, run_dir=tmp_path / "nnx", **QUIET)
    logs = [(tmp_path / name / "log.jsonl").read_bytes() for name in ("linen", "nnx")]
    assert logs[0] == logs[1]
    assert same(found.variables, twin.variables)
    assert same(found.best_variables, twin.best_variables)


def test_the_module_stays_and_the_result_is_one(tmp_path):
    module = Skip(rate=0.5)
    before = jax.tree.map(jnp.copy, nnx.state(module))
    recipe = dataclasses.replace(RECIPE, num_epochs=4, adversary=PGD_2)
    fitted = fit(module, DATA, recipe, run_dir=tmp_path, **QUIET)
    assert same(before, nnx.state(module)) and not module.dropout.deterministic
    assert isinstance(fitted.model, Skip) and fitted.model.dropout.deterministic
    assert set(fitted.variables) == {"params", "batch_stats"}
    assert same(nnx.to_pure_dict(nnx.state(fitted.model, nnx.Param)), fitted.variables["params"])
    statistics = nnx.to_pure_dict(nnx.state(fitted.model, nnx.BatchStat))
    assert same(statistics, fitted.variables["batch_stats"])
    assert fitted.best_model is not fitted.model
    assert same(with_variables(module, load_run(tmp_path)[0]), fitted.model)

    def logits_fn(images):
        return fitted.model((images - 0.5) / 0.25)

    images, labels = jnp.float32(VALIDATION[0]) / 255, jnp.asarray(VALIDATION[1])
    report = evaluation.evaluate(logits_fn, images, VALIDATION[1])
    assert report["accuracy"]["rate"] == fitted.history[-1]["validation_accuracy"] > 0.9
    assert float(PGD_2(jax.random.key(0), logits_fn, images, labels).success.mean()) < 0.2
    export.save(tmp_path / "exported", logits_fn, SHAPE, platforms=("cpu",))
    loaded = export.load(tmp_path / "exported")
    np.testing.assert_allclose(loaded(images), logits_fn(images), rtol=1e-5, atol=1e-5)
    masks = pruning.global_magnitude(fitted.variables["params"], 0.5)
    tuned = fit(fitted.model, DATA, RECIPE, masks=masks, **QUIET)
    kernel, mask = tuned.variables["params"]["block"]["kernel"], masks["block"]["kernel"]
    assert not np.any(np.asarray(kernel)[~np.asarray(mask)]) and not np.all(mask)


def test_the_seed_decides_order_and_dropout_but_not_the_weights():
    module = Skip(rate=0.5)
    first = fit(module, DATA, RECIPE, **QUIET)
    assert same(first.state, fit(Skip(rate=0.5), DATA, RECIPE, **QUIET).state)
    other = dataclasses.replace(RECIPE, seed=1)
    assert not same(first.state, fit(module, DATA, other, **QUIET).state)
    assert same(initial_variables(module, SHAPE, 0), initial_variables(module, SHAPE, 1))
    assert not same(first.variables, fit(Skip(1, rate=0.5), DATA, RECIPE, **QUIET).variables)
    # With other dropout the log is another one.
    assert first.history != fit(Skip(rate=0.0), DATA, RECIPE, **QUIET).history


def test_state_of_ones_own_names_and_lists(tmp_path):
    recipe = dataclasses.replace(RECIPE, averaging=EMA(0.5))
    module = Odd()
    fitted = fit(module, DATA, recipe, run_dir=tmp_path, **QUIET)
    state = fitted.variables["batch_stats"]
    assert set(state) == {"passes", "seen"}
    assert state["passes"].dtype == jnp.int32 and int(state["passes"]) == int(fitted.state.step)
    assert int(fitted.model.passes[...]) == 8 and type(fitted.model.passes) is Count
    assert int(module.passes[...]) == 0
    assert fitted.variables["params"]["layers"]["10"]["kernel"].shape == (16, 16)
    assert set(fitted.variables["params"]["named"]) == {"a.b", "c/d%2E"}
    assert same(load_run(tmp_path)[0], fitted.variables)
    assert same(fit(module, DATA, recipe, run_dir=tmp_path, **QUIET).state, fitted.state)
    # Two layers with dropout do not draw alike, and neither do two passes.
    one = fit(module, DATA, dataclasses.replace(RECIPE, num_epochs=1), **QUIET).state
    seen = np.stack(
        [one.batch_stats["seen"], fit(module, DATA, RECIPE, **QUIET).state.batch_stats["seen"]]
    )
    assert len({row.tobytes() for row in seen.reshape(4, 16)}) == 4
    # What counts is no statistic.
    again = reestimate_batch_stats(module, fitted.model, TRAIN[0], batch_size=16)
    assert again["batch_stats"]["passes"] == 8


def test_variables_and_masks_of_any_form():
    module, other = Skip(), Skip(1)
    start = initial_variables(other, SHAPE, 0)
    expected = fit(module, DATA, RECIPE, variables=start, **QUIET).state
    params, rest = nnx.state(other, nnx.Param), nnx.state(other, nnx.BatchStat)
    forms = other, nnx.state(other), {"params": params, "batch_stats": rest}
    for given in forms:
        assert same(fit(module, DATA, RECIPE, variables=given, **QUIET).state, expected)
    boxed = jax.tree.map(lambda leaf: nn.Partitioned(leaf, (None,)), start)
    assert same(fit(module, DATA, RECIPE, variables=boxed, **QUIET).state, expected)
    masks = jax.tree.map(lambda leaf: leaf >= 0, start["params"])
    masked = fit(other, DATA, RECIPE, masks=masks, **QUIET).state
    state = jax.tree.map(lambda leaf: leaf >= 0, nnx.state(other, nnx.Param))
    pattern = Skip(2)
    nnx.update(pattern, state)
    for given in (state, pattern):
        assert same(fit(other, DATA, RECIPE, masks=given, **QUIET).state, masked)
    assert not np.any(np.asarray(masked.params["stem"]["kernel"])[~masks["stem"]["kernel"]])


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_narrow_and_sharded_weights_are_trained_in_float32(kind):
    module = Skip()
    narrow = jax.tree.map(lambda leaf: leaf.astype(kind), nnx.state(module, nnx.Param))
    nnx.update(module, narrow)
    module.head.kernel.set_metadata(out_sharding=("a", None))
    fitted = fit(module, DATA, RECIPE, **QUIET)
    assert {leaf.dtype for leaf in jax.tree.leaves(fitted.variables)} == {jnp.dtype("float32")}
    assert fitted.model.head.kernel.get_metadata("out_sharding") == ("a", None)


def test_a_killed_run_goes_on_bit_for_bit(tmp_path, monkeypatch):
    recipe = dataclasses.replace(RECIPE, num_epochs=3, adversary=PGD_2)
    whole = fit(Skip(rate=0.5), DATA, recipe, run_dir=tmp_path / "whole", **QUIET)
    saves, save = [], loop._save

    def killed(*arguments):
        save(*arguments)
        saves.append(1)
        if len(saves) == 1:
            raise RuntimeError("killed")

    monkeypatch.setattr(loop, "_save", killed)
    with pytest.raises(RuntimeError, match="killed"):
        fit(Skip(rate=0.5), DATA, recipe, run_dir=tmp_path / "parts", **QUIET)
    found = fit(Skip(rate=0.5), DATA, recipe, run_dir=tmp_path / "parts", **QUIET)
    assert len(saves) == 3 and same(found.state, whole.state)
    logs = [(tmp_path / name / "log.jsonl").read_bytes() for name in ("whole", "parts")]
    assert logs[0] == logs[1]


def test_another_module_is_refused_in_the_same_folder(tmp_path):
    fit(Skip(), DATA, RECIPE, run_dir=tmp_path, **QUIET)
    in_evaluation = Skip()
    in_evaluation.eval()
    fit(in_evaluation, DATA, RECIPE, run_dir=tmp_path, **QUIET)
    for other, words in (
        (Skip(momentum=0.8), "model.norm_0/momentum was 0.9, is now 0.8"),
        (Skip(rate=0.5), r"model.dropout/rate was 0.0, is now 0.5"),
        (Skip(width=5), r"model.block/bias was .*float32\[6\], is now .*float32\[5\]"),
        (Skip(1), "variables.params.block.kernel was"),
        (Odd(), "model"),
    ):
        with pytest.raises(ValueError, match=words):
            fit(other, DATA, RECIPE, run_dir=tmp_path, **QUIET)
    assert "0x" not in json.dumps(json.loads((tmp_path / "settings.json").read_text()))


def test_modules_of_one_structure_share_what_is_compiled():
    assert Network(Skip()).model == Network(Skip(1)).model
    assert hash(Network(Odd()).model) == hash(Network(Odd(1)).model)
    assert Network(Skip()).model != Network(Skip(momentum=0.8)).model
    odd = Odd()
    odd.scale = odd.scale * 2
    assert Network(Odd()).model != Network(odd).model


def test_another_module_of_the_structure_compiles_nothing():
    fit(Skip(rate=0.5), DATA, RECIPE, **QUIET)
    compiled = num_compiled()
    fit(Skip(1, rate=0.5), DATA, dataclasses.replace(RECIPE, seed=1), **QUIET)
    assert num_compiled() == compiled


def test_a_module_is_compressed_while_it_is_trained(tmp_path):
    recipe = dataclasses.replace(
        RECIPE,
        num_epochs=4,
        adversary=PGD_2,
        validation=Validation(PGD_2),
        compression=ADMM(kept=0.5, rho=0.01, rho_growth=1.5),
    )
    fitted = fit(Skip(rate=0.2), DATA, recipe, run_dir=tmp_path, **QUIET)
    kernel = np.asarray(fitted.model.block.kernel[...])
    mask = np.asarray(fitted.masks["block"]["kernel"])
    assert mask.sum() == mask.size // 2 and not kernel[~mask].any() and kernel[mask].all()
    assert np.all(np.asarray(fitted.model.stem.kernel[...]))
    assert fitted.final["kept_weights"] == mask.size // 2
    assert not same(fitted.variables["batch_stats"], fitted.state.batch_stats)

    def logits_fn(images):
        return fitted.model((images - 0.5) / 0.25)

    images, labels = jnp.float32(VALIDATION[0]) / 255, jnp.asarray(VALIDATION[1])
    success = PGD_2(jax.random.key(0), logits_fn, images, labels).success
    assert fitted.final["accuracy_after"] > 0.8 and 1 - float(success.mean()) > 0.8
    retrained = fit(fitted.model, DATA, RECIPE, masks=fitted.masks, **QUIET)
    assert not np.asarray(retrained.model.block.kernel[...])[~mask].any()


class Bare(nnx.Module):
    def __call__(self, images):
        return images.mean((1, 2)) * jnp.ones(2)


class Square(nnx.Module):
    def __init__(self):
        self.scale = nnx.Param(jnp.ones(()))

    def __call__(self, images):
        return images * self.scale[...]


class Grows(nnx.Module):
    def __init__(self):
        self.head = nnx.Linear(16, 2, rngs=nnx.Rngs(0))
        self.seen = nnx.Variable(jnp.zeros((1, 16)))

    def __call__(self, images):
        flat = images.reshape(images.shape[0], -1)
        self.seen.set_value(flat)
        return self.head(flat)


@pytest.mark.parametrize(
    ("model", "arguments", "words"),
    [
        (Bare(), {}, "every nnx.Param is trained and nothing else"),
        (Square(), {}, r"`model` must return \[B, K\]"),
        (Grows(), {}, r"variables\['batch_stats'\], {'seen': \(1, 16\)}, got {'seen': \(2, 16\)}"),
        (Skip(), {"variables": {"kernel": jnp.ones(1)}}, 'must hold "params" and may hold'),
        (Skip(), {"variables": Skip(width=5)}, r"params/block/bias was \[6\], is now \[5\]"),
        (Skip(), {"variables": nnx.state(Skip(), nnx.Param)}, "batch_stats/norm_0/mean was"),
        (
            Skip(),
            {"variables": nnx.State(nnx.to_pure_dict(nnx.state(Skip(), nnx.Param)))},
            "must hold variables",
        ),
    ],
)
def test_modules_that_cannot_be_trained(model, arguments, words):
    with pytest.raises(ValueError, match=words):
        fit(model, DATA, RECIPE, **arguments, **QUIET)


def test_a_state_begins_with_the_weights_of_a_module():
    state = create_state(Skip(), RECIPE)
    assert same(state.variables, initial_variables(Skip(), SHAPE, 0))
