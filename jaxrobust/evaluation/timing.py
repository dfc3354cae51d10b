"""Times of calls that are run in turn, and which of them differ by more than noise."""

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import jax
import numpy as np

from jaxrobust.evaluation.statistics import median_interval


class TimeInterval(TypedDict):
    """How much longer one program takes than another, in ms.

    The median over rounds of the difference within a round with its 95 % interval, which is None for
    fewer than 6 rounds.
    """

    median_ms: float
    low_ms: float | None
    high_ms: float | None


class TimeDifference(TimeInterval):
    """`TimeInterval` of a variant, and whether it is more than noise.

    "different" is true where the interval excludes 0 and the median is further from 0 than the noise
    floor.
    """

    different: bool


def interleaved(
    calls_of: Callable[[int], Sequence[Callable[[], Any]]],
    warmup: int,
    runs: int,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> list[list[float]]:
    """Times calls in rounds: each once in every round, in an order that is shuffled anew.

    Args:
      calls_of: The number of a round, from 0 -> its calls, as many in each; each returns a pytree of
        arrays, which is waited for. What `calls_of` does itself is not in the time. Warm-up rounds have
        the numbers of the first ones.
      warmup: Rounds that are not timed.
      runs: Rounds that are, at least 1.
      clock: In nanoseconds.

    Returns:
      For each call its times in ms, one for each round.
    """
    rng = np.random.default_rng(0)
    samples: list[list[float]] = [[] for _ in calls_of(0)]
    numbers = [*(number % runs for number in range(warmup)), *range(runs)]
    for round_, number in enumerate(numbers):
        calls = calls_of(number)
        for i in rng.permutation(len(calls)):
            start = clock()
            jax.block_until_ready(calls[i]())
            elapsed = clock() - start
            if round_ >= warmup:
                samples[i].append(elapsed / 1e6)
    return samples


def noise_floor(equals_ms: Sequence[Sequence[float]]) -> float | None:
    """What programs that do the same may differ by: the furthest end of any pair's 95 % interval.

    Args:
      equals_ms: Of two programs or more, [N] each: times of the same rounds.

    Returns:
      In ms; None for fewer than 6 rounds.
    """
    pairs = [time_interval(a, b) for a, b in itertools.combinations(equals_ms, 2)]
    ends = [end for pair in pairs for end in (pair["low_ms"], pair["high_ms"])]
    return max((abs(end) for end in ends if end is not None), default=None)


def time_interval(times_ms: Sequence[float], reference_ms: Sequence[float]) -> TimeInterval:
    """What the times of the same rounds differ by.

    The interval is that of the sign test (`statistics.median_interval`): the pauses and bursts of
    other work that make times so skewed move it little.

    Args:
      times_ms: [N].
      reference_ms: [N], in the same rounds.

    Returns:
      TimeInterval.
    """
    median = median_interval(np.subtract(times_ms, reference_ms))
    return {"median_ms": median["median"], "low_ms": median["low"], "high_ms": median["high"]}


def time_difference(
    times_ms: Sequence[float], reference_ms: Sequence[float], floor_ms: float | None
) -> TimeDifference:
    """What a variant's times differ by from the reference's, and whether it is more than noise.

    Args:
      times_ms: [N], of a variant.
      reference_ms: [N], of the reference in the same rounds.
      floor_ms: From `noise_floor`; None, where it is not known, allows no difference.

    Returns:
      TimeDifference.
    """
    interval = time_interval(times_ms, reference_ms)
    low, high, different = interval["low_ms"], interval["high_ms"], False
    if low is not None and high is not None and floor_ms is not None:
        different = (low > 0 or high < 0) and abs(interval["median_ms"]) > floor_ms
    return {**interval, "different": different}


def summary(samples: Sequence[float]) -> dict[str, Any]:
    """Times in ms with their mean, deviation (None for one), median and 95th percentile."""
    array = np.asarray(samples)
    return {
        "samples_ms": array.tolist(),
        "mean_ms": float(array.mean()),
        "std_ms": float(array.std(ddof=1)) if len(array) > 1 else None,
        "median_ms": float(np.median(array)),
        "p95_ms": float(np.percentile(array, 95)),
    }
