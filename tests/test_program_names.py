"""Names of layers and weights, and the table of layers, in every framework."""

import functools

import flax.linen as nn
import frameworks
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from jaxrobust import programs

IMAGES = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
VARIABLES = frameworks.linen_variables(IMAGES)
NUM_PARAMETERS = sum(leaf.size for leaf in jax.tree.leaves(VARIABLES))


def names(function, images=IMAGES):
    return [layer.name for layer in programs.describe(function, images).layers]


def test_linen_has_the_names_of_its_modules():
    found = names(frameworks.linen(VARIABLES))
    for name in ("Conv_0", "LinenBlock_1/Conv_2", "LinenBlock_1/BatchNorm_2", "Dense_0"):
        assert f"LinenResNet/{name}" in found


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (frameworks.in_nnx(VARIABLES), ("stem", "blocks/1/convs/2", "blocks/1/norms/2", "head")),
        (
            frameworks.in_equinox(VARIABLES),
            ("model/convs/0", "model/convs/5", "model/norms/5", "model/head"),
        ),
        (frameworks.plain(VARIABLES), ("layers/0", "layers/5", "layers/6")),
    ],
    ids=["nnx", "equinox", "plain"],
)
def test_what_leaves_no_names_has_those_of_its_weights(function, expected):
    assert set(expected) <= set(names(function))


def test_haiku_has_the_names_of_its_modules():
    def forward(images):
        hidden = jax.nn.relu(hk.Conv2D(4, 3, name="first")(images))
        return hk.Linear(5, name="last")(hidden.mean((1, 2)))

    network = hk.without_apply_rng(hk.transform(forward))
    variables = network.init(jax.random.key(0), IMAGES)
    found = names(jax.tree_util.Partial(network.apply, variables))
    assert {"first", "last"} <= {name.rpartition("/")[2] for name in found}


def test_scopes_and_shared_weights_and_what_is_not_used():
    weights = {"a": {"w": jnp.ones((3, 3))}, "b": {"w": jnp.ones((3, 2))}, "c": {"w": jnp.ones(7)}}

    def function(weights, images):
        x = images.mean((1, 2)) @ weights["a"]["w"]
        with jax.named_scope("again"):
            x = x @ weights["a"]["w"]
        return x @ weights["b"]["w"]

    found = programs.describe(jax.tree_util.Partial(function, weights), IMAGES)
    assert [layer.name for layer in found.layers] == ["", "a", "again", "b"]
    assert [layer.num_parameters for layer in found.layers] == [0, 9, 0, 6]
    assert found.unused == ("c/w",)
    assert "Not used: c/w." in str(found)


class Model:
    """Not callable: its method is."""

    def __init__(self):
        self.layers = {"w": np.ones((3, 5), np.float32)}

    def logits(self, images, scale=1.0):
        return images.mean((1, 2)) @ self.layers["w"] * scale


def test_methods_partials_and_arrays_of_numpy_have_paths():
    model = Model()
    for function in (
        model.logits,
        functools.partial(model.logits, scale=2.0),
        lambda images: model.logits(images),
        jax.jit(lambda images: model.logits(images)),
    ):
        assert "layers" in names(function)
        assert programs.describe(function, IMAGES).num_parameters == 15


def test_a_network_of_one_layer_keeps_its_name_and_unused_layers_are_said():
    class Network(nnx.Module):
        def __init__(self):
            self.used = nnx.Linear(3, 5, rngs=nnx.Rngs(0))
            self.idle = nnx.Linear(4, 4, rngs=nnx.Rngs(0))

        def __call__(self, images):
            return self.used(images.mean((1, 2)))

    found = programs.describe(Network(), IMAGES)
    assert [layer.name for layer in found.layers] == ["", "used"]
    assert set(found.unused) == {"idle/kernel", "idle/bias"}


def test_arrays_without_a_path_have_numbers():
    def function(images):
        return images.mean((1, 2)) @ jnp.asarray(np.arange(15, dtype=np.float32).reshape(3, 5))

    assert "constant_0" in names(function)


def test_the_same_network_has_the_same_totals_in_every_framework():
    forms = (
        frameworks.linen(VARIABLES),
        frameworks.in_nnx(VARIABLES),
        frameworks.plain(VARIABLES),
    )
    tables = [programs.describe(form, IMAGES) for form in forms]
    normalisation = 2 * 3
    assert {table.num_parameters for table in tables} == {NUM_PARAMETERS + normalisation}
    assert {table.num_bytes for table in tables} == {4 * (NUM_PARAMETERS + normalisation)}
    assert len({table.flops for table in tables}) == 1


def test_flops_are_products_twice():
    cases = {
        "conv": (nn.Conv(4, (3, 3), (2, 2), use_bias=False), 2 * 2 * 8 * 8 * 4 * 27),
        "groups": (
            nn.Conv(6, (3, 3), use_bias=False, feature_group_count=3),
            2 * 2 * 16 * 16 * 6 * 9,
        ),
        "dense": (nn.Dense(7, use_bias=False), 2 * 2 * 16 * 16 * 7 * 3),
        # Each pixel of the images meets each tap once.
        "transposed": (
            nn.ConvTranspose(4, (2, 2), (2, 2), use_bias=False),
            2 * 2 * 16 * 16 * 4 * 3 * 4,
        ),
    }
    for name, (module, flops) in cases.items():
        variables = module.init(jax.random.key(0), IMAGES)
        found = programs.describe(jax.tree_util.Partial(module.apply, variables), IMAGES)
        assert found.flops == flops, name


