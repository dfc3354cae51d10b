"""The study of docs/studies.md runs as it stands there, and goes on from its own folder."""

import re
from pathlib import Path

import pytest

from jaxrobust import studies

TEXT = (Path(__file__).parents[1] / "docs" / "studies.md").read_text("utf-8")


@pytest.fixture
def study(tmp_path):
    blocks = dict(re.findall(r"```(python|jinja)\n(.*?)```", TEXT, re.DOTALL))
    (tmp_path / "report.md.j2").write_text(blocks["jinja"])
    names = {"__name__": "slopes", "__file__": str(tmp_path / "__main__.py")}
    exec(compile(blocks["python"], "docs/studies.md", "exec"), names)
    return names


def test_the_example_is_a_study(study, tmp_path, capsys):
    settings = studies.preset(study["Settings"], study["PRESETS"], "quick", results_dir=tmp_path)
    report = study["main"](settings)
    said = capsys.readouterr().out
    assert "The steep network has 100.0\u00a0% (91.2 to 100.0, n\u00a0=\u00a040)" in said
    assert "Does a steep slope help?" in report.read_text("utf-8")
    assert "No difference is shown" in report.read_text("utf-8")
    facts = studies.load_facts(report.parent)
    assert (facts.measure == "robust accuracy").sum() == 6
    outcomes = studies.load_outcomes(report.parent)
    assert all(len(found) == 40 for found in outcomes.values()) and len(outcomes) == 8
