"""Rates with their count, their n and a 95 % interval."""

import math
from typing import TypedDict

from jaxrobust import checks

_Z = 1.959963984540054  # the 97.5 % point of the normal distribution


class Rate(TypedDict):
    """A proportion with its 95 % interval, as in result.json; rate, low and high are None for n = 0."""

    count: int
    n: int
    rate: float | None
    low: float | None
    high: float | None


def rate(count: int, n: int) -> Rate:
    """Computes count / n with its 95 % Wilson interval.

    Args:
      count: The number of successes, in 0 .. n.
      n: The number of trials. For zero trials the rate and its interval are None.

    Returns:
      {"count", "n", "rate", "low", "high"}.

    Raises:
      ValueError: `count` is outside 0 .. n.

    Example:
      >>> r = rate(41, 50)
      >>> r["rate"], round(r["low"], 3), round(r["high"], 3)
      (0.82, 0.692, 0.902)

    References:
      Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927.
    """
    count, n = int(count), int(n)
    checks.number("count", count, minimum=0, maximum=n)
    if n == 0:
        return {"count": 0, "n": 0, "rate": None, "low": None, "high": None}
    proportion = count / n
    scale = 1 + _Z**2 / n
    centre = (proportion + _Z**2 / (2 * n)) / scale
    half = _Z / scale * math.sqrt(proportion * (1 - proportion) / n + _Z**2 / (4 * n**2))
    # The bound at 0 and at n is exactly 0 and 1; rounding would leave 1e-17 of it.
    low = 0.0 if count == 0 else centre - half
    high = 1.0 if count == n else centre + half
    return {"count": count, "n": n, "rate": proportion, "low": low, "high": high}
