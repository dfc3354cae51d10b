"""CIFAR-10 and CIFAR-100, from a prepared folder, from the official archive, or downloaded."""

import os
from pathlib import Path

import numpy as np

from jaxrobust import packages
from jaxrobust.data import archives, cache, decoding, pickled, prepared
from jaxrobust.data.archives import Archive
from jaxrobust.data.pickled import ArchiveSplit, Content


def load(
    name: str,
    root: Path,
    image_size: int | None,
    *,
    download: bool,
    cache_dir: str | os.PathLike[str] | None,
) -> decoding.Decoded:
    """Loads CIFAR-10 or CIFAR-100, from the cache if its source has not changed.

    Args:
      name: One of `archives.ARCHIVES`.
      root: The folder that has "<name>/<version>", as tensorflow-datasets prepares it in the format
        "array_record", or the archive. If there is only the archive and `root` can be written to, such
        a folder is made from it.
      image_size: The side of the images in pixels; None: the original 32.
      download: Whether to download the archive if there is neither.
      cache_dir: The cache folder; see `cache.folder`.

    Returns:
      The splits in the order of the archive. Files are named "<class>/<position in the split>".

    Raises:
      FileNotFoundError: There is neither, and `download` is False.
      ConnectionError: The download failed.
      OSError: A folder cannot be written to, or a file cannot be read.
      ValueError: The archive has another checksum, or the prepared folder is damaged.
    """
    archive = archives.ARCHIVES[name]
    cache.folder(cache_dir)  # before minutes of downloading, rather than after
    content: Content | None = None
    # A prepared folder is read many times faster than the archive: one is made where that can be.
    folder = prepared.find(root, name)
    identity = None if folder is None else prepared.identity(folder)
    if folder is None:
        path = _archive(archive, name, root, download)
        if os.access(root, os.W_OK):
            content = _content(path, archive)
            folder = prepared.write(content, root, name)
            identity = prepared.identity(folder)
        else:  # the cache alone then spares the next call the archive
            status = path.stat()
            identity = [str(path.resolve()), status.st_size, status.st_mtime_ns]

    # Only where the cache has nothing for this identity is anything read.
    def make() -> dict[str, np.ndarray]:
        if content is not None:
            return _arrays(content, image_size)
        if folder is not None:
            return _arrays(prepared.read(folder), image_size)
        return _arrays(_content(path, archive), image_size)

    return decoding.cached(name, [identity, image_size], make, cache_dir)


def _archive(archive: Archive, name: str, root: Path, download: bool) -> Path:
    """Returns the path of the archive, and downloads it if it is missing and `download` is True."""
    places = [root / archive.file_name, root / name / archive.file_name]
    for path in places:
        if path.is_file():
            return path
    if download:
        return archives.download(archive, root)
    raise FileNotFoundError(
        f"There is no {name!r} in {str(root)!r}. Put one of these there:\n"
        f"  {archive.file_name}, not unpacked, from {archive.url}\n"
        f"  {name}/<version>, as tensorflow-datasets prepares it with file_format='array_record'\n"
        f"or pass download=True (in experiments --download), which downloads the archive "
        f"({archive.num_bytes / 1e6:,.0f} MB)."
    )


def _content(path: Path, archive: Archive) -> Content:
    archives.verify(path, archive)
    return pickled.read(path, archive)


def _arrays(content: Content, image_size: int | None) -> dict[str, np.ndarray]:
    names = content.names["label"]
    splits = (content.train, content.test)
    files = [file for split in splits for file in _files(split, names)]
    images = np.concatenate([split.images for split in splits])
    return {
        "images": images if image_size in (None, pickled.SIDE) else _resized(images, image_size),
        "labels": np.concatenate([split.labels["label"] for split in splits]).astype(np.int32),
        "files": np.array(files, np.str_),
        "train_end": np.array(len(content.train.images)),
        "damaged": np.array("[]"),
        "class_names": np.array(names, np.str_),
    }


def _files(split: ArchiveSplit, names: tuple[str, ...]) -> list[str]:
    labels = split.labels["label"].tolist()
    return [f"{names[label]}/{row:05d}" for row, label in enumerate(labels)]


def _resized(images: np.ndarray, side: int | None) -> np.ndarray:
    with packages.extra("data", "Resizing images"):
        from PIL import Image

    assert side is not None
    resized = np.empty((len(images), side, side, 3), np.uint8)
    for row, image in enumerate(images):
        picture = Image.fromarray(image)
        resized[row] = np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC))
    return resized
