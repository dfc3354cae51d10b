"""docs/your_model.md runs as it stands: each framework, and what can be done with any of them."""

import importlib
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxrobust import training
from jaxrobust.training.run.arguments import _given_masks

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "your_model.md").read_text()
SECTIONS = dict(re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", TEXT, flags=re.S | re.M))
*FRAMEWORKS, LAST = SECTIONS
(BEFORE,) = re.findall(r"```python\n(.*?)```", TEXT[: TEXT.index("\n## ")], flags=re.S)


def blocks(section):
    return re.findall(r"```python\n(.*?)```", SECTIONS[section], flags=re.S)


def examples():
    """The class is how bright one of ten rows is."""
    random = np.random.default_rng(0)
    labels = np.arange(64) % 10
    images = random.uniform(0, 0.4, (64, 8, 8, 3)).astype(np.float32)
    images[np.arange(64), labels % 8, :, labels // 8] += 0.5
    return images, labels


def torch_weights(path):
    """As numpy.savez writes the state dict of such a network."""
    random = np.random.default_rng(0)
    shapes = {"stem.weight": (16, 3, 3, 3), "conv.weight": (16, 16, 3, 3), "conv.bias": (16,)}
    shapes |= {f"norm.{name}": (16,) for name in ("weight", "bias", "running_mean", "running_var")}
    shapes |= {"head.weight": (10, 16), "head.bias": (10,)}
    drawn = {n: random.normal(size=s).astype(np.float32) / 5 for n, s in shapes.items()}
    np.savez(path, **(drawn | {"norm.running_var": np.ones(16, np.float32)}))


def trains_under_masks(scope):
    """As the last section says, with masks as `pruning` returns them."""
    network = scope["Net"]() if "Net" in scope else (scope["init"], scope["apply"])
    for masks in (scope["masks"], scope["sparse"]):
        params = training.fit(network, scope["data"], scope["recipe"], masks=masks).variables[
            "params"
        ]
        removed = [~mask for mask in jax.tree.leaves(_given_masks(masks))]
        assert sum(int(one.sum()) for one in removed) > 100
        for leaf, gone in zip(jax.tree.leaves(params), removed, strict=True):
            assert not np.asarray(leaf)[np.asarray(gone)].any()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_everything_in_every_framework(framework, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_network", raising=False)
    importlib.invalidate_caches()
    torch_weights(tmp_path / "net.npz")
    network, use = blocks(framework)
    assert network.startswith("# my_network.py\n")
    (tmp_path / "my_network.py").write_text(network)
    images, labels = examples()
    mean, std = np.float32(0.3), np.float32(0.2)
    scope = {"images": images, "labels": labels, "mean": mean, "std": std}
    exec(BEFORE, scope)
    scope["recipe"] = training.Recipe(num_epochs=1, batch_size=16)
    exec(use, scope)
    (everything,) = blocks(LAST)
    exec(everything, scope)

    sizes = scope["groups"].sizes
    assert sizes and set(sizes.values()) == {16}
    masked = scope["pruning"].apply_masks(scope["weights"], scope["masks"])
    normalised = (images - mean) / std
    expected = scope["function"](masked, normalised)
    shrunk = scope["smaller"](images)
    np.testing.assert_allclose(shrunk, expected, rtol=0, atol=1e-5 * float(abs(expected).max()))
    np.testing.assert_array_equal(scope["again"](images), shrunk)
    assert (
        0.79 < scope["pruning"].sparsity_of(scope["sparse"], kernels=scope["groups"].kernels) < 0.81
    )
    assert np.isfinite(scope["compact"](images)).all()
    if framework != "Weights from PyTorch":
        trains_under_masks(scope)
    assert scope["result"].images.shape == images.shape
    assert scope["maps"].shape == scope["smooth"].shape == images.shape[:3]
    assert scope["report"].robust_accuracy["n"] == 64
    jax.clear_caches()
