"""Norms, losses, checks and compilation."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrobust import checks, compilation, losses, norms

CORES = """
import jax
from jaxrobust import compilation
compilation.use_every_core()
compilation.use_every_core()
print(jax.local_device_count())
"""
FLOATS = st.floats(-10, 10, width=32)
PERTURBATIONS = st.lists(FLOATS, min_size=12, max_size=12).map(
    lambda values: jnp.asarray(values, jnp.float32).reshape(2, 2, 3)
)


IMAGES = st.lists(st.floats(0, 1, width=32), min_size=12, max_size=12).map(
    lambda values: jnp.asarray(values, jnp.float32).reshape(2, 2, 3)
)


@settings(max_examples=60, deadline=None)
@given(PERTURBATIONS, IMAGES, st.floats(0, 5, width=32), st.sampled_from(norms.NORMS))
def test_projection_is_inside_idempotent_and_nearest(perturbation, image, epsilon, order):
    def projected(change):
        return norms.project(change, image, epsilon, order)

    nearest = projected(perturbation)
    assert float(norms.norm(nearest, order)) <= epsilon * (1 + 1e-5) + 1e-6
    assert float((image + nearest).min()) >= 0 and float((image + nearest).max()) <= 1
    np.testing.assert_allclose(projected(nearest), nearest, rtol=1e-5, atol=1e-6)
    outside = perturbation
    if order == "l2":  # first onto the ball, then into the box: nearest of the ball alone
        outside = nearest
    # The nearest point of a convex set sees every other one at an angle of at least 90 degrees.
    for other in (projected(jnp.ones_like(perturbation)), projected(-perturbation)):
        assert float(jnp.vdot(outside - nearest, other - nearest)) <= 2e-3


@settings(max_examples=40, deadline=None)
@given(PERTURBATIONS, st.sampled_from(("linf", "l2")))
def test_steepest_has_unit_norm_and_the_dual_norm_as_slope(gradient, order):
    direction = norms.steepest(gradient, order)
    if float(jnp.abs(gradient).max()) == 0:
        np.testing.assert_array_equal(direction, 0)
        return
    np.testing.assert_allclose(norms.norm(direction, order), 1.0, rtol=1e-5)
    dual = norms.norm(gradient, {"linf": "l1", "l2": "l2"}[order])
    np.testing.assert_allclose(jnp.vdot(gradient, direction), dual, rtol=1e-4)


def test_the_sparse_step_moves_the_largest_hundredth():
    gradient = jnp.arange(-100.0, 100.0).reshape(10, 20, 1)
    direction = norms.steepest(gradient, "l1")
    moved = np.flatnonzero(direction.ravel())
    np.testing.assert_array_equal(moved, [0, 1, 199])  # -100, and of equal size -99 and 99
    np.testing.assert_allclose(direction.ravel()[moved], [-1 / 3, -1 / 3, 1 / 3], rtol=1e-6)


def test_steepest_of_a_tiny_gradient_is_not_zero():
    direction = norms.steepest(jnp.full((1, 1, 4), 1e-25, jnp.float32), "l2")
    np.testing.assert_allclose(direction, 0.5, rtol=1e-5)


def test_unknown_norm():
    with pytest.raises(ValueError, match=r"one of \('linf', 'l2', 'l1'\), got 'l3'"):
        norms.norm(jnp.zeros((1, 1, 1)), "l3")
    ones = jnp.ones((1, 1, 1))
    for function in (
        lambda order: norms.project(ones, ones, 1.0, order),
        lambda order: norms.steepest(ones, order),
        lambda order: norms.uniform_in_ball(jax.random.key(0), (1, 1, 1), 1.0, order),
    ):
        with pytest.raises(ValueError, match=r"one of \('linf', 'l2', 'l1'\), got 'l3'"):
            function("l3")


def test_cross_entropy_of_large_logits_is_finite():
    np.testing.assert_allclose(losses.cross_entropy(jnp.array([1e4, 0.0]), 1), 1e4)


def test_numbers():
    checks.number("a", 0.5, minimum=0, maximum=1)
    checks.number("a", object(), minimum=0)  # a placeholder says nothing yet
    for value in (True, None, "1", [1.0]):
        with pytest.raises(TypeError, match="`a` must be a number"):
            checks.number("a", value)
    for value in (-0.1, 1.1, float("nan"), float("inf")):
        with pytest.raises(
            ValueError, match="`a` must be a finite number at least 0 and at most 1"
        ):
            checks.number("a", value, minimum=0, maximum=1)
    with pytest.raises(ValueError, match="`a` must be a finite number above 0, got 0"):
        checks.number("a", 0, above=0.0)


def test_compiled_function_works_inside_another():
    double = compilation.jit(lambda x: 2 * x)
    assert float(double(jnp.float32(2))) == 4
    assert float(jax.jit(lambda x: double(x) + 1)(jnp.float32(2))) == 5
    np.testing.assert_array_equal(jax.vmap(double)(jnp.arange(3)), [0, 2, 4])
    assert float(jax.grad(double)(1.0)) == 2
    # The traced value is in the closure: neither the arguments nor new arrays show it.
    in_closure = jax.grad(lambda p: compilation.jit(lambda x: p * x)(jnp.float32(3)))
    assert float(in_closure(1.0)) == 3


def test_options_that_jaxlib_does_not_know_are_left_out(monkeypatch):
    monkeypatch.setattr(compilation, "_CPU_OPTIONS", {"xla_no_such_option": "1"})
    assert compilation.compiler_options.__wrapped__() == {}


def test_lowering_and_calling_use_the_options(monkeypatch):
    wrong = {"xla_no_such_option": "1"}
    monkeypatch.setattr(compilation, "compiler_options", lambda: wrong)
    with pytest.raises(Exception, match="xla_no_such_option"):
        compilation.jit(lambda x: x + 1).lower(jnp.float32(1)).compile()
    with pytest.raises(Exception, match="xla_no_such_option"):
        compilation.jit(lambda x: x + 1)(jnp.float32(1))


def test_is_traced():
    assert not checks.is_traced()
    assert jax.jit(lambda x: jnp.asarray(checks.is_traced()))(0)


@pytest.mark.parametrize("chosen, expected", [({}, None), ({"JAX_NUM_CPU_DEVICES": "3"}, 3)])
def test_a_device_for_every_core(chosen, expected):
    bound = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count()))
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    told = subprocess.run(
        [sys.executable, "-c", CORES],
        env=kept | {"JAX_PLATFORMS": "cpu"} | chosen,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(told.stdout) == (expected or len(bound(0)))


def test_devices_cannot_change_once_jax_has_looked_at_them():
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        pytest.skip("the number of devices was chosen from outside")
    jax.devices()
    with pytest.raises(RuntimeError, match="`use_every_core` must come before jax computes"):
        compilation.use_every_core()
