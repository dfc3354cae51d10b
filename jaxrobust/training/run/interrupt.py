"""Ctrl-C as a request that the training loop can answer at a safe moment."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Interrupt:
    """Whether Ctrl-C was pressed.

    Attributes:
      requested: True from the first Ctrl-C on.
    """

    requested: bool = False


@contextlib.contextmanager
def catch_interrupt() -> Iterator[Interrupt]:
    """Turns the first SIGINT into a flag; the second one raises KeyboardInterrupt at once.

    An exception at any line could strike while the state is being donated to a compiled step, when
    no whole state exists that could be saved. Outside the main thread, where Python delivers no
    signals, and where SIGINT is ignored (a background job), nothing changes.

    Raises:
      KeyboardInterrupt: On leaving, if a request came too late for the loop to answer: it must not
        be lost on the script, which may have more to do.
    """
    interrupt = Interrupt()
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    ):
        yield interrupt
        return

    def request(number: int, frame: FrameType | None) -> None:
        del number, frame
        interrupt.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = signal.signal(signal.SIGINT, request)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, previous)
    if interrupt.requested:
        raise KeyboardInterrupt(
            "Interrupted as a training ended: it is finished and saved, and the same command goes on "
            "with what comes after it."
        )
