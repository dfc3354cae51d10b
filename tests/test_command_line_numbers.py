"""Where a setting is a float, the command line takes a decimal number or a fraction."""

import dataclasses
import sys

import pytest

from jaxrobust import studies


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings.

    Attributes:
      radius: A radius.
      radii: Radii.
      limit: A limit, or none.
      steps: A number of steps.
    """

    radius: float = 0.5
    radii: tuple[float, ...] = (0.1, 0.2)
    limit: float | None = None
    steps: int = 3


@pytest.fixture
def read(monkeypatch, unchanged_process):
    def settings_of(*options):
        found = []
        monkeypatch.setattr(sys, "argv", ["script", *options])
        studies.run_script(lambda settings: found.append(settings), Settings)
        return found[0]

    return settings_of


def test_floats_may_be_fractions(read):
    given = read("--radius", "8/255", "--radii", "0", "1/255", "3e-2", "--limit", "1/4")
    assert given == Settings(8 / 255, (0.0, 1 / 255, 0.03), 0.25)
    assert all(isinstance(radius, float) for radius in given.radii)
    assert read() == Settings()
    assert read("--limit", "None", "--radius", "-2", "--steps", "7") == Settings(-2.0, steps=7)


@pytest.mark.parametrize("text", ["8/x", "1/0", "1/2/3", "nan", "one"])
def test_what_is_no_number_is_refused(read, capsys, text):
    with pytest.raises(SystemExit) as stopped:
        read("--radius", text)
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert stopped.value.code == 2
    assert "--radius" in said and "`NUMBER` must be a" in said


def test_integers_are_no_fractions(read, capsys):
    with pytest.raises(SystemExit):
        read("--steps", "8/2")
    assert "--steps" in capsys.readouterr().err


def test_the_help_shows_defaults(read, capsys):
    with pytest.raises(SystemExit):
        read("--help")
    said = capsys.readouterr().out
    assert "--radius NUMBER" in said and "(default: 0.5)" in said and "(default: 0.1 0.2)" in said
