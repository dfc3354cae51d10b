"""Blocks of a report: headings, prose, tables, charts and pictures as they go into result.json.

Each is checked when it is made. Captions, texts, verdicts and notices are Markdown; everything else
is plain text. docs/result_format.md has the format.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack

import numpy as np

from jaxrobust.reports import formatting, reading_blocks
from jaxrobust.reports.pictures import as_bytes, encode_array

Block = dict[str, Any]


class Frame(TypedDict, total=False):
    """What any block can have around it.

    Attributes:
      id: Its anchor, a-z, 0-9 and "-", once in a report: a link can lead there.
      folded: Whether it shows only its title until it is opened.
    """

    id: str
    folded: bool


class Titled(Frame, total=False):
    """What a block can have around it that need not have a title.

    Attributes:
      title: Above it.
    """

    title: str | None


def heading(title: str, identifier: str, level: int = 2) -> Block:
    """A heading, with which a part or a section begins.

    Args:
      title: Its words.
      identifier: Its anchor, a-z, 0-9 and "-", once in a report.
      level: 1 for a part, 2 for a section, 3 within a section.
    """
    return _block("heading", {"id": identifier, "title": title}, level=level)


def text(markdown: str, **frame: Unpack[Titled]) -> Block:
    """Paragraphs.

    Args:
      markdown: What they say.
      **frame: `Titled`.
    """
    return _block("text", frame, text=markdown)


def notice(tone: str, markdown: str) -> Block:
    """A remark that stands out, on whether figures can be believed.

    Args:
      tone: "sound" or "doubtful".
      markdown: What it says.
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
    """A column of a table.

    Args:
      title: Its heading.
      unit: Behind the heading.
      decimals: Of its numbers.
      group: A heading that neighbouring columns share.
      p_value: Whether it is of p-values: what rounds to 0 then reads as less than the smallest number.
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
    """A table.

    Args:
      columns: Headings, or what `column` returns.
      rows: Cells: strings, numbers, None, rates, {"value", "low", "high"} or {"value", "deviation"},
        the latter two with "n" besides where it is known.
      caption: What a reader must know to read it.
      highlight: Rows that stand out.
      **frame: `Titled`.
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
    """A line of a chart.

    Args:
      name: In the legend.
      x: Positions.
      y: Numbers; or rates or {"value", "low", "high", "n"?}, whose bounds become a band, with a gap
        where a point has none. None is left out.
      dashed: For a control, or the second of two lines of a model.
      scatter: Points without a line between them.
      steps: Steps as of a histogram: x are the middles of bins of one width, and what a logarithmic
        axis has no place for is a gap.
      model: Whose colour the line takes, where its name is another.
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
    """An axis of a chart.

    Args:
      title: Beside it.
      percent: Whether it is of shares, 0 to 1.
      log: Whether it is logarithmic.
      limits: Its ends, of y alone, for charts that are to be compared.
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
    """A line chart.

    Args:
      title: Above it.
      x: The title of the axis, or what `axis` returns.
      y: Likewise.
      series: From `line`.
      caption: What a reader must know to read it.
      **frame: `Frame`.
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
    """Values as dots with their intervals; groups stand one below the other.

    Args:
      title: Above it.
      groups: {group: {name: a rate, {"value", "low", "high"} or a number}}.
      caption: What a reader must know to read it.
      percent: Whether the values are shares, 0 to 1; rates always are.
      bars: Whether to draw bars from 0 instead of dots, for what is counted: sizes, times.
      **frame: `Frame`.
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
    """A table whose cells are coloured by their size.

    Args:
      rows: Names of the rows.
      columns: Names of the columns.
      values: Rates, numbers or None, a list for each row.
      titles: What the rows are, and what the columns are.
      caption: What a reader must know to read it.
      percent: Whether numbers are shares, 0 to 1; rates always are.
      decimals: Of the numbers.
      by_row: Whether the colour is a cell's share of its row, as in a confusion matrix.
      **frame: `Titled`.
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
    """A picture of a grid.

    Args:
      image: uint8, or float in [0, 1], [H, W, 1 or 3]; not of the style "heat".
      title: Above it.
      text: Below it.
      values: float [H, W], the map of the styles "heat" and "overlay".
      style: "image", "heat" (the map alone), "overlay" (the map over the image) or "difference".
      against: Of the style "difference": the image that `image` is compared with.
    """
    found: dict[str, Any] = {"style": style}
    if image is not None and style != "heat":
        # As floats: a perturbation of half a grey level is a perturbation.
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
    """A grid of pictures.

    Args:
      rows: (label, tiles) or (label, tiles, text beside the label); None has no picture.
      caption: What a reader must know to read it.
      columns: Headings of the tiles.
      **frame: `Titled`.
    """
    drawn = [
        {"label": label, "tiles": list(tiles)} | ({"text": text[0]} if text else {})
        for label, tiles, *text in rows
    ]
    return _block("pictures", frame, rows=drawn, caption=caption, columns=list(columns) or None)


def verdict(question: str, text: str, evidence: Sequence[tuple[str, str]] = ()) -> Block:
    """A question that the study answers.

    Args:
      question: What a reader wants to know.
      text: Markdown: the answer is the first paragraph; then what it means in figures, and how sure
        it is and why.
      evidence: (words, identifier of a heading or a block) to look at.
    """
    links = [{"text": words, "href": f"#{target}"} for words, target in evidence]
    return _block("verdict", {}, question=question, text=text, evidence=links or None)


def _block(kind: str, frame: Mapping[str, Any], **fields: Any) -> Block:
    """A block without what it does not say; ValueError where something in it is wrong."""
    if unknown := frame.keys() - {"id", "title", "folded"}:
        raise TypeError(f"A block has no {sorted(unknown)}; around it are `id`, `title`, `folded`.")
    # 0 is said: a number of decimals.
    said = {
        key: value
        for key, value in (fields | dict(frame)).items()
        if value is not None and value is not False and value != ""
    }
    block = {"kind": kind} | said
    reading_blocks.block(block, kind)
    return block


def _plain(value: Any) -> Any:
    """A number of numpy as one of Python."""
    return value.item() if isinstance(value, np.generic) else value


def _exact(image: Any) -> np.ndarray:
    image = np.asarray(image)
    return image if image.dtype == np.uint8 else image.astype(np.float32)
