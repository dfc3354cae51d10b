"""Makes sure that Ctrl-C is not lost.

Python raises KeyboardInterrupt between any two lines, also within a callback of the garbage collector
(jax has one). An exception there is only printed, and the script continues.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from jaxrobust import processes

WORDS = "Interrupted. To go on, run the same command again."
_PRESSED = threading.Event()


@contextlib.contextmanager
def remembered() -> Iterator[None]:
    """Within the block, Ctrl-C raises KeyboardInterrupt as usual, and is remembered for `check`.

    Outside the main thread, and if SIGINT is ignored (as in a background job), nothing changes.
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
        processes.end()
        raise KeyboardInterrupt

    _PRESSED.clear()
    previous = signal.signal(signal.SIGINT, press)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        _PRESSED.clear()


def request() -> None:
    """Makes `check` raise, as if Ctrl-C had been pressed and the script had continued."""
    _PRESSED.set()


def check() -> None:
    """Raises KeyboardInterrupt if Ctrl-C was pressed within `remembered`, but the script continued."""
    if _PRESSED.is_set():
        _PRESSED.clear()
        raise KeyboardInterrupt
