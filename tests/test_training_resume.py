"""A run that is killed and started again ends bit for bit as one that was not."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxrobust.training.run.checkpoints import RunCheckpoints, _orbax

SCRIPT = Path(__file__).with_name("training_kill.py")


def run_script(directory, *moments):
    """The exit statuses of the child processes, and what they wrote to the standard error."""
    finished = subprocess.run(
        [sys.executable, SCRIPT, directory, *moments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout), finished.stderr


def saved(directory):
    """Every array of every checkpoint, and the log."""
    with RunCheckpoints(directory / "checkpoints") as checkpoints:
        steps = checkpoints.steps
    arrays = {}
    for step in steps:
        loaded = _orbax().load(directory / "checkpoints" / str(step))
        arrays |= {(step, name): np.asarray(value) for name, value in loaded.items()}
    return (directory / "log.jsonl").read_bytes(), arrays


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("undisturbed")
    statuses, _ = run_script(directory, "end")
    assert statuses == [0]
    return saved(directory)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Sharding info not provided")
@pytest.mark.parametrize(
    "moments",
    [
        # In the first epoch; early and late in a save; between a checkpoint and its row.
        ["step:3", "save:1:0.005", "commit:1", "save:1:0.03", "log:1"],
        # In the middle of a row; twice while old checkpoints are deleted; after steps again.
        ["half:1", "delete:2", "delete:7", "step:3"],
    ],
    ids=["steps and saves", "rows and deletions"],
)
def test_killed_run_ends_like_an_undisturbed_one(tmp_path, undisturbed, moments):
    statuses, errors = run_script(tmp_path, *moments, "end")
    assert statuses == [-9] * len(moments) + [0], errors
    log, arrays = saved(tmp_path)
    assert log == undisturbed[0]
    assert arrays.keys() == undisturbed[1].keys()
    for name, value in arrays.items():
        assert value.tobytes() == undisturbed[1][name].tobytes(), name
    assert not list(tmp_path.rglob("*tmp*"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_interrupted_run_says_how_to_go_on_and_does(tmp_path, undisturbed):
    # Twice in the middle of an epoch, once at the end of one.
    moments = ["interrupt:7", "interrupt:1", "interrupt:7"]
    statuses, errors = run_script(tmp_path, *moments)
    assert statuses == [130, 130, 130], errors
    assert "Interrupted in epoch 2 after 2 of its steps" in errors
    assert "Interrupted in epoch 2 after 3 of its steps" in errors
    assert "Interrupted after epoch 3;" in errors
    assert "run the same command again" in errors
    with RunCheckpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest_step == 15  # nothing that was trained is lost

    statuses, errors = run_script(tmp_path, "end")
    assert statuses == [0], errors
    log, arrays = saved(tmp_path)
    assert log == undisturbed[0]
    assert all(value.tobytes() == undisturbed[1][name].tobytes() for name, value in arrays.items())
