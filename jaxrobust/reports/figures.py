"""Draws figures as SVG text with matplotlib, in the colours of the page.

Colours are CSS variables, so that a figure is readable on light and on dark paper: matplotlib draws
with a stand-in for each colour, which is replaced in the finished SVG. Text stays text, in the page's
own font. The same input gives the same bytes.
"""

import contextlib
import io
import itertools
import math
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jaxrobust import packages
from jaxrobust.reports.formatting import finite

NUM_SERIES = 8  # the number of colours
NUM_LOOKS = NUM_SERIES**2  # the number of pairs of a colour and a marker
_MARKERS = "os^DvPX*"
_GLYPHS = "●■▲◆▼✚✖★"

_INK, _MUTED, _LINE, _PAPER = "#010203", "#010204", "#010205", "#010206"
_STAND_INS = {_INK: "ink", _MUTED: "muted", _LINE: "line", _PAPER: "paper"}
_SERIES = [f"#0102{16 + index:02x}" for index in range(NUM_SERIES)]
_STAND_INS |= {colour: f"series-{index}" for index, colour in enumerate(_SERIES)}

# In inches. Figures are narrow, so that their text is still readable on a phone.
_WIDTH, _HEIGHT = 3.8, 2.5


class Series(NamedTuple):
    """The look of a model or series: colour and marker in figures, CSS and glyph in the legend."""

    colour: str
    marker: str
    css: str
    glyph: str


def series(index: int) -> Series:
    """Returns the look with an index from 0 to 63; all have different pairs of colour and marker."""
    colour, shape = index % NUM_SERIES, (index + index // NUM_SERIES) % NUM_SERIES
    return Series(_SERIES[colour], _MARKERS[shape], f"var(--series-{colour})", _GLYPHS[shape])


_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "jaxrobust",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a class may be called "$"
    "font.size": 7.8,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
}


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """Applies the settings of reports to the block; those of the user must not change a report."""
    with packages.extra("reports", "A chart"):
        import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        # matplotlib only measures text; its font lacks some scripts, but the page draws the text.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


@_settings()
def intervals(
    groups: dict[str, list[tuple[Series, tuple[Any, Any, Any]]]],
    name: str,
    percent: bool = True,
    bars: bool = False,
) -> str:
    """Draws values as dots with their intervals, in one block for each label.

    Args:
      groups: {label: [(look, (value, low, high))]}, with one entry for each model or series.
      name: A prefix for the ids in the SVG, unique on the page.
      percent: Whether the values are shares, to be written as percentages.
      bars: Whether to draw bars from 0 instead of dots, for sizes and times, whose lengths matter.

    Returns:
      SVG text.
    """
    line, gap = 0.17, 0.14  # in inches
    labels = {label: textwrap.wrap(label, 54) or [""] for label in groups}
    heights = [line * (len(labels[label]) + len(rows)) + gap for label, rows in groups.items()]
    figure, axes = _axes(sum(heights) + 0.4)
    y, shown = 0.0, []
    for (label, rows), height in zip(groups.items(), heights, strict=True):
        for text in labels[label]:
            # The label stands above its dots, where a long label takes no width from them.
            patch = {"facecolor": _PAPER, "edgecolor": "none", "pad": 1}
            left = {"transform": axes.get_yaxis_transform(), "va": "center", "ha": "left"}
            axes.text(0, y, text, color=_INK, bbox=patch, **left)
            y += line
        for look, (value, low, high) in rows:
            if finite(value):
                colour = _INK if bars else look.colour
                if finite(low) and finite(high):
                    axes.plot(
                        [low, high], [y, y], color=colour, linewidth=1.6 - 0.8 * bars, zorder=3
                    )
                    shown += [low, high]
                if bars:
                    axes.barh(y, value, height=0.75 * line, color=look.colour)
                else:
                    axes.plot(value, y, color=colour, marker=look.marker, clip_on=False)
                shown.append(value)
            y += line
        y += height - line * (len(labels[label]) + len(rows))
    axes.set_ylim(sum(heights) - gap / 2, -line)
    axes.set_yticks([])
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    _scale(axes.xaxis, shown, {"percent": percent}, measured=True)
    if bars and shown and min(shown) >= 0:
        axes.set_xlim(0)
    return _svg(figure, name)


