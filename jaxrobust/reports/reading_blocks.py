"""Checks blocks: docs/result_format.md, BLOCK, says what a block must hold."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxrobust.reports.schema import (
    ARRAY,
    BOOLEAN,
    COUNT,
    ID,
    INTEGER,
    NUMBER,
    RATE,
    TEXT,
    array_shape,
    check,
    check_image,
    one_of,
    short,
)

LEVELS = (1, 2, 3)
TONES = ("sound", "doubtful")


def cell(value: Any, where: str) -> None:
    """Raises ValueError unless `value` is a CELL: text, a number, null, a RATE or an ESTIMATE."""
    if isinstance(value, dict):
        estimate(value, where)
    elif not TEXT.passes(value) and not NUMBER.passes(value):
        raise ValueError(
            f"`{where}` must be text, a number, null or an object with `rate` or `value`, "
            f"got {short(value)}."
        )


def estimate(value: Any, where: str) -> None:
    """Raises ValueError unless `value` is a RATE or a value with an interval or a deviation."""
    if isinstance(value, dict) and "rate" in value:
        check(value, RATE, where)
    elif isinstance(value, dict) and "deviation" in value:
        check(value, {"value": NUMBER, "deviation": NUMBER, "n?": NUMBER}, where)
    else:
        check(value, {"value": NUMBER, "low": NUMBER, "high": NUMBER, "n?": NUMBER}, where)


_TILE = {
    "image?": ARRAY,
    "map?": ARRAY,
    "against?": ARRAY,
    "style?": TEXT,
    "title?": TEXT,
    "text?": TEXT,
}
_NEEDS = {
    "image": ("image",),
    "heat": ("map",),
    "overlay": ("image", "map"),
    "difference": ("image", "against"),
}


def tile_style(tile: dict[str, Any]) -> str:
    """Returns how a tile is drawn: its style, or the one that its contents imply."""
    if tile.get("style"):
        return str(tile["style"])
    if tile.get("map"):
        return "overlay" if tile.get("image") else "heat"
    return "difference" if tile.get("against") else "image"


def _tile(value: Any, where: str) -> None:
    if value is None:
        return
    check(value, _TILE, where)
    style = tile_style(value)
    check(style, one_of(*_NEEDS), f"{where}.style")
    for key in _NEEDS[style]:
        if not value.get(key):
            raise ValueError(f"`{where}.{key}` is missing, but the style {style!r} needs it.")
    shapes = {key: array_shape(value[key], f"{where}.{key}") for key in _NEEDS[style]}
    if "image" in shapes:
        check_image(shapes["image"], f"{where}.image")
    expected = {"against": shapes.get("image", ())}
    if "map" in shapes:
        shape = shapes["map"]
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"`{where}.map` must be [H, W], got shape {shape}.")
        expected["map"] = shapes.get("image", shape)[:2]
    for key in ("map", "against"):
        if key in shapes and shapes[key] != expected[key]:
            raise ValueError(f"`{where}.{key}` must have shape {expected[key]}, got {shapes[key]}.")


_HEAD = {"kind": TEXT, "id?": ID, "title?": TEXT, "caption?": TEXT, "folded?": BOOLEAN}
_AXIS = {"title": TEXT, "percent?": BOOLEAN, "log?": BOOLEAN, "limits?": [NUMBER]}
_SERIES = {
    "name": TEXT,
    "model?": TEXT,
    "x": [NUMBER],
    "y": [NUMBER],
    "low?": [NUMBER],
    "high?": [NUMBER],
    "n?": [NUMBER],
    "dashed?": BOOLEAN,
    "scatter?": BOOLEAN,
    "steps?": BOOLEAN,
}
_COLUMN = {"title": TEXT, "unit?": TEXT, "decimals?": COUNT, "group?": TEXT, "p_value?": BOOLEAN}
_KINDS: dict[str, dict[str, Any]] = {
    "heading": {"level": one_of(*LEVELS), "id": ID, "title": TEXT},
    "text": {"text": TEXT},
    "table": {
        "columns": [_COLUMN],
        "rows": [[cell]],
        "highlight?": [INTEGER],
    },
    "chart": {"x": _AXIS, "y": _AXIS, "series": [_SERIES]},
    "intervals": {
        "percent?": BOOLEAN,
        "bars?": BOOLEAN,
        "groups": [{"name": TEXT, "items": [{"name": TEXT, "value": estimate}]}],
    },
    "pictures": {
        "columns?": [TEXT],
        "rows": [{"label": TEXT, "text?": TEXT, "tiles": [_tile]}],
    },
    "heat": {
        "rows": [TEXT],
        "columns": [TEXT],
        "values": [[cell]],
        "row_title": TEXT,
        "column_title": TEXT,
        "percent?": BOOLEAN,
        "decimals?": COUNT,
        "by_row?": BOOLEAN,
    },
    "verdict": {"question": TEXT, "text": TEXT, "evidence?": [{"text": TEXT, "href?": TEXT}]},
    "notice": {"tone": one_of(*TONES), "text": TEXT},
}


def block(value: Any, where: str) -> None:
    """Raises ValueError, naming the place, unless `value` is a BLOCK."""
    check(value, _HEAD, where)
    kind = value["kind"]
    check(kind, one_of(*_KINDS), f"{where}.kind")
    check(value, _KINDS[kind], where)
    if value.get("folded") and not value.get("title"):
        raise ValueError(f"`{where}.title` is missing, but a folded block shows nothing else.")
    if kind in _FURTHER:
        _FURTHER[kind](value, where)


def _table(value: dict[str, Any], where: str) -> None:
    columns = value["columns"]
    if not columns:
        raise ValueError(f"`{where}.columns` must hold at least one column.")
    for position, row in enumerate(value["rows"]):
        _length(row, len(columns), f"{where}.rows[{position}]", "columns")
        if isinstance(row[0], dict):
            raise ValueError(
                f"`{where}.rows[{position}][0]` must be text, a number or null: it is the row's "
                f"header, got {short(row[0])}."
            )
    for index in value.get("highlight") or ():
        if not 0 <= index < len(value["rows"]):
            raise ValueError(
                f"`{where}.highlight` must hold indices of the {len(value['rows'])} rows, "
                f"got {index}."
            )


def _chart(value: dict[str, Any], where: str) -> None:
    for axis in ("x", "y"):
        limits = value[axis].get("limits")
        if limits is not None and (len(limits) != 2 or None in limits or limits[0] >= limits[1]):
            raise ValueError(f"`{where}.{axis}.limits` must be two rising numbers, got {limits}.")
    looks: dict[Any, str] = {}
    for position, series in enumerate(value["series"]):
        place = f"{where}.series[{position}]"
        for key in ("y", "low", "high", "n"):
            if series.get(key) is not None:
                _length(series[key], len(series["x"]), f"{place}.{key}", "points in `x`")
        if (series.get("low") is None) != (series.get("high") is None):
            raise ValueError(f"`{place}` must have both `low` and `high`, or neither.")
        drawn = bool(series.get("dashed")), bool(series.get("scatter"))
        look = (series.get("model") or series["name"], *drawn)
        if look in looks:
            raise ValueError(
                f"`{place}` must not look like `{looks[look]}`: give it another name, or make it "
                "dashed."
            )
        looks[look] = place


def _intervals(value: dict[str, Any], where: str) -> None:
    for position, group in enumerate(value["groups"]):
        names = [item["name"] for item in group["items"]]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"`{where}.groups[{position}]` must have only one item {name!r}.")


def _pictures(value: dict[str, Any], where: str) -> None:
    if value.get("columns"):
        for position, row in enumerate(value["rows"]):
            place = f"{where}.rows[{position}].tiles"
            _length(row["tiles"], len(value["columns"]), place, "columns")


def _heat(value: dict[str, Any], where: str) -> None:
    _length(value["values"], len(value["rows"]), f"{where}.values", "rows")
    for position, row in enumerate(value["values"]):
        _length(row, len(value["columns"]), f"{where}.values[{position}]", "columns")
        for column, item in enumerate(row):
            if isinstance(item, str) or (isinstance(item, dict) and "rate" not in item):
                raise ValueError(
                    f"`{where}.values[{position}][{column}]` must be a number, null or a rate, "
                    f"got {short(item)}."
                )


_FURTHER: dict[str, Callable[[dict[str, Any], str], None]] = {
    "table": _table,
    "chart": _chart,
    "intervals": _intervals,
    "pictures": _pictures,
    "heat": _heat,
}


def _length(items: Sequence[Any], expected: int, where: str, what: str) -> None:
    if len(items) != expected:
        raise ValueError(
            f"`{where}` must have {expected} items, one for each of the {what}, got {len(items)}."
        )
