"""Handling of Ctrl-C as a request that the training loop answers at a safe moment."""

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
def catch_interrupt(*, is_kept: bool = True) -> Iterator[Interrupt]:
    """Turns the first SIGINT into a flag; the second one raises KeyboardInterrupt at once.

    An exception at an arbitrary line could come while the state is donated to a compiled step, when
    there is no complete state to save. Nothing changes outside the main thread, where Python delivers
    no signals, and where SIGINT is ignored (a background job).

    Args:
      is_kept: Whether the training is saved where the same command finds it.

    Raises:
      KeyboardInterrupt: On exit, if the request came too late for the loop to answer it: the script
        may have more to do, and must stop too.
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
        kept = (
            "The training is finished and saved; run the same command again to continue with what "
            "comes after it."
        )
        lost = "Its result is lost, because it was given no `run_dir` to save it in."
        raise KeyboardInterrupt(f"Interrupted as a training ended. {kept if is_kept else lost}")
