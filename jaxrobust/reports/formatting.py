"""Formats numbers as text: rates, confidences, sizes, and a dash for a missing number."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxrobust.evaluation.attack_report import epsilon_label

DASH = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"
_SPACE = "\N{NO-BREAK SPACE}"


def finite(value: Any) -> bool:
    """Says whether `value` is a number that can be shown: not None, NaN, infinite or a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def ends(value: Any) -> tuple[Any, Any, Any]:
    """Returns (middle, low, high) of a number, a RATE or an ESTIMATE; a missing bound is None.

    Example:
      >>> ends(0.5), ends({"value": 3.0, "deviation": 0.5})
      ((0.5, None, None), (3.0, 2.5, 3.5))
    """
    if not isinstance(value, Mapping):
        return value, None, None
    middle, half = value.get("rate", value.get("value")), value.get("deviation")
    if finite(middle) and finite(half):
        return middle, middle - half, middle + half
    return middle, value.get("low"), value.get("high")


def number(value: Any, decimals: int = 3) -> str:
    """Formats a number with fixed decimals, so that the numbers of a column line up.

    Example:
      >>> number(0.5), number(1234567, 0), number(None), number(-0.000001)
      ('0.500', '1,234,567', '–', '−1.0e−06')
    """
    if not finite(value):
        return DASH
    # A tiny number must not become 0.000, which would say that an attack changed no pixel.
    tiny = value != 0 and abs(value) < 0.5 * 10.0**-decimals
    text = f"{value:.1e}" if tiny else f"{value:,.{decimals}f}"
    return text.replace("-", _MINUS)


def epsilon(value: Any) -> str:
    """Formats an epsilon as labels do; a missing one becomes a dash.

    Example:
      >>> epsilon(8 / 255), epsilon(0.1), epsilon(None)
      ('8/255', '0.1', '–')
    """
    return epsilon_label(value) if finite(value) else DASH


def measure(value: Any, decimals: int, percent: bool = False) -> str:
    r"""Formats a number with its decimals, or a share as a percentage.

    Unlike in `number`, a tiny number becomes 0: a table states its precision, and a difference of 1e-16
    does not count.

    Example:
      >>> measure(0.25, 1, percent=True), measure(3.14159, 2), measure(-1e-16, 1)
      ('25.0\xa0%', '3.14', '0.0')
    """
    if not finite(value):
        return DASH
    scaled = 100 * value if percent else value
    if abs(scaled) < 0.5 * 10.0**-decimals:
        scaled = 0.0
    return f"{number(scaled, decimals)}{_SPACE}%" if percent else number(scaled, decimals)


def p_value(value: float, decimals: int) -> str:
    """Formats a p-value with its decimals; one that rounds to 0 becomes, for example, "< 0.001".

    Example:
      >>> p_value(0.0312, 3), p_value(4e-5, 3), p_value(0.0496, 3)
      ('0.031', '< 0.001', '0.0496')
    """
    # 0.0496 must not become 0.050, because 0.0496 is below 0.05.
    while decimals < 6 and (round(value, decimals) < 0.05) != (value < 0.05):
        decimals += 1
    least = 10.0**-decimals
    return f"< {least:.{decimals}f}" if value < least / 2 else number(value, decimals)


def shared_decimals(values: Sequence[float], percent: bool = False) -> int:
    """Returns the smallest number of decimals that shows all numbers of a column exactly.

    It is at most one for percentages; otherwise the largest number gets at most three digits.

    Example:
      >>> shared_decimals([0.01, 0.25]), shared_decimals([2 / 3]), shared_decimals([1, 16])
      (2, 3, 0)
    """
    scaled = [abs(100 * value if percent else value) for value in values]
    largest = max(scaled, default=0.0)
    most = 1 if percent or not largest else min(6, max(0, 2 - math.floor(math.log10(largest))))
    for decimals in range(most):
        if all(abs(value - round(value, decimals)) <= 1e-9 * largest for value in scaled):
            return decimals
    return most


