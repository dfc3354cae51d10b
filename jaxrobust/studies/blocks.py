"""Tables, charts and pictures as they go into result.json (docs/result_format.md, SECTION)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxrobust.studies.results import encode_array

Block = dict[str, Any]


def section(
    identifier: str, title: str, blocks: Sequence[Block], *, part: str, text: Sequence[str] = ()
) -> Block:
    """A section of the report.

    Args:
      identifier: Its anchor, a-z, 0-9 and "-".
      title: Its heading.
      blocks: From the functions below.
      part: The part of the report that it belongs to.
      text: Paragraphs below the heading.
    """
    return {
        "id": identifier,
        "title": title,
        "part": part,
        "text": list(text),
        "blocks": list(blocks),
    }


def column(
    title: str, unit: str | None = None, decimals: int | None = None, group: str = ""
) -> Block:
    """A column of a table.

    Args:
      title: Its heading.
      unit: Behind the heading.
      decimals: Of its numbers.
      group: A heading that neighbouring columns share.
    """
    described = {"title": title, "unit": unit, "decimals": decimals, "group": group or None}
    return {key: value for key, value in described.items() if value is not None}


def table(
    columns: Sequence[str | Block],
    rows: Sequence[Sequence[Any]],
    caption: str = "",
    *,
    title: str | None = None,
    folded: bool = False,
    highlight: Sequence[int] = (),
) -> Block:
    """A table.

    Args:
      columns: Headings, or what `column` returns.
      rows: Cells: strings, numbers, None, rates, {"value", "low", "high"} or {"value", "deviation"}.
      caption: What a reader must know to read it.
      title: Above it.
      folded: Shown only when asked for.
      highlight: Rows that stand out.
    """
    block: Block = {
        "kind": "table",
        "columns": [column(c) if isinstance(c, str) else c for c in columns],
        "rows": [list(row) for row in rows],
        "caption": caption,
        "folded": folded,
        "highlight": list(highlight),
    }
    return block if title is None else block | {"title": title}


def estimate(value: float, low: float | None, high: float | None, scale: float = 1.0) -> Any:
    """A number with its interval, or the number alone where the interval is not known.

    Args:
      value: The estimate.
      low: Lower bound.
      high: Upper bound.
      scale: Factor of all three: 100 for points.
    """
    if low is None or high is None:
        return scale * value
    return {"value": scale * value, "low": scale * low, "high": scale * high}


def latency(times: Mapping[str, Any]) -> tuple[Any, float, Any, str]:
    """A network's times as four cells of a table.

    Args:
      times: Its entry in `variants` of `evaluation.compare_latency`.

    Returns:
      (mean with its deviation, median, median difference to the reference with its interval,
      `latency_verdict`); times in ms; the reference itself has no difference.
    """
    gap = times["difference"]
    difference = None
    if gap is not None:
        difference = estimate(gap["median_ms"], gap["low_ms"], gap["high_ms"])
    mean = {"value": times["mean_ms"], "deviation": times["std_ms"]}
    return mean, times["median_ms"], difference, latency_verdict(gap)


def latency_verdict(difference: Mapping[str, Any] | None) -> str:
    """faster, slower or no difference shown; of the reference itself, None, nothing."""
    if difference is None:
        return ""
    if not difference["different"]:
        return "no difference shown"
    return "faster" if difference["median_ms"] < 0 else "slower"


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
      y: Numbers; or rates or {"value", "low", "high"}, whose bounds become a band. None is left out.
      dashed: For a control, or the second of two lines of a model.
      scatter: Points without a line between them.
      steps: Steps as of a histogram: x are the middles of bins of one width, and what a logarithmic
        axis has no place for is a gap.
      model: Whose colour the line takes, where its name is another.
    """
    kept = [pair for pair in zip(x, y, strict=True) if _known(pair[1])]
    found: dict[str, Any] = {"name": name, "x": [float(p) for p, _ in kept], "dashed": dashed}
    if scatter:
        found["scatter"] = True
    if steps:
        found["steps"] = True
    bounded = [_bounded(value) for _, value in kept]
    found["y"] = [value for value, _, _ in bounded]
    # A band where every point has one, be it of no width.
    if any(isinstance(value, Mapping) for _, value in kept):
        found["low"] = [low for _, low, _ in bounded]
        found["high"] = [high for _, _, high in bounded]
    return found if model is None else found | {"model": model}


def _known(value: Any) -> bool:
    """Whether there is a number: a rate of nothing has none."""
    return value is not None and not (isinstance(value, Mapping) and value.get("rate", 0) is None)


