"""The frame of an experiment script: its command line, its folder, its stages."""

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from jaxrobust import files, reports
from jaxrobust.studies.results import configuration, environment

Config = TypeVar("Config")


def run_script(main: Callable[[Config], Any], config_type: type[Config]) -> None:
    """Reads the configuration from the command line and runs `main` with it.

    What the project itself complains of (a wrong setting, a missing folder) is one line on stderr and
    exit code 2; Ctrl-C is exit code 130; anything else keeps its traceback.

    Args:
      main: Takes the configuration.
      config_type: A frozen dataclass; its fields become options, its docstring their help.
    """
    # Imported here: the library itself needs no command line.
    import tyro

    try:
        module = sys.modules[main.__module__]
        name = getattr(module.__spec__, "name", None) or "script"
        main(tyro.cli(config_type, prog=f"python -m {name}", description=module.__doc__))
    except KeyboardInterrupt as interrupt:
        words = str(interrupt) or "Interrupted. To go on, run the same command again."
        print(f"\n{words}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        # Not sys.exit: interrupted while it compiles, XLA crashes as the interpreter takes it down.
        os._exit(130)
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        if not _is_ours(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _is_ours(error: Exception) -> bool:
    """Whether the project raised the error itself, in words for its user."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").split(".")[0] in (
        "jaxrobust",
        "experiments",
        "__main__",
    )


def open_run(results_dir: Path, experiment: str, run: str, config: Any) -> Path:
    """The folder results/<experiment>/<run>, claimed for this configuration.

    Args:
      results_dir: Where results go.
      experiment: Its name.
      run: A plain name.
      config: The configuration dataclass.

    Returns:
      The folder, which exists.

    Raises:
      ValueError: A run's name that would lead elsewhere, or a folder that holds results of another
        configuration.
    """
    if not run or Path(run).name != run:
        raise ValueError(f"`run` must be a plain name, got {run!r}.")
    folder = results_dir / experiment / run
    environment()  # reads the commit now, before the tree can change under the run
    in_use = (folder / "result.json").exists() or any(folder.glob("*/checkpoints/*"))
    files.claim(folder, configuration(config), in_use=in_use)
    return folder


def finish(folder: Path, result: dict[str, Any]) -> Path:
    """Writes result.json and the report, and prints the summary.

    Args:
      folder: Of the run.
      result: docs/result_format.md.

    Returns:
      The report's path.
    """
    files.write_json(folder / "result.json", result)
    path = reports.write_report(folder / "result.json")
    print("\n".join([*result["summary"], f"Report: {path}"]))
    return path


class Stages:
    """Stages of a long run: each is announced, timed and remembered.

    Attributes:
      seconds: {stage: seconds}, for result.json.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def count_resumed(self, name: str, seconds: float) -> None:
        """Counts what earlier processes spent on a stage: `seconds`, where that is the more."""
        self.seconds[name] = max(self.seconds[name], seconds)

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """Announces a stage and times what runs inside; yields a progress callback for it."""
        on_terminal = sys.stderr.isatty()
        print(f"{name} ...", file=sys.stderr, flush=True)

        def progress(done: int, total: int) -> None:
            if on_terminal and done < total:
                print(f"\r\033[K{name}: {done}/{total}", file=sys.stderr, end="", flush=True)

        start = time.perf_counter()
        yield progress
        self.seconds[name] = time.perf_counter() - start
        before = "\r\033[K" if on_terminal else ""
        print(f"{before}{name}: {self.seconds[name]:.1f} s", file=sys.stderr, flush=True)
