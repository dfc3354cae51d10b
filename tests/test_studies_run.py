"""What a run keeps: facts of a stage, trainings, attacks."""

import types

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import attacks, evaluation, studies, training


def test_a_stage_of_facts_reads_back_what_it_measured(tmp_path):
    measured = []

    def compute(facts, progress):
        measured.append(1)
        facts.add("right", network="mlp", seed=0, outcomes=np.array([True, False, True]))
        facts.add("norm", network="mlp", targeted=False, epsilon=0.03, value=None)
        facts.add("time", network="mlp", value=2.5, deviation=0.5)
        progress(1, 1)

    def facts_of():
        run = studies.Run("any", None, tmp_path, studies.Stages(tmp_path))
        run.measure("measure, mlp", compute)
        return run.facts

    for facts in (facts_of(), facts_of()):
        right = facts.of("right", network="mlp", seed=0)
        assert right.outcomes.tolist() == [True, False, True] and right.outcomes.dtype == bool
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
    attacked(2.0)
    assert len(list(tmp_path.glob("adversarial/fgsm-on-any-*.npz"))) == 2
