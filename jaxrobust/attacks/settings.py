"""What the fields of several attacks share: static fields, and checks of norm and epsilon."""

import dataclasses
import math
from typing import Any

from jaxrobust import checks, norms


def static(default: Any) -> Any:
    """A dataclass field that is a constant of the compiled program instead of an argument of it."""
    return dataclasses.field(default=default, metadata={"static": True})


def check_ball(attack: Any) -> None:
    """Checks the fields `norm` and `epsilon` of an attack.

    Raises:
      TypeError: `epsilon` is not a number.
      ValueError: `norm` is unknown, or `epsilon` is out of range.
    """
    checks.one_of("norm", attack.norm, norms.NORMS)
    # Pixels go from 0 to 1: a larger linf epsilon is one that was meant for 0 to 255.
    largest = 1.0 if attack.norm == "linf" else math.inf
    checks.number("epsilon", attack.epsilon, minimum=0.0, maximum=largest)
