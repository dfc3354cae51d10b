"""docs/compression.md runs as written, and what it makes is what it says."""

import re
from pathlib import Path

import numpy as np
import pytest

from jaxrobust import pruning

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "compression.md").read_text()


@pytest.mark.slow
def test_the_examples_make_what_the_text_says(tmp_path, monkeypatch):
    """In one test: workers that share a file would each run the examples."""
    monkeypatch.chdir(tmp_path)
    scope = {}
    for code in re.findall(r"```python\n(.*?)```", TEXT, flags=re.S):
        exec(code, scope)

    # All of them end at their budget and have learned.
    size = 768 * 64 + 64 * 32
    for figures in (scope["result"].final, *scope["figures"].values()):
        assert figures["weights"] == size
        assert figures["accuracy_after"] > 0.35  # under attack
    kept = [figures["kept_weights"] for figures in scope["figures"].values()]
    assert kept == [size // 2, *[round(0.2 * 768 * 64) + round(0.2 * 64 * 32)] * 2]
    assert scope["result"].final["kept_weights"] == kept[1]
    layers = pruning.layer_sparsity(scope["result"].variables["params"])
    assert layers["head/kernel"]["kept"] == layers["head/kernel"]["size"]
    retrained = scope["two"].retrained
    kernels = pruning.layer_sparsity(retrained.variables["params"], scope["two"].compressed.masks)
    assert kernels["block_0/dense/kernel"]["kept"] == round(0.2 * 768 * 64)
    assert retrained.history[-1]["train_accuracy"] > 0.6

    # Half of the filters have left the network, and it computes the same.
    keep, channels = scope["keep"], scope["channels"]
    kept = {name: len(one) / channels.sizes[name] for name, one in keep.items()}
    assert kept.pop("block_0/conv") == 1 and set(kept.values()) == {0.5} and len(kept) == 3
    images = scope["digits"].images[:20] / np.float32(255)
    masked, small = scope["cnn"].apply, scope["smaller"].apply
    np.testing.assert_allclose(
        small(pruning.shrink(scope["filters"].variables, channels, keep), images),
        masked(scope["filters"].variables, images),
        rtol=0,
        atol=1e-4,
    )
    assert scope["filters"].final["accuracy_after"] > 0.3

    # The funnel narrows.
    layers = pruning.layer_sparsity(scope["result"].state.params, scope["masks"])
    first, second = layers["block_0/dense/kernel"], layers["block_1/dense/kernel"]
    assert first["kept"] / first["size"] >= second["kept"] / second["size"]
    assert first["kept"] + second["kept"] == round(0.2 * size)

    # The sequences are those of the text.
    stages, kept = scope["schedule"].stages, scope["kept"]
    assert len(kept) == 9 and kept[-1] == 0.2
    np.testing.assert_allclose(sorted({one.epsilon for _, one in stages}), [0.1 / 3, 0.2 / 3, 0.1])
    assert scope["robust"].kept == kept
