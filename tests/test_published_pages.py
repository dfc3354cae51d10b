"""`--publish`: chosen sections of a finished run become a page of Markdown, and nothing is run."""

import dataclasses
import itertools
import json
import re
import sys
import types
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from report_pages import EVIL, make_result

from jaxrobust import studies
from jaxrobust.reports import write_page, write_report


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings.

    Attributes:
      networks: Networks.
      rate: A rate.
      words: Words.
      cache_dir: A folder with a default.
      data_dir: A folder.
      download: Whether to download.
      preset: A preset.
      seed: A seed.
      run: A run.
      results_dir: A folder.
    """

    networks: tuple[str, ...] = ("large",)
    rate: float = 0.1
    words: tuple[str, ...] = dataclasses.field(default_factory=lambda: ("a", "b"))
    cache_dir: Path = Path("cache")
    data_dir: Path | None = None
    download: bool = False
    preset: str = "full"
    seed: int = 0
    run: str = "default"
    results_dir: Path = Path("results")


PRESETS = {"full": {}, "cpu": {"networks": ("small",)}}


@pytest.fixture
def result(tmp_path):
    path = tmp_path / "tiny" / "default" / "result.json"
    path.parent.mkdir(parents=True)
    of = make_result()
    given = Settings(
        networks=("small", "tiny; rm"),
        data_dir=Path("/home/somebody/images"),
        download=True,
        preset="cpu",
        seed=3,
    )
    of["config"] = studies.configuration(given)
    path.write_text(json.dumps(of))
    return path


def test_a_page_has_the_chosen_sections_as_plain_markdown(result, tmp_path):
    page = write_page(result, tmp_path / "docs" / "tiny.md", ["costs-section"], ["command"])
    text = page.read_text("utf-8")
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    assert not [t for t in tokens if t.type == "html_block"]
    children = [child for token in tokens for child in token.children or ()]
    assert not [child for child in children if child.type == "html_inline"]
    said = [t.content for t in tokens if t.type == "inline"]
    headings = [
        after.content for t, after in itertools.pairwise(tokens) if t.type == "heading_open"
    ]
    assert "Costs" in headings and "A study of" in headings[0]
    assert "The **first** paragraph, see costs." in said  # a block, which a page has no anchor for
    assert "    command" in text and "seed 3" in text and "pets with 50 test images" in text
    # Of the table every row is one, whatever its cells hold.
    cells = [
        after.content for t, after in itertools.pairwise(tokens) if t.type in ("th_open", "td_open")
    ]
    assert len(cells) % 6 == 0 and "Latency: Mean, ms" in cells
    assert "3.21 ± 0.12" in cells and "82 % (69–90)" in cells
    assert "dense" in cells and "**−2.5 (−3.0 to −2.0)**" in cells  # the second row stands out
    # Charts are drawings of their own, whose colours are known without the report.
    images = [child.attrs["src"] for child in children if child.type == "image"]
    assert images == [f"tiny/{number}.svg" for number in range(1, 5)]
    for name in images:
        drawing = (page.parent / name).read_text("utf-8")
        assert "var(" not in drawing and ElementTree.fromstring(drawing).tag.endswith("svg")


def test_a_page_is_the_same_twice_and_leaves_no_old_drawing(result, tmp_path):
    page = write_page(result, tmp_path / "tiny.md", ["costs-section"])
    once = {p.name: p.read_bytes() for p in (page, *(tmp_path / "tiny").glob("*.svg"))}
    (tmp_path / "tiny" / "99.svg").write_text("old")
    write_page(result, page, ["costs-section"])
    again = {p.name: p.read_bytes() for p in (page, *(tmp_path / "tiny").glob("*.svg"))}
    assert once == again and len(once) == 5
    # Without the section there is the summary and the verdict alone.
    write_page(result, page, ["part"])
    assert "Which one?" in page.read_text() and "## Costs" not in page.read_text()
    for name in ("cost", "closer"):  # the second is a heading within a section
        message = rf"ids of headings .*'{name}'; these are part, costs-section\."
        with pytest.raises(ValueError, match=message):
            write_page(result, page, [name])
    with pytest.raises(ValueError, match=r"`output` must be a page .* \.md, got '.*tiny'"):
        write_page(result, tmp_path / "tiny", ["part"])


@pytest.fixture
def publish(tmp_path, monkeypatch, unchanged_process):
    """Runs a script that publishes the section of costs, with more options."""

    def main(settings):
        raise AssertionError("it must not run")

    module = types.ModuleType("experiments.tiny.__main__")
    module.__spec__ = types.SimpleNamespace(name="experiments.tiny.__main__")
    monkeypatch.setitem(sys.modules, "experiments.tiny.__main__", module)
    main.__module__ = module.__name__

    def run(page, *more, sections=("costs-section",)):
        options = ["--results-dir", str(tmp_path), "--publish", str(page), *more]
        monkeypatch.setattr(sys, "argv", ["tiny", *options])
        studies.run_script(main, Settings, PRESETS, published=sections)

    return run


def test_publish_runs_nothing_and_says_the_command_without_paths(result, publish, tmp_path, capsys):
    page = tmp_path / "page.md"
    publish(page)
    assert capsys.readouterr().out.strip() == str(page)
    commands = re.findall(r"^    (python .*)$", page.read_text("utf-8"), re.M)
    made = "python -m experiments.tiny --preset cpu --networks small 'tiny; rm' --data-dir DIR --seed 3"
    assert commands == [made, f"{made} --publish page.md"]
    assert "somebody" not in page.read_text() and EVIL not in page.read_text()
    with pytest.raises(SystemExit):
        publish(page, "--run", "other")
    assert "there is no such file" in capsys.readouterr().err


def test_sections_that_a_run_lacks_are_left_out(result, publish, tmp_path, capsys):
    page = tmp_path / "page.md"
    publish(page, sections=("costs-section", "left-out"))
    whole = page.read_bytes()
    publish(page)
    assert page.read_bytes() == whole and b"## Costs" in whole
    with pytest.raises(SystemExit):
        publish(tmp_path / "none.md", sections=("left-out",))
    assert "must have one of the sections left-out" in capsys.readouterr().err
    assert not (tmp_path / "none.md").exists()


def test_a_page_and_a_report_name_every_commit_of_their_stages(result, tmp_path):
    of = json.loads(result.read_text())
    first, second, last = ("a" * 40, "b" * 40, "c" * 40 + "-dirty")
    of["environment"] |= {"commit": last, "commits_of_stages": [first, second]}
    result.write_text(json.dumps(of))
    text = write_page(result, tmp_path / "tiny.md", ["costs-section"]).read_text("utf-8")
    shown = f"commits {first[:12]}, {second[:12]}, {last[:12]}-dirty, "
    assert f"{shown}jaxrobust" in text
    source = write_report(result).read_text("utf-8")
    assert f"{first}, {second}, {last}" in source and shown.rstrip(", ") in source


def test_a_run_of_other_settings_is_not_published(result, publish, tmp_path, capsys):
    of = json.loads(result.read_text())
    del of["config"]["rate"]
    result.write_text(json.dumps(of | {"config": of["config"] | {"gone": 1}}))
    with pytest.raises(SystemExit):
        publish(tmp_path / "page.md")
    said = capsys.readouterr().err
    assert "is of code with other settings (gone, rate)" in said and "Publish it with" in said
    assert not (tmp_path / "page.md").exists()


def test_no_published_page_shows_an_escaped_character():
    pages = sorted((Path(__file__).parent.parent / "docs" / "results").glob("*.md"))
    assert len(pages) > 5
    for page in pages:
        assert not re.findall("&#?[a-z0-9]+;", page.read_text("utf-8")), page.name
