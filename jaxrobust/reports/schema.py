"""Checks parts of a result.json against schemas.

A schema is a dict of keys and schemas (a key with "?" may be absent or null), a list with one schema
for all items, a Kind, or a function of the value and its place that raises ValueError. The names are
those of docs/result_format.md.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxrobust.reports.pictures import decode_array


class Kind(NamedTuple):
    """A leaf of a schema.

    Attributes:
      words: What the value must be, for the message.
      passes: A function that says whether a value is accepted.
    """

    words: str
    passes: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    # null (None) is a number that could not be measured.
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
    """Makes a leaf that accepts only some values."""
    # The types are compared too, because 1 == True in Python.
    return Kind(
        f"one of {allowed}",
        lambda value: any(type(value) is type(one) and value == one for one in allowed),
    )


def short(value: Any) -> str:
    """Shortens a value to at most 60 characters, for a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def array_shape(value: dict[str, Any], where: str) -> tuple[int, ...]:
    """Returns the shape of an ARRAY; raises ValueError, naming the place, if it cannot be decoded."""
    try:
        return decode_array(value).shape
    except ValueError as error:
        raise ValueError(f"`{where}`: {error}") from error


def check_image(shape: tuple[int, ...], where: str) -> None:
    """Raises ValueError, naming the place, unless `shape` is that of an image."""
    if len(shape) != 3 or shape[2] not in (1, 3) or 0 in shape:
        raise ValueError(f"`{where}` must be [H, W, 1] or [H, W, 3], got shape {shape}.")
