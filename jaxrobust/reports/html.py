"""Writes a report: one HTML file, made from a result.json, that needs only a browser."""

import base64
import hashlib
import os
from pathlib import Path
from typing import Any

from jaxrobust import files, packages
from jaxrobust.reports.page import build_context
from jaxrobust.reports.reading import read_result


def write_report(
    result_path: str | os.PathLike[str], output: str | os.PathLike[str] | None = None
) -> Path:
    """Writes the report of one run.

    Everything in the report comes from the result.json, and the same result.json gives the same bytes.
    The report is a single file: it loads nothing from the internet, and its content security policy
    only lets its own script run.

    Args:
      result_path: The result.json, as docs/result_format.md describes it.
      output: The HTML file to write; `report.html` beside the result by default. The file is replaced
        in one step, so a killed run does not leave half a report.

    Returns:
      The path of the report.

    Raises:
      FileNotFoundError: There is no such result.json.
      ValueError: The file is not JSON, has another format, or has a key that is missing or wrong; the
        message names the file and the key.
    """
    path = Path(result_path)
    text = _render(read_result(path))
    target = path.with_name("report.html") if output is None else Path(output)
    files.replace_text(target, text)
    return target


def _render(result: dict[str, Any]) -> str:
    with packages.extra("reports", "A report"):
        import jinja2
        from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxrobust.reports", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # This filter is for text from figures.py and markdown.py, which they have already escaped.
    environment.filters["markup"] = Markup
    folder = Path(__file__).with_name("templates")
    style, script = ((folder / name).read_text("utf-8") for name in ("style.css", "script.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("report.html.j2")
    parts = {"style": Markup(style), "script": Markup(script), "script_hash": digest}
    return page.render(**parts, **build_context(result))
