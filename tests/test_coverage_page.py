"""The page says of everything in the five sources how much of it was run, and where that is."""

import collections
import importlib
import re
import shlex
import sys

import coverage_page
import pytest

from jaxrobust import studies

ROWS = coverage_page.rows()
WORDS = ("same size", "smaller", "not run")
COMMANDS = re.findall(r"`python -m ([^`]+)`", coverage_page.TEXT)
# What has a number in the sources; their other tables, protocols and conclusions have none.
NUMBERED = {
    "002": [f"Figure {n}" for n in range(1, 15)],
    "003": ["Figure 1", *(f"Table {n}" for n in range(1, 18))],
    "004": [
        *("Figure 3.1", "Table 4.1", "Table 4.2", "Table C.1"),
        *(f"Figure 4.{n}" for n in range(1, 9)),
        *("Figure A.1", "Figure A.2", "Figure C.1", "Figure C.2", "Figure D.1", "Figure D.2"),
        *(f"Figure B.{n}" for n in range(1, 5)),
        *(f"Algorithm {n}" for n in range(1, 6)),
    ],
}


def word_of(row):
    return re.match(r"\*\*([a-z ]+)\*\*", row.here)[1]


def test_every_row_has_one_word_and_says_how_and_where():
    for row in ROWS:
        word, *more = re.fullmatch(r"\*\*([a-z ]+)\*\*(?:: (\S.*))?", row.here).groups("")
        assert word in WORDS, row
        assert word == "same size" or all(more), row
        links = re.findall(r"`#[a-z0-9-]+`|\[[^]]+\](?:\[\w+\]|\(\S+\))", row.figures)
        assert ", ".join(links) == row.figures and (links or word == "not run"), row


@pytest.mark.parametrize("source", NUMBERED)
def test_everything_with_a_number_has_a_row(source):
    items = [row.item for row in ROWS if row.source == source]
    for name in NUMBERED[source]:
        assert any(re.search(rf"{re.escape(name)}\b", item, re.I) for item in items), name


def test_no_row_is_there_twice():
    items = collections.Counter((row.source, row.item) for row in ROWS)
    assert max(items.values()) == 1, items.most_common(1)


def test_the_counts_at_the_top_are_those_of_the_rows():
    counted = []
    for source in [*sorted({row.source for row in ROWS}), "all"]:
        found = [word_of(row) for row in ROWS if source in ("all", row.source)]
        counted.append([source, str(len(found)), *(str(found.count(word)) for word in WORDS)])
    _, stated = coverage_page.tables()[0]
    assert stated == counted, "\n".join(f"| {' | '.join(row)} |" for row in counted)


@pytest.mark.parametrize("study", coverage_page.parts())
def test_every_section_is_in_the_studys_templates(study):
    named = coverage_page.named(study)
    assert named and not named - set(coverage_page.anchors(study))
    published = importlib.import_module(f"experiments.{study}.__main__").PUBLISHED
    assert len(published) == len(set(published)) > 5
    assert not set(published) - set(coverage_page.anchors(study))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one_that_the_study_takes(command, monkeypatch, unchanged_process):
    name, *options = shlex.split(command)
    study = importlib.import_module(f"{name}.__main__")
    monkeypatch.setattr(sys, "argv", [name, *options])
    read = []
    settings = getattr(study, "Settings", None) or study.Config
    studies.run_script(lambda given: read.append(given), settings, study.PRESETS)
    check = getattr(study, "check", None) or getattr(study, "checked", None)
    assert len(read) == 1
    if check is not None:
        check(*read)
