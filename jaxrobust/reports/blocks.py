"""Makes the blocks of a report: headings, prose, tables, charts and pictures, as in result.json.

Each block is checked when it is made. Captions, texts, verdicts and notices are Markdown; everything
else is plain text. docs/result_format.md describes the format.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack

import numpy as np

from jaxrobust.reports import formatting, reading_blocks
from jaxrobust.reports.pictures import as_bytes, encode_array

Block = dict[str, Any]


class Frame(TypedDict, total=False):
    """Options that every kind of block has.

    Attributes:
      id: The block's anchor for links, made of a-z, 0-9 and "-", and unique in a report.
      folded: Whether the block shows only its title until it is opened.
    """

    id: str
    folded: bool


class Titled(Frame, total=False):
    """Options of a block whose title is optional.

    Attributes:
      title: The title above the block.
    """

    title: str | None


def heading(title: str, identifier: str, level: int = 2) -> Block:
    """Makes a heading, which begins a part or a section.

    Args:
      title: The text of the heading.
      identifier: The anchor for links, made of a-z, 0-9 and "-", and unique in a report.
      level: 1 for a part, 2 for a section, 3 within a section.
    """
    return _block("heading", {"id": identifier, "title": title}, level=level)


def text(markdown: str, **frame: Unpack[Titled]) -> Block:
    """Makes a block of paragraphs.

    Args:
      markdown: The text.
      **frame: The options of `Titled`.
    """
    return _block("text", frame, text=markdown)


def notice(tone: str, markdown: str) -> Block:
    """Makes a remark that stands out, about whether figures can be believed.

    Args:
      tone: "sound" or "doubtful".
      markdown: The text.
    """
    return _block("notice", {}, tone=tone, text=markdown)


def column(
    title: str,
    unit: str | None = None,
    decimals: int | None = None,
    group: str = "",
    *,
    p_value: bool = False,
) -> Block:
    """Makes a column of a table.

    Args:
      title: The heading.
      unit: The unit, which is written after the heading. With "%", shares are drawn as percentages.
      decimals: The number of decimals; None chooses it from the numbers.
      group: A heading that neighbouring columns share.
      p_value: Whether the numbers are p-values; one that rounds to 0 then becomes "< 0.001", say.
    """
    described = {"title": title, "unit": unit, "decimals": decimals, "group": group or None}
    described["p_value"] = p_value or None
    return {key: value for key, value in described.items() if value is not None}


def table(
    columns: Sequence[str | Block],
    rows: Sequence[Sequence[Any]],
    caption: str = "",
    *,
    highlight: Sequence[int] = (),
    **frame: Unpack[Titled],
) -> Block:
    """Makes a table.

    Args:
      columns: For each column its heading, or what `column` returns.
      rows: The rows of cells: strings, numbers, None, rates, {"value", "low", "high"} or {"value",
        "deviation"}; the last two may also have "n".
      caption: What a reader must know to read the table.
      highlight: The indices of the rows that stand out.
      **frame: The options of `Titled`.
    """
    return _block(
        "table",
        frame,
        columns=[column(c) if isinstance(c, str) else c for c in columns],
        rows=[[_plain(value) for value in row] for row in rows],
        caption=caption,
        highlight=list(highlight) or None,
    )


def line(
    name: str,
    x: Sequence[float],
    y: Sequence[Any],
    *,
    dashed: bool = False,
    scatter: bool = False,
    steps: bool = False,
    model: str | None = None,
) -> dict[str, Any]:
    """Makes a line of a chart.

    Args:
      name: The line's name in the legend.
      x: The positions of the points.
      y: The values of the points: numbers, rates or {"value", "low", "high", "n"?}. Bounds are drawn as
        a band, with a gap at points without bounds. Points with None are left out.
      dashed: Whether the line is dashed, for a control or the second of two lines of a model.
      scatter: Whether to draw only points, without a line between them.
      steps: Whether to draw the outline of a histogram: x are then the middles of bins of equal width.
        Bins that a logarithmic axis cannot show become gaps.
      model: The name that determines the colour and marker, if it is not the line's name.
    """
    known = [(p, v, formatting.ends(v)) for p, v in zip(x, y, strict=True)]
    known = [point for point in known if point[2][0] is not None]
    found: dict[str, Any] = {"name": name, "x": [float(point[0]) for point in known]}
    flags = {"dashed": dashed, "scatter": scatter, "steps": steps, "model": model}
    found |= {key: value for key, value in flags.items() if value}
    found["y"] = [float(middle) for _, _, (middle, _, _) in known]
    if any(low is not None for *_, (_, low, _) in known):
        found["low"], found["high"] = ([ends[side] for *_, ends in known] for side in (1, 2))
    sizes = [value.get("n") if isinstance(value, Mapping) else None for _, value, _ in known]
    return found | {"n": sizes} if sizes and None not in sizes else found


def axis(
    title: str,
    *,
    percent: bool = False,
    log: bool = False,
    limits: tuple[float, float] | None = None,
) -> Block:
    """Makes an axis of a chart.

    Args:
      title: The title of the axis.
      percent: Whether the values are shares, from 0 to 1.
      log: Whether the axis is logarithmic.
      limits: The two ends of the axis, for charts that are to be compared.
    """
    described: Block = {"title": title, "log": log, "percent": percent}
    return described if limits is None else described | {"limits": list(limits)}


def chart(
    title: str,
    x: str | Block,
    y: str | Block,
    series: Sequence[dict[str, Any]],
    caption: str = "",
    **frame: Unpack[Frame],
) -> Block:
    """Makes a line chart.

    Args:
      title: The title above the chart.
      x: The title of the x axis, or what `axis` returns.
      y: The title of the y axis, or what `axis` returns.
      series: The lines, as `line` returns them.
      caption: What a reader must know to read the chart.
      **frame: The options of `Frame`.
    """
    x, y = (axis(one) if isinstance(one, str) else one for one in (x, y))
    return _block("chart", frame, title=title, x=x, y=y, series=list(series), caption=caption)


def intervals(
    title: str,
    groups: Mapping[str, Mapping[str, Any]],
    caption: str = "",
    *,
    percent: bool = False,
    bars: bool = False,
    **frame: Unpack[Frame],
) -> Block:
    """Makes a chart of values as dots with their intervals; the groups stand one below the other.

    Args:
      title: The title above the chart.
      groups: {group: {name: value}}; a value is a rate, {"value", "low", "high"} or a number.
      caption: What a reader must know to read the chart.
      percent: Whether the values are shares, from 0 to 1; rates always are.
      bars: Whether to draw bars from 0 instead of dots, for example for sizes and times.
      **frame: The options of `Frame`.
    """
    drawn = [
        {
            "name": group,
            "items": [{"name": name, "value": _whole(value)} for name, value in items.items()],
        }
        for group, items in groups.items()
    ]
    flags = {"percent": percent, "bars": bars}
    return _block("intervals", frame, title=title, groups=drawn, caption=caption, **flags)


def heat(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[Any]],
    titles: tuple[str, str],
    caption: str = "",
    *,
    percent: bool = False,
    decimals: int | None = None,
    by_row: bool = False,
    **frame: Unpack[Titled],
) -> Block:
    """Makes a table whose cells are coloured by their values.

    Args:
      rows: The names of the rows.
      columns: The names of the columns.
      values: A list of rates, numbers or None for each row.
      titles: (the title of the rows, the title of the columns).
      caption: What a reader must know to read the table.
      percent: Whether the numbers are shares, from 0 to 1; rates always are.
      decimals: The number of decimals; None chooses it from the numbers.
      by_row: Whether the colour shows a cell's share of its row, as in a confusion matrix.
      **frame: The options of `Titled`.
    """
    return _block(
        "heat",
        frame,
        rows=list(rows),
        columns=list(columns),
        values=[[_plain(value) for value in row] for row in values],
        row_title=titles[0],
        column_title=titles[1],
        caption=caption,
        percent=percent,
        decimals=decimals,
        by_row=by_row,
    )


def _whole(value: Any) -> Any:
    value = _plain(value)
    return value if isinstance(value, Mapping) else {"value": value, "low": None, "high": None}


def tile(
    image: Any = None,
    *,
    title: str = "",
    text: str = "",
    values: Any = None,
    style: str = "image",
    against: Any = None,
) -> dict[str, Any]:
    """Makes a picture of a grid.

    Args:
      image: uint8, or float in [0, 1], [H, W, 1 or 3]; the style "heat" does not use it.
      title: The title above the picture.
      text: The text below the picture.
      values: float [H, W], the map for the styles "heat" and "overlay".
      style: "image", "heat" (the map alone), "overlay" (the map over the image) or "difference".
      against: The image that `image` is compared with, for the style "difference".
    """
    found: dict[str, Any] = {"style": style}
    if image is not None and style != "heat":
        # A difference keeps floats, because a perturbation can be smaller than a grey level.
        found["image"] = encode_array(
            as_bytes(np.asarray(image)) if against is None else _exact(image)
        )
    if against is not None:
        found["against"] = encode_array(_exact(against))
    if values is not None:
        found["map"] = encode_array(np.nan_to_num(np.asarray(values, np.float32)))
    return found | {key: said for key, said in (("title", title), ("text", text)) if said}


def pictures(
    rows: Sequence[tuple[Any, ...]],
    caption: str = "",
    *,
    columns: Sequence[str] = (),
    **frame: Unpack[Titled],
) -> Block:
    """Makes a grid of pictures.

    Args:
      rows: (label, tiles) or (label, tiles, text beside the label) for each row. A tile is what `tile`
        returns, or None for an empty place.
      caption: What a reader must know to read the pictures.
      columns: The headings of the columns of tiles.
      **frame: The options of `Titled`.
    """
    drawn = [
        {"label": label, "tiles": list(tiles)} | ({"text": text[0]} if text else {})
        for label, tiles, *text in rows
    ]
    return _block("pictures", frame, rows=drawn, caption=caption, columns=list(columns) or None)


def verdict(question: str, text: str, evidence: Sequence[tuple[str, str]] = ()) -> Block:
    """Makes a question with the study's answer.

    Args:
      question: What a reader wants to know.
      text: Markdown. The first paragraph is the answer; the following ones say what it means in
        figures, how certain it is and why.
      evidence: Links to look at: (words, id of a heading or a block).
    """
    links = [{"text": words, "href": f"#{target}"} for words, target in evidence]
    return _block("verdict", {}, question=question, text=text, evidence=links or None)


def _block(kind: str, frame: Mapping[str, Any], **fields: Any) -> Block:
    """Makes a block without its empty fields; raises ValueError if something in it is wrong."""
    if unknown := frame.keys() - {"id", "title", "folded"}:
        raise TypeError(f"A block has no {sorted(unknown)}; it may have `id`, `title`, `folded`.")
    # 0 is kept, because it can be a number of decimals.
    said = {
        key: value
        for key, value in (fields | dict(frame)).items()
        if value is not None and value is not False and value != ""
    }
    block = {"kind": kind} | said
    reading_blocks.block(block, kind)
    return block


def _plain(value: Any) -> Any:
    """Converts a number of numpy to one of Python."""
    return value.item() if isinstance(value, np.generic) else value


def _exact(image: Any) -> np.ndarray:
    image = np.asarray(image)
    return image if image.dtype == np.uint8 else image.astype(np.float32)
