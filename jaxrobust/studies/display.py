"""How far a long stage has come: on a terminal in place, in a log a line from time to time."""

import sys
import time

from jaxrobust.studies import ctrl_c

_TERMINAL_PAUSE, _LOG_PAUSE = 0.1, 30.0  # seconds between two lines


class Display:
    """A `jaxrobust.types.Progress` that says how fast it goes and how long it will take.

    On a terminal one line is written over and over; otherwise there is one at most every 30 seconds.

    Args:
      name: Of what goes on.
    """

    def __init__(self, name: str) -> None:
        self._name, self._on_terminal = name, sys.stderr.isatty()
        self._started = self._said = time.monotonic()
        self._first: tuple[int, float] | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        """Says it, unless it has just been said or all is done.

        Raises:
          KeyboardInterrupt: Ctrl-C was pressed and got lost.
        """
        ctrl_c.check()
        now = time.monotonic()
        if self._first is None or done < self._first[0]:
            self._first = done, now
        pause = _TERMINAL_PAUSE if self._on_terminal else _LOG_PAUSE
        if done >= total or now - self._said < pause:
            return
        self._said = now
        # The first report comes after compiling, which says nothing about the speed.
        before, since = self._first if self._first[0] < done else (0, self._started)
        name = self._name if what in self._name else f"{self._name}, {what}"
        line = f"{name}: {describe(done, total, done - before, now - since)}"
        if self._on_terminal:
            print(f"\r\033[K{line}", file=sys.stderr, end="", flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self, words: str) -> None:
        """Says how it ended, in place of how far it had come."""
        clear = "\r\033[K" if self._on_terminal else ""
        print(f"{clear}{self._name}: {words}", file=sys.stderr, flush=True)


def describe(done: int, total: int, counted: int, seconds: float) -> str:
    """Progress in words: what is done of what, and, where some is, how fast and for how long still.

    Args:
      done: In all.
      total: What there is to do.
      counted: How much of it the seconds were spent on.
      seconds: Of those.

    Example:
      >>> describe(1240, 5000, 850, 10.0)
      '1,240/5,000, 85/s, 44 s left'
      >>> describe(3, 8, 3, 600.0), describe(0, 8, 0, 15.0)
      ('3/8, 0.005/s, 17 min left', '0/8, 15 s so far')
    """
    words = f"{done:,}/{total:,}"
    if counted <= 0 or seconds <= 0:
        return f"{words}, {_span(seconds)} so far" if seconds >= 1 else words
    rate = counted / seconds
    shown = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
    return f"{words}, {shown}/s, {_span((total - done) / rate)} left"


def _span(seconds: float) -> str:
    """A duration in the unit that fits it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
