"""Derivative rules of users, and settings of jax, in traced programs: none is mixed up or left out."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import num_compiled

from jaxrobust import attacks, programs
from jaxrobust.programs import company

IMAGES = jnp.asarray(np.random.default_rng(0).random((4, 2, 2, 3)), jnp.float32) * 0.8 + 0.1
LABELS = jnp.arange(4) % 3
KEY = jax.random.key(0)


def moved(logits_fn) -> float:
    """How far an attack along the gradient moves the images: 0 where the gradient is."""
    found = attacks.BIM(0.05, 0.02, 3)(KEY, logits_fn, IMAGES, LABELS)
    return float(jnp.abs(found.images - IMAGES).max())


def quantized(images):
    return jnp.round(images * 4) / 4


def straight_through(scale, **options):
    function = jax.custom_vjp(quantized)
    function.defvjp(lambda x: (quantized(x), None), lambda _, g: (g * scale,), **options)
    return function


def test_a_rule_of_ones_own_for_a_function_of_jax():
    def network(scale):
        function = jax.custom_jvp(jax.nn.relu)
        function.defjvps(lambda tangent, _, __: scale * tangent)
        return lambda images: function(images.mean((1, 2)))

    assert moved(network(0.0)) == 0 and moved(network(1.0)) > 0.04
    assert programs.fingerprint(network(0.0), IMAGES) != programs.fingerprint(network(1.0), IMAGES)


def test_rules_that_read_a_module_are_not_settled(monkeypatch):
    module = types.ModuleType("a_module_of_users")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    code = """
