"""The logs of a run (JSON lines, TensorBoard) and its progress on the screen."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxrobust import files, packages

Row = Mapping[str, Any]


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Replaces a JSON-lines file by `rows`, atomically: a kill leaves the old file or the new one."""
    files.replace_text(path, "".join(json.dumps(dict(row)) + "\n" for row in rows))


def append_row(path: Path, row: Row) -> None:
    """Adds a row to a JSON-lines file; a kill may leave half a row, which `read_rows` skips."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dict(row)) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a JSON-lines file; [] if it does not exist.

    An incomplete last line, left by a process that was killed, is skipped.
    """
    if not path.exists():
        return []
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines]


def summary_writer(directory: Path, next_epoch: int, *, writes: bool) -> Any:
    """Returns a TensorBoard writer that hides what an interrupted run wrote from `next_epoch` on.

    In a process that does not write it returns None, but raises the same error.

    Raises:
      ModuleNotFoundError: tensorboardX is not installed.
    """
    with packages.extra("tensorboard", "`tensorboard=True`"):
        from tensorboardX import SummaryWriter
    return SummaryWriter(str(directory), purge_step=next_epoch) if writes else None


class RunLog:
    """The writer of a run's log.jsonl, timings.jsonl and TensorBoard files; a context manager.

    At the start the files are cut back to `history`: a resumed run logs again what was logged after
    its checkpoint.

    Args:
      directory: The directory of the run.
      history: The rows of log.jsonl so far, from the checkpoint.
      tensorboard: Whether to write `tensorboard/` too.
      writes: Whether to write at all; False if another process writes.

    Attributes:
      timings: The rows of timings.jsonl.
    """

    def __init__(
        self, directory: Path, history: Sequence[Row], *, tensorboard: bool, writes: bool = True
    ):
        self._log, self._timings = directory / "log.jsonl", directory / "timings.jsonl"
        self.timings = [row for row in read_rows(self._timings) if row["epoch"] <= len(history)]
        self._writer, self._writes = None, writes
        if writes:
            write_rows(self._log, history)
            write_rows(self._timings, self.timings)
        if tensorboard:
            self._writer = summary_writer(
                directory / "tensorboard", len(history) + 1, writes=writes
            )

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, row: Row, timing: Row) -> None:
        """Adds the rows of an epoch.

        Args:
          row: The row of log.jsonl: values that are the same whenever the run is repeated.
          timing: The row of timings.jsonl.
        """
        self.timings.append(dict(timing))
        if self._writes:
            append_row(self._log, row)
            append_row(self._timings, timing)
        if self._writer is not None:
            for name, value in row.items():
                if name != "epoch":
                    self._writer.add_scalar(name, value, row["epoch"])
            self._writer.flush()


class ProgressBar:
    """A progress bar over the steps of an epoch, and a line after each epoch; a context manager.

    The bar is drawn on a terminal only; elsewhere (a file, the output of a job) there are only the
    lines. Everything goes to the standard error, because the standard output belongs to the script.

    Args:
      enabled: Whether to show anything.
      num_epochs: The number of epochs of the run.
      steps_per_epoch: The number of steps in an epoch.
    """

    def __init__(self, enabled: bool, num_epochs: int, steps_per_epoch: int):
        with packages.extra("cli", "A progress bar"):
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        self._num_epochs = num_epochs
        # A wide console where no terminal says otherwise: a line of the log is not to be broken.
        width = None if sys.stderr.isatty() else 200
        self._console = Console(stderr=True, quiet=not enabled, width=width, highlight=False)
        self._progress = Progress(
            "{task.description}",
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not (enabled and self._console.is_terminal),
        )
        self._task = self._progress.add_task("", total=steps_per_epoch)

    def __enter__(self) -> "ProgressBar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def start_epoch(self, epoch: int, done: int) -> None:
        """Shows epoch `epoch` (from 1) with `done` of its steps taken."""
        name = f"epoch {epoch}/{self._num_epochs}"
        self._progress.reset(self._task, description=name, completed=done)

    def advance(self, count: int) -> None:
        """Moves the bar by `count` steps."""
        self._progress.advance(self._task, count)

    def end_epoch(self, row: Row, seconds: float) -> None:
        """Prints a line with the results of the epoch."""
        parts = [f"epoch {row['epoch']}/{self._num_epochs}"]
        for name in ("train", "validation"):
            if f"{name}_loss" in row:
                loss, accuracy = row[f"{name}_loss"], row[f"{name}_accuracy"]
                parts.append(f"{name} loss {loss:.4f} accuracy {accuracy:.2%}")
        parts.append(f"learning rate {row['learning_rate']:.3g}")
        parts.append(f"{seconds:.1f} s")
        self.say("  ".join(parts))

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        self._console.print(text, markup=False, soft_wrap=True)
