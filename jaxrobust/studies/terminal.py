"""Writes the tables of a report as lines for a terminal."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from jaxrobust.reports import tables
from jaxrobust.reports.blocks import Block

_GAP = "  "


def table_lines(block: Block) -> list[str]:
    """Writes a table as lines of text, with its title above it.

    Args:
      block: A block that `reports.blocks.table` returned.

    Example:
      >>> from jaxrobust.reports import blocks
      >>> table_lines(blocks.table(["network", "right"], [["mlp", 12], ["cnn", 7]]))
      ['network  right', 'mlp         12', 'cnn          7']
    """
    drawn = tables.table(block)
    columns = []
    for number, column in enumerate(drawn["columns"]):
        cells = [row["cells"][number] for row in drawn["rows"]]
        columns.append(_column_lines(column, cells))
    lines = [_GAP.join(row).rstrip() for row in zip(*columns, strict=True)]
    title = [block["title"]] if block.get("title") else []
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in (*title, *lines)]


def section_lines(blocks: Sequence[Block], identifiers: Collection[str]) -> list[str]:
    """Writes the tables of some sections, with an empty line before and after each.

    Args:
      blocks: The blocks of a whole report.
      identifiers: The ids of the sections' headings.

    Returns:
      The lines; none if the sections have no table.
    """
    lines, wanted = [""], False
    for block in blocks:
        if block["kind"] == "heading":
            wanted = block["id"] in identifiers
        elif wanted and block["kind"] == "table":
            lines += [*table_lines(block), ""]
    return lines if len(lines) > 1 else []


def _column_lines(column: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns a column's heading and cells at one width, with numbers and their details aligned."""
    head = ": ".join(part for part in (column["group"], column["title"]) if part)
    if column["unit"]:
        head = f"{head} ({column['unit']})"
    numeric = bool(cells) and all(cell["number"] for cell in cells)
    inner = max((len(cell["text"]) for cell in cells), default=0) if numeric else 0
    texts = [f"{cell['text']:>{inner}} {cell['detail']}".rstrip() for cell in cells]
    to_the_right = numeric and not any(cell["detail"] for cell in cells)
    width = max(len(text) for text in (head, *texts))
    return [text.rjust(width) if to_the_right else text.ljust(width) for text in (head, *texts)]
