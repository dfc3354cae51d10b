"""The report: a result.json becomes one HTML file that needs nothing but a browser."""

import os
from pathlib import Path
from typing import Any

from jaxrobust import files
from jaxrobust.reports import formatting
from jaxrobust.reports.context import build_context
from jaxrobust.reports.naming import class_name, titled
from jaxrobust.reports.reading import read_result


def write_report(
    result_path: str | os.PathLike[str], output: str | os.PathLike[str] | None = None
) -> Path:
    """Writes the report of one run.

    Everything in it comes from the result.json, and the same file gives the same bytes. The report
    is one file: it asks nothing of the network and runs no script.

    Args:
      result_path: The result.json, as docs/result_format.md describes it.
      output: The HTML file to write; `report.html` beside the result by default. It is replaced
        in one step, so a killed run leaves no half of a report.

    Returns:
      The path of the report.

    Raises:
      FileNotFoundError: There is no such result.json.
      ValueError: It is not JSON, of another format, or a key is missing or of the wrong kind; the
        message names the file and the key.
    """
    path = Path(result_path)
    text = _render(read_result(path))
    target = path.with_name("report.html") if output is None else Path(output)
    files.replace_text(target, text)
    return target


def _render(result: dict[str, Any]) -> str:
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxrobust.reports", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = result["data"]["class_names"]
    environment.filters |= {
        "class_name": lambda index: class_name(names, index),
        "confidence": formatting.confidence,
        "epsilon": formatting.epsilon,
        "number": formatting.number,
        "rate_interval": formatting.rate_interval,
        "rate_value": formatting.rate_value,
        "seconds": formatting.seconds,
        "titled": titled,
        "svg": Markup,  # from figures.py: matplotlib escapes the labels it writes
    }
    style = Path(__file__).with_name("templates").joinpath("style.css").read_text("utf-8")
    template = environment.get_template("report.html.j2")
    return template.render(style=Markup(style), **build_context(result))