def _bounded(value: Any) -> tuple[float, float, float]:
    """(value, low, high) of a number, a rate or an estimate; without bounds it bounds itself."""
    if not isinstance(value, Mapping):
        return float(value), float(value), float(value)
    centre = float(value["rate"] if "rate" in value else value["value"])
    low, high = value.get("low"), value.get("high")
    return centre, centre if low is None else low, centre if high is None else high


def chart(
    title: str,
    x_title: str,
    y_title: str,
    series: Sequence[dict[str, Any]],
    caption: str = "",
    *,
    percent: bool = False,
    percent_x: bool = False,
    log_x: bool = False,
    log_y: bool = False,
) -> Block:
    """A line chart.

    Args:
      title: Above it.
      x_title: Below the axis.
      y_title: Beside the axis.
      series: From `line`.
      caption: What a reader must know to read it.
      percent: Whether y is a share, 0 to 1.
      percent_x: Whether x is.
      log_x: Whether x is logarithmic.
      log_y: Whether y is.
    """
    return {
        "kind": "chart",
        "title": title,
        "x": {"title": x_title, "log": log_x, "percent": percent_x},
        "y": {"title": y_title, "log": log_y, "percent": percent},
        "series": list(series),
        "caption": caption,
    }


def bars(title: str, groups: Mapping[str, Mapping[str, Any]], caption: str = "") -> Block:
    """Bars from 0, for sizes and times; groups stand one below the other.

    Args:
      title: Above it.
      groups: {group: {name: an estimate as `estimate` returns it, or a number}}.
      caption: What a reader must know to read it.
    """
    return {
        "kind": "intervals",
        "title": title,
        "bars": True,
        "groups": [
            {
                "name": group,
                "items": [{"name": name, "value": _whole(value)} for name, value in items.items()],
            }
            for group, items in groups.items()
        ],
        "caption": caption,
    }


def _whole(value: Any) -> Any:
    return value if isinstance(value, Mapping) else {"value": value, "low": None, "high": None}


def tile(
    image: Any,
    *,
    title: str = "",
    text: str = "",
    values: Any = None,
    style: str = "image",
    against: Any = None,
) -> dict[str, Any]:
    """A picture of a grid.

    Args:
      image: uint8, or float in [0, 1], [H, W, 1 or 3].
      title: Above it.
      text: Below it.
      values: float [H, W], the map of the styles "heat" and "overlay".
      style: "image", "heat" (the map alone), "overlay" (the map over the image) or "difference".
      against: Of the style "difference": the image that `image` is compared with.
    """
    found: dict[str, Any] = {"image": encode_array(_bytes(image)), "style": style}
    if title:
        found["title"] = title
    if text:
        found["text"] = text
    if values is not None:
        found["map"] = encode_array(np.nan_to_num(np.asarray(values, np.float32)))
    if against is not None:
        # As floats: a perturbation of half a grey level is a perturbation.
        found["image"] = encode_array(np.asarray(image, np.float32))
        found["against"] = encode_array(np.asarray(against, np.float32))
    return found


def pictures(
    rows: Sequence[tuple[str, Sequence[dict[str, Any]]]],
    caption: str = "",
    *,
    columns: Sequence[str] = (),
    title: str | None = None,
    folded: bool = False,
) -> Block:
    """A grid of pictures.

    Args:
      rows: (label, tiles).
      caption: What a reader must know to read it.
      columns: Headings of the tiles.
      title: Above it.
      folded: Shown only when asked for.
    """
    block: Block = {
        "kind": "pictures",
        "rows": [{"label": label, "tiles": list(tiles)} for label, tiles in rows],
        "caption": caption,
        "folded": folded,
    }
    if columns:
        block["columns"] = list(columns)
    return block if title is None else block | {"title": title}


def verdict(
    question: str,
    answer: str,
    confidence: str,
    evidence: Sequence[tuple[str, str]] = (),
    *,
    details: str | None = None,
) -> Block:
    """A question that the study answers.

    Args:
      question: What a reader wants to know.
      answer: In a few words.
      confidence: How sure, and why.
      evidence: (words, identifier of a section) to look at.
      details: What the answer means in figures.
    """
    found = {
        "question": question,
        "answer": answer,
        "confidence": confidence,
        "evidence": [{"text": text, "href": f"#{target}"} for text, target in evidence],
    }
    return found if details is None else found | {"details": details}


def _bytes(image: Any) -> np.ndarray:
    image = np.asarray(image)
    return (
        image if image.dtype == np.uint8 else np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    )
