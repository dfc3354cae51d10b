"""What a run keeps: facts of a stage, trainings, attacks."""

import dataclasses
import json
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, evaluation, studies, training


@dataclasses.dataclass(frozen=True)
class Settings:
    seed: int = 0
    run: str = "default"
    results_dir: Path = Path("results")


def test_a_stage_of_facts_reads_back_what_it_measured(tmp_path):
    measured = []

    def compute(facts, progress):
        measured.append(1)
        facts.add("right", network="mlp", seed=0, outcomes=np.array([True, False, True]))
        facts.add("norm", network="mlp", targeted=False, epsilon=0.03, value=None)
        facts.add("time", network="mlp", value=2.5, deviation=0.5, outcomes=np.array([1.5, np.inf]))
        progress("all", 1, 1)

    def facts_of():
        run = studies.Run("any", None, tmp_path, studies.Stages(tmp_path))
        run.measure("measure, mlp", compute)
        return run.facts

    for facts in (facts_of(), facts_of()):
        right = facts.of("right", network="mlp", seed=0)
        assert right.outcomes.tolist() == [True, False, True] and right.outcomes.dtype == bool
        assert facts.of("time", network="mlp").outcomes.tolist() == [1.5, np.inf]
        assert right.cell == evaluation.rate(2, 3)
        assert facts.of("norm", network="mlp", targeted=False, epsilon=0.03).value is None
        assert facts.of("time", network="mlp").cell == {"value": 2.5, "deviation": 0.5}
        assert len(facts) == 3
    assert measured == [1]


def test_a_training_is_a_stage_that_keeps_its_seconds(tmp_path, monkeypatch):
    def fit(network, given, recipe, *, run_dir, host):
        assert (network, given, recipe, host) == ("network", "images", "recipe", "host")
        return types.SimpleNamespace(run_dir=run_dir, seconds=1e6)

    monkeypatch.setattr(training, "fit", fit)
    run = studies.Run("any", None, tmp_path, studies.Stages(tmp_path))
    found = run.fit("train mlp", "training/mlp", "network", "images", "recipe", host="host")
    assert found.run_dir == tmp_path / "training" / "mlp"
    assert run.stages.seconds == {"train mlp": 1e6}


def test_an_attack_of_a_run_is_read_back_unless_the_weights_differ(tmp_path):
    images, labels = np.random.default_rng(0).random((4, 2, 2, 1), np.float32), np.zeros(4, int)

    def attacked(scale):
        settings = types.SimpleNamespace(seed=0)
        run = studies.Run("any", settings, tmp_path, studies.Stages(tmp_path))
        weights = jnp.array([[1.0, -1.0]]) * scale
        classifier = jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1)[:, :1] @ w, weights)
        return run.attack("FGSM on any", attacks.FGSM(0.1), classifier, images, labels), run.stages

    first, stages = attacked(1.0)
    again, resumed = attacked(1.0)
    assert len(list(tmp_path.glob("adversarial/fgsm-on-any-*.npz"))) == 1
    np.testing.assert_array_equal(again.images, first.images)
    assert resumed.seconds == stages.seconds and list(stages.seconds) == ["FGSM on any"]
    labels = labels + 1
    assert attacked(1.0)[0].labels.tolist() == [1] * 4  # other labels: attacked anew
    labels = labels - 1
    attacked(2.0)
    assert len(list(tmp_path.glob("adversarial/fgsm-on-any-*.npz"))) == 2


def test_a_function_without_arrays_is_not_attacked_from_a_file(tmp_path):
    run = studies.Run("any", None, tmp_path, studies.Stages(tmp_path))
    images = np.zeros((1, 2, 2, 1), np.float32)
    with pytest.raises(TypeError, match="`classifier` must be a pytree of arrays"):
        run.attack("FGSM", attacks.FGSM(0.1), lambda x: x.reshape(len(x), -1), images, [0])


def test_the_result_names_the_commit_of_stages_that_another_code_made(tmp_path, monkeypatch):
    settings, template = Settings(results_dir=tmp_path), tmp_path / "report.md.j2"
    template.write_text("All is well.")
    part = {"name": "n", "class_names": [], "num_train": None, "num_test": 0, "image_shape": [1]}
    run = studies.start("any", settings)
    run.stages.remember("first", lambda _: 1)
    run.finish("Any", part, template)
    found = json.loads((run.folder / "result.json").read_text())["environment"]
    assert "commits_of_stages" not in found
    monkeypatch.setattr("jaxrobust.studies.stages.commit", lambda: "another")
    run.stages.remember("second", lambda _: 2)
    run.finish("Any", part, template)
    found = json.loads((run.folder / "result.json").read_text())["environment"]
    assert found["commits_of_stages"] == [found["commit"], "another"]


def test_a_result_that_cannot_be_drawn_takes_no_ones_place(tmp_path):
    settings = Settings(results_dir=tmp_path)
    template = tmp_path / "report.md.j2"
    part = {"name": "n", "class_names": [], "num_train": None, "num_test": 0, "image_shape": [1]}
    template.write_text("All is well.")
    run = studies.start("any", settings)
    run.finish("Any", part, template)
    before = (run.folder / "result.json").read_text()
    template.write_text("See [that](#nowhere).")
    with pytest.raises(ValueError, match="must be # and the id of a heading"):
        run.finish("Any", part, template)
    assert (run.folder / "result.json").read_text() == before
