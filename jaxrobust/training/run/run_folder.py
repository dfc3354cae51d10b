"""The folder of a run: whose it is."""

import json
from pathlib import Path
from typing import Any

from jaxrobust import files
from jaxrobust.training.run import devices

CHECKPOINTS = "checkpoints"


def claim(directory: Path, settings: dict[str, Any], call: dict[str, Any]) -> None:
    """`files.claim` by the first process; with several, all of them go on or none does.

    What one process alone refused, the others would wait for.

    `settings` are all that decides the result, `call` what else all processes must have, both as JSON.

    Raises:
      ValueError: The folder is that of another run, or of an earlier release; processes that differ.
    """
    unlike = devices.different(settings | call)
    if unlike:
        raise ValueError(
            f"`fit` must be called alike in all processes; they differ in {', '.join(unlike)}."
        )
    refusal: Exception | None = None
    if devices.is_first_process():
        try:
            started = any((directory / CHECKPOINTS).glob("*"))
            if started:
                _refuse_earlier_release(directory)
            files.claim(directory, settings, in_use=started)
        except Exception as error:
            refusal = error
    if devices.in_any_process(refusal is not None):
        raise refusal or ValueError(
            f"The first process refused `run_dir` {directory}; it says why."
        )
    if devices.in_any_process(not (directory / files.SETTINGS).is_file()):
        raise ValueError(f"`run_dir` {directory} must be a folder that all processes see.")


def _refuse_earlier_release(directory: Path) -> None:
    path = directory / files.SETTINGS
    if path.is_file() and "config" in json.loads(path.read_text(encoding="utf-8")):
        raise ValueError(
            f"`run_dir` {directory} holds a run of an earlier release, with a TrainConfig in the place "
            "of a recipe. Its weights can be read, training.load_run(run_dir), and trained further in "
            "another folder, fit(variables=...); to go on with the run itself takes that release."
        )
