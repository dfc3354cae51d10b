"""Numbers as text: what a report writes for rates, confidences, sizes and what is missing."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxrobust.evaluation.attack_report import epsilon_label

DASH = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"
_SPACE = "\N{NO-BREAK SPACE}"


def finite(value: Any) -> bool:
    """Whether `value` is a number that can be shown: not None, NaN, infinite or a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def ends(value: Any) -> tuple[Any, Any, Any]:
    """(middle, low, high) of a number, a RATE or an ESTIMATE; None where it has no bound.

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
    """A number with fixed decimals, so that a column of them lines up.

    Example:
      >>> number(0.5), number(1234567, 0), number(None), number(-0.000001)
      ('0.500', '1,234,567', '–', '−1.0e−06')
    """
    if not finite(value):
        return DASH
    # What rounds to nothing is not nothing: 0.000 would say that an attack changed no pixel.
    tiny = value != 0 and abs(value) < 0.5 * 10.0**-decimals
    text = f"{value:.1e}" if tiny else f"{value:,.{decimals}f}"
    return text.replace("-", _MINUS)


def epsilon(value: Any) -> str:
    """An epsilon as labels spell it, or a dash.

    Example:
      >>> epsilon(8 / 255), epsilon(0.1), epsilon(None)
      ('8/255', '0.1', '–')
    """
    return epsilon_label(value) if finite(value) else DASH


def measure(value: Any, decimals: int, percent: bool = False) -> str:
    r"""A number with its decimals, or a share as a percentage.

    What rounds to nothing reads as nothing here: a table states its precision, and a difference of
    1e-16 is none.

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
    """A p-value with its decimals; what rounds to 0 is said to be less than the smallest of them.

    Example:
      >>> p_value(0.0312, 3), p_value(4e-5, 3), p_value(0.0496, 3)
      ('0.031', '< 0.001', '0.0496')
    """
    # 0.0496 must not read as 0.050, of which one would say that it is not below 0.05.
    while decimals < 6 and (round(value, decimals) < 0.05) != (value < 0.05):
        decimals += 1
    least = 10.0**-decimals
    return f"< {least:.{decimals}f}" if value < least / 2 else number(value, decimals)


def shared_decimals(values: Sequence[float], percent: bool = False) -> int:
    """The decimals for numbers that stand in one column: as few as say all.

    At most three digits of the largest, and one decimal of a percentage.

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
    """A duration in seconds, about three digits of it.

    Example:
      >>> seconds(0.25), seconds(12.34), seconds(1234.5)
      ('0.25', '12.3', '1,234')
    """
    if not finite(value):
        return DASH
    return number(value, 2 if value < 1 else 1 if value < 100 else 0)


def confidence(value: Any) -> str:
    r"""A probability as a whole percentage that never claims a certainty it does not have.

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
    """As many decimals as the sample supports: below 1,000 images one image is a tenth or more."""
    value, n = rate["rate"], rate["n"]
    decimals = 1 if finite(n) and n >= 1000 else 0
    # 498 of 500 must not read as 100 %, nor 2 of 500 as 0 %.
    while 0 < value < 1 and decimals < 4 and float(f"{100 * value:.{decimals}f}") in (0, 100):
        decimals += 1
    return decimals


def rate_value(rate: dict[str, Any] | None) -> str:
    r"""The percentage of a RATE, or a dash.

    Example:
      >>> rate_value({"count": 498, "n": 500, "rate": 0.996, "low": 0.985, "high": 0.999})
      '99.6\xa0%'
    """
    if rate is None or not finite(rate["rate"]):
        return DASH
    return f"{100 * rate['rate']:.{_decimals(rate)}f}{_SPACE}%"


def rate_interval(rate: dict[str, Any] | None, with_size: bool = True) -> str:
    r"""The 95 % interval and the sample size of a RATE, in brackets; empty where there is no rate.

    Where the sample size is said elsewhere, the interval is alone in the brackets.

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
    """The sample size of a RATE, as `n = 50`."""
    return f"n{_SPACE}={_SPACE}{number(rate['n'], 0)}"
