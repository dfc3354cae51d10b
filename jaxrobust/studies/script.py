"""The frame of an experiment script: its command line, its folder, its stages."""

import contextlib
import json
import os
import re
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jaxrobust import compilation, files, reports
from jaxrobust.studies import interrupt, progress
from jaxrobust.studies.results import commit, configuration, environment

Config = TypeVar("Config")
Progress = Callable[[int, int], None]


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
        with contextlib.suppress(RuntimeError):  # jax is in use already: with the devices it has
            compilation.use_every_core()
        module = sys.modules[main.__module__]
        name = getattr(module.__spec__, "name", "script").removesuffix(".__main__")
        config = tyro.cli(config_type, prog=f"python -m {name}", description=module.__doc__)
        with interrupt.remembered():
            main(config)
    except KeyboardInterrupt as pressed:
        words = str(pressed) or "Interrupted. To go on, run the same command again."
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


_ANOTHER = "--run NAME"

# What shows that a run's folder holds something that was computed.
_KEPT = (
    *("*/checkpoints/*", "*/*/checkpoints/*", "stages/*.json", "adversarial/*.npz"),
    "suite/*.npz*",
)


def open_run(
    results_dir: Path,
    experiment: str,
    run: str,
    config: Any,
    *,
    inputs: Mapping[str, Any] | None = None,
    clean_logits: np.ndarray | None = None,
    ignored: Sequence[str] = (),
    **settings: Any,
) -> Path:
    """The folder results/<experiment>/<run>, claimed for this configuration.

    Args:
      results_dir: Where results go.
      experiment: Its name.
      run: A plain name.
      config: The configuration dataclass.
      inputs: Fingerprints of what the run is of, by name. Where they differ, the names are said.
      clean_logits: float32 [N, K], what the run's model answers. They are kept, and tell models apart
        of which nothing else is seen; not to the last digit, because machines round differently.
      ignored: Names of settings of the configuration that change nothing that is computed and kept.
      **settings: What else decides about the results, as JSON values.

    Returns:
      The folder, which exists.

    Raises:
      ValueError: A run's name that would lead elsewhere, a folder in which another process is at work,
        or one that holds results of another configuration, other inputs or another model.
    """
    if not run or Path(run).name != run:
        raise ValueError(f"`run` must be a plain name, got {run!r}.")
    folder = results_dir / experiment / run
    files.hold(folder)
    environment()  # reads the commit now, before the tree can change under the run
    in_use = (folder / "result.json").exists() or any(
        next(folder.glob(kept), None) for kept in _KEPT
    )
    described = {k: v for k, v in configuration(config).items() if k not in ignored} | settings
    path = folder / "inputs.npz"
    fingerprints = json.dumps(dict(inputs or {}), sort_keys=True)
    if in_use:
        _compare_inputs(path, fingerprints, clean_logits)
    try:
        files.claim(folder, described, in_use=in_use)
    except ValueError as error:
        raise ValueError(f"{error} On the command line: {_ANOTHER}.") from None
    if not in_use and (inputs is not None or clean_logits is not None):
        arrays: dict[str, Any] = {"fingerprints": fingerprints}
        if clean_logits is not None:
            arrays["clean_logits"] = clean_logits
        with files.replace(path) as partial:
            np.savez(partial, **arrays)
    return folder


