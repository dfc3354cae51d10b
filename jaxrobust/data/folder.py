"""Image folders: <folder>/<split>/<class>/<file>.

Classes, and files within them, are in the order in which Python sorts their names, so that "10.jpg"
comes before "2.jpg". The order does not depend on the file system.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_CLUTTER = ("Thumbs.db", "desktop.ini", "__MACOSX")


class File(NamedTuple):
    """A file in a class folder.

    Attributes:
      name: The name, "<class>/<file>".
      label: The index of its class among the sorted class names.
      size: The size in bytes.
      mtime: The time of its last change, in nanoseconds.
      problem: Why it cannot be opened; None if it can.
    """

    name: str
    label: int
    size: int
    mtime: int
    problem: str | None


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """The listing of an image folder: names and sizes, without content.

    Attributes:
      root: The absolute path of the folder.
      test_split: The name of the folder that holds the test split.
      class_names: The sorted names of the class folders.
      train: The files of the train split.
      test: The files of the test split.
    """

    root: Path
    test_split: str
    class_names: tuple[str, ...]
    train: tuple[File, ...]
    test: tuple[File, ...]


def scan(root: Path, test_split: str) -> ImageFolder:
    """Lists an image folder.

    Args:
      root: The folder, which has the folders "train" and `test_split`, each with a folder per class.
      test_split: The name of the folder of the test split.

    Raises:
      FileNotFoundError: A split is missing.
      ValueError: A split has no class, the classes of the splits differ, or a class is empty or
        contains a folder.
    """
    root = root.resolve()
    classes = {split: _class_names(root / split) for split in ("train", test_split)}
    for split, other in (("train", test_split), (test_split, "train")):
        missing = sorted(set(classes[other]) - set(classes[split]))
        if missing:
            raise ValueError(
                "Both splits must have the same classes, but there is "
                f"{str(root / other / missing[0])!r} and no {str(root / split / missing[0])!r} "
                f"({len(missing)} missing in {split!r})."
            )
    return ImageFolder(
        root=root,
        test_split=test_split,
        class_names=classes["train"],
        train=_files(root / "train", classes["train"]),
        test=_files(root / test_split, classes["train"]),
    )


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is made by an operating system, and is not data."""
    return name.startswith(".") or name in _CLUTTER


def _class_names(split: Path) -> tuple[str, ...]:
    if not split.is_dir():
        raise FileNotFoundError(
            f"There is no folder {str(split)!r}. The images of an image folder must be at "
            "<folder>/<split>/<class>/<image>, with the splits 'train' and 'test' (or 'valid', "
            "'val', or the name given as `test_split`)."
        )
    names = sorted(e.name for e in os.scandir(split) if e.is_dir() and not is_hidden(e.name))
    if not names:
        raise ValueError(f"{str(split)!r} must have a folder for each class, got none.")
    return tuple(names)


def _files(split: Path, class_names: Sequence[str]) -> tuple[File, ...]:
    files: list[File] = []
    for label, class_name in enumerate(class_names):
        entries = [e for e in os.scandir(split / class_name) if not is_hidden(e.name)]
        if not entries:
            raise ValueError(f"The class folder {str(split / class_name)!r} is empty.")
        for entry in sorted(entries, key=lambda e: e.name):
            if entry.is_dir():
                raise ValueError(
                    f"A class folder must contain only images, but {entry.path!r} is a folder: put "
                    "the images directly into <split>/<class>/."
                )
            files.append(_file(f"{class_name}/{entry.name}", label, entry))
    return tuple(files)


def _file(name: str, label: int, entry: "os.DirEntry[str]") -> File:
    if not entry.is_file():  # follows links: a device, a pipe (reading would hang) or a dead link
        return File(name, label, 0, 0, "not a file, or a link to nothing")
    status = entry.stat()
    readable = os.access(entry.path, os.R_OK)
    problem = None if readable else "no permission to read it"
    return File(name, label, status.st_size, status.st_mtime_ns, problem)
