"""What a piece of a result.json must look like, and the complaint when it does not.

A schema, in the words of docs/result_format.md, is a dict of keys ("?": may be absent or null), a
list of one that says what every item is, a Kind, or a function of the value and its place that
raises ValueError.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxrobust.reports.pictures import decode_array


class Kind(NamedTuple):
    """A leaf of the schema: what it is called and what passes."""

    words: str
    passes: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    # None is how JSON writes a number that could not be measured.
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


TEXT = Kind("text", lambda value: isinstance(value, str))
NUMBER = Kind("a number or null", _is_number)
INTEGER = Kind("an integer", lambda value: isinstance(value, int) and not isinstance(value, bool))
COUNT = Kind("an integer of at least 0", lambda value: INTEGER.passes(value) and value >= 0)
BOOLEAN = Kind("true or false", lambda value: isinstance(value, bool))
MAPPING = Kind("an object", lambda value: isinstance(value, dict))
ANYTHING = Kind("anything", lambda value: True)
ID = Kind(
    "an id of a-z, 0-9 and -",
    lambda value: isinstance(value, str) and re.fullmatch("[a-z0-9-]+", value) is not None,
)

RATE = {"count": NUMBER, "n": NUMBER, "rate": NUMBER, "low": NUMBER, "high": NUMBER}
ARRAY = {"dtype": TEXT, "shape": [INTEGER], "base64": TEXT}


def check(value: Any, schema: Any, where: str) -> None:
    """Raises ValueError, naming the place, unless `value` has the shape of `schema`."""
    if isinstance(schema, Kind):
        if not schema.passes(value):
            raise ValueError(f"`{where}` must be {schema.words}, got {short(value)}.")
    elif isinstance(schema, list):
        if not isinstance(value, list):
            raise ValueError(f"`{where}` must be a list, got {short(value)}.")
        for position, item in enumerate(value):
            check(item, schema[0], f"{where}[{position}]")
    elif callable(schema):
        schema(value, where)
    else:
        if not isinstance(value, dict):
            raise ValueError(f"`{where}` must be an object, got {short(value)}.")
        for key, inner in schema.items():
            name = key.rstrip("?")
            place = f"{where}.{name}" if where else name
            if name not in value and not key.endswith("?"):
                raise ValueError(f"`{place}` is missing.")
            if not (key.endswith("?") and value.get(name) is None):
                check(value[name], inner, place)


def one_of(*allowed: Any) -> Kind:
    """The leaf that is one of some values."""
    # 1 == True, and a level of true is none.
    return Kind(
        f"one of {allowed}",
        lambda value: any(type(value) is type(one) and value == one for one in allowed),
    )


def short(value: Any) -> str:
    """A value as a complaint quotes it: 60 characters at most."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def array_shape(value: dict[str, Any], where: str) -> tuple[int, ...]:
    """The shape of an ARRAY; ValueError, naming the place, unless its data fill that shape."""
    try:
        return decode_array(value).shape
    except ValueError as error:
        raise ValueError(f"`{where}`: {error}") from error


def check_image(shape: tuple[int, ...], where: str) -> None:
    """Raises ValueError, naming the place, unless this is the shape of an image."""
    if len(shape) != 3 or shape[2] not in (1, 3) or 0 in shape:
        raise ValueError(f"`{where}` must be [H, W, 1] or [H, W, 3], got shape {shape}.")
