"""Decoded arrays on disk, so that a data set is decoded once.

A file is written beside its place and then renamed, so whoever reads finds a whole file or none,
whether the writer was killed or two processes wrote at once. The folder can be deleted at any time.
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
    """The folder of the cache, created where it is missing.

    Args:
      cache_dir: The folder; by default $JAXROBUST_CACHE, else $XDG_CACHE_HOME/jaxrobust, else
        ~/.cache/jaxrobust.

    Returns:
      Its absolute path.

    Raises:
      OSError: It cannot be created or written to.
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
            f"The cache folder {str(path)!r} cannot be written to. Pass another as `cache_dir`, or "
            "name it in the environment variable JAXROBUST_CACHE."
        )
    return path


def key(identity: Any) -> str:
    """A name for what `identity` describes: 32 hexadecimal digits.

    Args:
      identity: Anything that JSON can write.

    Example:
      >>> key(["a", 1]) == key(("a", 1)), key("a") == key("b")
      (True, False)
    """
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


def read(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays that `write` put there; None where there are none, or no longer whole."""
    try:
        # The zip format checks each array's CRC, so a file that a full disk or a crash of the
        # machine cut short shows here, and is then decoded anew.
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays to a file that appears at once, whole.

    Args:
      path: In an existing folder; a file there is replaced.
      arrays: By name; none of objects.
    """
    with scratch(path.parent) as folder_:
        temporary = folder_ / "arrays.npz"
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        os.replace(temporary, path)


@contextlib.contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """A new folder in another, removed at the end, with those that killed processes left behind.

    Args:
      parent: The cache's folder, or another to write to.

    Yields:
      The new folder, on the file system of `parent`: a rename out of it is atomic.
    """
    for leftover in parent.glob(f"{_SCRATCH}*"):
        # A day, because a younger one may belong to a process that is still at work.
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _SCRATCH_LIFETIME:
                shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=parent) as name:
        yield Path(name)
