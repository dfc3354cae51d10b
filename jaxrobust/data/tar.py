"""Data sets of images in a tar file, <split>/<class>/<image>, which is read without unpacking it."""

import lzma
import os
import tarfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np

from jaxrobust.data import decoding
from jaxrobust.data.folder import File, ImageFolder, is_hidden

_SPLITS = ("train", "test")


def decode(
    path: Path,
    image_size: int | None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> decoding.Decoded:
    """Decodes the images of a tar file, or reads what an earlier call decoded.

    The images are in the order of their names, as in an image folder, not in that of the tar file.

    Args:
      path: The tar file, compressed or not. The cache is used if its size and time are unchanged.
      image_size: The side of the images in pixels; None: their own size, which must be the same.
      cache_dir: The cache folder; see `cache.folder`.

    Returns:
      The splits and the damaged files.

    Raises:
      OSError: The cache cannot be written, or the file cannot be read.
      ValueError: The file is not a complete tar file, has another layout, or has images of different
        sizes while `image_size` is None.
    """
    status = path.stat()

    def make() -> dict[str, np.ndarray]:
        listing, contents = _read(path)
        return decoding.decode_contents(
            listing, lambda names: enumerate(contents[name] for name in names), image_size
        )

    identity = [str(path.resolve()), status.st_size, status.st_mtime_ns, image_size]
    return decoding.cached(path.name, identity, make, cache_dir)


def _read(path: Path) -> tuple[ImageFolder, dict[str, bytes]]:
    """Returns the listing and the contents by name. The tar file is read once, from front to back."""
    contents: dict[str, bytes] = {}
    files: dict[str, dict[str, list[File]]] = {split: {} for split in _SPLITS}
    try:
        with tarfile.open(path) as archive:
            # Contents are kept as they come: going back in a compressed archive would read it anew.
            for member in archive:
                parts = PurePosixPath(member.name).parts
                if member.isdir() or len(parts) < 3 or any(map(is_hidden, parts)):
                    continue  # as in a folder: nothing that lies beside the classes counts
                name = "/".join(parts)
                if parts[0] not in files or len(parts) > 3:
                    raise ValueError(
                        f"{path} must have train/<class>/<image> and test/<class>/<image>, "
                        f"got {member.name!r}."
                    )
                content = archive.extractfile(member) if member.isfile() else None
                if content is not None:
                    contents[name] = content.read()
                problem = None if content is not None else "not a file, or a link"
                of_class = files[parts[0]].setdefault(parts[1], [])
                of_class.append(
                    File("/".join(parts[1:]), -1, member.size, int(member.mtime), problem)
                )
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(
            f"{path} cannot be read as a tar file, or is incomplete: {error}."
        ) from error
    # Labels are places among the sorted names, so both splits must have the same classes.
    train, test = (set(files[split]) for split in _SPLITS)
    if train != test or not train:
        raise ValueError(
            f"{path} must have the same classes in train and test, at least one; of "
            f"{len(train)} and {len(test)}, {sorted(train ^ test)[:5]} are in only one of them."
        )
    class_names = tuple(sorted(train))
    of_split = {
        split: tuple(
            file._replace(label=label)
            for label, name in enumerate(class_names)
            for file in sorted(files[split][name])
        )
        for split in _SPLITS
    }
    return ImageFolder(path, "test", class_names, of_split["train"], of_split["test"]), contents
