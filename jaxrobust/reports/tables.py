"""Formats tables: all numbers of a column get the same decimals, so that they line up."""

import itertools
from collections.abc import Sequence
from typing import Any

from jaxrobust.reports import formatting

_NO_BREAK = "\u00a0"
# Numbers of characters: a longer text may be broken into lines, but not at every word.
_ON_ONE_LINE, _SENTENCE = 20, 40


def table(block: dict[str, Any]) -> dict[str, Any]:
    """Converts a table for the template.

    Args:
      block: {"columns", "rows", "highlight"?}, as in docs/result_format.md.

    Returns:
      {"columns", "groups", "rows"}; groups is empty if no column has a group.
    """
    by_column = list(zip(*block["rows"], strict=True)) or [()] * len(block["columns"])
    pairs = zip(block["columns"], by_column, strict=True)
    columns = [_column(*pair, number) for number, pair in enumerate(pairs)]
    groups = _groups(columns)
    highlight = set(block.get("highlight") or ())
    rows = [
        {
            "highlight": index in highlight,
            "cells": [_cell(*pair) for pair in zip(row, columns, strict=True)],
        }
        for index, row in enumerate(block["rows"])
    ]
    return {"columns": columns, "groups": groups, "rows": rows}


def heat_table(block: dict[str, Any]) -> dict[str, Any]:
    """Converts a block of kind heat for the template: each cell has a text and a share of colour."""
    numbers = [item for row in block["values"] for item in row if formatting.finite(item)]
    percent = bool(block.get("percent"))
    decimals = _given(block.get("decimals"), numbers, percent)
    # The colours begin at 0, or at the smallest value if there are negative ones.
    low = min([*numbers, 0.0])
    high = 1.0 if percent and max(numbers, default=0.0) <= 1 else max(numbers, default=0.0)

    def cell(item: Any, most: float) -> dict[str, Any]:
        shown = {"detail": "", "share": 0.0, "data": _data(item)}
        if isinstance(item, dict):
            shown["share"] = item["rate"] if formatting.finite(item["rate"]) else 0.0
            text, detail = formatting.rate_value(item), formatting.rate_interval(item)
            return shown | {"text": text, "detail": detail}
        if formatting.finite(item) and most > low:
            shown["share"] = (item - low) / (most - low)
        return shown | {"text": formatting.measure(item, decimals, percent)}

    rows = []
    for name, row in zip(block["rows"], block["values"], strict=True):
        most = sum(filter(formatting.finite, row)) if block.get("by_row") else high
        rows.append((name, [cell(item, most) for item in row]))
    detailed = any(shown["detail"] for _, cells in rows for shown in cells)
    return {"columns": block["columns"], "rows": rows, "detailed": detailed}


def _given(decimals: int | None, numbers: Sequence[float], percent: bool) -> int:
    return formatting.shared_decimals(numbers, percent) if decimals is None else decimals


def _column(column: dict[str, Any], cells: Sequence[Any], number: int) -> dict[str, Any]:
    percent = column.get("unit") == "%"
    numbers = [value for item in cells for value in _numbers(item)]
    wide = any(isinstance(item, dict) for item in cells)
    # If all cells have the same sample size, only the heading has it, to keep the table narrow.
    sizes = {_data(item).get("n") for item in cells if isinstance(item, dict)}
    one = len(sizes) == 1 and None not in sizes
    size = formatting.sample_size({"n": sizes.pop()}) if one else None
    unit = None if percent else column.get("unit")
    numeric = wide or (bool(numbers) and not any(isinstance(item, str) for item in cells))
    return {
        "title": column["title"],
        "unit": ", ".join(part for part in (unit, size) if part),
        "sized": size is not None,
        "percent": percent,
        "p_value": bool(column.get("p_value")),
        "decimals": _given(column.get("decimals"), numbers, percent),
        "group": column.get("group") if number else None,
        "number": number,
        "wide": wide,
        "numeric": numeric,
        "css": "rate" if wide else "num" if numeric else "",
    }


def _groups(columns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Puts neighbouring columns of a group under one heading; a line is drawn where a group begins."""
    if not any(column["group"] for column in columns):
        return []
    groups: list[dict[str, Any]] = []
    for title, members in itertools.groupby(columns, key=lambda column: column["group"]):
        inside = list(members)
        if title or groups:
            inside[0]["css"] = f"{inside[0]['css']} first".strip()
        span = sum(2 if column["wide"] else 1 for column in inside)
        groups.append({"title": title, "columns": inside, "span": span})
    return groups


def _cell(item: Any, column: dict[str, Any]) -> dict[str, Any]:
    decimals, percent, detail, data = column["decimals"], column["percent"], "", _data(item)
    if _is_rate(item):
        text = formatting.rate_value(item)
        detail = formatting.rate_interval(item, with_size=not column["sized"])
    elif isinstance(item, dict):
        text = formatting.measure(item["value"], decimals, percent)
        ends = [item[key] for key in ("low", "high", "deviation") if key in item]
        if all(formatting.finite(end) for end in ends):
            scaled = [formatting.measure(100 * end if percent else end, decimals) for end in ends]
            # Between signed numbers, a dash would look like another sign.
            between = " to " if min(ends) < 0 else formatting.DASH
            said = [f"± {scaled[0]}" if len(ends) == 1 else between.join(scaled)]
            if not column["sized"] and "n" in data:
                said.append(formatting.sample_size(data))
            bare = len(ends) == 1 and len(said) == 1  # ± 0.4 needs no brackets
            detail = said[0] if bare else f"({', '.join(said)})"
    elif isinstance(item, str):
        text = item.replace(" ", _NO_BREAK) if len(item) <= _ON_ONE_LINE else item
    elif column["p_value"] and formatting.finite(item):
        text = formatting.p_value(item, decimals)
    else:
        text = formatting.measure(item, decimals, percent)
    number = not isinstance(item, str)
    css = [name for name in column["css"].split() if name == "first"]
    if not number:
        css += ["prose"] * (len(item) > _SENTENCE) or ["words"] * (len(item) > _ON_ONE_LINE)
    elif item is not None or column["numeric"]:
        css.insert(0, "num")
    return {
        "text": text,
        "detail": detail,
        "number": number,
        "wide": column["wide"],
        "css": " ".join(css),
        "data": data,
    }


def _data(item: Any) -> dict[str, Any]:
    """Returns a cell's numbers with all digits, for sorting and copying on the page."""
    if not isinstance(item, dict):
        return {"value": item} if formatting.finite(item) else {}
    known = {"value": item.get("rate", item.get("value"))}
    known |= {key: item.get(key) for key in ("low", "high", "deviation", "n")}
    return {key: value for key, value in known.items() if formatting.finite(value)}


def _is_rate(item: Any) -> bool:
    return isinstance(item, dict) and "rate" in item


def _numbers(item: Any) -> list[Any]:
    """Returns the numbers of a cell that get the column's decimals; a rate has its own decimals."""
    return [] if _is_rate(item) else [value for key, value in _data(item).items() if key != "n"]
