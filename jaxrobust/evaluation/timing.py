"""Times calls in turn, and says which of them differ by more than noise."""

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import jax
import numpy as np

from jaxrobust.evaluation.statistics import median_interval


class TimeInterval(TypedDict):
    """How much longer one program takes than another, in ms.

    This is the median over rounds of the difference within a round, with its 95 % interval. The ends of
    the interval are None for fewer than 6 rounds.
    """

    median_ms: float
    low_ms: float | None
    high_ms: float | None


class TimeDifference(TimeInterval):
    """How much longer a variant takes than the reference, in ms, and whether that is more than noise.

    "different" is True if the interval excludes 0 and the median is further from 0 than the noise
    floor.
    """

    different: bool


def interleaved(
    calls_of: Callable[[int], Sequence[Callable[[], Any]]],
    warmup: int,
    runs: int,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> list[list[float]]:
    """Times calls in rounds: every call once in each round, in a new random order.

    Args:
      calls_of: The number of a round, from 0 -> the calls of the round. Every round has the same number
        of calls, and each call returns a pytree of arrays, which is waited for. The time that
        `calls_of` itself takes does not count. Warm-up rounds have the numbers of the first rounds.
      warmup: How many rounds are not timed, at least 0.
      runs: How many rounds are timed, at least 1.
      clock: A function that returns the time in nanoseconds.

    Returns:
      A list of times in ms for each call, one for each timed round.
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
    """Computes by how much equal programs may differ: the largest end of any pair's 95 % interval.

    Args:
      equals_ms: The times in ms of two or more programs, each [N] in the same rounds.

    Returns:
      The noise floor in ms; None for fewer than 6 rounds.
    """
    pairs = [time_interval(a, b) for a, b in itertools.combinations(equals_ms, 2)]
    ends = [end for pair in pairs for end in (pair["low_ms"], pair["high_ms"])]
    return max((abs(end) for end in ends if end is not None), default=None)


def time_interval(times_ms: Sequence[float], reference_ms: Sequence[float]) -> TimeInterval:
    """Computes the median difference of two programs' times in the same rounds, with its interval.

    The interval is that of the sign test (`statistics.median_interval`), on which pauses and bursts of
    other work have little effect.

    Args:
      times_ms: [N], times in ms.
      reference_ms: [N], times of the reference in ms, in the same rounds.

    Returns:
      TimeInterval.
    """
    median = median_interval(np.subtract(times_ms, reference_ms))
    return {"median_ms": median["median"], "low_ms": median["low"], "high_ms": median["high"]}


def time_difference(
    times_ms: Sequence[float], reference_ms: Sequence[float], floor_ms: float | None
) -> TimeDifference:
    """Computes by how much a variant's times differ from the reference's, and whether it is noise.

    Args:
      times_ms: [N], times of the variant in ms.
      reference_ms: [N], times of the reference in ms, in the same rounds.
      floor_ms: The result of `noise_floor`. If it is None, no difference is more than noise.

    Returns:
      TimeDifference.
    """
    interval = time_interval(times_ms, reference_ms)
    low, high, different = interval["low_ms"], interval["high_ms"], False
    if low is not None and high is not None and floor_ms is not None:
        different = (low > 0 or high < 0) and abs(interval["median_ms"]) > floor_ms
    return {**interval, "different": different}


def summary(samples: Sequence[float]) -> dict[str, Any]:
    """Summarises times in ms by mean, standard deviation, median and 95th percentile.

    The standard deviation is None for a single time.
    """
    array = np.asarray(samples)
    return {
        "samples_ms": array.tolist(),
        "mean_ms": float(array.mean()),
        "std_ms": float(array.std(ddof=1)) if len(array) > 1 else None,
        "median_ms": float(np.median(array)),
        "p95_ms": float(np.percentile(array, 95)),
    }
