"""The plan for a GPU: its commands, what is stopped and continued, and what is not run again."""

import contextlib
import importlib
import json
import subprocess
import time
import types
from pathlib import Path

import pytest
import tyro

from experiments import gpu_plan
from experiments.gpu_plan import Part, Settings
from jaxrobust import studies

# A script that says when it has begun something long, and goes on from there when it is continued.
_SCRIPT = """
import os, pathlib, sys, time
name = sys.argv[-1]
runs = pathlib.Path(__file__).with_name(name)
before = runs.read_text() if runs.exists() else ""
runs.write_text(before + "x")
if "fail" in name:
    sys.exit(3)
if "long" in name and not before:
    try:
        of_its_own = os.getsid(0) == os.getpid()
        pathlib.Path(__file__).with_name("begun").write_text(f"its own session: {of_its_own}")
        for _ in range(6000):  # a signal just before a sleep is only seen after it
            time.sleep(0.1)
    except KeyboardInterrupt:
        runs.write_text("saved")
        sys.exit(130)
"""


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """Runs a plan of the script above; returns how often each part ran, and the states."""
    (tmp_path / "part_of_plan.py").write_text(_SCRIPT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(gpu_plan, "LEAST", 0.0)

    def run(*names, minutes=1.0):
        parts = tuple(Part(name, "part_of_plan", "", 1.0) for name in names)
        monkeypatch.setattr(gpu_plan, "PARTS", parts)
        gpu_plan.main(Settings(quick=True, minutes=minutes, results_dir=tmp_path / "results"))
        rows = json.loads((tmp_path / "results" / "plan.json").read_text())
        texts = {n: tmp_path / f"plan-{n}" for n in names}
        return {n: p.read_text() if p.exists() else "" for n, p in texts.items()}, [
            row["state"] for row in rows
        ]

    return run


def test_the_rest_runs_after_a_failure_and_only_what_is_missing_runs_again(plan):
    assert plan("fail", "good") == ({"fail": "x", "good": "x"}, ["failed", "finished"])
    assert plan("fail", "good") == ({"fail": "xx", "good": "x"}, ["failed", "finished"])


@contextlib.contextmanager
def ending(folder, make_error):
    """Within it, the wait for a part ends with an error once the part is in the middle of its work."""
    clock, begun = types.SimpleNamespace(now=0.0, monotonic=lambda: clock.now), folder / "begun"

    class Process(subprocess.Popen):
        def wait(self, timeout=None):
            if timeout is None or timeout <= gpu_plan.GRACE:
                return super().wait(timeout)
            last = time.monotonic() + 60
            while not begun.exists() or not begun.read_text():
                assert self.poll() is None and time.monotonic() < last
                time.sleep(0.01)
            clock.now += timeout + 1
            raise make_error(timeout)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gpu_plan, "time", clock)
        patched.setattr(gpu_plan.subprocess, "Popen", Process)
        yield begun


def test_at_the_end_of_the_time_a_part_is_stopped_and_continued_by_the_next_call(plan, tmp_path):
    with ending(tmp_path, lambda timeout: subprocess.TimeoutExpired("part", timeout)):
        stopped = plan("long", "good")
    assert stopped == ({"long": "saved", "good": ""}, ["stopped", "not begun"])
    assert plan("long", "good") == ({"long": "savedx", "good": "x"}, ["finished", "finished"])


def test_ctrl_c_reaches_a_part_once_and_ends_the_plan(plan, tmp_path):
    with ending(tmp_path, lambda _: KeyboardInterrupt()) as begun, pytest.raises(KeyboardInterrupt):
        plan("long", "good")
    assert begun.read_text() == "its own session: True"  # a terminal interrupts the plan alone
    assert (tmp_path / "plan-long").read_text() == "saved"
    (row,) = json.loads((tmp_path / "results" / "plan.json").read_text())
    assert row["state"] == "stopped"


def test_only_the_parts_of_the_call_are_left_to_do(plan, capsys):
    plan("fail")
    assert "run the same command again" in capsys.readouterr().out
    assert plan("good")[1] == ["failed", "finished"]  # the other row stays
    assert "run the same command again" not in capsys.readouterr().out


def test_a_plan_that_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(ValueError, match=r"plan\.json cannot be read; delete it to begin anew"):
        gpu_plan.main(Settings(quick=True, results_dir=tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({}, "`data_dir` must be the folder"), ({"minutes": 0.0, "quick": True}, "`minutes` must")],
)
def test_bad_settings_are_errors(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        gpu_plan.main(Settings(**changes, results_dir=tmp_path))


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("part", gpu_plan.PARTS, ids=lambda part: part.name)
def test_every_script_accepts_its_command(part, quick, tmp_path):
    settings = Settings(data_dir=tmp_path, quick=quick)
    _, _, module, *words = gpu_plan.command(part, settings)
    script = importlib.import_module(f"{module}.__main__")
    preset = "quick" if quick else words[1] if words[0] == "--preset" else script.Settings.preset
    default = studies.preset(script.Settings, script.PRESETS, preset)
    found = tyro.cli(script.Settings, args=words, default=default)
    getattr(script, "check", getattr(script, "checked", None))(found)
    assert (found.run, found.results_dir) == (f"plan-{part.name}", Path("results"))
    assert found.data == (None if quick else "cifar10_jpeg")
