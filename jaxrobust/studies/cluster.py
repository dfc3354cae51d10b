"""Several processes that run one script together, on one host or on many, by `jax.distributed`.

jax ends all processes, with what they hold in memory, as soon as one of them is lost. Here the others
say first which one it was, and save their work.
"""

import _thread
import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jaxrobust import processes
from jaxrobust.studies import ctrl_c

# Seconds without a sign of life after which a process counts as lost.
_SILENCE = 20
# Seconds in which all processes must have started.
_UNTIL_JOINED = 300
# Seconds that a process has to reach a safe moment before it is interrupted, and then to save its work.
_UNTIL_SAFE, _UNTIL_SAVED = 10.0, 60.0
# Requests in a row that must fail before the first process counts as lost.
_FAILURES = 3
_handlers: list[Any] = []  # of signals; the C library knows only their addresses


def address(text: str) -> dict[str, Any]:
    """Reads the setting `processes` as arguments of `jax.distributed.initialize`.

    Args:
      text: "auto", for what jax finds in the environment, or "HOST:PORT,NUMBER,INDEX": the address of
        the first process, how many processes there are, and which one this is, from 0.

    Raises:
      ValueError: The text is neither.

    Example:
      >>> address("node1:7777,16,3")["process_id"], address("auto")
      (3, {})
    """
    if text == "auto":
        return {}
    host, *numbers = text.split(",")
    name, _, port = host.rpartition(":")
    numeric = len(numbers) == 2 and all(part.isdecimal() for part in (port, *numbers))
    if not (name and numeric and int(numbers[1]) < int(numbers[0])):
        raise ValueError(
            "`processes` must be auto, or HOST:PORT,NUMBER,INDEX (the address of the first process, "
            "how many processes run the command, and which one this is, from 0), such as "
            f"node1:7777,16,0, got {text!r}."
        )
    return {
        "coordinator_address": host,
        "num_processes": int(numbers[0]),
        "process_id": int(numbers[1]),
        "cluster_detection_method": "deactivate",  # all devices of the host are this process's
    }


@contextlib.contextmanager
def joined(text: str | None, is_told: Callable[[Exception], bool]) -> Iterator[None]:
    """Runs the block as one of several processes, all of which must run it.

    Only the first process prints. If another process is lost, the block is interrupted, so that it
    saves its work, and this process ends with the exit code 1; so it does if not all processes come.

    Args:
      text: The setting `processes`, as `address` takes it. None: there is one process.
      is_told: Says whether an error has nothing to do with other processes.

    Raises:
      ValueError: The text is wrong, or jax finds no cluster.
      RuntimeError: jax has already looked at its devices.
    """
    if text is None:
        yield
        return
    _initialize(address(text))
    _quieten()
    watch = _Watch()
    try:
        watch.begin()
        yield
        watch.finish()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and not watch.someone_lost.is_set():
            processes.end()  # others may end before this one
        # An operation that waits for a lost process fails before it is known that this was the reason.
        elif isinstance(error, Exception) and not is_told(error) and not processes.is_ending():
            watch.someone_lost.wait(_SILENCE + 10)
        if watch.someone_lost.is_set():
            _exit()
        if not watch.someone_left.is_set():
            watch.leave()  # so that the others learn of it at once
        if isinstance(error, Exception) and processes.is_ending():
            raise KeyboardInterrupt from error
        raise


def _initialize(options: dict[str, Any]) -> None:
    """Connects the processes; if one is lost, jax leaves it to `_Watch` to end the others."""
    jax.config.update("jax_enable_recoverability", True)
    jax.config.update("jax_enable_preemption_service", False)  # it ignores SIGTERM
    options = options | {"initialization_timeout": _UNTIL_JOINED}
    _before_abort(_nobody_came)
    try:
        jax.distributed.initialize(**options, heartbeat_timeout_seconds=_SILENCE)
    except ValueError as error:
        if "coordinator_address" in options:
            raise
        raise ValueError(
            "`processes` must be HOST:PORT,NUMBER,INDEX here, got auto: jax finds no cluster (SLURM, "
            f"Kubernetes, Open MPI or a TPU pod) in the environment: {error}"
        ) from error
    finally:
        _before_abort(None)


def _nobody_came() -> None:
    print(
        f"\nNot all processes have come within {_UNTIL_JOINED} seconds: run the same command in all of "
        "them, with the same HOST:PORT, which all must reach, and with every INDEX below NUMBER.",
        file=sys.stderr,
        flush=True,
    )
    _exit()


def _before_abort(act: Callable[[], None] | None) -> None:
    """Calls a function when this process is to be aborted (SIGABRT), in the thread that does so.

    jax can call no function of Python then, and a handler of Python's module `signal` would come too
    late. The process is aborted if the function returns. None: it is aborted as usual.
    """
    handler: Any = ctypes.c_void_p(int(signal.SIG_DFL))
    if act is not None:
        handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: act())
    _handlers.append(handler)
    if os.name == "posix":
        ctypes.CDLL(None).signal(int(signal.SIGABRT), handler)


