"""Writes chosen sections of a result as a page of Markdown, for documentation.

The page has the blocks of the report: tables as tables of GitHub's Markdown, charts as SVG files in a
folder beside the page. Pictures and folded lists of files stay in the report.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxrobust import files
from jaxrobust.reports import formatting, looks, markdown, page
from jaxrobust.reports.blocks import Block
from jaxrobust.reports.reading import read_result
from jaxrobust.reports.tables import heat_table, table

_STYLE = Path(__file__).with_name("templates") / "style.css"
_VARIABLE = re.compile(r"--([\w-]+): light-dark\((#\w+), #\w+\)")
_LINK = re.compile(r"\[([^\]]*)\]\(#([a-z0-9-]+)\)")
_CODE = re.compile(r"(`[^`]*`)")


def write_page(
    result_path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    sections: Sequence[str],
    commands: Sequence[str] = (),
) -> Path:
    """Writes a page of Markdown: the summary, the verdicts, and chosen sections of one run.

    Everything comes from the result.json, and the same result.json gives the same bytes. Charts go to a
    folder beside the page that has its name, as 1.svg, 2.svg and so on; earlier ones are deleted.

    Args:
      result_path: The result.json, as docs/result_format.md describes it.
      output: The page to write, such as docs/results/study.md; its name must end in .md.
      sections: The ids of the sections, which are the headings of level 1 and 2. The page has them in
        the order of the result.
      commands: The commands that made the run and this page, for its reader.

    Returns:
      The path of the page.

    Raises:
      FileNotFoundError: There is no such result.json.
      ValueError: The result.json is wrong or has no such section, or the page is not named as one.

    Example:
      >>> write_page("nowhere/result.json", "docs/study", ["accuracy"])
      Traceback (most recent call last):
      ValueError: `output` must be a page of Markdown, whose name ends in .md, got 'docs/study'.

      Of a run of experiments.pruned_benchmark:

      >>> page = "docs/results/filter_pruning.md"
      >>> write_page("results/pruned_benchmark/default/result.json", page, ["sizes"])  # doctest: +SKIP
      PosixPath('docs/results/filter_pruning.md')
    """
    target = Path(output)
    if target.suffix != ".md":
        raise ValueError(
            f"`output` must be a page of Markdown, whose name ends in .md, got {str(output)!r}."
        )
    result = read_result(Path(result_path))
    headings = (block for block in result["blocks"] if block["kind"] == "heading")
    titles = {block["id"]: block["title"] for block in headings if block["level"] < 3}
    unknown = [name for name in sections if name not in titles]
    if unknown:
        raise ValueError(
            f"`sections` must be ids of headings of {result_path}, got {unknown[0]!r}; these are "
            f"{', '.join(titles)}."
        )
    chosen = {name: titles[name] for name in titles if name in sections}
    look_of, charts = looks.assign(result["blocks"]), dict[str, str]()
    parts = [*_head(result, commands), *(_prose(text, chosen) for text in result["summary"])]
    # Blocks before the first heading are the verdicts, which every page has.
    inside = True
    for block in result["blocks"]:
        if block["kind"] == "heading" and block["level"] < 3:
            inside = block["id"] in chosen
            parts += [f"## {markdown.escape(block['title'])}"] * inside
        elif inside:
            parts += _block(block, chosen, look_of, charts, target.stem)
    folder = target.with_suffix("")
    for old in folder.glob("[0-9]*.svg"):
        old.unlink()
    target.parent.mkdir(parents=True, exist_ok=True)
    for name, drawing in charts.items():
        folder.mkdir(exist_ok=True)
        files.replace_text(folder / name, drawing)
    files.replace_text(target, "\n\n".join(part for part in parts if part) + "\n")
    return target


def _head(result: dict[str, Any], commands: Sequence[str]) -> Iterator[str]:
    """Yields the title, and what is needed to repeat the run."""
    environment, data = result["environment"], result["data"]
    yield f"# {markdown.escape(result['title'])}"
    if commands:
        yield "The last of these commands wrote this page from the finished run of the first:"
        yield "\n".join(f"    {command}" for command in commands)
    said = formatting.short_commits(environment)
    said += [f"jaxrobust {environment['jaxrobust']}"] if environment.get("jaxrobust") else []
    said += [f"jax {environment['jax']}"] if environment.get("jax") else []
    said += [f"device: {environment['device']}"] if environment.get("device") else []
    said += [f"{environment['num_cpus']} processors"] if environment.get("num_cpus") else []
    said.append(f"seed {formatting.number(result['seed'], 0)}")
    images = formatting.number(data["num_test"], 0)
    yield (
        f"The run: {markdown.escape(', '.join(said))}; {markdown.escape(data['name'])} with {images} "
        f"test images. Its stages took {formatting.total_time(result['timings'])} together. Unless a "
        "caption says otherwise, brackets are 95 % intervals."
    )


def _block(
    block: Block,
    chosen: Mapping[str, str],
    look_of: Mapping[str, Any],
    charts: dict[str, str],
    folder: str,
) -> Iterator[str]:
    """Yields the paragraphs of a block, and adds the drawing of a chart to `charts`."""
    kind, title = block["kind"], block.get("title")
    if kind == "pictures":
        return
    if title:
        yield f"### {markdown.escape(title)}"
    # Prose stays what it is, and tables become tables.
    if kind == "verdict":
        yield f"**{markdown.escape(block['question'])}**"
    if kind in ("text", "notice", "verdict"):
        yield _prose(block["text"], chosen)
    if kind == "table":
        yield _table(table(block))
    if kind == "heat":
        yield _heat(block)
    # A chart becomes a file, with its legend below: in it, series differ by their markers too.
    if kind in ("chart", "intervals"):
        name = f"{len(charts) + 1}.svg"
        drawn = (page.chart if kind == "chart" else page.intervals)(block, dict(look_of), "figure")
        charts[name] = _alone(drawn["drawing"])
        yield f"![{markdown.escape(drawn['label'])}]({folder}/{name})"
        yield "Series: " + ", ".join(
            f"{one['look'].glyph} {markdown.escape(one['name'])}{' (dashed)' * one['dashed']}"
            for one in drawn["legend"]
        )
    if block.get("caption"):
        yield _prose(block["caption"], chosen)


def _prose(text: str, chosen: Mapping[str, str]) -> str:
    """Converts Markdown of a block: no HTML, no indented code, and links only within the page."""

    def link(found: re.Match[str]) -> str:
        name = found[2]
        return f"[{found[1]}](#{_slug(chosen[name])})" if name in chosen else found[1]

    lines = "\n".join(line.lstrip() if line[:4].isspace() else line for line in text.splitlines())
    parts = _CODE.split(_LINK.sub(link, lines))
    plain = (re.sub(r"(?<!\\)([<$])", r"\\\1", part) for part in parts[::2])
    return "".join(a + b for a, b in zip(plain, [*parts[1::2], ""], strict=True))


def _slug(title: str) -> str:
    """Returns the anchor that GitHub and the site make of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _table(drawn: dict[str, Any]) -> str:
    heads = [
        f"{c['group'] + ': ' if c['group'] else ''}{c['title']}{', ' + c['unit'] if c['unit'] else ''}"
        for c in drawn["columns"]
    ]
    numeric = [column["numeric"] for column in drawn["columns"]]
    rows = [[f"{c['text']} {c['detail']}".strip() for c in row["cells"]] for row in drawn["rows"]]
    bold = [number for number, row in enumerate(drawn["rows"]) if row["highlight"]]
    return _rows(heads, numeric, rows, bold)


