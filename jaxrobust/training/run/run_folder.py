"""Claims the folder of a run for its settings."""

import json
from pathlib import Path
from typing import Any

from jaxrobust import files, processes

CHECKPOINTS = "checkpoints"


def claim(directory: Path, settings: dict[str, Any], call: dict[str, Any]) -> None:
    """Claims a folder with `files.claim` in the first process, for all processes.

    If it fails, all processes raise: if only one did, the others would wait for it.

    Args:
      directory: The folder of the run.
      settings: Everything that determines the result, as JSON.
      call: What else must be the same in all processes, as JSON.

    Raises:
      ValueError: The folder belongs to another run or an earlier release, or processes differ in their
        arguments.
    """
    unlike = processes.different(settings | call)
    if unlike:
        raise ValueError(
            "`fit` must be called with the same arguments in all processes; they differ in "
            f"{', '.join(unlike)}."
        )

    def of_first() -> None:
        started = any((directory / CHECKPOINTS).glob("*"))
        if started:
            _refuse_earlier_release(directory)
        files.claim(directory, settings, in_use=started)

    processes.by_first(of_first)
    if not processes.share(directory):
        raise ValueError(f"`run_dir` must be a folder that all processes see, got {directory}.")


def _refuse_earlier_release(directory: Path) -> None:
    path = directory / files.SETTINGS
    if path.is_file() and "config" in json.loads(path.read_text(encoding="utf-8")):
        raise ValueError(
            f"`run_dir` {directory} holds a run of an earlier release, with a TrainConfig instead of a "
            "recipe. Read its weights with training.load_run(run_dir), and train them further in "
            "another folder with fit(variables=...); only the earlier release can resume the run."
        )
