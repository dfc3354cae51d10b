"""Decoding of image folders, with a cache that is used while the files do not change."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxrobust import packages
from jaxrobust.data import array_records, cache, image_files
from jaxrobust.data.dataset import SkippedFile, Split
from jaxrobust.data.folder import ImageFolder

# Counts up whenever the same files would decode to other pixels, or the cache's layout changes.
_VERSION = 2


class Decoded(NamedTuple):
    """The decoded content of an image folder, or of a similar source.

    Attributes:
      train: The train split, without the damaged files.
      test: The test split, without the damaged files.
      damaged: The files that could not be read, with the reasons.
      class_names: The names of the classes.
    """

    train: Split
    test: Split
    damaged: tuple[SkippedFile, ...]
    class_names: tuple[str, ...]


def cached(
    title: str,
    identity: object,
    make: Callable[[], dict[str, np.ndarray]],
    cache_dir: str | os.PathLike[str] | None = None,
) -> Decoded:
    """Reads the result of an earlier call from the cache, or makes it.

    Args:
      title: The beginning of the name of the file in the cache.
      identity: JSON values that identify the result.
      make: A function that makes the arrays, as `decode_contents` does.
      cache_dir: The cache folder; see `cache.folder`.

    Returns:
      The splits and the damaged files.

    Raises:
      OSError: The cache cannot be written.
    """
    with packages.extra("data", "Reading images"):
        import PIL

    place = cache.folder(cache_dir)
    # Pillow's version, because another JPEG library may round otherwise.
    key = cache.key([_VERSION, PIL.__version__, identity])
    path = place / f"{title[:50]}-{key}.npz"
    arrays = cache.read(path)
    if arrays is None:
        arrays = make()
        cache.write(path, arrays)
    images, labels, files = arrays["images"], arrays["labels"], arrays["files"].tolist()
    train_end = int(arrays["train_end"])
    return Decoded(
        train=Split(images[:train_end], labels[:train_end], files[:train_end]),
        test=Split(images[train_end:], labels[train_end:], files[train_end:]),
        damaged=tuple(SkippedFile(*row) for row in json.loads(str(arrays["damaged"]))),
        class_names=tuple(arrays["class_names"].tolist()),
    )


def decode(
    folder: ImageFolder,
    image_size: int | None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Decoded:
    """Decodes an image folder, or reads what an earlier call decoded.

    Args:
      folder: The listing of the folder. The cache is used if names, sizes and times are unchanged.
      image_size: The side of the images in pixels; None: their own size, which must be the same.
      cache_dir: The cache folder; see `cache.folder`.

    Returns:
      The splits and the damaged files.

    Raises:
      OSError: The cache cannot be written, or a file cannot be read.
      ValueError: `image_size` is None and the images differ in size.
    """
    identity = [str(folder.root), folder.test_split, folder.train, folder.test, image_size]
    place = cache.folder(cache_dir)
    return cached(
        folder.root.name, identity, lambda: _decode_files(folder, image_size, place), cache_dir
    )


def _decode_files(
    folder: ImageFolder, image_size: int | None, place: Path
) -> dict[str, np.ndarray]:
    with cache.scratch(place) as scratch:
        return decode_contents(
            folder,
            lambda names: array_records.contents([folder.root / name for name in names], scratch),
            image_size,
        )


def decode_contents(
    folder: ImageFolder,
    read: Callable[[Sequence[str]], Iterable[tuple[int, bytes]]],
    image_size: int | None,
) -> dict[str, np.ndarray]:
    """Decodes the files of a listing, from any kind of storage.

    Args:
      folder: The listing.
      read: A function from names, "<split>/<class>/<file>", to (position among the names, content).
      image_size: The side of the images in pixels; None: their own size, which must be the same.

    Returns:
      The arrays that `cached` stores.

    Raises:
      ValueError: `image_size` is None and the images differ in size, or no file is an image.
    """
    files = [*folder.train, *folder.test]
    names = [f"train/{file.name}" for file in folder.train]
    names += [f"{folder.test_split}/{file.name}" for file in folder.test]
    paths = [folder.root / name for name in names]
    reasons = {i: file.problem for i, file in enumerate(files) if file.problem is not None}
    openable = [i for i in range(len(files)) if i not in reasons]

    images = None  # all of them, allocated once the first has told the size
    kept: list[int] = []
    # Files that are damaged are told all together, so one of them must not end the reading.
    for position, content in read([names[i] for i in openable]):
        index = openable[position]
        try:
            image = image_files.decode(content, image_size)
        except image_files.DamagedImageError as error:
            reasons[index] = str(error)
            continue
        if images is None:
            images = np.empty((len(openable), *image.shape), np.uint8)
        elif image.shape != images.shape[1:]:
            (height, width), first = image.shape[:2], images.shape[1:]
            raise ValueError(
                f"The images differ in size: {str(paths[kept[0]])!r} has {first[1]}x{first[0]} "
                f"pixels, {str(paths[index])!r} {width}x{height}. Give `image_size` to resize all of "
                "them."
            )
        images[len(kept)] = image
        kept.append(index)
    if images is None:
        raise ValueError(
            f"No file in {str(folder.root)!r} can be read as an image, for example "
            f"{str(paths[0])!r}: {reasons[0]}."
        )
    # The images without those that are damaged; where they lie is told by name.
    damaged = [(names[i], reasons[i]) for i in sorted(reasons)]
    return {
        "images": images[: len(kept)],
        "labels": np.array([files[i].label for i in kept], np.int32),
        "files": np.array([files[i].name for i in kept], np.str_),
        "train_end": np.array(sum(i < len(folder.train) for i in kept)),
        "damaged": np.array(json.dumps(damaged)),
        "class_names": np.array(folder.class_names, np.str_),
    }
