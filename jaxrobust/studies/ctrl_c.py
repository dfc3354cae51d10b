"""Ctrl-C that is not lost.

Python delivers it between any two lines, such as those of a callback of the garbage collector (jax has
one): an exception that is raised there is printed and forgotten, and the script would go on.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_PRESSED = threading.Event()


@contextlib.contextmanager
def remembered() -> Iterator[None]:
    """Within it Ctrl-C raises KeyboardInterrupt, as ever, and is remembered for `check`.

    Outside the main thread, and where SIGINT is ignored (a background job), nothing changes.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    ):
        yield
        return

    def press(number: int, frame: FrameType | None) -> None:
        del number, frame
        _PRESSED.set()
        raise KeyboardInterrupt

    _PRESSED.clear()
    previous = signal.signal(signal.SIGINT, press)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        _PRESSED.clear()


def check() -> None:
    """Raises KeyboardInterrupt if Ctrl-C was pressed within `remembered` and got lost."""
    if _PRESSED.is_set():
        _PRESSED.clear()
        raise KeyboardInterrupt
