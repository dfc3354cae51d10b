"""What the processes of `jax.distributed` must agree on: all of them run the same program.

Without `jax.distributed` there is one process, which is the first, and nothing is sent. The functions
that exchange something wait for the other processes, so every process must make the same calls.
"""

import functools
import itertools
import json
import secrets
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

_PATIENCE = 7 * 24 * 3600  # seconds
_WARN_AFTER = 60.0  # seconds
# Seconds within which a network file system shows a new file on other hosts.
_UNTIL_SEEN = 10.0
_LONGEST = 250  # bytes of what a process says about its call
_meetings = itertools.count()
_is_waiting, _is_ending = threading.Event(), threading.Event()


def client() -> Any:
    """Returns this process's client of jax's coordination service; None without `jax.distributed`."""
    from jax._src import distributed  # jax has no public way to it

    return distributed.global_state.client


def is_waiting() -> bool:
    """Whether this process waits for others, and has nothing to do before they come."""
    return _is_waiting.is_set()


def end() -> None:
    """Notes that this process was told to end, by Ctrl-C: others that end before it are not lost."""
    _is_ending.set()


def is_ending() -> bool:
    """Whether `end` was called."""
    return _is_ending.is_set()


def meet(what: str = "") -> None:
    """Waits until all processes have come here, and checks that all of them make the same call.

    They may come hours apart, if one has more to attack; arrays are exchanged only after that, because
    CPUs give up after half an hour. After a minute there is a warning with the name of the call.

    Args:
      what: What else must be the same in all processes, such as the shape of an array.

    Raises:
      ValueError: Another process makes another call, or `what` differs.
    """
    if client() is None:
        return
    call, place = _call()
    reminder = threading.Timer(_WARN_AFTER, _warn, (call, place))
    reminder.daemon = True
    _is_waiting.set()
    reminder.start()
    try:
        client().wait_at_barrier(f"jaxrobust {next(_meetings)}", 1000 * _PATIENCE)
    finally:
        reminder.cancel()
        _is_waiting.clear()
    if jax.process_count() == 1:
        return
    text = f"{call} {what}".encode()[:_LONGEST].ljust(_LONGEST)
    rows = _exchanged(np.frombuffer(text, np.uint8), summed=False)
    found = [row.tobytes().decode(errors="replace").strip() for row in rows]
    for rank, other in enumerate(found):
        if other != found[0]:
            raise ValueError(
                "All processes must make the same calls with the same settings and data; process 0 "
                f"makes the call {found[0]}, and process {rank} {other}."
            )


def _call() -> tuple[str, str]:
    """Returns the function that called this module, and the line outside of this package."""
    frame: Any = sys._getframe(1)
    while frame.f_globals.get("__name__") == __name__:
        frame = frame.f_back
    name = f"{frame.f_globals.get('__name__')}.{frame.f_code.co_name}"
    while frame and frame.f_globals.get("__name__", "").split(".")[0] == "jaxrobust":
        frame = frame.f_back
    return name, f"{frame.f_code.co_filename}, line {frame.f_lineno}" if frame else "a thread"


def _warn(call: str, place: str) -> None:
    warnings.warn(
        f"Process {jax.process_index()} of {jax.process_count()} has waited for a minute in {call} "
        f"(from {place}) for the other processes. They may have more to do. But if they do not make "
        "this call, it waits for days: make it in every process, not in one alone.",
        stacklevel=1,
    )


def is_first() -> bool:
    """Whether this process is the one that writes files and messages for all."""
    return jax.process_index() == 0


def gathered(value: np.ndarray) -> np.ndarray:
    """Returns the value of every process: [processes, ...].

    Args:
      value: An array of the same shape and type in all processes. Of 64 bits, 32 arrive.

    Raises:
      ValueError: The shape or the type differs between processes, or another one makes another call.
    """
    if jax.process_count() == 1:
        return value[None]
    meet(f"{value.dtype} {list(value.shape)}")
    return _exchanged(value, summed=False)


def _exchanged(value: np.ndarray, *, summed: bool) -> np.ndarray:
    """Stacks or sums the values of all processes, on one device of each: the others get no copy."""
    mesh, compiled = _programs(summed)
    rows = NamedSharding(mesh, PartitionSpec("process"))
    shape, device = (jax.process_count(), *value.shape), mesh.devices[jax.process_index()]
    own = jax.device_put(value[None], device)
    given = jax.make_array_from_single_device_arrays(shape, rows, [own])
    return np.asarray(compiled(given).addressable_data(0))


@functools.cache
def _programs(summed: bool) -> tuple[Mesh, Any]:
    """Returns a mesh of the first device of each process, and the compiled exchange."""
    first: dict[int, Any] = {}
    for device in jax.devices():
        first.setdefault(device.process_index, device)
    devices = np.array([first[rank] for rank in sorted(first)])
    mesh = Mesh(devices, ("process",), axis_types=(AxisType.Auto,))
    whole = NamedSharding(mesh, PartitionSpec())
    of_all = functools.partial(jnp.sum, axis=0) if summed else lambda rows: rows
    return mesh, jax.jit(of_all, out_shardings=whole)


def in_any(value: bool) -> bool:
    """Whether the value is true in any process."""
    return bool(np.any(gathered(np.asarray(value))))


def different(values: Mapping[str, Any]) -> list[str]:
    """Returns the names of values that differ between processes.

    Args:
      values: JSON values by name, with the same names in every process.
    """
    if jax.process_count() == 1:
        return []
    texts = [json.dumps(value, sort_keys=True).encode() for value in values.values()]
    digests = np.stack([np.frombuffer(sha256(text).digest(), np.uint8) for text in texts])
    found = gathered(digests)
    unlike = np.any(found != found[0], axis=(0, 2))
    return [name for name, differs in zip(values, unlike, strict=True) if differs]


def share(folder: Path) -> bool:
    """Whether all processes see the same folder, and not folders of one name on several hosts.

    Args:
      folder: The folder, which the first process makes if it is missing.
    """
    if jax.process_count() == 1:
        return True

    def write() -> str:
        folder.mkdir(parents=True, exist_ok=True)
        name = f".{secrets.token_hex(8)}.partial"  # which `files.claim` removes if this is killed
        (folder / name).touch()
        return name

    path = folder / by_first(write)
    last = time.monotonic() + _UNTIL_SEEN
    while not path.exists() and time.monotonic() < last:
        time.sleep(0.1)
    shared = not in_any(not path.exists())
    if is_first():
        path.unlink()
    return shared


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
        that of the first process. Or another process makes another call.
    """
    if jax.process_count() == 1:
        return compute()
    error: Exception | None = None
    text = b""
    if is_first():
        try:
            text = json.dumps({"value": compute()}).encode()
        except Exception as raised:
            error, text = raised, json.dumps({"error": str(raised)}).encode()
    meet()
    # Its length first: all processes must name the same shape. Few lengths mean few compilations.
    size = int(_exchanged(np.asarray(len(text), np.int32), summed=True))
    padded = np.zeros(1 << (size - 1).bit_length(), np.uint8)
    if text:
        padded[:size] = np.frombuffer(text, np.uint8)
    received = _exchanged(padded, summed=True)[:size]
    found = json.loads(received.astype(np.uint8).tobytes())
    if error is not None:
        raise error
    if "error" in found:
        raise ValueError(found["error"])
    return found["value"]