def seconds(value: Any) -> str:
    """Formats a duration in seconds with about three digits.

    Example:
      >>> seconds(0.25), seconds(12.34), seconds(1234.5)
      ('0.25', '12.3', '1,234')
    """
    if not finite(value):
        return DASH
    return number(value, 2 if value < 1 else 1 if value < 100 else 0)


def total_time(timings: Mapping[str, Any]) -> str:
    """Writes the sum of times in seconds, in a unit that fits it.

    Example:
      >>> total_time({"train": 40.0, "attack": 31.5}), total_time({"train": 31_000.0})
      ('72 s', '8.6 h')
    """
    return duration(sum(filter(finite, timings.values())))


def duration(seconds: float) -> str:
    """Writes a duration in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def commits(environment: Mapping[str, Any]) -> list[str]:
    """Returns the commits of the code that made a run and its report; [] if none is known."""
    found = dict.fromkeys([*environment.get("commits_of_stages", ()), environment.get("commit")])
    return [str(commit or "unknown") for commit in found] if any(found) else []


def short_commits(environment: Mapping[str, Any]) -> list[str]:
    """Returns the commits in words of twelve digits, such as ["commit 0123456789ab-dirty"].

    Example:
      >>> short_commits({"commit": "4e71c6785a02c91003cc-dirty"}), short_commits({})
      (['commit 4e71c6785a02-dirty'], [])
    """
    found = [commit.partition("-") for commit in commits(environment)]
    shown = ", ".join(f"{digits[:12]}{dash}{rest}" for digits, dash, rest in found)
    return [f"commit{'s' if len(found) > 1 else ''} {shown}"] if found else []


def confidence(value: Any) -> str:
    r"""Formats a probability as a whole percentage; only an exact 0 or 1 becomes 0 % or 100 %.

    Example:
      >>> confidence(0.874), confidence(0.9999), confidence(1e-9)
      ('87\xa0%', '>\xa099\xa0%', '<\xa01\xa0%')
    """
    if not finite(value):
        return DASH
    percent = 100 * value
    if 99.5 <= percent < 100:
        return f">{_SPACE}99{_SPACE}%"
    if 0 < percent < 0.5:
        return f"<{_SPACE}1{_SPACE}%"
    return f"{percent:.0f}{_SPACE}%"


def _decimals(rate: dict[str, Any]) -> int:
    """Returns the decimals that a sample supports: one from 1,000 images on, none below that."""
    value, n = rate["rate"], rate["n"]
    decimals = 1 if finite(n) and n >= 1000 else 0
    # 498 of 500 must not become 100 %, nor 2 of 500 become 0 %.
    while 0 < value < 1 and decimals < 4 and float(f"{100 * value:.{decimals}f}") in (0, 100):
        decimals += 1
    return decimals


def rate_value(rate: dict[str, Any] | None) -> str:
    r"""Formats the percentage of a RATE; a missing one becomes a dash.

    Example:
      >>> rate_value({"count": 498, "n": 500, "rate": 0.996, "low": 0.985, "high": 0.999})
      '99.6\xa0%'
    """
    if rate is None or not finite(rate["rate"]):
        return DASH
    return f"{100 * rate['rate']:.{_decimals(rate)}f}{_SPACE}%"


def rate_interval(rate: dict[str, Any] | None, with_size: bool = True) -> str:
    r"""Formats the 95 % interval and the sample size of a RATE, in brackets; "" if there is no rate.

    With `with_size=False` the sample size is left out.

    Example:
      >>> rate_interval({"count": 41, "n": 50, "rate": 0.82, "low": 0.692, "high": 0.902})
      '(69–90, n\xa0=\xa050)'
    """
    if rate is None:
        return ""
    said = [sample_size(rate)] if with_size and finite(rate["n"]) else []
    if all(finite(rate[key]) for key in ("rate", "low", "high")):
        decimals = _decimals(rate)
        low, high = (f"{100 * rate[key]:.{decimals}f}" for key in ("low", "high"))
        said.insert(0, f"{low}{DASH}{high}")
    return f"({', '.join(said)})" if said else ""


def sample_size(rate: dict[str, Any]) -> str:
    """Formats the sample size of a RATE, as in `n = 50`."""
    return f"n{_SPACE}={_SPACE}{number(rate['n'], 0)}"
