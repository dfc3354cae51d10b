"""Shows the progress of a long stage: in place on a terminal, or as occasional lines in a log."""

import sys
import time

from jaxrobust import processes
from jaxrobust.reports.formatting import duration
from jaxrobust.studies import ctrl_c

_TERMINAL_PAUSE, _LOG_PAUSE = 0.1, 30.0  # the shortest time between two lines, in seconds


class Display:
    """A `jaxrobust.types.Progress` that shows how fast the work is and how long it will take.

    On a terminal one line is overwritten each time. Otherwise a new line is written at most every 30
    seconds.

    Args:
      name: The name of the work.
    """

    def __init__(self, name: str) -> None:
        self._name, self._on_terminal = name, sys.stderr.isatty()
        self._started = self._said = time.monotonic()
        self._first: tuple[int, float] | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        """Shows the progress, unless a line has just been written or all is done.

        Raises:
          KeyboardInterrupt: Ctrl-C was pressed, but the script continued.
        """
        ctrl_c.check()
        now = time.monotonic()
        if self._first is None or done < self._first[0]:
            self._first = done, now
        pause = _TERMINAL_PAUSE if self._on_terminal else _LOG_PAUSE
        if done >= total or now - self._said < pause or not processes.is_first():
            return
        self._said = now
        # The time until the first report includes compiling, so it is not counted for the speed.
        before, since = self._first if self._first[0] < done else (0, self._started)
        name = self._name if what in self._name else f"{self._name}, {what}"
        line = f"{name}: {describe(done, total, done - before, now - since)}"
        if self._on_terminal:
            print(f"\r\033[K{line}", file=sys.stderr, end="", flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self, words: str) -> None:
        """Writes a last line, which replaces the progress on a terminal."""
        clear = "\r\033[K" if self._on_terminal else ""
        say(f"{clear}{self._name}: {words}")


def say(line: str) -> None:
    """Writes a line to stderr, if this is the first process."""
    if processes.is_first():
        print(line, file=sys.stderr, flush=True)


def describe(done: int, total: int, counted: int, seconds: float) -> str:
    """Describes progress: what is done, how fast, and how long the rest will take.

    Args:
      done: The number done.
      total: The number to do in all.
      counted: How many were done in `seconds`.
      seconds: The time that these took.

    Example:
      >>> describe(1240, 5000, 850, 10.0)
      '1,240/5,000, 85/s, 44 s left'
      >>> describe(3, 8, 3, 600.0), describe(0, 8, 0, 15.0)
      ('3/8, 0.005/s, 17 min left', '0/8, 15 s so far')
    """
    words = f"{done:,}/{total:,}"
    if counted <= 0 or seconds <= 0:
        return f"{words}, {duration(seconds)} so far" if seconds >= 1 else words
    rate = counted / seconds
    shown = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
    return f"{words}, {shown}/s, {duration((total - done) / rate)} left"
