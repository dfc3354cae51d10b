"""Figures as SVG text, drawn by matplotlib and coloured by the page.

Colours are CSS variables: each is drawn as a stand-in that no figure uses otherwise and replaced in
the finished SVG, so that one figure is readable on light and on dark paper. Text stays text, in the
page's own font. The same input gives the same bytes.
"""

import contextlib
import io
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jaxrobust.reports.formatting import finite

NUM_SERIES = 8
_MARKERS = "os^DvPX*"
_GLYPHS = "●■▲◆▼✚✖★"

_INK, _MUTED, _LINE, _PAPER = "#010203", "#010204", "#010205", "#010206"
_STAND_INS = {_INK: "ink", _MUTED: "muted", _LINE: "line", _PAPER: "paper"}
_SERIES = [f"#0102{16 + index:02x}" for index in range(NUM_SERIES)]
_STAND_INS |= {colour: f"series-{index}" for index, colour in enumerate(_SERIES)}

# Inches. Narrow, so that on a phone the figure is not shrunk until its text cannot be read.
_WIDTH, _HEIGHT = 3.8, 2.5


class Series(NamedTuple):
    """How one model is drawn in every figure, and the same in HTML for the legend."""

    colour: str
    marker: str
    css: str
    glyph: str


def series(index: int) -> Series:
    """The look of the model at `index`: colour and shape both differ, for 64 models in all."""
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
    """Our settings while a figure is drawn: the reader's own must not change a report's bytes."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        # Text is measured in matplotlib's font, which lacks some scripts, and drawn in the page's.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


@_settings()
def training(
    epochs: Sequence[dict[str, Any]], quantity: str, look: Series, name: str, top: float
) -> str:
    """One panel of loss or accuracy over the epochs, training dashed and validation solid.

    Args:
      epochs: The model's epochs.
      quantity: "loss" or "accuracy".
      look: The model's colour.
      name: Prefix of the ids in the SVG, unique on the page.
      top: Upper end of the loss axis, shared by the models so that their panels compare.

    Returns:
      SVG text.
    """
    figure, axes = _axes(_HEIGHT)
    for part, style in (("train", (_MUTED, (0, (4, 2)))), ("validation", (look.colour, "-"))):
        points = [(e["epoch"], e.get(f"{part}_{quantity}")) for e in epochs]
        points = [point for point in points if finite(point[1])]
        if points:
            # A line through one point is invisible, and few points are clearer with their dots.
            marker = "o" if len(points) <= 12 else None
            x, y = zip(*points, strict=True)
            axes.plot(x, y, color=style[0], linestyle=style[1], marker=marker, markersize=3)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlim(0, 1.03 * max((epoch["epoch"] for epoch in epochs), default=1))
    axes.set_xlabel("epoch")
    if quantity == "accuracy":
        _percent_axis(axes.yaxis)
    else:
        axes.set_ylim(0, top)
    return _svg(figure, name)


@_settings()
def intervals(groups: dict[str, list[tuple[Series, dict[str, Any]]]], name: str) -> str:
    """Rates as dots with their intervals, one block for each label, one line for each model.

    Args:
      groups: Label -> (look, RATE) of each model.
      name: As in `training`.

    Returns:
      SVG text.
    """
    line, gap = 0.17, 0.14  # inches
    labels = {label: textwrap.wrap(label, 54) or [""] for label in groups}
    heights = [line * (len(labels[label]) + len(rows)) + gap for label, rows in groups.items()]
    figure, axes = _axes(sum(heights) + 0.4)
    y = 0.0
    for (label, rows), height in zip(groups.items(), heights, strict=True):
        for text in labels[label]:
            # Above its dots rather than left of them: a long label then costs no width.
            patch = {"facecolor": _PAPER, "edgecolor": "none", "pad": 1}
            axes.text(0, y, text, color=_INK, va="center", ha="left", bbox=patch)
            y += line
        for look, rate in rows:
            if all(finite(rate[key]) for key in ("rate", "low", "high")):
                axes.plot([rate["low"], rate["high"]], [y, y], color=look.colour, linewidth=1.6)
                axes.plot(rate["rate"], y, color=look.colour, marker=look.marker, clip_on=False)
            y += line
        y += height - line * (len(labels[label]) + len(rows))
    axes.set_ylim(sum(heights) - gap / 2, -line)
    axes.set_yticks([])
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    _percent_axis(axes.xaxis)
    return _svg(figure, name)


@_settings()
def epsilon_curves(lines: Sequence[tuple[Series, list[dict[str, Any]]]], name: str) -> str:
    """Robust accuracy over epsilon with its 95 % band, one line for each model.

    Args:
      lines: (look, points) of each model; a point is {"epsilon", "robust_accuracy": RATE}.
      name: As in `training`.

    Returns:
      SVG text.
    """
    figure, axes = _axes(_HEIGHT)
    for look, all_points in lines:
        points = [(p["epsilon"], p["robust_accuracy"]) for p in all_points if finite(p["epsilon"])]
        points = sorted((p for p in points if finite(p[1]["rate"])), key=lambda point: point[0])
        banded = [p for p in points if finite(p[1]["low"]) and finite(p[1]["high"])]
        axes.fill_between(
            [epsilon for epsilon, _ in banded],
            [rate["low"] for _, rate in banded],
            [rate["high"] for _, rate in banded],
            color=look.colour,
            alpha=0.16,
            linewidth=0,
        )
        axes.plot(
            [epsilon for epsilon, _ in points],
            [rate["rate"] for _, rate in points],
            color=look.colour,
            marker=look.marker,
            markersize=4,
            clip_on=False,
        )
    axes.set_xlabel("epsilon")
    axes.locator_params(axis="x", nbins=6)
    _percent_axis(axes.yaxis)
    return _svg(figure, name)


def _axes(height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained", facecolor="none")
    return figure, figure.add_subplot(facecolor="none")


def _percent_axis(axis: Any) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axis.set_ticks([0, 0.25, 0.5, 0.75, 1])
    (axis.axes.set_xlim if axis.axis_name == "x" else axis.axes.set_ylim)(0, 1)


def _svg(figure: Any, name: str) -> str:
    """The figure as an `<svg>` to put into HTML: no ids, styles or addresses of its own."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.S)  # it would style the whole page
    # Ids count from one in every figure, and a page may hold an id once.
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: (?:\d+ )?([\d.]+px) [^;\"]*", r"font-size: \1", text)
    for stand_in, variable in _STAND_INS.items():
        text = text.replace(stand_in, f"var(--{variable})")
    viewbox = re.search(r'viewBox="[^"]*"', text)
    assert viewbox is not None  # matplotlib always writes one
    body = text[text.index(">") + 1 :]
    return f'<svg {viewbox[0]} aria-hidden="true" focusable="false">{body.rstrip()}'
