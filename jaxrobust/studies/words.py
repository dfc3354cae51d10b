"""A study's words: a Jinja template in Markdown that asks facts, and the blocks that come of it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxrobust.reports import formatting, markdown
from jaxrobust.reports.blocks import Block
from jaxrobust.studies.facts import ANY, Fact, Facts
from jaxrobust.studies.page import Column, Page, Row, cell_of, level, line, value_of


def render(template: Path, facts: Facts, names: Mapping[str, Any]) -> tuple[list[str], list[Block]]:
    """Renders a template.

    Beside `names` it has `facts`, `fact` (`Facts.of`), the tables and charts of `Page`, `column`,
    `row`, `line`, `level`, and the filters `estimate`, `percent`, `points`, `number`, `seconds`,
    `epsilon` and `listed`. It is Markdown: `# Title {#id}` is a part, `## Title {#id}` a section,
    `{## ... ##}` a comment.

    Args:
      template: A file; it can include others of its folder.
      facts: What the study measured.
      names: What else the template can name.

    Returns:
      (paragraphs before the first heading or block, blocks).

    Raises:
      ValueError: A fact that is missing, a heading without an id.
      jinja2.TemplateError: A name that is missing, or a template that is wrong in itself.
    """
    import jinja2

    page = Page(facts)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,  # and `finalize`: what is put into the text is text, and never markup
        finalize=_finalize,
        undefined=jinja2.StrictUndefined,
        comment_start_string="{##",  # {#id} is of a heading
        comment_end_string="##}",
        extensions=["jinja2.ext.do"],
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "estimate": estimate,
        "percent": percent,
        "points": points,
        "number": _number,
        "seconds": formatting.seconds,
        "epsilon": formatting.epsilon,
        "listed": listed,
        "plural": plural,
        "p_value": p_value,
    }
    environment.globals |= {
        name: getattr(page, name)
        for name in (
            *("bars", "chart", "heat", "intervals", "notice", "pictures", "put", "table"),
            *("tile", "verdict"),
        )
    }
    environment.globals |= {
        "ANY": ANY,
        "facts": facts,
        "fact": facts.of,
        "column": Column,
        "row": Row,
    }
    environment.globals |= {"line": line, "level": level}
    return page.split(environment.get_template(template.name).render(**names))


def estimate(value: Any, decimals: int = 1) -> str:
    """A figure with its interval: "86.8 % (83.1 to 89.9, n = 1,593)" of a rate, "3.2 (2.9 to 3.6)".

    Args:
      value: A fact, a rate or an estimate.
      decimals: Of the numbers.
    """
    cell = cell_of(value)
    is_rate = isinstance(cell, Mapping) and "rate" in cell
    unit = "\u00a0%" if is_rate else ""
    shown = f"{_number(value_of(value), decimals, 100 if is_rate else 1)}{unit}"
    if not isinstance(cell, Mapping) or cell.get("low") is None or cell.get("high") is None:
        return shown
    low, high = (_number(cell[end], decimals, 100 if is_rate else 1) for end in ("low", "high"))
    size = f", {formatting.sample_size(dict(cell))}" if is_rate else ""
    return f"{shown} ({low} to {high}{size})"


def percent(value: Any, decimals: int = 1) -> str:
    """A share as a percentage, without its interval: "86.8 %"."""
    return f"{_number(value_of(value), decimals, 100)}\u00a0%"


def points(value: Any, decimals: int = 1) -> str:
    """A difference of shares with its interval, if it has one: "+1.2 points (−0.3 to +2.7)"."""
    cell = cell_of(value)
    shown = f"{_signed(value_of(value), decimals)}\u00a0points"
    if not isinstance(cell, Mapping) or cell.get("low") is None or cell.get("high") is None:
        return shown
    return f"{shown} ({' to '.join(_signed(cell[end], decimals) for end in ('low', 'high'))})"


def listed(words: Iterable[Any]) -> str:
    """Words as a list within a sentence.

    Example:
      >>> listed(["a", "b", "c"]), listed(["a"])
      ('a, b and c', 'a')
    """
    *first, last = [str(word) for word in words] or [""]
    return f"{', '.join(first)} and {last}" if first else last


def plural(count: int, word: str, words: str | None = None) -> str:
    """A number with its noun.

    Example:
      >>> plural(1, "seed"), plural(1200, "seed")
      ('1 seed', '1,200 seeds')
    """
    return f"{count:,} {word if count == 1 else words or word + 's'}"


def p_value(value: Any) -> str:
    """A p-value, or that of a fact: "p = 0.013", "p < 0.0001"."""
    p = value.p if isinstance(value, Fact) else value
    if p is None:
        return "no p-value"
    return f"p = {p:.2g}" if p >= 1e-4 else "p < 0.0001"


def _signed(value: Any, decimals: int) -> str:
    shown = _number(value, decimals, 100)
    return f"+{shown}" if formatting.finite(value) and value > 0 else shown


def _number(value: Any, decimals: int = 3, scale: float = 1) -> str:
    """A number, or the value of a fact, with so many decimals."""
    value = value_of(value)
    return formatting.measure(scale * value if formatting.finite(value) else value, decimals)


def _finalize(value: Any) -> Any:
    """What `{{ }}` puts into the text: numbers as a reader wants them, text with its markup escaped."""
    from markupsafe import Markup

    if hasattr(value, "__html__"):  # of a macro or a table: Markdown already
        return value
    if isinstance(value, bool) or value is None:
        raise ValueError(f"A sentence cannot hold {value!r}: ask for a number or a word.")
    if isinstance(value, int):
        return Markup(f"{value:,}")
    if isinstance(value, float):
        return Markup(f"{value:g}".replace("-", "\N{MINUS SIGN}"))
    return Markup(markdown.escape(str(value)))
