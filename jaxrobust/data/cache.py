"""A cache of decoded arrays on disk, so that a data set is decoded only once.

A file is written under another name and then renamed, so that readers find a complete file or none,
even if the writer is killed or two processes write at once. The folder can be deleted at any time.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_SCRATCH = "scratch-"
_SCRATCH_LIFETIME = 24 * 3600  # seconds


def folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Returns the absolute path of the cache folder, and creates it if it does not exist.

    Args:
      cache_dir: The folder. None: $JAXROBUST_CACHE, else $XDG_CACHE_HOME/jaxrobust, else
        ~/.cache/jaxrobust.

    Raises:
      OSError: The folder cannot be created or written to.
    """
    if cache_dir is None:
        cache_dir = os.environ.get("JAXROBUST_CACHE")
    if not cache_dir:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        cache_dir = Path(home) / "jaxrobust"
    path = Path(cache_dir).expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        writeable = os.access(path, os.W_OK)
    except OSError:
        writeable = False
    if not writeable:
        raise OSError(
            f"The cache folder {str(path)!r} cannot be written to. Pass another one as `cache_dir`, or "
            "set the environment variable JAXROBUST_CACHE."
        )
    return path


def key(identity: Any) -> str:
    """Returns a name for what `identity` describes: 32 hexadecimal digits.

    Args:
      identity: Any JSON value.

    Example:
      >>> key(["a", 1]) == key(("a", 1)), key("a") == key("b")
      (True, False)
    """
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


def read(path: Path) -> dict[str, np.ndarray] | None:
    """Reads the arrays of `write`; None if the file does not exist or is damaged."""
    try:
        # The zip format checks each array's CRC, so a file that a full disk or a crash of the
        # machine cut short shows here, and is then decoded anew.
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays to a file atomically.

    Args:
      path: The path of the file in an existing folder; an existing file is replaced.
      arrays: The arrays by name; none may hold objects.
    """
    with scratch(path.parent) as folder_:
        temporary = folder_ / "arrays.npz"
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        os.replace(temporary, path)


@contextlib.contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """Creates a temporary folder, and removes it at the end, with those that killed processes left.

    Args:
      parent: The folder to create it in: that of the cache, or another.

    Yields:
      The new folder, on the file system of `parent`, so that a rename into `parent` is atomic.
    """
    for leftover in parent.glob(f"{_SCRATCH}*"):
        # A day, because a younger one may belong to a process that is still at work.
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _SCRATCH_LIFETIME:
                shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=parent) as name:
        yield Path(name)
