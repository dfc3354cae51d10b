"""docs/pruning.md runs as written, and what it makes is what it says."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxrobust import models, studies, training

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "pruning.md").read_text()
IMAGES = np.random.default_rng(0).uniform(size=(32, 16, 16, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def scope(tmp_path_factory):
    """What all examples leave behind, and the folder that they wrote to."""
    folder = tmp_path_factory.mktemp("docs")
    left = {"images": IMAGES, "labels": np.arange(32) % 10, "folder": folder}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for code in re.findall(r"```python\n(.*?)```", TEXT, flags=re.S):
            exec(code, left)
            if "smaller" in left:
                left.setdefault("first", dict(left))
    return left


def test_the_shrunk_network_computes_what_the_masked_one_does(scope):
    first = scope["first"]
    masked = jax.jit(first["network"].apply)(first["variables"], IMAGES)
    shrunk = jax.jit(first["smaller"].apply)(first["small"], IMAGES)
    np.testing.assert_allclose(shrunk, masked, rtol=0, atol=1e-4 * float(abs(masked).max()))
    # Half of each, but never fewer than 8.
    smaller = first["smaller"]
    assert smaller.widths == (8, 16, 24) and smaller.inner_widths == (8, 8, 16, 16, 24, 24)


def test_the_saved_network_loads_by_its_name_and_widths(scope):
    classifier = studies.load_model(str(scope["folder"] / "results/half.jrw")).classifier
    expected = models.Classifier(scope["first"]["smaller"].apply, scope["first"]["small"])
    apply = jax.jit(lambda classifier, images: classifier(images))
    logits = apply(expected, IMAGES)
    np.testing.assert_allclose(apply(classifier, IMAGES), logits, rtol=0, atol=1e-5)


def test_the_shrunk_state_is_one_of_the_smaller_network(scope):
    state, smaller = scope["smaller_state"], scope["first"]["smaller"]
    variables = jax.eval_shape(smaller.init, jax.random.key(0), IMAGES[:1])
    fresh = jax.eval_shape(lambda v: training.create_state(v, scope["recipe"]), variables)
    assert jax.tree.structure(state) == jax.tree.structure(fresh)
    assert [leaf.shape for leaf in jax.tree.leaves(state)] == [
        leaf.shape for leaf in jax.tree.leaves(fresh)
    ]
    assert int(state.step) == 2
    trace = jax.tree.leaves(state.opt_state)
    assert any(float(abs(leaf).max()) > 0 for leaf in trace)


def test_the_module_of_ones_own(scope):
    assert scope["own"].widths == (8, 12)
    masked = jax.jit(scope["Net"]().apply)(scope["variables"], IMAGES[:3])
    np.testing.assert_allclose(scope["logits"], masked, rtol=0, atol=1e-5)
    assert float(abs(scope["gradient"]).max()) > 0
    shrunk = jax.eval_shape(scope["own"].init, jax.random.key(0), IMAGES[:1])
    assert jax.tree.map(np.shape, scope["small"]) == jax.tree.map(np.shape, shrunk)


def test_what_is_printed_is_in_the_text(scope):
    assert f"```text\n{scope['groups']}\n```" in TEXT
    name = '`"stage_0_block_0/conv_0/conv"`'
    assert name in TEXT and name.strip('`"') in scope["first"]["groups"]
