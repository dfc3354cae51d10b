"""Converts a checked result to the sections and blocks that the page's template prints."""

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

from jaxrobust.reports import blocks, figures, formatting, looks, markdown, pictures
from jaxrobust.reports.blocks import Block
from jaxrobust.reports.reading import APPENDIX, DATA, RUN
from jaxrobust.reports.reading_blocks import tile_style
from jaxrobust.reports.tables import heat_table, table

# With more columns, the tiles would be too small: they wrap instead, each under its own title.
_MAX_LINED = 10
# The page enlarges small images pixel by pixel, and shrinks larger ones smoothly.
_MAX_PIXELATED = 128
# The kinds of blocks that stand side by side, and the kind of the row that neighbours share.
_ROWS = {"chart": "charts", "intervals": "charts", "heat": "matrices", "verdict": "answers"}


def build_context(result: dict[str, Any]) -> dict[str, Any]:
    """Makes everything that the template needs.

    Args:
      result: The result, as `read_result` returns it.

    Returns:
      {"result", "meta", "summary", "sections", "contents"}. A section has "id", "title", "level" and
      "blocks". The first section has no title, and holds the blocks before the first heading. Contents
      are (level, id, title) of the other sections.
    """
    whole = [*result["blocks"], *_appendix(result)]
    look_of = looks.assign(whole)
    sections: list[dict[str, Any]] = [{"id": "", "title": "", "level": 1, "blocks": []}]
    level = 1
    for number, block in enumerate(whole):
        if block["kind"] == "heading":
            level = block["level"]
        if block["kind"] == "heading" and level < 3:
            sections.append({key: block[key] for key in ("id", "title", "level")} | {"blocks": []})
        else:
            drawn = _drawn(block, look_of, f"figure-{number}", level)
            sections[-1]["blocks"].append(drawn)
    for section in sections:
        section["blocks"] = list(_in_rows(section["blocks"]))
    environment = result["environment"]
    meta = [result["experiment"], f"seed {formatting.number(result['seed'], 0)}"]
    meta += [f"jaxrobust {environment['jaxrobust']}"] if environment.get("jaxrobust") else []
    meta += [str(environment["device"])] if environment.get("device") else []
    meta += formatting.short_commits(environment)
    return {
        "result": result,
        "meta": ", ".join(meta),
        "summary": [markdown.render(text) for text in result["summary"]],
        "sections": sections,
        "contents": [(one["level"], one["id"], one["title"]) for one in sections[1:]],
    }


def _appendix(result: dict[str, Any]) -> list[Block]:
    """Makes the end of every report: the data, and what is needed to repeat the run."""
    data, environment = result["data"], result["environment"]
    shape = " \N{MULTIPLICATION SIGN} ".join(str(size) for size in data["image_shape"])
    rows = [["Data set", data["name"]]]
    if data["num_train"] is not None:
        rows.append(["Training images", formatting.number(data["num_train"], 0)])
    rows += [
        ["Test images", formatting.number(data["num_test"], 0)],
        ["Image size", shape],
        [f"{len(data['class_names'])} classes", ", ".join(data["class_names"])],
    ]
    # The data that the figures were measured on.
    found = [blocks.heading("Data", DATA), blocks.table(["", ""], rows)]
    if data.get("skipped_files"):
        files = [str(file) for file in data["skipped_files"]]
        title = f"{len(files)} skipped {'file' if len(files) == 1 else 'files'}"
        found.append(blocks.table(["File"], [[file] for file in files], title=title, folded=True))
    # What is needed to repeat the run.
    run = [
        ["Experiment", result["experiment"]],
        ["Seed", formatting.number(result["seed"], 0)],
        ["Commit", ", ".join(formatting.commits(environment)) or formatting.DASH],
        ["Time of all stages", formatting.total_time(result["timings"])],
    ]
    seconds = [[stage, formatting.seconds(value)] for stage, value in result["timings"].items()]
    found += [blocks.heading("The run", RUN), blocks.table(["", ""], run)]
    for title, columns, inner in (
        ("Settings", ("Setting", "Value"), list(_flat(result["config"]))),
        ("Environment", ("Component", "Version"), list(_flat(environment))),
        ("Timings", ("Stage", "Seconds"), seconds),
    ):
        if inner:
            found.append(blocks.table(columns, inner, title=title, folded=True))
    # If the report has parts, the appendix becomes a part; otherwise it only has sections.
    in_parts = any(block["kind"] == "heading" and block["level"] == 1 for block in result["blocks"])
    return [blocks.heading("Data and run", APPENDIX, 1), *found] if in_parts else found


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[list[str]]:
    """Yields nested settings as rows, such as ["attack.epsilon", "0.03"]."""
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif value is None or (isinstance(value, float) and not formatting.finite(value)):
            yield [f"{prefix}{key}", formatting.DASH]
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield [f"{prefix}{key}", text]


