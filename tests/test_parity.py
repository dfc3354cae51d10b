"""The comparison with PyTorch's libraries: what can be tested without them."""

import jax
import numpy as np
import pytest

from experiments.benchmarks.parity import export, matrix, tables
from jaxrobust import models


def random_variables(name):
    shapes = jax.eval_shape(
        models.create(name).init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32)
    )
    leaves, structure = jax.tree.flatten(shapes)
    random = np.random.default_rng(0)
    return structure.unflatten([random.normal(size=x.shape).astype("f4") for x in leaves])


@pytest.mark.parametrize("name", ["cnn", "resnet_small"])
def test_to_torch_inverts_from_torch(name):
    variables = random_variables(name)
    back = models.from_torch(name, export.to_torch(name, variables))
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_to_torch_refuses_what_it_would_drop():
    variables = random_variables("cnn")
    variables["params"]["extra"] = np.zeros(3)
    with pytest.raises(ValueError, match="params/extra"):
        export.to_torch("cnn", variables)


def test_networks_survive_their_file(tmp_path):
    widths = (4, 4, 4)
    module = models.create("resnet_small", widths=widths)
    images = np.random.default_rng(0).uniform(size=(3, 8, 8, 3)).astype(np.float32)
    variables = module.init(jax.random.key(0), images)
    classifier = models.Classifier(module.apply, variables, np.full(3, 0.5), np.full(3, 0.2))
    path = tmp_path / "network.npz"
    export.save(path, "resnet_small", widths, classifier, images, np.arange(3), {"data": "none"})
    network = export.read("small", path)
    np.testing.assert_array_equal(network.classifier(images), classifier(images))
    assert network.recipe == {"data": "none"}


@pytest.mark.parametrize("norm", matrix.NORMS)
def test_both_sides_have_the_same_ball(norm):
    for row in matrix.within_ball(matrix.Effort(), norm, 0.125):
        assert row.peers
        for request in row.peers.values():
            assert (request["norm"], request["epsilon"]) == (norm, 0.125)
            if row.ours is not None:
                assert (row.ours.norm, row.ours.epsilon) == (norm, 0.125)
                steps = request.get("num_steps", request.get("num_queries"))
                assert steps in (row.ours.num_steps, getattr(row.ours, "num_iterations", None))


def test_the_table_says_what_does_not_hold():
    peer = {"robust": 10, "outside": 2, "difference": 3, "holds": False, "seconds": 1.0}
    assert tables._peer(peer) == "10 (+3, 2 outside)"
    assert tables._peer({"error": "ValueError: no"}) == "broke"
    assert tables._peer(None) == ""
