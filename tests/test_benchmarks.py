"""What the benchmarks share, and their networks: what can be tested without PyTorch."""

import concurrent.futures
import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.benchmarks import (
    accelerator,
    attack_throughput,
    compression_overhead,
    filter_pruning,
    growth,
    harness,
    network_files,
    training_throughput,
)
from experiments.benchmarks import users_networks as users

HERE = Path(sys.executable)
LAYERS = json.loads(Path(users.__file__).with_name("layers.json").read_text())


def weights_of(layers, random):
    """A state dict as PyTorch has it for these layers: names in the order of the layers."""
    found = {}
    parametrised = [*users._with_weights([layer for layer in layers if layer[0] != "dropout"])]
    for index, (kind, sizes) in enumerate(parametrised):
        if kind.startswith("norm"):
            leaves = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1}
            for leaf, centre in leaves.items():
                found[f"{index}.{leaf}"] = centre + random.uniform(0, 0.1, sizes[0])
            found[f"{index}.num_batches_tracked"] = np.array(3)
            continue
        inputs, outputs, *more = sizes
        shape = (outputs, inputs)
        if kind == "conv":
            size, _, groups, *more = more
            shape = (outputs, inputs // groups, size, size)
        found[f"{index}.weight"] = random.normal(0, np.prod(shape[1:]) ** -0.5, shape)
        if more == [True] or (kind == "dense" and not more):
            found[f"{index}.bias"] = random.normal(size=outputs)
    return {name: np.asarray(value, np.float32) for name, value in found.items()}


def drawn(name, side=32):
    layers = next(entry["layers"] for entry in LAYERS if entry["architecture"] == name)
    random = np.random.default_rng(0)
    images = random.uniform(size=(2, side, side, 3)).astype(np.float32)
    weights = weights_of(layers, random)
    return network_files.Drawn(name, weights, images, np.zeros(2, int), None)


@pytest.mark.parametrize(
    ("name", "builds"),
    [
        ("resnet_small", (users.in_linen, users.in_nnx, users.in_equinox)),
        ("resnet_small", (attack_throughput.of_the_library,)),
        ("resnet18", (attack_throughput.of_the_library,)),
        ("wide_resnet", (attack_throughput.of_the_library,)),
        ("mobilenet_v2", (users.in_nnx,)),
        ("vgg", (users.in_haiku,)),
    ],
)
def test_a_network_is_the_same_in_every_framework(name, builds):
    found = drawn(name)
    logits = np.asarray(jax.jit(users.of_arrays(name, found.weights))(found.images))
    found = dataclasses.replace(found, logits=logits)
    assert np.abs(logits).max() > 1e-3
    assert len(found.build({build.__name__: build for build in builds})) == len(builds)
    with pytest.raises(RuntimeError, match=f"{name} of .*the logits differ by"):
        dataclasses.replace(found, logits=1.01 * logits).build({"one": builds[0]})


@pytest.mark.parametrize("name", ["cnn", "simple_cnn"])
def test_networks_of_the_library_take_weights_in_their_order(name):
    found = drawn(name)
    variables = network_files.from_torch(name, found.weights)
    arrays = [value for key, value in found.weights.items() if "num_batches" not in key]
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == sum(map(np.size, arrays))
    if name == "cnn":
        again = network_files.to_torch(name, variables)
        for one, other in zip(again.values(), arrays, strict=True):
            np.testing.assert_array_equal(one, other)


def test_resnet20_pads_its_shortcuts_and_resnet50_takes_images_of_224_pixels():
    small, large = drawn("resnet20"), drawn("resnet50", 64)
    assert users.in_lax("resnet20", small.weights)(small.images).shape == (2, 10)
    logits_fn = users.of_arrays("resnet50", large.weights)
    assert jax.eval_shape(logits_fn, large.images).shape == (2, 1000)
    # Weights are arguments: in another type everything is computed in that.
    narrow = jax.eval_shape(accelerator.narrowed(logits_fn), large.images)
    assert narrow.dtype == np.float32
    wide = users.in_lax("resnet20", small.weights)(small.images)
    low = accelerator.narrowed(users.of_arrays("resnet20", small.weights))(small.images)
    assert 0 < np.abs(wide - low).max() < 0.1 * np.abs(wide).max()


def test_sides_take_turns_and_one_that_fails_takes_no_more():
    order = []

    def side(name, fails_at=None):
        def run():
            order.append(name)
            number = order.count(name)
            if fails_at is not None and number >= fails_at:
                raise harness.PeerError("no")
            return {"seconds": float(number), "loss": number}

        return run

    first = {"c": lambda: {"seconds": 9.0}}
    sides = {"a": side("a"), "b": side("b", fails_at=2), "c": side("c")}
    runs = harness.turns(sides, 3, first)
    assert "".join(order) == "ab" + "abc" + "ac" * 2
    row = harness.compared(runs, reference="a")
    assert row["seconds"] == {"a": [2.0, 3.0, 4.0], "c": [1.0, 2.0, 3.0]}
    assert row["median_seconds"] == {"a": 3.0, "c": 2.0}
    assert row["first_call_seconds"] == {"a": 1.0, "c": 9.0}
    assert row["error"] == {"b": "no"} and row["loss"] == {"a": 4, "c": 3}
    assert row["ratio"] == {"c": {"median": 2 / 3, "low": 1 / 2, "high": 3 / 4}}
    once = harness.compared({"a": [{"seconds": 4.0}], "c": [{"seconds": 2.0}]}, "a")
    assert once["seconds"] == {"a": [4.0], "c": [2.0]}
    assert once["ratio"]["c"]["median"] == 0.5


def config_of(tmp_path, **given):
    path = tmp_path / "out.json"
    return attack_throughput.Config(peer_python=HERE, output=path, **given)


def test_rows_are_kept_and_printed_as_they_come(tmp_path, capsys):
    path = tmp_path / "out_quick.json"

    def rows():
        yield {"network": "one", "batch_size": 3, "median_seconds": {"jaxrobust": 1.23456}}
        assert len(json.loads(path.read_text())["rows"]) == 1
        yield {"network": "two", "error": {"torchattacks": "RuntimeError: no"}}

    config = config_of(tmp_path, quick=True)
    harness.record(config, "attack_throughput", rows(), peer_versions={"torch": "2"})
    document = json.loads(path.read_text())
    assert document["peer_versions"] == {"torch": "2"} and document["config"]["rounds"] == 9
    assert {"jax", "device", "commit", "num_cores"} <= document["environment"].keys()
    _, titles, one, two, failed, where = capsys.readouterr().out.splitlines()
    assert len(titles) == len(one) == len(two)
    assert one.split()[:5] == ["one", "-", "3", "-", "1.235"]
    assert "torchattacks failed: RuntimeError: no" in failed and str(path) in where


def test_every_column_of_a_table_is_named_once_and_wide_enough():
    tables = json.loads(Path(harness.__file__).with_name("columns.json").read_text())
    assert {
        "attack_throughput",
        "training_throughput",
        "auto_attack",
        "accelerator",
        "filter_pruning",
        "compression_overhead",
        "growth",
        "processes",
    } == tables.keys()
    assert len("admm_redundant") == len(next(iter(tables["compression_overhead"])))
    assert set(compression_overhead.METHODS) >= {"plain", "plain_again"}


@pytest.mark.parametrize(
    ("module", "wrong", "message"),
    [
        (attack_throughput, {"rounds": 0}, "`rounds` must be at least 1"),
        (training_throughput, {"networks": ("resnet",)}, "`networks` must be one of"),
        (filter_pruning, {"multiple_of": 0}, "`multiple_of` must be at least 1"),
        (growth, {"axes": ("colours",)}, "`axes` must be one of"),
        (compression_overhead, {"pgd_steps": True}, "`pgd_steps` must be an integer"),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(module, wrong, message):
    fields = {field.name for field in dataclasses.fields(module.Config)}
    peer = {"peer_python": HERE} if "peer_python" in fields else {}
    with pytest.raises((ValueError, TypeError), match=message):
        module.main(module.Config(**peer, **wrong))


def test_a_process_answers_and_one_that_stops_is_said_to_have_stopped(tmp_path):
    with (
        harness.peer(HERE, "experiments.benchmarks.no_such_module") as ask,
        pytest.raises(RuntimeError, match="stopped; its own messages are above"),
    ):
        ask("load")
    with (
        pytest.raises(FileNotFoundError, match="`peer_python` must be a Python"),
        harness.peer(tmp_path / "python"),
    ):
        pass
    assert harness.versions(HERE, "numpy") == {"numpy": np.__version__}
    with pytest.raises(ValueError, match="must have no-such-package, got"):
        harness.versions(HERE, "no-such-package")


def test_what_breaks_on_the_other_side_is_an_error_here(tmp_path, monkeypatch):
    code = "import sys, json\nfor line in sys.stdin: print(json.dumps({'error': line}), flush=True)"
    (tmp_path / "breaks.py").write_text(code)
    monkeypatch.setattr(harness, "_ROOT", tmp_path)
    with harness.peer(HERE, "breaks") as ask:
        with pytest.raises(harness.PeerError, match='"do": "attack", "epsilon": 1'):
            ask("attack", epsilon=1)
        runs = harness.turns({"a": lambda: attack_throughput.theirs(ask, {"library": "art"})}, 2)
    (run,) = runs["a"]
    assert '"library": "art"' in run["error"]


def test_the_accelerator_goes_on_with_what_is_left_and_with_what_failed(
    tmp_path, monkeypatch, capsys
):
    made = []

    def part(measure, seconds, error=None):
        def compute():
            made.append(measure)
            row = {"images": 4, "flops": 8.0, "median_seconds": {"jaxrobust": 2.0}}
            return row | ({"error": {"torch": error}} if error else {})

        return {"network": "n", "measure": measure}, seconds, compute

    parts = [part("PGD", 1), part("training", 1, "no"), part("AutoAttack", 1e9)]
    monkeypatch.setattr(accelerator, "_parts", lambda config, ask: parts)
    config = accelerator.Config(output=tmp_path / "accelerator.json", quick=True)

    def run():
        made.clear()
        rows = accelerator._rows(config, 100.0, None)
        harness.record(config, "accelerator", rows)
        return list(made)

    assert run() == ["PGD", "training"]
    assert "There was no time left for AutoAttack of n" in capsys.readouterr().out
    rows = json.loads((tmp_path / "accelerator_quick.json").read_text())["rows"]
    assert rows[0]["images_per_second"] == {"jaxrobust": 2.0}
    assert rows[0]["share_of_matrix_rate"] == pytest.approx(8.0 / 4 * 2.0 / 100.0)
    parts[1] = part("training", 1)
    assert run() == ["training"]
    assert run() == []
    rows = json.loads((tmp_path / "accelerator_quick.json").read_text())["rows"]
    assert [row["measure"] for row in rows] == ["PGD", "training"]


class InThisProcess:
    """An executor without processes."""

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function):
        outcome = concurrent.futures.Future()
        outcome.set_result(function())
        return outcome


def test_growth_goes_on_with_the_points_that_are_left_and_names_what_grows_fast(
    tmp_path, monkeypatch, capsys
):
    made, fails_at = [], [1000]

    def part(axis, value):
        def compute():
            if value in fails_at:
                raise KeyboardInterrupt
            made.append(value)
            return {"seconds": value**2 / 1e4, "memory": 3.0, "compiled": 7, "pixels": value}

        return axis, value, compute

    parts = [part("pixels", 10), part("pixels", 100), part("images", 1000)]
    monkeypatch.setattr(growth, "_parts", lambda config: parts)
    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", InThisProcess)
    config = growth.Config(output=tmp_path / "growth.json")
    with pytest.raises(KeyboardInterrupt):
        growth.main(config)
    fails_at.clear()
    growth.main(config)
    assert made == [10, 100, 1000]
    *points, exponents = json.loads((tmp_path / "growth.json").read_text())["rows"]
    assert [point["x"] for point in points] == made and exponents["faster"] == "seconds"
    assert exponents["exponent"] == pytest.approx({"seconds": 2, "memory": 0, "compiled": 0})
    assert "Faster than linear, pixels: seconds." in capsys.readouterr().out
    assert "Exponents of pixels" in (tmp_path / "growth.html").read_text()


def test_exponents_are_those_of_the_upper_half():
    assert growth.exponent([1, 10, 100, 1000], [9, 10, 1000, 100_000]) == pytest.approx(2)
    assert growth.exponent([1, 2], [0, 5]) is None


def test_rows_of_a_stopped_run_are_kept_unless_the_build_or_a_setting_has_changed(
    tmp_path, monkeypatch
):
    config = growth.Config(output=tmp_path / "growth.json", axes=("pixels",))
    assert harness.earlier_rows(config) == []
    harness.record(config, "growth", [{"axis": "pixels", "value": 8}])
    rows = [{"axis": "pixels", "value": 8}]
    assert harness.earlier_rows(config) == rows
    other = dataclasses.replace(config, axes=("steps",))
    assert harness.earlier_rows(other) == [] and harness.earlier_rows(other, ("axes",)) == rows
    now = harness.studies.environment()
    monkeypatch.setattr(harness.studies, "environment", lambda: now | {"commit": "another"})
    assert harness.earlier_rows(config) == []