def _compare_inputs(path: Path, fingerprints: str, clean_logits: np.ndarray | None) -> None:
    if not path.exists():
        return
    try:
        with np.load(path, allow_pickle=False) as archive:
            kept = {name: archive[name] for name in archive}
        before, now = json.loads(str(kept["fingerprints"])), json.loads(fingerprints)
    except Exception as error:  # zip, numpy and json have errors of many classes
        raise ValueError(f"{path} cannot be read; delete {path.parent} to start anew.") from error
    differ = [name for name in now.keys() | before.keys() if now.get(name) != before.get(name)]
    logits = kept.get("clean_logits")
    if clean_logits is not None and not (
        logits is not None
        and logits.shape == clean_logits.shape
        and np.allclose(logits, clean_logits, 1e-3, 1e-3, equal_nan=True)
    ):
        differ.append("answers of the model")
    if differ:
        raise ValueError(
            f"{path.parent} holds a run of other inputs: {', '.join(sorted(differ))} differ. Name "
            f"another run ({_ANOTHER}), or delete this folder to start anew."
        )


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
    """Stages of a long run: each is announced, timed and, where it has a result, kept on disk.

    Args:
      folder: Of the run. `remember` keeps results in its folder "stages", so that a run that was
        killed goes on with the first stage that it had not finished.

    Attributes:
      seconds: {stage: seconds}, for result.json; those of earlier processes included.
      commits: The commits of the code that computed the stages, in order of appearance.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = None if folder is None else folder / "stages"
        self.seconds: dict[str, float] = {}
        self.commits: list[str | None] = []
        self._open: list[dict[str, float]] = []  # of each open stage, the stages within it
        self._spent = 0.0  # by this process, on finished stages

    def count_resumed(self, name: str, seconds: float) -> None:
        """Counts what earlier processes spent on a stage: `seconds`, where that is the more."""
        self.seconds[name] = max(self.seconds[name], seconds)
        for within in self._open:
            within[name] = self.seconds[name]

    def count_earlier(self, name: str, seconds: float, commit: str | None) -> None:
        """Counts a stage that an earlier process finished and whose result was read back."""
        self.seconds[name] = seconds
        if commit not in self.commits:
            self.commits.append(commit)
        for within in self._open:
            within[name] = seconds

    def remember(self, name: str, compute: Callable[[Progress], Any]) -> Any:
        """The result of a stage: read back where an earlier process finished it, else computed.

        Args:
          name: Of the stage, different from all others of the run.
          compute: Takes a progress callback (done, total) and returns JSON values, or objects that
            hold them; NaN and infinities become None.

        Returns:
          The result as JSON has it: tuples are lists, keys are strings, whether computed or read.

        Raises:
          ValueError: A name that the run has used already, or a result file that is not whole.
        """
        if name in self.seconds:
            raise ValueError(
                f"`name` must differ from other stages of the run, got {name!r} twice."
            )
        if self._folder is None:
            raise ValueError("`remember` needs `Stages(folder)`, got no folder.")
        path = self._folder / f"{_file_name(name)}.json"
        if path.exists():
            print(f"{name}: done before", file=sys.stderr, flush=True)
        else:
            within: dict[str, float] = {}
            self._open.append(within)
            try:
                with self(name) as display:
                    result = compute(display)
            finally:
                self._open.pop()
            facts = {"stage": name, "seconds": self.seconds[name], "within": within}
            files.write_json(path, facts | {"commit": commit(), "result": result})
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            seconds, result = kept["within"] | {name: kept["seconds"]}, kept["result"]
            same = kept["stage"] == name
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is no result of a stage; delete it to go on.") from error
        if not same:
            raise ValueError(f"{path} holds another stage; delete it to go on.")
        self.seconds |= seconds
        if kept["commit"] not in self.commits:
            self.commits.append(kept["commit"])
        return result

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[Progress]:
        """Announces a stage and times what runs inside; yields a progress callback for it."""
        interrupt.check()
        print(f"{name} ...", file=sys.stderr, flush=True)
        display = progress.Progress(name)
        before, start = self._spent, time.perf_counter()
        yield display
        # Without the stages inside of it, so that the seconds of all stages add up.
        elapsed, inner = time.perf_counter() - start, self._spent - before
        self.seconds[name] = elapsed - inner
        self._spent = before + elapsed
        for within in self._open:
            within[name] = self.seconds[name]
        display.close(f"{self.seconds[name]:.1f} s")


def _file_name(name: str) -> str:
    """A stage's name as a file's: readable, and different for different names."""
    words = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")
    return f"{words[:60]}-{zlib.crc32(name.encode()):08x}"
