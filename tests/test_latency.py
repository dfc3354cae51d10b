"""Latency: no test here depends on how long anything takes; times come from a clock of the test's."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import evaluation
from jaxrobust.evaluation.timing import interleaved, noise_floor, time_difference, time_interval
from jaxrobust.models import Classifier


def linear(weights, images):
    return images.reshape(len(images), -1) @ weights


CLASSIFIER = Classifier(linear, np.ones((16, 3), np.float32))
IMAGES = np.full((2, 4, 4, 1), 0.5, np.float32)


class Clock:
    """A machine on which time passes only as programs say, slower and slower."""

    def __init__(self, seed=0):
        self.now, self.order = 0, []
        self.rng = np.random.default_rng(seed)

    def __call__(self):
        return self.now

    def program(self, name, milliseconds):
        def call():
            drift = 1 + len(self.order) / 200
            self.now += int(1e6 * milliseconds * drift * self.rng.lognormal(0, 0.1))
            self.order.append(name)
            return jnp.zeros(())

        return call


def test_every_round_runs_each_once_in_an_order_of_its_own():
    clock = Clock()
    calls = [clock.program(name, 1.0) for name in "abc"]
    samples = interleaved(lambda _: calls, warmup=3, runs=40, clock=clock)
    assert [len(times) for times in samples] == [40] * 3
    rounds = ["".join(clock.order[i : i + 3]) for i in range(0, 3 * 43, 3)]
    assert all(sorted(order) == list("abc") for order in rounds)
    assert len(set(rounds)) == 6
    again = Clock()
    repeated = [again.program(name, 1.0) for name in "abc"]
    interleaved(lambda _: repeated, 3, 40, clock=again)
    assert again.order == clock.order


def test_times_are_milliseconds_of_the_runs_that_count():
    clock = Clock()
    durations = iter([50, 60, 3, 4])

    def call():
        clock.now += next(durations) * 1_000_000

    assert interleaved(lambda _: [call], warmup=2, runs=2, clock=clock) == [[3.0, 4.0]]


@pytest.mark.parametrize("seed", range(5))
def test_three_times_the_work_is_different(seed):
    """Through a drift of a factor of 2, which two runs one after the other would call a difference."""
    clock = Clock(seed)
    work = {"reference": 1.0, "control": 1.0, "heavy": 3.0, "light": 0.5, "twin": 1.0}
    calls = [clock.program(name, time) for name, time in work.items()]
    samples = dict(zip(work, interleaved(lambda _: calls, 0, 40, clock), strict=True))
    floor = noise_floor([samples["reference"], samples["control"]])
    found = {name: time_difference(samples[name], samples["reference"], floor) for name in work}
    assert found["heavy"]["different"] and found["heavy"]["median_ms"] > 0
    assert found["light"]["different"] and found["light"]["median_ms"] < 0
    low, high = found["twin"]["low_ms"], found["twin"]["high_ms"]
    assert low < high and max(-low, high) < 1


def simulated(seed, shift):
    """(variant, [reference and three twins]) of 60 rounds, as an unsteady machine gives them.

    Rounds differ by bursts that all programs share, each run by 5 %, and each program, equal or not,
    by an offset of its own (where its code came to lie) of 2 %, which no number of rounds averages out.
    """
    rng = np.random.default_rng(seed)
    bursts = rng.lognormal(0, 0.3, 60)
    offsets = 1 + 0.02 * rng.normal(size=5)
    offsets[0] += shift
    times = offsets[:, None] * bursts * rng.lognormal(0, 0.05, (5, 60))
    return times[0], times[1:]


def verdicts(shift, num=300):
    """Of so many comparisons: how many report a difference, and how many intervals exclude 0."""
    found = []
    for seed in range(num):
        variant, equals = simulated(seed, shift)
        found.append(time_difference(variant, equals[0], noise_floor(equals)))
    excluded = sum(one["low_ms"] > 0 or one["high_ms"] < 0 for one in found)
    return sum(one["different"] for one in found), excluded


def test_equals_are_not_different_at_the_rate_stated():
    """At most 3 % of 300 comparisons of equals are; by the interval alone it would be over 25 %."""
    reported, excluded = verdicts(0.0)
    assert reported <= 0.03 * 300
    assert excluded > 0.25 * 300


@pytest.mark.parametrize("shift", [0.2, -0.2])
def test_a_real_difference_is_found_at_the_rate_stated(shift):
    """One of 20 %, among the noise above, in at least 97 % of 300 comparisons."""
    assert verdicts(shift)[0] >= 0.97 * 300


def test_comparison_decides_by_the_reference_and_its_twins(monkeypatch):
    """What the programs were timed at is given: reference, slower, equal, then the two twins."""
    wave = np.tile([1.0, 1.1], 10)
    given = [wave, wave + 0.5, wave + 0.05, wave + 0.1, wave - 0.2]
    module = sys.modules["jaxrobust.evaluation.latency"]
    monkeypatch.setattr(module, "interleaved", lambda *_: [times.tolist() for times in given])
    fns = {"dense": CLASSIFIER, "slower": CLASSIFIER, "equal": CLASSIFIER}
    table = evaluation.compare_latency(fns, IMAGES, runs=20, controls=2)
    assert table["noise_floor_ms"] == pytest.approx(0.3)  # between the two twins
    assert table["variants"]["slower"]["difference"]["different"]
    assert not table["variants"]["equal"]["difference"]["different"]
    assert [set(twin) for twin in table["controls"]] == [{"median_ms", "low_ms", "high_ms"}] * 2
    medians = [twin["median_ms"] for twin in table["controls"]]
    np.testing.assert_allclose(medians, [0.1, -0.2])


def test_a_difference_inside_the_noise_is_none():
    reference = np.linspace(1, 2, 50)
    control = reference + np.where(np.arange(50) % 2, 0.3, -0.3)
    floor = noise_floor([reference, control])
    assert abs(floor - 0.3) < 1e-9
    inside = time_difference(reference + 0.2, reference, floor)
    assert inside["low_ms"] > 0 and not inside["different"]  # surely above 0, yet not above noise
    assert time_difference(reference + 0.4, reference, floor)["different"]
    assert time_difference(reference - 0.4, reference, floor)["different"]
    unsure = time_difference(reference + np.where(np.arange(50) % 5 < 3, 0.5, -9), reference, floor)
    assert unsure["median_ms"] > floor and not unsure["different"]


def test_the_floor_is_that_of_the_furthest_pair():
    zero = np.zeros(10)
    assert noise_floor([zero, zero + 0.1, zero - 0.2]) == pytest.approx(0.3)
    assert noise_floor([zero[:5], zero[:5]]) is None
    few = time_difference(zero[:5] + 9, zero[:5], 0.1)
    assert few == {"median_ms": 9.0, "low_ms": None, "high_ms": None, "different": False}
    assert not time_difference(zero + 9, zero, None)["different"]
    assert time_interval(zero + 9, zero) == {"median_ms": 9.0, "low_ms": 9.0, "high_ms": 9.0}


def test_latency_of_a_matrix_product():
    m, k, n = 8, 32, 16
    weights = jax.tree_util.Partial(lambda w, x: x @ w, np.ones((k, n), np.float32))
    timing = evaluation.latency(weights, np.ones((m, k), np.float32), warmup=1, runs=7)
    assert timing["flops"] == 2 * m * n * k
    assert timing["peak_memory_bytes"] >= 4 * (m * k + k * n + m * n)
    assert timing["bytes_accessed"] >= 4 * (m * k + k * n + m * n)
    assert (timing["batch_size"], timing["warmup"], timing["runs"]) == (m, 1, 7)
    samples = timing["samples_ms"]
    assert len(samples) == 7 and min(samples) > 0 and timing["compile_seconds"] > 0
    np.testing.assert_allclose(timing["mean_ms"], np.mean(samples))
    np.testing.assert_allclose(timing["std_ms"], np.std(samples, ddof=1))
    assert timing["median_ms"] == np.median(samples)
    assert min(samples) <= timing["p95_ms"] <= max(samples)
    assert timing["device"].startswith(jax.default_backend())
    json.dumps(timing)
    assert evaluation.latency(CLASSIFIER, IMAGES, 0, 1)["std_ms"] is None


def test_comparison_has_the_figures_of_each_and_traces_no_more_than_needed():
    traces = []

    def counted(weights, images):
        traces.append(images.shape)
        return linear(weights, images)

    dense = Classifier(counted, np.ones((16, 3), np.float32))
    masked = Classifier(counted, np.zeros((16, 3), np.float32))
    heavy = lambda x: sum(linear(np.full((16, 3), s, np.float32), x) for s in (1, 2, 3))  # noqa: E731
    fns = {"masked": masked, "dense": dense, "heavy": heavy}
    table = evaluation.compare_latency(fns, IMAGES, warmup=1, runs=8, reference="dense")
    # Each variant and each of the three controls is a program of its own; its operations are counted.
    assert len(traces) == 2 * (2 + 3)
    assert list(table["variants"]) == list(fns) and len(table["controls"]) == 3
    assert table["reference"] == "dense" and table["variants"]["dense"]["difference"] is None
    assert table["noise_floor_ms"] >= 0
    for twin in table["controls"]:
        ends = [abs(twin["low_ms"]), abs(twin["high_ms"])]
        assert max(ends) <= table["noise_floor_ms"]
    for name, variant in table["variants"].items():
        assert len(variant["samples_ms"]) == 8
        if name != "dense":
            paired = np.subtract(variant["samples_ms"], table["variants"]["dense"]["samples_ms"])
            np.testing.assert_allclose(variant["difference"]["median_ms"], np.median(paired))
    assert table["variants"]["heavy"]["flops"] > table["variants"]["dense"]["flops"]
    json.dumps(table)


def test_disk_latency_takes_the_files_in_turn(tmp_path):
    paths = [tmp_path / f"{i}.npy" for i in range(3)]
    for i, path in enumerate(paths):
        np.save(path, np.full((4, 4, 1), i / 10, np.float32))
    loaded = []

    def load(path):
        loaded.append(path.name)
        return np.load(path)

    timing = evaluation.disk_latency(load, CLASSIFIER, paths, batch_size=2, warmup=1, runs=4)
    assert timing["batch_size"] == 2 and len(timing["samples_ms"]) == 4
    assert loaded == [f"{i % 3}.npy" for i in range(2 * (1 + 1 + 4))]  # one batch to compile for
    json.dumps(timing)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_disk_latency_names_the_shapes_of_unequal_images(batch_size):
    """Within a batch, and from one batch to the next."""
    load = {"a": IMAGES[0], "b": np.zeros((4, 5, 1), np.float32)}.get
    with pytest.raises(ValueError, match=r"one shape, got \[\(4, 4, 1\), \(4, 5, 1\)\]"):
        evaluation.disk_latency(load, CLASSIFIER, ["a", "b"], batch_size, 1, 1)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: evaluation.latency(3, IMAGES), TypeError, "`fn` must be callable, got int"),
        (
            lambda: evaluation.latency(CLASSIFIER, 1.0),
            ValueError,
            r"`example` must be an array \[B",
        ),
        (lambda: evaluation.latency(CLASSIFIER, IMAGES[:0]), ValueError, r"shape \(0, 4, 4, 1\)"),
        (
            lambda: evaluation.latency(CLASSIFIER, IMAGES, -1),
            ValueError,
            "`warmup` must be at least 0",
        ),
        (
            lambda: evaluation.latency(CLASSIFIER, IMAGES, 1, 0),
            ValueError,
            "`runs` must be at least 1",
        ),
        (
            lambda: evaluation.compare_latency({}, IMAGES),
            ValueError,
            "`fns` must hold at least one",
        ),
        (
            lambda: evaluation.compare_latency({"a": CLASSIFIER}, IMAGES, reference="b"),
            ValueError,
            r"`reference` must be one of \('a',\), got 'b'",
        ),
        (
            lambda: evaluation.compare_latency({"a": CLASSIFIER, "b": None}, IMAGES),
            TypeError,
            r"`fns\['b'\]` must be callable, got NoneType",
        ),
        (
            lambda: evaluation.compare_latency({"a": CLASSIFIER}, IMAGES, controls=0),
            ValueError,
            "`controls` must be at least 1",
        ),
        (
            lambda: evaluation.disk_latency(np.load, CLASSIFIER, []),
            ValueError,
            "`paths` must hold at least one path",
        ),
        (
            lambda: evaluation.disk_latency(1, CLASSIFIER, ["a"]),
            TypeError,
            "`load` must be callable",
        ),
    ],
)
def test_latency_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