@_settings()
def lines(
    series: Sequence[tuple[Series, dict[str, Any]]],
    x: dict[str, Any],
    y: dict[str, Any],
    name: str,
) -> str:
    """Draws lines with markers, and bands for their intervals.

    Args:
      series: (look, {"x", "y", "low"?, "high"?, "dashed"?, "scatter"?, "steps"?}) for each line, as in
        a chart of docs/result_format.md. A point is left out if its x or y is not finite, or not above
        0 on a logarithmic axis.
      x: The axis, {"title", "percent"?, "log"?, "limits"?}.
      y: The other axis, likewise.
      name: A prefix for the ids in the SVG, unique on the page.

    Returns:
      SVG text.
    """
    figure, axes = _axes(_HEIGHT)
    shown: list[tuple[float, float]] = []
    for look, item in series:
        low, high = item.get("low") or item["y"], item.get("high") or item["y"]
        points = [
            point
            for point in zip(item["x"], item["y"], low, high, strict=True)
            if _has_place(point[0], x) and _has_place(point[1], y)
        ]
        shown += [point[:2] for point in points]
        if not points:
            continue
        if item.get("steps") and len(item["x"]) > 1:
            _steps(axes, look, item, y)
            continue
        scatter = bool(item.get("scatter"))
        banded = [point for point in points if _has_place(point[2], y) and finite(point[3])]
        if item.get("low") and banded:
            if scatter:
                over, _, *ends = zip(*banded, strict=True)
                axes.vlines(over, *ends, color=look.colour, alpha=0.55, linewidth=1)
            else:
                # NaN makes a gap in the band at a point without an interval.
                known = [
                    point if point in banded else (point[0], *[math.nan] * 3) for point in points
                ]
                over, _, *ends = zip(*known, strict=True)
                axes.fill_between(over, *ends, color=look.colour, alpha=0.16, linewidth=0)
            shown += [(point[0], end) for point in banded for end in point[2:]]
        axes.plot(
            [point[0] for point in points],
            [point[1] for point in points],
            color=look.colour,
            linestyle="" if scatter else (0, (4, 2)) if item.get("dashed") else "-",
            marker=look.marker,
            markersize=3 if scatter else 4,
            alpha=0.55 if scatter else 1,
            markevery=1 if scatter else max(1, len(points) // 12),  # more would hide the line
            clip_on=False,
        )
    axes.set(xlabel=x["title"], ylabel=y["title"])
    _scale(axes.xaxis, [point[0] for point in shown], x)
    _scale(axes.yaxis, [point[1] for point in shown], y, measured=True)
    return _svg(figure, name)


def _steps(axes: Any, look: Series, item: dict[str, Any], y: dict[str, Any]) -> None:
    """Draws the outline of a histogram; a bin that the axis cannot show becomes a gap."""
    half = (item["x"][1] - item["x"][0]) / 2
    edges = [item["x"][0] - half, *(middle + half for middle in item["x"])]
    values = [value if _has_place(value, y) else math.nan for value in item["y"]]
    style = {"color": look.colour, "linestyle": (0, (4, 2)) if item.get("dashed") else "-"}
    axes.stairs(values, edges, baseline=None, linewidth=1.2, **style)


def _has_place(value: Any, axis: dict[str, Any]) -> bool:
    return finite(value) and (value > 0 or not axis.get("log"))


def _scale(
    axis: Any, values: Sequence[float], wanted: dict[str, Any], measured: bool = False
) -> None:
    """Sets the limits and ticks of an axis; measured shares get 0 to 100 %, so that charts compare."""
    with packages.extra("reports", "A chart"):
        from matplotlib import ticker

    of_x = axis.axis_name == "x"
    set_limits = axis.axes.set_xlim if of_x else axis.axes.set_ylim
    percent, whole = wanted.get("percent"), all(value == int(value) for value in values)
    if wanted.get("log"):
        (axis.axes.set_xscale if of_x else axis.axes.set_yscale)("log")
        _log_ticks(axis, values)
        axis.set_minor_locator(ticker.NullLocator())
        axis.set_major_formatter(
            lambda value, _: _plain(100 * value) + " %" if percent else _plain(value)
        )
    elif measured and percent and all(0 <= value <= 1 for value in values):
        axis.set_major_formatter(ticker.PercentFormatter(1, decimals=0, symbol=" %"))
        axis.set_ticks([0, 0.25, 0.5, 0.75, 1])
        set_limits(0, 1)
    else:
        steps = [1, 2, 2.5, 5, 10]
        locator = ticker.MaxNLocator(6, steps=steps, integer=whole and not percent)
        axis.set_major_locator(locator)
        # The axis begins at 0, so that small differences do not look large, unless all are small.
        if measured and values and 0 <= 2 * min(values) <= max(values):
            set_limits(0)
        if percent:
            axis.set_major_formatter(ticker.PercentFormatter(1, decimals=None, symbol=" %"))
        elif max(values, default=0) >= 1e4:
            axis.set_major_formatter("{x:,.0f}")
        else:
            axis.get_major_formatter().set_useOffset(False)
            axis.get_major_formatter().set_scientific(False)
    if wanted.get("limits"):
        set_limits(*wanted["limits"])


def _log_ticks(axis: Any, values: Sequence[float]) -> None:
    """Sets ticks at the values if they are few and far apart, else at 1, 2, 5 or powers of ten."""
    with packages.extra("reports", "A chart"):
        from matplotlib import ticker

    places = sorted(set(values))
    span = math.log10(places[-1] / places[0]) if places else 0.0
    gaps = [math.log10(after / before) for before, after in itertools.pairwise(places)]
    if 1 < len(places) <= 10 and min(gaps) > 0.09 * span:
        axis.set_major_locator(ticker.FixedLocator(places))
    else:
        axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if span < 2 else (1,)))


def _plain(value: float) -> str:
    # matplotlib would write powers in TeX, which these figures do not parse.
    return f"{value:,.0f}" if 1e3 <= value < 1e7 else f"{value:.3g}"


def _axes(height: float) -> tuple[Any, Any]:
    with packages.extra("reports", "A chart"):
        from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained", facecolor="none")
    return figure, figure.add_subplot(facecolor="none")


def _svg(figure: Any, name: str) -> str:
    """Converts a figure to an `<svg>` that can stand in HTML: its ids get the prefix `name`."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.S)  # it would style the whole page
    # matplotlib uses the same ids in every figure, but an id must be unique on a page.
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: (?:\d+ )?([\d.]+px) [^;\"]*", r"font-size: \1", text)
    for stand_in, variable in _STAND_INS.items():
        text = text.replace(stand_in, f"var(--{variable})")
    viewbox = re.search(r'viewBox="[^"]*"', text)
    assert viewbox is not None  # matplotlib always writes one
    body = text[text.index(">") + 1 :]
    return f'<svg {viewbox[0]} aria-hidden="true" focusable="false">{body.rstrip()}'
