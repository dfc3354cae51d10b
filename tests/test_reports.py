"""The report says what result.json says, harms nobody, and complains clearly."""

import base64
import hashlib
import itertools
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from report_pages import EVIL, heading, make_result, report

from jaxrobust.reports import write_report
from jaxrobust.reports.__main__ import main

ROOT = Path(__file__).parents[1]
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{}'; "
    "base-uri 'none'; form-action 'none'"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return report(tmp_path_factory.mktemp("run"), make_result())


def test_ids_are_unique_and_every_link_leads_somewhere(page):
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {link["href"][1:] for link in page.all("a")}
    assert targets <= set(ids) and targets == {*page.sections(), "costs"}
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_contents_name_parts_and_sections_in_their_order(page):
    assert page.sections() == ["part", "costs-section", "appendix", "data", "run"]
    contents = page.source[page.source.index("<nav") : page.source.index("</nav>")]
    assert re.findall(r'level-(\d)"><a href="#([a-z-]+)"', contents) == [
        ("1", "part"),
        ("2", "costs-section"),
        ("1", "appendix"),
        ("2", "data"),
        ("2", "run"),
    ]


def test_what_comes_before_the_headings_comes_before_the_contents(page):
    words = ("The second", "Which one?", "<nav", "<main")
    places = [page.source.index(word) for word in words]
    assert places == sorted(places)


def test_without_parts_there_is_no_appendix(tmp_path):
    assert report(tmp_path, [heading(2, "one")]).sections() == ["one", "data", "run"]


def test_nothing_is_fetched_and_only_our_script_runs(page):
    assert "http:" not in page.source and "https:" not in page.source
    assert "@import" not in page.source and page.all("iframe") == []
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    assert all(address.startswith("#") for address in re.findall(r"url\(([^)]*)\)", page.source))
    script = re.findall(r"<script>(.*?)</script>\n</body>", page.source, re.S)
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    policies = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert policies == [POLICY.format(digest)]


def test_text_from_the_result_is_escaped_everywhere(page):
    for section in (None, "part", "costs-section", "data", "run"):
        assert EVIL in page.text(section)
    assert "$\\frac" in page.text("data")
    # A table's row, title and heat row, a tile's label, a legend, a group of a figure, a notice.
    assert page.source.count("&lt;script&gt;") >= 12


def test_prose_is_markdown_and_the_rest_is_not(page):
    assert "<strong>first</strong> paragraph" in page.source
    assert '<a href="#costs">costs</a>' in page.source and "What <strong>it</strong>" in page.source
    assert "<li>one <em>thing</em></li>" in page.source and "<code>code</code>" in page.source
    assert EVIL in page.text("part") and "*_&" in page.text("costs-section")


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("<b onclick=x>a</b>", "<p>&lt;b onclick=x&gt;a&lt;/b&gt;</p>"),
        ("[a](javascript:alert(1))", "<p>[a](javascript:alert(1))</p>"),
        ("![a](pixel.png)", '<p>!<a href="pixel.png">a</a></p>'),
        ("# a\n\nb\n---", "<p># a</p>"),
        ("    indented", "<p>indented</p>"),
        ("[a](https://x.org)", '<p><a href="https://x.org">a</a></p>'),
    ],
)
def test_markdown_makes_no_tags_of_its_own(tmp_path, text, drawn):
    assert drawn in report(tmp_path, [{"kind": "text", "text": text}]).source


def test_the_data_and_the_run_are_listed(page):
    data, run = page.text("data"), page.text("run")
    assert "Data set pets" in data and "Training images 1,593" in data
    assert "Test images 50" in data and "8 × 8 × 3" in data and "1 skipped file" in data
    assert "broken.jpg" in data and "3 classes cat" in data
    assert "train.batch_size 32" in run and "resume –" in run and "note " + EVIL in run
    assert "train cnn 12.3" in run and "Commit –" in run and "device a cpu" in run
    assert "tiny, seed 3, jaxrobust 0.2.0, a cpu" in page.text()


