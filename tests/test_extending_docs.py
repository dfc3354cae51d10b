"""docs/extending.md runs as it stands, and each of the seven additions does what it is for."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.attacks import MIFGSM

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "extending.md").read_text()


@pytest.fixture(scope="module")
def scope():
    """What all blocks of the page leave behind."""
    left = {}
    for code in re.findall(r"```python\n(.*?)```", TEXT, flags=re.S):
        exec(code, left)
    return left


def test_the_attack_is_mi_fgsm(scope):
    attack = scope["Momentum"](0.1, 0.02, num_steps=4)
    ours = attack(jax.random.key(0), scope["classifier"], scope["images"], scope["labels"])
    theirs = MIFGSM(0.1, 0.02, num_steps=4)(
        jax.random.key(0), scope["classifier"], scope["images"], scope["labels"]
    )
    np.testing.assert_allclose(ours.images, theirs.images, rtol=0, atol=1e-6)
    assert scope["report"].linf.max() <= 8 / 255 + 1e-6


def test_the_criterion_and_the_set_keep_the_largest(scope):
    params, masks = scope["variables"]["params"], scope["masks"]
    kernel = np.asarray(params["Conv_0"]["kernel"])
    kept = np.asarray(masks["Conv_0"]["kernel"]).all((0, 1, 2))
    largest = np.abs(kernel).max((0, 1, 2))
    assert kept.sum() == 8 and largest[kept].min() >= largest[~kept].max()
    rows = np.asarray(scope["smaller"]["Conv_1"]["kernel"])
    assert (rows.all(-1) | ~rows.any(-1)).all() and 0.4 < rows.mean() < 0.6
    assert scope["compression"].constraint == scope["InputRows"]()


def test_maps_the_objective_and_the_defence(scope):
    maps, fitted = scope["maps"], scope["fitted"]
    assert maps.shape == (8, 16, 16) and float(maps.min()) >= 0
    assert len(fitted.history) == 1 and fitted.history[0]["train_loss"] >= -1
    levels = np.unique(np.asarray(scope["fewer_levels"](jnp.linspace(0, 1, 1000))))
    assert len(levels) == 16 and len(scope["adaptive"].labels) == 8


def test_the_tables_that_the_page_names_are_there():
    root = Path(__file__).resolve().parents[1]
    for name, file in re.findall(r"`([A-Z]+)` in `([\w/.]+)`", TEXT):
        path = root / file if file.startswith("tests") else root / "jaxrobust" / file
        assert re.search(rf"^{name}\b", path.read_text(), flags=re.M), (name, file)
