"""Histograms of weights, the alarm over losses, time over a data set: closed forms."""

import math
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import evaluation
from jaxrobust.evaluation.timing import interleaved
from jaxrobust.models import Classifier

PARAMS = {
    "stem": {"kernel": np.full((2, 2), 7.0, np.float32)},
    "conv": {
        "kernel": np.array([[0, 0, 0.5, -0.5], [1.0, -1.0, 0.05, 0]], np.float32),
        "bias": np.full(4, 9.0, np.float32),
    },
}


def test_a_histogram_counts_zeros_apart():
    found = evaluation.weight_histogram(PARAMS, 5, exclude=["stem"])
    assert found["n"] == 8 and found["zeros"] == 3 and found["largest"] == 1.0
    # Bins of 0.4 from -1 to 1.
    np.testing.assert_allclose(found["middles"], [-0.8, -0.4, 0, 0.4, 0.8], atol=1e-9)
    assert found["counts"] == [1, 1, 1, 1, 1] and found["beyond"] == 0
    kept = np.array([0.5, -0.5, 1.0, -1.0, 0.05])
    assert found["std"] == pytest.approx(kept.std(), rel=1e-6)


def test_a_histogram_within_a_limit_and_scaled():
    cut = evaluation.weight_histogram(PARAMS, 3, limit=0.6, exclude=["stem"])
    assert cut["beyond"] == 2 and cut["counts"] == [2, 1, 2]
    scaled = {"kernel": 4 * PARAMS["conv"]["kernel"]}
    one = evaluation.weight_histogram(scaled, 5, normalise=True)
    other = evaluation.weight_histogram(PARAMS, 5, exclude=["stem"])
    assert one["counts"] == other["counts"] and one["middles"] == other["middles"]
    assert one["std"] == pytest.approx(4 * other["std"])
    assert one["largest"] == 4 * other["largest"]


def test_a_histogram_of_nothing_but_zeros():
    found = evaluation.weight_histogram({"kernel": np.zeros((3, 3))}, 3)
    assert found["zeros"] == found["n"] == 9 and sum(found["counts"]) == 0
    assert found["std"] is None and found["largest"] == 0


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_bins": 4}, "`num_bins` must be odd"),
        ({"num_bins": 1}, "`num_bins` must be at least 3"),
        ({"limit": 0.0}, "`limit`"),
        ({"exclude": ["stem", "conv"]}, "`params` must have at least one kernel"),
        ({"exclude": ["stom"]}, "`exclude` must be prefixes .*, got 'stom'"),
        ({"params": {"kernel": np.full((2, 2), np.nan)}}, "`params` must be finite"),
    ],
)
def test_histograms_refuse(changes, message):
    arguments = {"params": PARAMS} | changes
    with pytest.raises(ValueError, match=message):
        evaluation.weight_histogram(**arguments)


GUESS = math.log(10)


@pytest.mark.parametrize(
    "losses, resets, collapse, explosion, lowest",
    [
        ([2.0, 1.5, 1.2], (), None, None, 3),
        ([2.0, 1.0, 1.25, 1.1], (), None, None, 2),  # a quarter above, and no more
        ([2.0, 1.0, 1.26, 1.1], (), None, 3, 2),
        ([2.0, 1.0, 2.4, 2.5], (), 3, 3, 2),
        ([2.4, 2.4], (), 1, None, 1),  # it never learned anything
        ([1.0, 2.4, 1.0], (), None, 2, 1),  # it recovered
        ([1.0, 1.9, 1.8], (2,), None, None, 3),  # the attack became stronger
        ([1.0, 1.9, 2.38], (2,), 3, 3, 2),
        ([1.0, None, None], (), 2, 2, 1),
    ],
)
def test_the_alarm(losses, resets, collapse, explosion, lowest):
    found = evaluation.loss_alarm(losses, 10, resets=resets)
    assert found["collapsed"] == (collapse is not None)
    assert found["collapse_epoch"] == collapse
    assert found["explosion_epoch"] == explosion and found["lowest_epoch"] == lowest
    if losses[-1] is None:
        assert found["rise"] is None
    else:
        assert found["rise"] == pytest.approx(losses[-1] / losses[lowest - 1] - 1)