def test_the_same_result_gives_the_same_bytes(tmp_path, page):
    """In another process, under other settings of matplotlib and another hash seed."""
    path = tmp_path / "result.json"
    path.write_text(json.dumps(make_result()))
    (tmp_path / "matplotlibrc").write_text("font.size: 30\nlines.linewidth: 9\n")
    environment = os.environ | {"PYTHONHASHSEED": "7", "MATPLOTLIBRC": str(tmp_path)}
    command = [sys.executable, "-m", "jaxrobust.reports", str(path)]
    subprocess.run(command, check=True, env=environment, cwd=ROOT)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page.source


def without_numbers(value, missing):
    """The result with every number that may be missing gone."""
    if isinstance(value, dict):
        kept = {"shape", "image_shape", "format", "level", "decimals", "highlight"}
        return {k: v if k in kept else without_numbers(v, missing) for k, v in value.items()}
    if isinstance(value, list):
        return [without_numbers(inner, missing) for inner in value]
    return missing if isinstance(value, int | float) and not isinstance(value, bool) else value


@pytest.mark.parametrize("missing", [None, math.nan, math.inf])
def test_missing_numbers_are_dashes(tmp_path, missing):
    page = report(tmp_path, without_numbers(make_result(), missing))
    assert "dense – – – – as trained" in page.text("costs-section")
    for section in page.sections():
        assert not re.search(r"\b(nan|NaN|inf|Infinity|None|null)\b", page.text(section))
    assert not re.search(r'data-\w+="(nan|inf|None)', page.source)


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere/result\.json: there is no such file"):
        write_report(tmp_path / "nowhere" / "result.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "must hold an object"),
        ("{}", "`format` must be 2, got None"),
        ('{"format": 3}', "`format` must be 2, got 3"),
        ('{"format": 2}', "`experiment` is missing"),
        (
            '{"format": 1}',
            "an earlier release has written this file; run the same command again: it reads the "
            "finished stages, and trains nothing anew",
        ),
    ],
)
def test_a_file_that_is_no_result(tmp_path, content, message):
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        write_report(path)
    assert str(path) in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"title": 3}, "`title` must be text, got 3"),
        ({"summary": "a"}, "`summary` must be a list, got 'a'"),
        ({"data": {"name": "a"}}, "`data.class_names` is missing"),
        ({"blocks": None}, "`blocks` must be a list, got None"),
        ({"blocks": [3]}, "`blocks[0]` must be an object, got 3"),
        ({"summary": ["[a](#no)"]}, "a link in `summary[0]` must be # and the id of a heading"),
    ],
)
def test_what_is_wrong_in_the_header_is_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        report(tmp_path, make_result([]) | change)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (
            [heading(2, "a"), heading(2, "a")],
            "`blocks[1].id` must be unique, got 'a': that is `blocks[0].id`.",
        ),
        ([heading(2, "run")], "`blocks[0].id` must be unique, got 'run': that is the report its"),
        (
            [heading(1, "a"), heading(3, "b")],
            "`blocks[1].level` must be at most 2: the level above it is 1",
        ),
        ([heading(4, "a")], "`blocks[0].level` must be one of (1, 2, 3), got 4"),
        ([heading(True, "a")], "`blocks[0].level` must be one of (1, 2, 3), got True"),
        ([heading(2, "A b")], "`blocks[0].id` must be an id of a-z, 0-9 and -"),
        (
            [{"kind": "text", "text": "a", "caption": "[a](#b)"}],
            "a link in `blocks[0].caption` must be # and the id of a heading or block",
        ),
    ],
)
def test_headings_and_links_fit_together(tmp_path, blocks, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        report(tmp_path, blocks)


def test_a_failed_write_leaves_the_old_report(tmp_path, monkeypatch):
    report(tmp_path, make_result([]))
    before = (tmp_path / "report.html").read_bytes()

    def refuse(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        report(tmp_path, make_result([]) | {"title": "another"})
    assert (tmp_path / "report.html").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"result.json", "report.html"}


def test_command_line(tmp_path, capsys):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(make_result([])))
    output = tmp_path / "new" / "page.html"
    assert main([str(path), "--output", str(output)]) == 0
    assert capsys.readouterr().out.strip() == str(output) and output.is_file()
    assert main([str(tmp_path / "other.json")]) == 2
    assert "other.json: there is no such file" in capsys.readouterr().err


def test_the_import_is_cheap():
    code = (
        "import sys, jaxrobust.reports; "
        "print([m for m in ('matplotlib', 'jinja2', 'PIL', 'markdown_it') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"
