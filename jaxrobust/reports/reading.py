"""Reads a result.json; each error names the file, the place in it and what is wrong."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxrobust.reports import markdown
from jaxrobust.reports.reading_blocks import block
from jaxrobust.reports.schema import ANYTHING, INTEGER, MAPPING, NUMBER, TEXT, check, short

FORMAT = 2

DATA, RUN, APPENDIX = "data", "run", "appendix"
"""The ids of the sections that the report adds by itself."""

_RESULT = {
    "experiment": TEXT,
    "title": TEXT,
    "summary": [TEXT],
    "config": MAPPING,
    "seed": NUMBER,
    "environment": MAPPING,
    "timings": MAPPING,
    "data": {
        "name": TEXT,
        "class_names": [TEXT],
        "num_train": NUMBER,
        "num_test": NUMBER,
        "image_shape": [INTEGER],
        "skipped_files?": [ANYTHING],
    },
    "blocks": [block],
}


def read_result(path: Path) -> dict[str, Any]:
    """Reads and checks a result.json.

    Args:
      path: The file.

    Returns:
      The result.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: It is not JSON, not of this format, or something in it is wrong; the message says
        where.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: there is no such file; give the result.json of a run, such as "
            "results/<experiment>/<run>/result.json."
        )
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are both ValueErrors.
        raise ValueError(f"{path}: this is not valid JSON: {error}.") from error
    try:
        check_result(result)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    checked: dict[str, Any] = result
    return checked


def check_result(result: Any) -> None:
    """Raises ValueError, naming the place, unless `result` is valid.

    Args:
      result: The content of a result.json.
    """
    if not isinstance(result, dict):
        raise ValueError(f"the file must hold an object, got {short(result)}.")
    found = result.get("format")
    if found == 1:
        raise ValueError(
            "an earlier release has written this file; run the same command again: it reads the "
            "finished stages, and trains nothing anew."
        )
    if found != FORMAT:
        raise ValueError(f"`format` must be {FORMAT}, got {short(found)}.")
    check(result, _RESULT, "")
    _check_outline(result)


def _check_outline(result: dict[str, Any]) -> None:
    """Checks that ids are unique, that links lead to ids, and that headings skip no level."""
    taken = dict.fromkeys((DATA, RUN, APPENDIX), "the report itself")
    level = 1
    for position, item in enumerate(result["blocks"]):
        where = f"`blocks[{position}]"
        name = item.get("id")
        if name is not None and name in taken:
            raise ValueError(f"{where}.id` must be unique, got {name!r}: that is {taken[name]}.")
        if name is not None:
            taken[name] = f"{where}.id`"
        if item["kind"] == "heading":
            if item["level"] > level + 1:
                raise ValueError(
                    f"{where}.level` must be at most {level + 1}: the level above it is {level}."
                )
            level = item["level"]
    for where, href in _links(result):
        if href[:1] != "#" or href[1:] not in taken:
            raise ValueError(
                f"{where} must be # and the id of a heading or block of this result, "
                f"got {short(href)}."
            )


def _links(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the addresses of evidence, and those links in prose that stay within the report."""
    prose = [(f"summary[{index}]", text) for index, text in enumerate(result["summary"])]
    for position, item in enumerate(result["blocks"]):
        where = f"blocks[{position}]"
        for index, evidence in enumerate(item.get("evidence") or ()):
            if evidence.get("href") is not None:
                yield f"`{where}.evidence[{index}].href`", evidence["href"]
        prose += [(f"{where}.{key}", item[key]) for key in ("text", "caption") if item.get(key)]
    for where, text in prose:
        for href in markdown.links(text):
            if href.startswith("#"):
                yield f"a link in `{where}`", href