def _heat(block: Block) -> str:
    drawn = heat_table(block)
    heads = [block["row_title"], *(f"{block['column_title']} {c}" for c in drawn["columns"])]
    rows = [[name, *(f"{c['text']} {c['detail']}".strip() for c in r)] for name, r in drawn["rows"]]
    return _rows(heads, [False, *[True] * len(drawn["columns"])], rows)


def _rows(
    heads: Sequence[str],
    numeric: Sequence[bool],
    rows: Sequence[Sequence[str]],
    bold: Sequence[int] = (),
) -> str:
    """Writes a table, with some rows in bold; an empty cell is one without a number."""

    def cell(text: str) -> str:
        text = re.sub(r"[|$]", r"\\\g<0>", markdown.escape(text.replace("\n", " ")))
        return "" if text == formatting.DASH else text.replace("\N{NO-BREAK SPACE}", " ")

    lines = [[cell(head) for head in heads], ["---:" if one else "---" for one in numeric]]
    for number, row in enumerate(rows):
        cells = [cell(text) for text in row]
        lines.append([f"**{text}**" if text and number in bold else text for text in cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _alone(drawing: str) -> str:
    """Converts an SVG that takes its colours from the report to a file of its own, on white paper."""
    colours = dict(_VARIABLE.findall(_STYLE.read_text("utf-8")))
    drawing = re.sub(r"var\(--([\w-]+)\)", lambda found: colours[found[1]], drawing)
    font = "background: #fff; font-family: sans-serif"
    return drawing.replace(
        "<svg ",
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="480" style="{font}" ',
        1,
    )
