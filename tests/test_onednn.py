"""oneDNN is used where a trial in another process has shown that it works, and is right there."""

import json
import os
import platform
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import compilation
from jaxrobust.ops import convolution, onednn, onednn_trial
from jaxrobust.ops.conv import Window

NUM_CASES, NUM_SEEDS = 500, 10


@pytest.fixture
def untried(monkeypatch, tmp_path):
    """No trial has been made, in an empty folder for its outcome."""
    monkeypatch.delenv("JAXROBUST_ONEDNN", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compilation._onednn_trial.cache_clear()
    yield tmp_path / "jaxrobust"
    compilation._onednn_trial.cache_clear()


def ending(monkeypatch, printed, status):
    """The trial's process prints this and ends."""
    calls = []

    def run(command, **options):
        calls.append(command)
        code = f"print({printed!r}, flush=True); import os; os._exit({status})"
        return run_real([sys.executable, "-c", code], **options)

    run_real = subprocess.run
    monkeypatch.setattr(compilation.subprocess, "run", run)
    return calls


def test_the_trial_says_what_works_and_is_made_once(untried, monkeypatch):
    found = compilation.onednn_types()
    expected = tuple(name for name in compilation.ONEDNN_TYPES if works(name))
    assert found == expected
    (outcome,) = untried.glob("*/onednn.json")
    assert json.loads(outcome.read_text()) == list(found)
    calls = ending(monkeypatch, "", 134)
    compilation._onednn_trial.cache_clear()  # as in the next process
    assert compilation.onednn_types() == found and not calls
    # Another release is tried anew.
    monkeypatch.setattr(compilation.jaxlib, "__version__", "99.0")
    compilation._onednn_trial.cache_clear()
    assert compilation.onednn_types() == () and len(calls) == 1


def works(type_name):
    code = (
        "from jaxrobust.ops import onednn_trial as t; import sys;"
        f"sys.exit(not all(t.is_right(case, {type_name!r}) for case in t.CASES))"
    )
    environment = os.environ | {"JAXROBUST_ONEDNN": "0"}  # of the reference
    return subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="jaxlib has no oneDNN there"
)
def test_float32_works_where_it_was_tested(untried):
    """Without this, a request that no release understands would only be slow."""
    assert "float32" in compilation.onednn_types()


def test_a_trial_that_did_not_take_place_is_repeated(untried, monkeypatch):
    calls = ending(monkeypatch, "", 1)  # an error of Python
    for number in (1, 2):
        assert compilation.onednn_types() == () and len(calls) == number
        compilation._onednn_trial.cache_clear()
    monkeypatch.setattr(sys, "frozen", True, raising=False)  # where there is no Python to run it
    assert compilation.onednn_types() == () and len(calls) == 2


@pytest.mark.parametrize(
    ("images", "kernel", "bias", "residual"),
    [
        ((2, 8, 8, 3), (3, 3, 4, 8), None, None),
        ((2, 8, 8, 3), (3, 3, 3, 8), (1,), None),
        ((2, 8, 8, 3), (3, 3, 3, 8), None, (1, 6, 6, 8)),
        ((2, 2, 8, 3), (3, 3, 3, 8), None, None),
    ],
)
def test_what_would_end_the_process_is_left_to_xla(untried, images, kernel, bias, residual):
    arrays = [None if s is None else jnp.ones(s) for s in (images, kernel, bias, residual)]
    assert not onednn.takes(*arrays, Window(padding=((0, 0), (0, 0))))
    if images[3] != kernel[2]:
        with pytest.raises((TypeError, ValueError)):
            convolution(arrays[0], arrays[1])


