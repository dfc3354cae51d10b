"""What the processes of `jax.distributed` must agree on: all of them run the same program.

Without `jax.distributed` there is one process, which is the first, and nothing is sent. The functions
that exchange something wait for the other processes, so every process must make the same calls.
"""

import itertools
import json
import threading
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

import jax
import numpy as np

_PATIENCE = 7 * 24 * 3600  # seconds
_meetings = itertools.count()
_is_waiting = threading.Event()


def client() -> Any:
    """Returns this process's client of jax's coordination service; None without `jax.distributed`."""
    from jax._src import distributed  # jax has no public way to it

    return distributed.global_state.client


def is_waiting() -> bool:
    """Whether this process waits for others, and has nothing to do before they come."""
    return _is_waiting.is_set()


def meet() -> None:
    """Waits until all processes have come here.

    They may come hours apart, if one has more to attack; arrays are exchanged only after that, because
    CPUs give up after half an hour.
    """
    if client() is not None:
        _is_waiting.set()
        client().wait_at_barrier(f"jaxrobust {next(_meetings)}", 1000 * _PATIENCE)
        _is_waiting.clear()


def is_first() -> bool:
    """Whether this process is the one that writes files and messages for all."""
    return jax.process_index() == 0


def gathered(value: np.ndarray) -> np.ndarray:
    """Returns the value of every process: [processes, ...].

    Args:
      value: An array of the same shape and type in all processes. Of 64 bits, 32 arrive.
    """
    if jax.process_count() == 1:
        return value[None]
    from jax.experimental import multihost_utils

    meet()
    return np.asarray(multihost_utils.process_allgather(value))


def in_any(value: bool) -> bool:
    """Whether the value is true in any process."""
    return bool(np.any(gathered(np.asarray(value))))


def different(values: Mapping[str, Any]) -> list[str]:
    """Returns the names of values that differ between processes.

    Args:
      values: JSON values by name, with the same names in every process.
    """
    texts = [json.dumps(value, sort_keys=True).encode() for value in values.values()]
    digests = np.stack([np.frombuffer(sha256(text).digest(), np.uint8) for text in texts])
    found = gathered(digests)
    unlike = np.any(found != found[0], axis=(0, 2))
    return [name for name, differs in zip(values, unlike, strict=True) if differs]


def by_first(compute: Callable[[], Any]) -> Any:
    """Calls a function in the first process, and returns its result in all processes.

    It is for what only one process may do or decide, such as writing a file.

    Args:
      compute: Returns a JSON value. It is not called in the other processes.

    Returns:
      The result; with several processes as it is read from JSON.

    Raises:
      Exception: What the function raised.
      ValueError: The function failed in the first process and this is another one; the message is
        that of the first process.
    """
    if jax.process_count() == 1:
        return compute()
    from jax.experimental import multihost_utils

    error: Exception | None = None
    sent: dict[str, Any] = {}
    if is_first():
        try:
            sent = {"value": compute()}
        except Exception as raised:
            error, sent = raised, {"error": str(raised)}
    meet()
    # Its length first: all processes must name the same shape. Few lengths mean few compilations.
    text = json.dumps(sent).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.zeros(1 << (size - 1).bit_length(), np.uint8)
    if is_first():
        padded[:size] = np.frombuffer(text, np.uint8)
    received = np.asarray(multihost_utils.broadcast_one_to_all(padded))[:size]
    found = json.loads(received.astype(np.uint8).tobytes())
    if error is not None:
        raise error
    if "error" in found:
        raise ValueError(found["error"])
    return found["value"]
