"""Which tests are fast, and which `pytest -m nightly` alone runs, as nightly.txt says."""

import fnmatch
from pathlib import Path

import pytest

_LINES = [
    line
    for line in Path(__file__).with_suffix(".txt").read_text().splitlines()
    if line[:1] not in ("", "#")
]
NIGHTLY = [line for line in _LINES if ": " not in line]
FAST_ROWS = {
    table: rows.split(" | ")
    for table, rows in (line.split(": ", 1) for line in _LINES if ": " in line)
}
"""Of tables of many rows those that the fast set keeps."""


def is_nightly(item: pytest.Item) -> bool:
    """Whether the fast set leaves this test out."""
    name = f"{item.path.name}::{item.name}"
    if any(fnmatch.fnmatch(name, pattern) for pattern in NIGHTLY):
        return True
    row = getattr(getattr(item, "callspec", None), "id", None)
    test = name.partition("[")[0]
    return row is not None and any(
        fnmatch.fnmatch(test, table) and not any(fnmatch.fnmatch(row, kept) for kept in rows)
        for table, rows in FAST_ROWS.items()
    )


def check(items: list[pytest.Item]) -> None:
    """Raises UsageError where a row that the fast set keeps is no row of a table that is collected."""
    ids: dict[str, set[str]] = {}
    for item in items:
        if getattr(item, "callspec", None) is not None:
            ids.setdefault(f"{item.path.name}::{item.name.partition('[')[0]}", set()).add(
                item.callspec.id
            )
    for table, rows in FAST_ROWS.items():
        known = [
            row for test, found in ids.items() if fnmatch.fnmatch(test, table) for row in found
        ]
        for kept in rows:
            if known and not any(fnmatch.fnmatch(row, kept) for row in known):
                raise pytest.UsageError(f"tests/nightly.txt: {table} has no row {kept!r}.")
