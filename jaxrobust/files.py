"""Files of runs, which are written whole or not at all, and folders that belong to one run."""

import contextlib
import json
import math
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

SETTINGS = "settings.json"


@contextlib.contextmanager
def replace(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for writing such that a killed process leaves the old file or the new one, whole.

    Args:
      path: The path of the file. Its folder is made if it is missing.

    Yields:
      An open binary file, which replaces `path` when the block ends without an error.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two processes that write at once, on one host or on two, do not share the partial file.
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()


def replace_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all.

    Args:
      path: The path of the file. Its folder is made if it is missing.
      text: The new content.
    """
    with replace(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, whole or not at all. NaN and infinities become null.

    Args:
      path: The path of the file. Its folder is made if it is missing.
      value: A JSON value; tuples are written as lists.

    Raises:
      TypeError: JSON cannot hold the value. An existing file is left as it was.
    """
    replace_text(path, json.dumps(_finite(value), indent=1, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


_held: dict[Path, BinaryIO] = {}


def hold(folder: Path) -> None:
    """Locks a folder against other processes until this process ends.

    Args:
      folder: The folder, which is made if it is missing. It is not locked where the file system has no
        locks.

    Raises:
      ValueError: Another process has locked it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / ".lock"
    if path in _held and path.exists():
        return
    file = path.open("ab")
    try:
        import fcntl  # which Windows does not have

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(
            f"Another process is at work in {folder}: wait for it, or use another `run` name."
        ) from None
    except (ImportError, OSError):
        pass
    _held[path] = file


def claim(
    folder: Path, settings: Mapping[str, Any], *, in_use: bool, ignored: Sequence[str] = ()
) -> None:
    """Reserves a run's folder for these settings, or checks that it already belongs to them.

    Half-written files that killed processes left in the folder are removed.

    Args:
      folder: The run's folder, which is made if it is missing. The settings are kept in its
        settings.json.
      settings: JSON values: everything that decides the run's result.
      in_use: Whether the folder holds results. If not, it is free for any settings, so that a run that
        failed at its first step does not block the corrected one.
      ignored: Names of saved settings that are not compared, because they do not decide the result.

    Raises:
      ValueError: The folder belongs to other or to unknown settings. The message says what differs,
        and the folder is left as it was.
    """
    path = folder / SETTINGS
    for partial in folder.glob(".*.partial"):
        partial.unlink(missing_ok=True)
    if not in_use:
        write_json(path, settings)
        return
    if not path.exists():
        raise ValueError(
            f"{folder} holds results but no {SETTINGS} that says what they belong to. Use another "
            "folder, or delete this one to start anew."
        )
    # Through JSON, so that a tuple equals the list that it was saved as.
    current = json.loads(json.dumps(_finite(settings)))
    saved = json.loads(path.read_text(encoding="utf-8"))
    changed = differences({k: v for k, v in saved.items() if k not in ignored}, current)
    if changed:
        raise ValueError(
            f"{folder} holds a run of other settings: {'; '.join(changed)}. "
            "Use another folder (another `run` name), or delete this one to start anew."
        )


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Lists the differences between two JSON objects.

    Args:
      saved: The older object.
      current: The newer object.

    Returns:
      One line for each difference; after the first 8, one line with the number of the others.

    Example:
      >>> differences({"config": {"seed": 0, "epochs": 2}}, {"config": {"seed": 1, "epochs": 2}})
      ['config.seed was 0, is now 1']
    """
    before, now = _leaves(saved), _leaves(current)
    found = []
    for path in sorted(before.keys() | now.keys()):
        old, new = before.get(path, "absent"), now.get(path, "absent")
        if old != new:
            found.append(f"{path} was {old}, is now {new}")
    return [*found[:8], f"and {len(found) - 8} more"] if len(found) > 8 else found


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        value = {str(index): item for index, item in enumerate(value)}
    if not isinstance(value, Mapping) or not value:
        return {path: value}
    found: dict[str, Any] = {}
    for key, child in value.items():
        found |= _leaves(child, f"{path}.{key}" if path else str(key))
    return found
