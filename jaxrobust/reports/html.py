"""The report: a result.json becomes one HTML file that needs nothing but a browser."""

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

    Everything in it comes from the result.json, and the same file gives the same bytes. The report
    is one file: it asks nothing of the network, and its policy lets no script run but its own.

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
    # From figures.py and markdown.py, which escape what is not theirs.
    environment.filters["markup"] = Markup
    folder = Path(__file__).with_name("templates")
    style, script = ((folder / name).read_text("utf-8") for name in ("style.css", "script.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("report.html.j2")
    parts = {"style": Markup(style), "script": Markup(script), "script_hash": digest}
    return page.render(**parts, **build_context(result))