def test_loops_are_counted_as_often_as_they_run():
    weights = {"layers": jnp.ones((4, 3, 3))}

    def function(weights, images):
        x = images.mean((1, 2))
        return lax.scan(lambda x, w: (x @ w, None), x, weights["layers"])[0]

    found = programs.describe(jax.tree_util.Partial(function, weights), IMAGES)
    assert [layer.flops for layer in found.layers if layer.name == "layers"] == [4 * 2 * 2 * 3 * 3]
    assert found.num_parameters == 36


def test_weights_in_carries_choices_and_rules_are_counted_once():
    weights = {"a": {"w": jnp.ones((3, 3))}, "b": {"w": 2 * jnp.ones((3, 3))}}

    @jax.custom_vjp
    def scaled(x):
        return x * weights["b"]["w"][0]

    scaled.defvjp(lambda x: (scaled(x), None), lambda _, g: (g * weights["b"]["w"][1],))

    def carried(weights, images):
        step = lambda _, carry: (carry[0] @ carry[1], carry[1] * 0.5)  # noqa: E731
        return lax.fori_loop(0, 3, step, (images.mean((1, 2)), weights["a"]["w"]))[0]

    def chosen(weights, images):
        x = images.mean((1, 2))
        w = lax.cond(x.sum() > 0, lambda: weights["a"]["w"], lambda: weights["b"]["w"])
        return x @ w

    for function, names, count in (
        (jax.tree_util.Partial(carried, {"a": weights["a"]}), {"a"}, 9),
        (jax.tree_util.Partial(chosen, weights), {""}, 18),
        (lambda images: scaled(images.mean((1, 2))), {"b"}, 9),
    ):
        found = programs.describe(function, IMAGES)
        assert found.unused == () and found.num_parameters == count
        assert {layer.name for layer in found.layers if layer.num_parameters} == names


def test_equal_arrays_of_numpy_keep_their_layers():
    weights = {
        name: {"w": np.full((4, 4), index, np.float32), "b": np.zeros(4, np.float32)}
        for index, name in enumerate("abc")
    }

    def function(images):
        x = images[:, 0, :2, :2].reshape(len(images), 4)
        for layer in weights.values():
            x = x @ layer["w"] + layer["b"]
        return x

    layers = programs.describe(function, IMAGES).layers
    counts = {layer.name: layer.num_parameters for layer in layers if layer.name}
    assert counts == dict.fromkeys("abc", 20)


def test_odd_objects_cost_names_alone():
    loop = [jnp.ones((3, 5))]
    loop.append(loop)
    mixed = {1: jnp.ones(3), "x": jnp.ones((3, 5))}
    for function in (
        lambda images: images.mean((1, 2)) @ loop[0],
        lambda images: (images.mean((1, 2)) * mixed[1]) @ mixed["x"],
        functools.partial(
            lambda keys, images: images.mean((1, 2)) + jax.vmap(jax.random.normal)(keys)[:, None],
            jax.random.split(jax.random.key(0), 2),
        ),
    ):
        assert programs.describe(function, IMAGES).layers


def test_branches_checkpoints_and_rules_of_ones_own_are_opened():
    @jax.custom_vjp
    def doubled(x):
        return 2.0 * x

    doubled.defvjp(lambda x: (doubled(x), None), lambda _, g: (g,))
    weights = {"first": {"w": jnp.ones((3, 4))}, "second": {"w": jnp.ones((4, 5))}}

    def function(weights, images):
        x = jax.checkpoint(lambda x: doubled(x @ weights["first"]["w"]))(images.mean((1, 2)))
        return lax.cond(
            x.sum() > 0, lambda x: x @ weights["second"]["w"], lambda x: x[:, :1] + jnp.zeros(5), x
        )

    found = programs.describe(jax.tree_util.Partial(function, weights), IMAGES)
    assert {"first", "second"} <= {layer.name for layer in found.layers}


def test_the_table():
    text = str(programs.describe(frameworks.linen(VARIABLES), IMAGES))
    header, rule, *rows, second_rule, total = text.splitlines()
    assert header.split() == ["layer", "result", "parameters", "bytes", "FLOPs"]
    assert set(rule) == set(second_rule) == {"-"}
    assert any(row.split()[:2] == ["LinenResNet/Dense_0", "float32[2,5]"] for row in rows)
    assert f"{NUM_PARAMETERS + 6:,}" in total


def test_what_cannot_be_traced_is_said():
    with pytest.raises(TypeError, match="must be written in jax.numpy"):
        programs.describe(lambda images: np.asarray(images).mean((1, 2)), IMAGES)
    with pytest.raises(TypeError, match="`function` must be callable"):
        programs.describe(IMAGES, frameworks.linen(VARIABLES))
    with pytest.raises(TypeError, match="`images` must be an array"):
        programs.describe(frameworks.linen(VARIABLES), (1, 32, 32, 3))
