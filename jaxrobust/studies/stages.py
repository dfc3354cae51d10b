"""Stages of a long run: announced, timed, and kept on disk so that a killed run goes on."""

import contextlib
import json
import re
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxrobust import files
from jaxrobust.studies import ctrl_c
from jaxrobust.studies.display import Display
from jaxrobust.studies.results import commit
from jaxrobust.types import Progress


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
          compute: Takes a progress callback (what is under way, done, total) and returns JSON values,
            or objects that hold them; NaN and infinities become None.

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
        # What a run finished before is taken as it is; how long its parts took is kept with it.
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
        # Read back even when it was just written, so that a run that goes on sees the same values.
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
        ctrl_c.check()
        print(f"{name} ...", file=sys.stderr, flush=True)
        display = Display(name)
        before, start = self._spent, time.perf_counter()
        yield display
        # Without the stages inside of it, so that the seconds of all stages add up.
        elapsed, inner = time.perf_counter() - start, self._spent - before
        self.seconds[name] = elapsed - inner
        self._spent = before + elapsed
        for within in self._open:
            within[name] = self.seconds[name]
        display.close(f"{self.seconds[name]:.1f} s")


def plain(words: str) -> str:
    """Words as the name of a file or folder.

    Example:
      >>> plain("PGD, linf 0.03, 40 steps on cnn at 20 %")
      'pgd-linf-0.03-40-steps-on-cnn-at-20'
    """
    return re.sub(r"[^a-z0-9._]+", "-", words.lower()).strip("-.")


def _file_name(name: str) -> str:
    """A stage's name as a file's: readable, and different for different names."""
    words = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")
    return f"{words[:60]}-{zlib.crc32(name.encode()):08x}"
