"""Renders a study's words, a Jinja template in Markdown that looks facts up, into blocks."""

import os
import re
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxrobust import packages
from jaxrobust.reports import blocks, evaluations, formatting, markdown
from jaxrobust.reports.blocks import Block
from jaxrobust.studies.facts import ANY, Fact, Facts
from jaxrobust.studies.template import Page, Row, cell_of, column, level, line, value_of

_NO_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x85\u2028\u2029\ue000-\uf8ff]")


def render(template: Path, facts: Facts, names: Mapping[str, Any]) -> tuple[list[str], list[Block]]:
    """Renders a template.

    Besides `names`, a template can use `facts`, `fact` (which is `Facts.of`), `ANY`, the methods of
    `Page` that put blocks on the page, `column`, `row`, `line`, `level`, `axis`, the modules `blocks`
    and `evaluations` of `jaxrobust.reports`, and the filters `estimate`, `percent`, `points`, `number`,
    `seconds`, `epsilon`, `listed`, `plural` and `p_value`. The text is Markdown. `# Title {#id}` begins
    a part, `## Title {#id}` begins a section, and `{## ... ##}` is a comment.

    Args:
      template: The file, which can include other files of its folder.
      facts: The facts of the study.
      names: Other values that the template can use, by their names.

    Returns:
      (the paragraphs before the first heading or block, the blocks).

    Raises:
      ValueError: A name or a fact is missing, a heading has no id, or the template has an error; the
        message begins with its file and line.
    """
    with packages.extra("reports", "A study's template"):
        import jinja2

    page = Page(facts)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,  # with `finalize`: values become plain text, never markup
        finalize=_finalize,
        undefined=jinja2.StrictUndefined,
        comment_start_string="{##",  # because {#id} belongs to a heading
        comment_end_string="##}",
        extensions=["jinja2.ext.do"],
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Filters put a figure into words; a template computes nothing else.
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
    # Functions that put a block on the page, and those that make their arguments.
    environment.globals |= {
        name: getattr(page, name)
        for name in (
            *("bars", "chart", "heat", "intervals", "notice", "pictures", "put", "table"),
            *("tile", "verdict"),
        )
    }
    environment.globals |= {"ANY": ANY, "facts": facts, "fact": facts.of, "row": Row}
    environment.globals |= {"column": column, "line": line, "level": level}
    environment.globals |= {"axis": blocks.axis, "blocks": blocks, "evaluations": evaluations}
    # Every error message gets the line of the template.
    try:
        return page.split(environment.get_template(template.name).render(**names))
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"{error.filename}, line {error.lineno}: {error.message}") from error
    except (jinja2.TemplateError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{_place(error, template)}: {error}") from error


def _place(error: Exception, template: Path) -> str:
    """Finds the file and line of a template that raised an error, from the traceback."""
    place = str(template)
    for frame, number in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename.endswith(".j2"):
            place = f"{frame.f_code.co_filename}, line {number}"
    return place


def estimate(value: Any, decimals: int = 1) -> str:
    """Writes a figure with its interval.

    A rate is written as "86.8 % (83.1 to 89.9, n = 1,593)", any other figure as "3.2 (2.9 to 3.6)".

    Args:
      value: A fact, a rate or an estimate.
      decimals: The number of decimals.
    """
    cell = cell_of(value)
    is_rate = isinstance(cell, Mapping) and "rate" in cell
    decimals = _share_decimals(value_of(value), decimals) if is_rate else decimals
    unit = "\u00a0%" if is_rate else ""
    shown = f"{_number(value_of(value), decimals, 100 if is_rate else 1)}{unit}"
    if not isinstance(cell, Mapping) or cell.get("low") is None or cell.get("high") is None:
        return shown
    low, high = (_number(cell[end], decimals, 100 if is_rate else 1) for end in ("low", "high"))
    size = f", {formatting.sample_size(dict(cell))}" if is_rate else ""
    return f"{shown} ({low} to {high}{size})"


def percent(value: Any, decimals: int = 1) -> str:
    """Writes a share as a percentage without its interval, as in "86.8 %"."""
    decimals = _share_decimals(value_of(value), decimals)
    return f"{_number(value_of(value), decimals, 100)}\u00a0%"


def points(value: Any, decimals: int = 1) -> str:
    """Writes a difference of shares and its interval, as in "+1.2 points (−0.3 to +2.7)"."""
    cell = cell_of(value)
    shown = f"{_signed(value_of(value), decimals)}\u00a0points"
    if not isinstance(cell, Mapping) or cell.get("low") is None or cell.get("high") is None:
        return shown
    return f"{shown} ({' to '.join(_signed(cell[end], decimals) for end in ('low', 'high'))})"


def listed(words: Iterable[Any]) -> str:
    """Joins words to a list within a sentence.

    Example:
      >>> listed(["a", "b", "c"]), listed(["a"])
      ('a, b and c', 'a')
    """
    *first, last = [str(word) for word in words] or [""]
    return f"{', '.join(first)} and {last}" if first else last


def plural(count: int, word: str, words: str | None = None) -> str:
    """Writes a number with its noun.

    Example:
      >>> plural(1, "seed"), plural(1200, "seed")
      ('1 seed', '1,200 seeds')
    """
    return f"{count:,} {word if count == 1 else words or word + 's'}"


def p_value(value: Any) -> str:
    """Writes a p-value, or the p-value of a fact, as in "p = 0.013" or "p < 0.0001"."""
    p = value.p if isinstance(value, Fact) else value
    if p is None or not formatting.finite(p):
        return "no p-value"
    # 0.0496 must not become 0.05, because 0.0496 is below 0.05.
    digits = 2 if (float(f"{p:.2g}") < 0.05) == (p < 0.05) else 4
    return f"p = {p:.{digits}g}" if p >= 1e-4 else "p < 0.0001"


def _share_decimals(share: Any, decimals: int) -> int:
    """Adds decimals, so that 9,999 of 10,000 does not become 100 %, nor 1 of 10,000 become 0 %."""
    if formatting.finite(share) and 0 < share < 1:
        while decimals < 4 and float(f"{100 * share:.{decimals}f}") in (0, 100):
            decimals += 1
    return decimals


def _signed(value: Any, decimals: int) -> str:
    shown = _number(value, decimals, 100)
    return f"+{shown}" if formatting.finite(value) and value > 0 else shown


def _number(value: Any, decimals: int = 3, scale: float = 1) -> str:
    """Writes a number, or the value of a fact, with a given number of decimals."""
    value = value_of(value)
    return formatting.measure(scale * value if formatting.finite(value) else value, decimals)


def _finalize(value: Any) -> Any:
    """Converts the value of `{{ }}` to text: formats a number, and escapes the markup of a text."""
    with packages.extra("reports", "A study's template"):
        import jinja2
        from markupsafe import Markup

    if hasattr(value, "__html__"):  # a macro or a table has made Markdown
        return value
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int | float) and not isinstance(value, bool):
        shown = f"{value:,}" if isinstance(value, int) else f"{value:g}"
        return Markup(shown.replace("-", "\N{MINUS SIGN}"))
    if not isinstance(value, str | os.PathLike | jinja2.Undefined):
        what = f"the fact {value.measure!r} itself" if isinstance(value, Fact) else repr(value)
        raise ValueError(
            f"A sentence cannot hold {what}: make a number or a word of it, with a filter such as "
            "`estimate`."
        )
    # A text must not have control characters, nor the characters that mark the place of a block.
    return Markup(markdown.escape(_NO_TEXT.sub(" ", str(value))))
