"""docs/results/coverage.md as rows, and the sections of the reports that it names."""

import importlib
import itertools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

from experiments.cifar_mlp.claims import ABLATIONS
from experiments.sports10.networks import SUBJECTS

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "results" / "coverage.md").read_text("utf-8")
# What stands between {{ and }} in the anchors of templates, and the values that it has.
EXPRESSIONS = {
    'name | replace("_", "-")': [name.replace("_", "-") for name in SUBJECTS],
    "ablation.section": [ablation.section for ablation in ABLATIONS],
    "number": ["2", "3"],
}


class Row(NamedTuple):
    """A row of the page, in Markdown; the source is the one that the heading above names."""

    source: str
    item: str
    here: str
    figures: str


def tables() -> list[tuple[str | None, list[list[str]]]]:
    """(source, rows of cells without the head) of each table; None: before the first source."""
    found: list[tuple[str | None, list[list[str]]]] = []
    source = None
    tokens = MarkdownIt("commonmark").enable("table").parse(TEXT)
    for opening, inline in itertools.pairwise(tokens):
        if opening.type == "heading_open" and "source" in inline.content:
            source = re.search(r"source (\d{3})", inline.content)[1]
        elif opening.type == "table_open":
            found.append((source, []))
        elif opening.type == "tr_open" and inline.type == "td_open":
            found[-1][1].append([])
        elif opening.type == "td_open":
            found[-1][1][-1].append(inline.content)
    return found


def rows() -> list[Row]:
    return [Row(source, *cells) for source, of in tables() if source for cells in of]


def parts() -> dict[str, str]:
    """{study: its part of the page}; a part begins with the command of its study."""
    texts = re.split(r"^## ", TEXT, flags=re.M)[1:]
    return {re.search(r"python -m experiments\.(\w+)", text)[1]: text for text in texts}


def named(study: str) -> set[str]:
    """The anchors of a study's report that the page names."""
    return set(re.findall(r"`#([a-z0-9-]+)`", parts()[study]))


def anchors(study: str) -> Iterable[str]:
    """The anchors that the templates of a study can give its report."""
    folder = Path(importlib.import_module(f"experiments.{study}").__file__).parent
    for template in folder.glob("*.j2"):
        for anchor in re.findall(r"^#+ .*\{#(.+)\}$", template.read_text("utf-8"), flags=re.M):
            words = re.split(r"\{\{ (.+?) \}\}", anchor)
            choices = [EXPRESSIONS[w] if i % 2 else [w] for i, w in enumerate(words)]
            yield from map("".join, itertools.product(*choices))
