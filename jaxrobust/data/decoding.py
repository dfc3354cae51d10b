"""Images, decoded: from the cache where what they come from has not changed since."""

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
    """The content of an image folder, or of what stands for one.

    Attributes:
      train: The train split, without the damaged files.
      test: The test split, likewise.
      damaged: The files that could not be read, with the reasons.
      class_names: The classes' names.
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
    """Reads from the cache what an earlier call made, or makes it.

    Args:
      title: The beginning of the file's name in the cache.
      identity: JSON values that differ wherever the result may.
      make: Gives the arrays, as `decode_contents` does.
      cache_dir: See `cache.folder`.

    Returns:
      The splits, and the files that are damaged.

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
      folder: The listing; names, sizes and times tell whether the cache still holds.
      image_size: Side in pixels; None keeps the images' own size, which must then be one.
      cache_dir: See `cache.folder`.

    Returns:
      The splits, and the files that are damaged.

    Raises:
      OSError: The cache cannot be written, or a file cannot be read.
      ValueError: No `image_size`, and sizes that differ.
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
    """Decodes the files of a listing, wherever they lie.

    Args:
      folder: The listing.
      read: From names, "<split>/<class>/<file>", to each one's position among them and content.
      image_size: As in `decode`.

    Returns:
      The arrays that `cached` keeps.

    Raises:
      ValueError: No `image_size`, and sizes that differ; not one file that is an image.
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
                f"pixels, {str(paths[index])!r} {width}x{height}. Give `image_size`, to which "
                "all are then resized."
            )
        images[len(kept)] = image
        kept.append(index)
    if images is None:
        raise ValueError(
            f"No file in {str(folder.root)!r} can be read as an image, among them "
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
