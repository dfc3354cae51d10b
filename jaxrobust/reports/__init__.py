"""Reports: one self-contained HTML file for each run, drawn from its result.json alone.

`write_page` writes chosen sections of a result.json as a page of Markdown.
`python -m jaxrobust.reports results/<experiment>/<run>/result.json` writes report.html beside it.
matplotlib, pillow and jinja2 load when a report is written, not when this package is imported.
"""

from jaxrobust.reports import blocks, evaluations
from jaxrobust.reports.evaluations import BANNERS
from jaxrobust.reports.example import write_example
from jaxrobust.reports.html import write_report
from jaxrobust.reports.markdown_page import write_page
from jaxrobust.reports.pictures import decode_array, encode_array

__all__ = [
    "BANNERS",
    "blocks",
    "decode_array",
    "encode_array",
    "evaluations",
    "write_example",
    "write_page",
    "write_report",
]