def _quieten() -> None:
    """Lets only the first process write to stdout and warn, and gloo not at all.

    gloo, by which CPUs exchange arrays, writes to the file descriptor and not to `sys.stdout`.
    """
    sys.stdout.flush()
    kept = os.dup(1) if processes.is_first() else os.open(os.devnull, os.O_WRONLY)
    sys.stdout = os.fdopen(kept, "w", buffering=1, encoding=sys.stdout.encoding)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if not processes.is_first():
        warnings.simplefilter("ignore")


class _Watch:
    """Notices when another process is lost.

    The coordination service of jax, which the first process runs, knows which processes are alive. If
    the first process itself is lost, jax aborts the others; what is to be done is done before that.

    Attributes:
      someone_lost: Set once a process is lost.
      someone_left: Set once a process has ended before this one, because of Ctrl-C in both.
    """

    def __init__(self) -> None:
        from jax._src import distributed

        self._client = processes.client()
        self._address = str(distributed.global_state.coordinator_address).rpartition(":")[::2]
        self._everyone = list(range(jax.process_count()))
        self._hosts = ["a host that is not known yet"] * len(self._everyone)
        self.someone_lost = threading.Event()
        self.someone_left = threading.Event()
        self._is_over = threading.Event()
        self._once = threading.Lock()

    def begin(self) -> None:
        """Starts to watch, and learns on which hosts the processes are."""
        _before_abort(self._aborted)
        threading.Thread(target=self._ask, daemon=True).start()
        name = socket.gethostname().encode()[:64].ljust(64)
        names = processes.gathered(np.frombuffer(name, np.uint8)).astype(np.uint8)
        self._hosts = [of_one.tobytes().decode(errors="replace").strip() for of_one in names]

    def finish(self) -> None:
        """Waits until all processes have come so far, and disconnects them; the first one last."""
        processes.meet()
        self._is_over.set()
        # Nobody disconnects before all have stopped to ask who is alive.
        with contextlib.suppress(Exception):
            self._client.wait_at_barrier("jaxrobust is over", 1000 * _SILENCE)
        last = time.monotonic() + _SILENCE
        while processes.is_first() and len(self._alive()) > 1 and time.monotonic() < last:
            time.sleep(0.05)
        self.leave()

    def leave(self) -> None:
        """Disconnects this process, and watches no more."""
        self._is_over.set()
        if not processes.is_ending():
            _before_abort(None)
        jax.distributed.shutdown()

    def _alive(self) -> set[int]:
        return set(self._client.get_live_nodes(self._everyone))

    def _ask(self) -> None:
        """Asks every two seconds which processes are alive, until one is not."""
        failures = 0
        while not self._is_over.wait(2.0):
            try:
                lost = set(self._everyone) - self._alive()
                failures = 0
            except Exception:  # the network may have failed for a moment
                failures += 1
                lost = {0} if failures >= _FAILURES and self._is_first_lost() else set()
            if lost and not self._is_over.is_set():
                self._end(lost)

    def _is_first_lost(self) -> bool:
        """Whether the first process, to whose port the others are connected, does not answer."""
        host, port = self._address
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2.0).close()
        except OSError:
            return True
        return False

    def _aborted(self) -> None:
        # If the first process is not lost, jax aborts for another reason.
        if processes.is_ending() or (not self._is_over.is_set() and self._is_first_lost()):
            self._end({0})

    def _end(self, lost: set[int]) -> None:
        """Says which processes are lost, and ends this one once its work is saved; does not return."""
        with self._once:
            if processes.is_ending():  # Ctrl-C has ended others too
                self.someone_left.set()
                # The main thread ends this process, unless it waits for those that have ended.
                _pause(0.0 if self._is_over.is_set() else _UNTIL_SAVED)
                print(f"\n{ctrl_c.WORDS}", file=sys.stderr, flush=True)
                _exit(130)
            print(f"\n{self._words(lost)}", file=sys.stderr, flush=True)
            self.someone_lost.set()
            if not processes.is_waiting():  # the main thread ends the process, if it can
                ctrl_c.request()
                _pause(_UNTIL_SAFE)
                _thread.interrupt_main()
                _pause(_UNTIL_SAVED)
            _exit()

    def _words(self, lost: set[int]) -> str:
        named = [f"{rank} (on {self._hosts[rank]})" for rank in sorted(lost)]
        one = len(named) == 1
        return (
            f"Process{'' if one else 'es'} {', '.join(named)} of {len(self._everyone)} "
            f"{'was' if one else 'were'} lost, so this one saves its work and ends: run the same "
            "command again in all processes; what is saved is not computed again."
        )


def _pause(seconds: float) -> None:
    """Waits, but only as long as this process has something to do before others come."""
    last = time.monotonic() + seconds
    while time.monotonic() < last and not processes.is_waiting():
        time.sleep(0.1)


def _exit(code: int = 1) -> None:
    """Ends the process without waiting for others, as jax would."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