import jax, jax.numpy as jnp
SCALE = 0.0
@jax.custom_vjp
def straight(x): return jnp.round(x * 4) / 4
def forward(x): return straight(x), None
def backward(_, g): return (SCALE * g,)
straight.defvjp(forward, backward)
def apply(weights, images): return straight(images).mean((1, 2)) @ weights
def with_globals(weights, images): return images.mean((1, 2)) @ weights * globals()["SCALE"]
"""
    exec(compile(code, "a_module_of_users.py", "exec"), vars(module))
    network = jax.tree_util.Partial(module.apply, jnp.eye(3))
    assert moved(network) == 0
    module.SCALE = 1.0
    assert moved(network) > 0.04
    by_name = jax.tree_util.Partial(module.with_globals, jnp.eye(3))
    assert not programs.is_settled(by_name)


@pytest.mark.parametrize("inside", ["map", "cond", "checkpoint", "while"])
def test_a_rule_inside_is_that_of_the_function_itself(inside):
    def network(box):
        def logits_fn(images):
            # Made anew, as by those who define it where they use it.
            function = jax.custom_vjp(quantized)
            function.defvjp(lambda x: (quantized(x), None), lambda _, g: (g * box["scale"],))
            if inside == "map":
                return jax.lax.map(function, images).mean((1, 2))
            if inside == "cond":
                known = images.sum() > -1
                return jax.lax.cond(known, function, lambda x: x, images).mean((1, 2))
            if inside == "checkpoint":
                return jax.checkpoint(function)(images).mean((1, 2))
            # No gradient through the loop, so one around it.
            count = jax.lax.while_loop(lambda n: n < 3, lambda n: n + 1, 0)
            return function(images).mean((1, 2)) + 0 * count

        return logits_fn

    first, second = ({"scale": jnp.ones(())} for _ in range(2))
    company.compiled_answer(programs.as_argument(network(first), IMAGES), IMAGES, jnp.arange(4))
    first["scale"] = jnp.zeros(())
    assert moved(network(second)) > 0.04
    assert moved(network(first)) == 0


def test_a_rule_that_asks_what_is_differentiated():
    function = jax.custom_vjp(lambda x, w: x * w)

    def forward(x, w):
        return x.value * w.value, (w.value, w.perturbed)

    def backward(kept, cotangent):
        weights, perturbed = kept
        return cotangent * weights * (0.0 if perturbed else 1.0), cotangent

    function.defvjp(forward, backward, symbolic_zeros=True)
    ones = jnp.ones(IMAGES.shape)
    assert moved(lambda images: function(images, ones).mean((1, 2))) > 0.04


def test_a_result_without_a_derivative_compiles_once():
    def network(scale):
        function = jax.custom_vjp(lambda x: (quantized(x), jnp.argmax(x, -1)))
        function.defvjp(lambda x: (function(x), None), lambda _, g: (g[0] * scale,))
        return lambda images: function(images)[0].mean((1, 2)) + 0 * function(images)[1].sum()

    assert moved(network(jnp.float32(1))) > 0.04
    before = num_compiled()
    assert moved(network(jnp.float32(0))) == 0
    assert num_compiled() == before


def test_a_second_derivative_is_refused():
    function = jax.custom_jvp(quantized)

    @function.defjvp
    def _(primals, tangents):
        return function(primals[0]), (1 - function(primals[0]) ** 2) * tangents[0]

    program = programs.as_argument(lambda images: function(images).mean((1, 2)), IMAGES)

    def steepness(images):
        return (jax.grad(lambda images: program(images)[:, 0].sum())(images) ** 2).sum()

    assert steepness(IMAGES) > 0
    with pytest.raises(NotImplementedError, match="second derivative"):
        jax.grad(steepness)(IMAGES)


def test_settings_of_jax_are_part_of_a_program():
    def noisy(images):
        return (images + 0.3 * jax.random.normal(KEY, images.shape)).mean((1, 2))

    def shown():
        function = programs.as_argument(noisy, IMAGES)
        return company.compiled_answer(function, IMAGES, jnp.arange(4))

    first, before = shown(), jax.config.jax_threefry_partitionable
    jax.config.update("jax_threefry_partitionable", not before)
    try:
        np.testing.assert_allclose(shown(), noisy(IMAGES), atol=1e-5)
        assert np.abs(shown() - first).max() > 0.01
    finally:
        jax.config.update("jax_threefry_partitionable", before)


def test_what_is_closed_over_is_no_argument():
    ones = jnp.ones_like(IMAGES)
    one = programs.trace(lambda images: ones + images, IMAGES)
    two = programs.trace(lambda first, second: first + second, IMAGES, IMAGES)
    np.testing.assert_array_equal(one(IMAGES), two(ones, IMAGES))


def normalised(images):
    mean, variance = images.mean((0, 1, 2)), images.var((0, 1, 2))
    return (images - mean) / jnp.sqrt(variance + 1e-5)


def test_weights_decide_whether_the_batch_matters():
    def apply(weights, images):
        return (images + weights["gamma"] * normalised(images)).mean((1, 2)) @ weights["head"]

    for gamma in (0.0, 1.0):
        weights = {"gamma": jnp.float32(gamma), "head": jnp.eye(3)}
        for network in (
            jax.tree_util.Partial(apply, weights),
            lambda images, weights=weights: apply(weights, images),
        ):
            if gamma == 0:
                moved(network)
            else:
                with pytest.raises(ValueError, match="training mode"):
                    moved(network)


HEAD = jnp.asarray(np.random.default_rng(2).standard_normal((12, 6)), jnp.float32)


def of_batch(images):
    return normalised(images).reshape(len(images), -1) @ HEAD


def masked_in_some(images):
    masked = (jnp.arange(6) == 5) & (images[:, 0, 0, :1] > 0.5)
    return jnp.where(masked, -1e9, of_batch(images))


def of_groups(images, count=4):
    """Of every fourth image."""
    groups = images.reshape(count, -1, *images.shape[1:])
    mean, variance = groups.mean((0, 2, 3), keepdims=True), groups.var((0, 2, 3), keepdims=True)
    whole = (groups - mean) / jnp.sqrt(variance + 1e-5)
    return whole.reshape(len(images), -1) @ HEAD


@pytest.mark.parametrize(
    "logits_fn",
    [of_batch, masked_in_some, of_groups, lambda images: 1e-12 * of_batch(images)],
    ids=["batch", "masked", "groups", "tiny"],
)
def test_no_size_of_logits_and_no_grouping_hides_the_batch(logits_fn):
    images = np.random.default_rng(1).random((16, 2, 2, 3), np.float32)
    found = company.dependence(logits_fn, images)
    assert found is not None and found.moved >= 8


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6])
def test_a_sound_network_is_not_refused(scale):
    def sound(images):
        logits = scale * images.reshape(len(images), -1) @ HEAD
        return jnp.where((jnp.arange(6) == 5) & (images[:, 0, 0, :1] > 0.5), -1e9, logits)

    images = np.random.default_rng(1).random((16, 2, 2, 3), np.float32)
    assert company.dependence(sound, images, thorough=True) is None