def test_a_batch_of_any_size_is_left_to_xla(untried):
    export = jax.export.export(jax.jit(lambda x: convolution(x, jnp.ones((3, 3, 3, 8)))))
    (batch,) = jax.export.symbolic_shape("b")
    exported = export(jax.ShapeDtypeStruct((batch, 8, 8, 3), jnp.float32))
    assert exported.call(jnp.ones((2, 8, 8, 3))).shape == (2, 6, 6, 8)
    strided = Window((2, 2), ((1, 1), (1, 1)))
    slope = jax.grad(lambda x: jnp.sum(convolution(x, jnp.ones((3, 3, 3, 8)), strided) ** 2))
    exported = jax.export.export(jax.jit(slope))(
        jax.ShapeDtypeStruct((batch, 8, 8, 3), jnp.float32)
    )
    np.testing.assert_allclose(exported.call(jnp.ones((2, 8, 8, 3))), slope(jnp.ones((2, 8, 8, 3))))


def test_a_process_that_onednn_ends_has_tried_the_types_before(untried, monkeypatch):
    ending(monkeypatch, "float32", 134)
    assert compilation.onednn_types() == ("float32",)


def test_without_a_place_for_its_outcome_the_trial_is_made_all_the_same(untried, monkeypatch):
    untried.parent.joinpath("jaxrobust").write_text("a file")
    ending(monkeypatch, "float32", 0)
    assert compilation.onednn_types() == ("float32",)


def test_what_users_ask_for(untried, monkeypatch):
    calls = ending(monkeypatch, "", 1)
    monkeypatch.setenv("JAXROBUST_ONEDNN", "0")
    assert compilation.onednn_types() == () and not calls
    monkeypatch.setenv("JAXROBUST_ONEDNN", "1")
    with pytest.raises(ValueError, match="JAXROBUST_ONEDNN=1 needs a jaxlib whose copy"):
        compilation.onednn_types()
    monkeypatch.setenv("JAXROBUST_ONEDNN", "yes")
    with pytest.raises(ValueError, match=r"`JAXROBUST_ONEDNN` must be one of \('', '0', '1'\)"):
        compilation.onednn_types()
    monkeypatch.delenv("JAXROBUST_ONEDNN")
    for without in (compilation.portable, compilation.divided):
        with without():
            assert compilation.onednn_types() == ()


def random_case(generator):
    """A convolution of any size, stride and padding that oneDNN computes, of at most 3e7 products."""
    while True:
        batch = int(generator.choice([1, 2, 3, 5, 8, 17, 32]))
        height, width = map(int, generator.integers(1, 20, 2))
        channels = [1, 2, 3, 4, 5, 8, 12, 16, 17, 24, 31, 32, 33, 48, 64, 100, 129]
        inputs, outputs = map(int, generator.choice(channels, 2))
        rows, columns, down, right = map(int, generator.integers(1, (8, 8, 4, 4)))
        padding = tuple((int(a), int(b)) for a, b in generator.integers(0, 5, (2, 2)))
        window = Window((down, right), padding)
        images, kernel = (batch, height, width, inputs), (rows, columns, inputs, outputs)
        shape = window.output_shape(images, kernel)
        bias, residual = map(bool, generator.integers(0, 2, 2))
        fits = onednn.fits(images, kernel, window)
        if fits and batch * np.prod(shape[1:3]) * np.prod(kernel) < 3e7:
            return onednn_trial.Case(images, kernel, window, bias, residual)


def check_random_cases(type_name, seed):
    """Prints the cases that are wrong; the last one on stderr may have ended the process."""
    generator = np.random.default_rng(seed)
    for number in range(NUM_CASES):
        case = random_case(generator)
        print(case, file=sys.stderr, flush=True)
        if not onednn_trial.is_right(case, type_name, seed=number):
            print(case)
        if number % 50 == 49:
            jax.clear_caches()


@pytest.mark.parametrize("seed", range(NUM_SEEDS))
@pytest.mark.parametrize("type_name", compilation.ONEDNN_TYPES)
def test_random_convolutions(type_name, seed, monkeypatch):
    monkeypatch.delenv("JAXROBUST_ONEDNN", raising=False)
    if type_name not in compilation.onednn_types():
        pytest.skip("oneDNN does not work here")
    code = f"import test_onednn; test_onednn.check_random_cases({type_name!r}, {seed})"
    paths = os.pathsep.join(sys.path)
    child = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"JAXROBUST_ONEDNN": "0", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-2000:]
    assert not child.stdout
