"""Reads the archives of CIFAR, tar files of pickled batches, without unpacking or trusting them.

A pickle is a program that may call any function. Here it may call only those that make a numpy array,
so that the result can only contain dictionaries, lists, numbers, strings, bytes and arrays.
"""

import io
import lzma
import pickle
import tarfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrobust.data.archives import Archive

SIDE = 32  # pixels
_CHANNELS = 3


class ArchiveSplit(NamedTuple):
    """Images and their labels, in the order of the archive.

    Attributes:
      images: uint8 [N, 32, 32, 3].
      labels: int64 [N] for each kind of label.
    """

    images: np.ndarray
    labels: dict[str, np.ndarray]


class Content(NamedTuple):
    """The content of an archive.

    Attributes:
      train: The train split.
      test: The test split.
      names: The names of the classes for each kind of label.
    """

    train: ArchiveSplit
    test: ArchiveSplit
    names: dict[str, tuple[str, ...]]


def read(path: Path, archive: Archive) -> Content:
    """Reads an archive.

    Args:
      path: The tar file, compressed or not.
      archive: The description of its content.

    Raises:
      OSError: The file cannot be read.
      ValueError: It is not a tar file, a batch is missing, or a batch has other content.
    """
    wanted = [*archive.train, *archive.test, archive.names]
    found: dict[str, dict[Any, Any]] = {}
    try:
        with tarfile.open(path) as tar:
            # In the order in which they lie: a compressed archive cannot be read in any other.
            for member in tar:
                name = member.name.removeprefix("./")
                if name in wanted and member.isfile():
                    file = tar.extractfile(member)
                    assert file is not None  # as of every regular file
                    found[name] = unpickle(file.read(), f"{path}: {name}")
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{path} cannot be read as a tar file: {error}") from error
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(f"{path} must have {', '.join(wanted)}; {', '.join(missing)} is missing.")

    def split(members: tuple[str, ...]) -> ArchiveSplit:
        parts = [_batch(found[name], archive, f"{path}: {name}") for name in members]
        kinds = {kind: [part.labels[kind] for part in parts] for kind in archive.labels}
        return ArchiveSplit(
            np.concatenate([part.images for part in parts]),
            {kind: np.concatenate(labels) for kind, labels in kinds.items()},
        )

    names = {
        kind: _class_names(found[archive.names], key, f"{path}: {archive.names}")
        for kind, (_, key) in archive.labels.items()
    }
    # Only now is it known how many names there are, which labels must not exceed.
    content = Content(split(archive.train), split(archive.test), names)
    for batch in content[:2]:
        for kind, labels in batch.labels.items():
            if labels.min(initial=0) < 0 or labels.max(initial=0) >= len(names[kind]):
                raise ValueError(
                    f"{path}: `{kind}` must be 0 to {len(names[kind]) - 1}, one for each name, got "
                    f"{labels.min()} to {labels.max()}."
                )
    return content


def _batch(batch: dict[Any, Any], archive: Archive, where: str) -> ArchiveSplit:
    pixels = batch.get(b"data")
    width = _CHANNELS * SIDE * SIDE
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2:
        raise ValueError(f"{where} must hold `data`, uint8 [N, {width}].")
    labels = {}
    for kind, (key, _) in archive.labels.items():
        values = np.asarray(batch.get(key))
        if values.shape != pixels.shape[:1] or not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"{where} must hold `{key.decode()}`, an integer for each image.")
        labels[kind] = values.astype(np.int64)
    if pixels.shape[1] != width:
        raise ValueError(f"{where} must hold `data` of [N, {width}], got {pixels.shape}.")
    # All of red, then all of green, then all of blue.
    planes = pixels.reshape(-1, _CHANNELS, SIDE, SIDE)
    return ArchiveSplit(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels)


def _class_names(batch: dict[Any, Any], key: bytes, where: str) -> tuple[str, ...]:
    names = batch.get(key)
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        raise ValueError(f"{where} must hold `{key.decode()}`, a list of names.")
    return tuple(name.decode() for name in names)


def unpickle(content: bytes, where: str) -> dict[Any, Any]:
    r"""Reads a pickled dictionary of arrays, lists, numbers, strings and bytes, and of nothing else.

    Args:
      content: The pickle. Python 2's strings become bytes.
      where: What the error messages call it.

    Raises:
      ValueError: It names any other class or function (which is not imported), is damaged, or is not a
        dictionary.

    Example:
      >>> unpickle(pickle.dumps({"a": [1, b"2"]}), "batch")
      {'a': [1, b'2']}
      >>> unpickle(b"cos\nsystem\n(S'echo harm'\ntR.", "batch")
      Traceback (most recent call last):
      ...
      ValueError: batch was not read: its pickle asks for os.system, and only arrays are allowed.
    """
    try:
        value = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except _RefusedError as refused:
        raise ValueError(
            f"{where} was not read: its pickle asks for {refused}, and only arrays are allowed."
        ) from None
    except Exception as error:  # a damaged pickle can run into any of them
        raise ValueError(
            f"{where} is not a pickle that can be read: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be a pickled dictionary, got {type(value).__name__}.")
    return value


class _RefusedError(Exception):
    """The message is the name that was refused."""


def _latin1(text: str, encoding: str) -> bytes:
    """The function that Python 3 calls to restore bytes from protocol 2."""
    if encoding != "latin1":
        raise _RefusedError(f"the encoding {encoding!r}")
    return text.encode("latin1")


# numpy's own function that restores an array; its module was renamed in numpy 2, and so both are known.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise _RefusedError(f"{module}.{name}")
        return _ALLOWED[module, name]
