"""Generic sections: what a study lays out itself, from result.json to what the template prints."""

import itertools
from collections.abc import Iterator
from typing import Any

from jaxrobust.reports import figures, formatting, pictures
from jaxrobust.reports.gallery import amplified, tile
from jaxrobust.reports.looks import series_name
from jaxrobust.reports.reading_blocks import tile_style
from jaxrobust.reports.tables import heat_table, table

# Narrower columns than these leave nothing to see: the tiles then wrap, each under its own title.
_MAX_LINED = 10


def draw(section: dict[str, Any], looks: dict[str, figures.Series]) -> dict[str, Any]:
    """A SECTION of docs/result_format.md as the template prints it.

    Args:
      section: As `read_result` returns it.
      looks: Of `looks.assign`.

    Returns:
      {"id", "title", "part", "text", "blocks", "ids"}; neighbouring charts are one block, and ids
      are those of the blocks.
    """
    blocks: list[dict[str, Any]] = []
    drawn = [
        _block(block, looks, f"{section['id']}_{index}")
        for index, block in enumerate(section["blocks"])
    ]
    for neighbours, run in itertools.groupby(drawn, key=_in_a_row):
        if neighbours:
            blocks.append(_charts(list(run)))
        else:
            blocks += [_charts([block]) if "drawing" in block else block for block in run]
    return {
        "id": section["id"],
        "title": section["title"],
        "part": section.get("part"),
        "text": section.get("text") or [],
        "blocks": blocks,
        "ids": [block["id"] for block in drawn if block["id"]],
    }


def _in_a_row(block: dict[str, Any]) -> bool:
    return "drawing" in block and not block["folded"]


def _block(block: dict[str, Any], looks: dict[str, figures.Series], name: str) -> dict[str, Any]:
    kind = block["kind"]
    head = {
        "kind": kind,
        "id": block.get("id"),
        "title": block.get("title"),
        "caption": block.get("caption"),
        "folded": bool(block.get("folded")),
    }
    if kind == "table":
        return head | {"table": table(block)}
    if kind == "heat":
        titles = {key: block[key] for key in ("row_title", "column_title")}
        return head | titles | {"table": heat_table(block)}
    if kind == "chart":
        return head | _chart(block, looks, name)
    if kind == "intervals":
        return head | _intervals(block, looks, name)
    if kind == "pictures":
        return head | _pictures(block)
    if kind == "verdict":
        return head | {**block, **head}
    return head | {"paragraphs": block["paragraphs"]}


def _charts(charts: list[dict[str, Any]]) -> dict[str, Any]:
    """Charts in a row; with a legend for all if they draw the same series."""
    legend = charts[0]["lines"]
    shared = len(charts) > 1 and all(chart["lines"] == legend for chart in charts)
    return {"kind": "charts", "charts": charts, "legend": legend if shared else None}


def _chart(block: dict[str, Any], looks: dict[str, figures.Series], name: str) -> dict[str, Any]:
    x, y = block["x"], block["y"]
    series = [(looks[series_name(item)], item) for item in block["series"]]
    columns = [{"title": "Series"}, _axis_column(x), _axis_column(y)]
    rows = [row for item in block["series"] for row in _points(item)]
    return {
        "drawing": figures.lines(series, x, y, name),
        "label": f"{block.get('title') or y['title']}: {y['title']} over {x['title']}",
        "lines": [
            {"name": item["name"], "look": look, "dashed": bool(item.get("dashed"))}
            for look, item in series
        ],
        "table": table({"columns": columns, "rows": rows}),
    }


def _axis_column(axis: dict[str, Any]) -> dict[str, Any]:
    return {"title": axis["title"], "unit": "%" if axis.get("percent") else None}


def _points(item: dict[str, Any]) -> Iterator[list[Any]]:
    """The rows of a series in the table of the chart's numbers."""
    for index, (over, value) in enumerate(zip(item["x"], item["y"], strict=True)):
        if item.get("low") is None:
            yield [item["name"], over, value]
        else:
            ends = {"low": item["low"][index], "high": item["high"][index]}
            yield [item["name"], over, {"value": value, **ends}]


def _intervals(
    block: dict[str, Any], looks: dict[str, figures.Series], name: str
) -> dict[str, Any]:
    title = block.get("title") or "Value"
    items = [item for group in block["groups"] for item in group["items"]]
    percent = bool(block.get("percent")) or any("rate" in item["value"] for item in items)
    groups: dict[str, list[tuple[figures.Series, dict[str, Any]]]] = {}
    for group in block["groups"]:
        values = [(looks[item["name"]], _estimate(item["value"])) for item in group["items"]]
        groups.setdefault(group["name"], []).extend(values)
    columns = [
        {"title": "Group"},
        {"title": "Series"},
        {"title": title, "unit": "%" if percent else None},
    ]
    rows = [
        [group["name"], item["name"], item["value"]]
        for group in block["groups"]
        for item in group["items"]
    ]
    names = dict.fromkeys(item["name"] for item in items)
    return {
        "drawing": figures.intervals(groups, name, percent, bool(block.get("bars"))),
        "label": f"{title} with intervals",
        "lines": [{"name": item, "look": looks[item], "dashed": False} for item in names],
        "table": table({"columns": columns, "rows": rows}),
    }


def _estimate(value: dict[str, Any]) -> dict[str, Any]:
    """Any value with an interval as value, low and high; a deviation is one to either side."""
    if "rate" in value:
        return {**value, "value": value["rate"]}
    if "deviation" in value:
        known = formatting.finite(value["value"]) and formatting.finite(value["deviation"])
        low, high = (
            (value["value"] - value["deviation"], value["value"] + value["deviation"])
            if known
            else (None, None)
        )
        return {"value": value["value"], "low": low, "high": high}
    return value


def _pictures(block: dict[str, Any]) -> dict[str, Any]:
    columns = block.get("columns") or []
    lined = len(columns) <= _MAX_LINED
    rows = [
        {
            "label": row["label"],
            "text": row.get("text"),
            "tiles": [
                item and _tile(item, columns[index] if columns else "", lined)
                for index, item in enumerate(row["tiles"])
            ],
        }
        for row in block["rows"]
    ]
    return {"columns": columns if lined else [], "rows": rows}


def _tile(item: dict[str, Any], column: str, lined: bool) -> dict[str, Any]:
    """A tile under its own title, or under that of its column where this is not above it."""
    arrays = {
        key: pictures.decode_array(item[key])
        for key in ("image", "map", "against")
        if item.get(key)
    }
    style, text = tile_style(item), item.get("text") or ""
    if style == "heat":
        pixels = pictures.heat(arrays["map"])
    elif style == "overlay":
        pixels = pictures.overlay(arrays["image"], arrays["map"])
    elif style == "difference":
        pixels, factor = pictures.perturbation(arrays["against"], arrays["image"])
        text = text or amplified(factor)
    else:
        pixels = pictures.to_rgb(arrays["image"])
    headed = lined and bool(column) and not item.get("title")
    return tile(pixels, item.get("title") or column, text) | {"headed": headed}
