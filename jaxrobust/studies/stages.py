"""Stages of a long run, which are announced, timed and saved, so that a killed run can be resumed."""

import contextlib
import json
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxrobust import files, processes
from jaxrobust.studies import ctrl_c
from jaxrobust.studies.display import Display, say
from jaxrobust.studies.results import commit
from jaxrobust.types import Progress


class Stages:
    """Stages of a long run: each is announced and timed, and its result, if it has one, is saved.

    Args:
      folder: The run's folder. `remember` saves results in its folder "stages", so that a run that was
        killed resumes with the first stage that it had not finished.

    Attributes:
      seconds: {stage: seconds}, for result.json, with the time that earlier processes spent.
      commits: The commits of the code that computed the stages, in order of appearance.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = None if folder is None else folder / "stages"
        self.seconds: dict[str, float] = {}
        self.commits: list[str | None] = []
        self._open: list[dict[str, float]] = []  # for each open stage, the stages within it
        self._spent = 0.0  # seconds that this process has spent on finished stages

    def count_resumed(self, name: str, seconds: float) -> None:
        """Sets a stage's time to `seconds`, which counts earlier processes too, if that is longer."""
        self.seconds[name] = max(self.seconds[name], seconds)
        for within in self._open:
            within[name] = self.seconds[name]

    def count_earlier(self, name: str, seconds: float, commit: str | None) -> None:
        """Counts a stage that an earlier process finished and whose result was read back."""
        self.seconds[name] = seconds
        self._computed_by(commit)
        for within in self._open:
            within[name] = seconds

    def remember(
        self, name: str, compute: Callable[[Progress], Any], *, scratch: Path | None = None
    ) -> Any:
        """Returns the result of a stage: reads it if an earlier process saved it, else computes it.

        Args:
          name: The stage's name, which no other stage of the run has.
          compute: Takes a progress callback (name of the work, done, total) and returns a JSON value;
            NaN and infinities become None.
          scratch: A folder, such as that of a training, which is deleted once the result is saved.

        Returns:
          The result as it is read from JSON: tuples are lists, and keys are strings.

        Raises:
          ValueError: The run has already used the name, or the saved result cannot be read.
        """
        if name in self.seconds:
            raise ValueError(
                f"`name` must differ from the other stages of the run, got {name!r} twice."
            )
        if self._folder is None:
            raise ValueError("`remember` needs `Stages(folder)`, got no folder.")
        path = self._folder / f"{_file_name(name)}.json"
        # A saved result is used as it is. The file also has the seconds of the stages within.
        if processes.by_first(path.exists):
            say(f"{name}: done before")
        else:
            within: dict[str, float] = {}
            self._open.append(within)
            try:
                with self(name) as display:
                    result = compute(display)
            finally:
                self._open.pop()
            facts = {"stage": name, "seconds": self.seconds[name], "within": within}
            facts |= {"commit": commit(), "result": result}
            processes.by_first(lambda: files.write_json(path, facts))
        if scratch is not None:
            processes.by_first(lambda: shutil.rmtree(scratch, ignore_errors=True))
        # A new result is read back too, so that a resumed run computes with the same values.
        kept = processes.by_first(lambda: _read(path, name))
        self.seconds |= kept["within"] | {name: kept["seconds"]}
        self._computed_by(kept["commit"])
        return kept["result"]

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[Progress]:
        """Announces a stage and times the block; yields a progress callback."""
        ctrl_c.check()
        say(f"{name} ...")
        display = Display(name)
        before, start = self._spent, time.perf_counter()
        yield display
        # The time of the stages within is left out, so that the seconds of all stages add up.
        elapsed, inner = time.perf_counter() - start, self._spent - before
        self.seconds[name] = elapsed - inner
        self._computed_by(commit())
        self._spent = before + elapsed
        for within in self._open:
            within[name] = self.seconds[name]
        display.close(f"{self.seconds[name]:.1f} s")

    def _computed_by(self, commit: str | None) -> None:
        if commit not in self.commits:
            self.commits.append(commit)


def _read(path: Path, name: str) -> dict[str, Any]:
    """Reads the file of a stage."""
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        complete = {"stage", "seconds", "within", "result"} <= kept.keys()
    except (AttributeError, json.JSONDecodeError):
        complete = False
    if not complete:
        raise ValueError(f"{path} is not the result of a stage; delete it to go on.")
    if kept["stage"] != name:
        raise ValueError(f"{path} holds the result of another stage; delete it to go on.")
    return kept


def plain(words: str) -> str:
    """Converts words to the name of a file or folder.

    Example:
      >>> plain("PGD, linf 0.03, 40 steps on cnn at 20 %")
      'pgd-linf-0.03-40-steps-on-cnn-at-20'
    """
    return re.sub(r"[^a-z0-9._]+", "-", words.lower()).strip("-.")


def _file_name(name: str) -> str:
    """Converts a stage's name to a readable file name, different for different stages."""
    words = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")
    return f"{words[:60]}-{zlib.crc32(name.encode()):08x}"