def _in_rows(drawn: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields blocks; neighbours that share a row become one block: "charts", "matrices", "answers"."""

    def row(block: dict[str, Any]) -> str | None:
        return None if block["folded"] else _ROWS.get(block["kind"])

    for kind, run in itertools.groupby(drawn, key=row):
        if kind is None:
            yield from run
            continue
        inside = list(run)
        # Charts of the same series get one legend together.
        legend = inside[0].get("legend")
        if len(inside) > 1 and legend and all(one["legend"] == legend for one in inside):
            inside = [one | {"legend": None} for one in inside]
        else:
            legend = None
        yield {"kind": kind, "blocks": inside, "legend": legend, "folded": False}


def _drawn(
    block: Block, look_of: dict[str, figures.Series], name: str, level: int
) -> dict[str, Any]:
    """Converts a block for the template; `level` is the level of the heading above it."""
    kind = block["kind"]
    head = {
        "kind": kind,
        "id": block.get("id"),
        "title": block.get("title"),
        "level": level + 1,
        "folded": bool(block.get("folded")),
        "caption": markdown.render(block["caption"]) if block.get("caption") else None,
        "label": block.get("title") or "",
    }
    if kind in ("text", "notice", "verdict"):
        return block | head | {"html": markdown.render(block["text"])}
    if kind == "table":
        return head | {"table": table(block)}
    if kind == "heat":
        titles = {key: block[key] for key in ("row_title", "column_title")}
        return head | titles | {"table": heat_table(block)}
    if kind == "chart":
        return head | chart(block, look_of, name)
    if kind == "intervals":
        return head | intervals(block, look_of, name)
    return head | (_pictures(block) if kind == "pictures" else {})


def chart(block: Block, look_of: dict[str, figures.Series], name: str) -> dict[str, Any]:
    """Draws a block of kind chart: {"drawing", "label", "legend", "table" of its numbers}."""
    x, y = block["x"], block["y"]
    series = [(look_of[looks.series_name(item)], item) for item in block["series"]]
    columns = [
        {"title": axis["title"], "unit": "%" if axis.get("percent") else None} for axis in (x, y)
    ]
    rows = [row for item in block["series"] for row in _points(item, bool(y.get("percent")))]
    return {
        "drawing": figures.lines(series, x, y, name),
        "label": f"{block.get('title') or y['title']}: {y['title']} over {x['title']}",
        "legend": [
            {"name": item["name"], "look": look, "dashed": bool(item.get("dashed"))}
            for look, item in series
        ],
        "table": table({"columns": [{"title": "Series"}, *columns], "rows": rows}),
    }


def _points(item: dict[str, Any], percent: bool) -> Iterator[list[Any]]:
    """Yields the rows of a series for the table of the chart's numbers."""
    for index, (over, value) in enumerate(zip(item["x"], item["y"], strict=True)):
        if item.get("low") and (item.get("n") or item["low"][index] is not None):
            ends = {key: item[key][index] for key in ("low", "high", "n") if item.get(key)}
            # A share with n is drawn as a rate, with the decimals that n images support.
            value = {"rate" if percent and "n" in ends else "value": value} | ends
        yield [item["name"], over, value]


def intervals(block: Block, look_of: dict[str, figures.Series], name: str) -> dict[str, Any]:
    """Draws a block of kind intervals: {"drawing", "label", "legend", "table" of its numbers}."""
    title = block.get("title") or "Value"
    rows = [
        [group["name"], item["name"], item["value"]]
        for group in block["groups"]
        for item in group["items"]
    ]
    percent = bool(block.get("percent")) or any("rate" in value for _, _, value in rows)
    groups: dict[str, list[tuple[figures.Series, tuple[Any, Any, Any]]]] = {}
    for group, item, value in rows:
        groups.setdefault(group, []).append((look_of[item], formatting.ends(value)))
    value_column = {"title": title, "unit": "%" if percent else None}
    columns = [{"title": "Group"}, {"title": "Series"}, value_column]
    return {
        "drawing": figures.intervals(groups, name, percent, bool(block.get("bars"))),
        "label": f"{title} with intervals",
        "legend": [
            {"name": item, "look": look_of[item], "dashed": False}
            for item in dict.fromkeys(item for _, item, _ in rows)
        ],
        "table": table({"columns": columns, "rows": rows}),
    }


def _pictures(block: Block) -> dict[str, Any]:
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
    """Converts a tile for the template; without a title of its own, it gets that of its column."""
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
        text = text or pictures.amplified(factor)
    else:
        pixels = pictures.to_rgb(arrays["image"])
    height, width = pixels.shape[:2]
    return {
        "src": pictures.data_uri(pixels),
        "width": width,
        "height": height,
        "pixelated": max(height, width) <= _MAX_PIXELATED,
        "title": item.get("title") or column,
        "text": text,
        "headed": lined and bool(column) and not item.get("title"),
    }
