"""The official archives of CIFAR-10 and CIFAR-100: their addresses, checksums and download."""

import dataclasses
import hashlib
import http.client
import os
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from jaxrobust.data import cache

# Seconds without a byte. Whoever is offline should read so at once, not after minutes of retries.
_TIMEOUT = 10.0
_BLOCK = 1 << 20
_TERMINAL_PAUSE, _LOG_PAUSE = 0.1, 10.0  # seconds between two lines about the progress


@dataclasses.dataclass(frozen=True)
class Archive:
    """A tar file of pickled batches.

    Attributes:
      url: The address of the file; its last part is the name of the file.
      num_bytes: The size of the file in bytes.
      sha256: The SHA-256 checksum, in hexadecimal digits.
      train: The batches of the train split, in order.
      test: The batches of the test split, in order.
      names: The batch that has the names of the classes.
      labels: For each kind of label, the key of the labels in a batch and the key of their names.
        `load` returns the kind "label".
    """

    url: str
    num_bytes: int
    sha256: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    labels: Mapping[str, tuple[bytes, bytes]]

    @property
    def file_name(self) -> str:
        """The name of the file."""
        return self.url.rsplit("/", 1)[-1]


ARCHIVES = {
    "cifar10": Archive(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        num_bytes=170_498_071,
        sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        train=tuple(f"cifar-10-batches-py/data_batch_{number}" for number in range(1, 6)),
        test=("cifar-10-batches-py/test_batch",),
        names="cifar-10-batches-py/batches.meta",
        labels={"label": (b"labels", b"label_names")},
    ),
    "cifar100": Archive(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        num_bytes=169_001_437,
        sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        train=("cifar-100-python/train",),
        test=("cifar-100-python/test",),
        names="cifar-100-python/meta",
        # The coarse ones make a prepared folder one that tensorflow-datasets' own class reads.
        labels={
            "label": (b"fine_labels", b"fine_label_names"),
            "coarse_label": (b"coarse_labels", b"coarse_label_names"),
        },
    ),
}


def verify(path: Path, archive: Archive) -> None:
    """Raises ValueError unless the file is the archive, byte for byte."""
    got = f"{path.stat().st_size:,} bytes"
    if path.stat().st_size == archive.num_bytes:
        with path.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        if checksum == archive.sha256:
            return
        got = f"SHA-256 {checksum}"
    raise ValueError(
        f"{str(path)!r} is not the official archive, or is incomplete. It must have "
        f"{archive.num_bytes:,} bytes and the SHA-256 {archive.sha256}, got {got}. Delete it, and "
        f"download it again from {archive.url} (or with download=True; in experiments --download)."
    )


def download(archive: Archive, folder: Path) -> Path:
    """Downloads an archive, and prints its progress to stderr.

    Args:
      archive: The archive.
      folder: The folder to download to, which is created if it does not exist.

    Returns:
      The path of the file. The file appears only when it is complete and its checksum is right.

    Raises:
      ConnectionError: There is no connection, the server returns an error or sends nothing for ten
        seconds, or the transfer breaks off.
      OSError: The folder cannot be written to.
      ValueError: The file has another checksum.
    """
    path = folder / archive.file_name
    digest, done = hashlib.sha256(), 0
    say = _Progress(archive)
    folder.mkdir(parents=True, exist_ok=True)
    with cache.scratch(folder) as scratch:
        with (scratch / path.name).open("wb") as file:
            for block in _blocks(archive, path):
                file.write(block)
                digest.update(block)
                done += len(block)
                say(done)
        if done < archive.num_bytes:
            raise ConnectionError(_failed(archive, path, done, "the transfer broke off"))
        if (done, digest.hexdigest()) != (archive.num_bytes, archive.sha256):
            raise ValueError(
                f"{archive.url} must have {archive.num_bytes:,} bytes and the SHA-256 "
                f"{archive.sha256}, got {done:,} bytes and {digest.hexdigest()}: it is another file, "
                "or the answer of a proxy. Nothing was kept."
            )
        os.replace(scratch / path.name, path)
    say.close()
    return path


def _blocks(archive: Archive, path: Path) -> Iterator[bytes]:
    """Yields what the server sends; apart from writing, so that a full disk raises its own error."""
    done = 0
    try:
        with urllib.request.urlopen(archive.url, timeout=_TIMEOUT) as response:
            # One block too many tells another file, and then it may be endless.
            while done <= archive.num_bytes and (block := response.read(_BLOCK)):
                done += len(block)
                yield block
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(_failed(archive, path, done, error)) from error


def _failed(archive: Archive, path: Path, done: int, reason: object) -> str:
    return (
        f"{archive.url} could not be downloaded ({reason}; {done:,} of {archive.num_bytes:,} bytes "
        "were received, none were kept). Try again, or get the file elsewhere and save it as "
        f"{str(path)!r}."
    )


class _Progress:
    """Prints progress: on a terminal it rewrites one line, in a log a line every ten seconds."""

    def __init__(self, archive: Archive) -> None:
        self._archive, self._said = archive, time.monotonic()
        self._on_terminal = sys.stderr.isatty()
        self._print(f"{archive.num_bytes / 1e6:,.0f} MB from {archive.url}")

    def __call__(self, done: int) -> None:
        pause = _TERMINAL_PAUSE if self._on_terminal else _LOG_PAUSE
        if time.monotonic() - self._said >= pause:
            self._said = time.monotonic()
            self._print(f"{done / 1e6:,.0f} of {self._archive.num_bytes / 1e6:,.0f} MB")

    def close(self) -> None:
        self._print("done")
        if self._on_terminal:
            print(file=sys.stderr)

    def _print(self, words: str) -> None:
        start, end = ("\r\033[K", "") if self._on_terminal else ("", "\n")
        line = f"{start}Downloading {self._archive.file_name}: {words}"
        print(line, file=sys.stderr, end=end, flush=True)