def test_the_guess_is_that_of_so_many_classes():
    assert evaluation.loss_alarm([1.0, GUESS], 10)["collapsed"]
    assert not evaluation.loss_alarm([1.0, GUESS], 11)["collapsed"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"losses": []}, "`losses` must hold the loss of at least one epoch"),
        ({"num_classes": 1}, "`num_classes` must be at least 2"),
        ({"resets": [3]}, "`resets` must be epochs in 1 .. 2"),
        ({"tolerance": -0.1}, "`tolerance`"),
    ],
)
def test_the_alarm_refuses(changes, message):
    arguments = {"losses": [1.0, 2.0], "num_classes": 10} | changes
    with pytest.raises(ValueError, match=message):
        evaluation.loss_alarm(**arguments)


def test_rounds_have_calls_of_their_own():
    """Each round runs its own calls once; warm-up repeats the first rounds and is not timed."""
    now, seen = [0], []

    def calls_of(number):
        now[0] += 1_000_000_000  # what it takes to make them is not in the time

        def call(name, milliseconds):
            seen.append((name, number))
            now[0] += milliseconds * 1_000_000

        return [lambda: call("a", 1 + number), lambda: call("b", 10)]

    samples = interleaved(calls_of, 2, 3, clock=lambda: now[0])
    assert samples == [[1.0, 2.0, 3.0], [10.0, 10.0, 10.0]]
    assert sorted(number for name, number in seen if name == "a") == [0, 0, 1, 1, 2]


def linear(weights, images):
    return images.reshape(len(images), -1) @ weights


CLASSIFIER = Classifier(linear, np.ones((12, 3), np.float32))
IMAGES = np.arange(7 * 12, dtype=np.uint8).reshape(7, 2, 2, 3)


@pytest.mark.parametrize("in_memory", [True, False])
def test_every_batch_of_the_data_set_is_run(monkeypatch, in_memory):
    """The images that do not fill a batch are left out; each batch is what the programs get."""
    module = sys.modules["jaxrobust.evaluation.latency"]
    got = []

    def fake(calls_of, warmup, runs):
        for number in range(runs):
            outputs = [np.asarray(call()) for call in calls_of(number)]
            assert all(np.array_equal(output, outputs[0]) for output in outputs)
            got.append(outputs[0])
        return [[1.0, 1.1] * 3, [2.0, 2.1] * 3, [1.05, 1.0] * 3]

    monkeypatch.setattr(module, "interleaved", fake)
    fns = {"dense": CLASSIFIER, "twin": CLASSIFIER}
    found = evaluation.dataset_latency(fns, IMAGES, 3, in_memory=in_memory, controls=1)
    assert found["batches"] == 2 == len(got)
    expected = [linear(np.ones((12, 3)), IMAGES[i : i + 3] / 255) for i in (0, 3)]
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    twin = found["variants"]["twin"]["difference"]
    assert twin["median_ms"] == pytest.approx(1.0) and twin["different"]
    assert found["variants"]["dense"]["difference"] is None
    assert found["noise_floor_ms"] == pytest.approx(0.1)
    assert found["variants"]["dense"]["mean_ms"] == pytest.approx(1.05)


def test_a_data_set_is_really_timed():
    found = evaluation.dataset_latency({"x": lambda x: jnp.mean(x)}, IMAGES, 2, max_batches=2)
    assert found["batches"] == 2 and all(t > 0 for t in found["variants"]["x"]["samples_ms"])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"batch_size": 8}, "`batch_size` must be at most the 7 images"),
        ({"fns": {}}, "`fns` must hold at least one"),
        ({"reference": "y"}, "`reference` must be one of"),
        ({"controls": 0}, "`controls` must be at least 1"),
    ],
)
def test_times_of_a_data_set_refuse(changes, message):
    arguments = {"fns": {"x": CLASSIFIER}, "images": IMAGES} | changes
    with pytest.raises(ValueError, match=message):
        evaluation.dataset_latency(**arguments)
