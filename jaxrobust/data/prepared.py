"""CIFAR in the format of tensorflow-datasets: a folder <name>/<version> of ArrayRecord shards.

tensorflow-datasets can read what this module writes, and this module can read what tensorflow-datasets
writes. Neither needs TensorFlow.
"""

import functools
import io
import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxrobust.data import array_records, cache, image_files
from jaxrobust.data.pickled import SIDE, ArchiveSplit, Content

# Of tensorflow-datasets' class: same features, same images, same version.
_VERSION = "3.0.2"
_INFO = "dataset_info.json"


def find(root: Path, name: str) -> Path | None:
    """Finds the prepared folder of a data set: root/<name>/<version>, root/<version> or root itself.

    If there are several versions, it is the one with the highest number; if there is none, None.

    Raises:
      ValueError: The folder has another format than ArrayRecord.
    """
    for base in (root / name, root):
        found = [info.parent for info in base.glob(f"[0-9]*/{_INFO}")]
        found.sort(key=lambda folder: [int(n) for n in folder.name.split(".") if n.isdecimal()])
        for folder in [*found[::-1], base]:
            about = _about(folder)
            if about.get("name") != name:
                continue
            if about.get("fileFormat") != "array_record":
                raise ValueError(
                    f"{str(folder)!r} must have the format 'array_record', got "
                    f"{about.get('fileFormat', 'tfrecord')!r}, which cannot be read without "
                    "TensorFlow. Prepare it again with file_format='array_record', or give another "
                    "`data_dir`."
                )
            return folder
    return None


def _about(folder: Path) -> dict[str, Any]:
    try:
        about = json.loads((folder / _INFO).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def identity(folder: Path) -> list[object]:
    """Returns what identifies a prepared folder: its path, and the sizes and times of its files."""
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    files = [(e.name, e.stat().st_size, e.stat().st_mtime_ns) for e in entries]
    return [str(folder.resolve()), files]


def write(content: Content, root: Path, name: str) -> Path:
    """Writes a prepared folder, atomically.

    Args:
      content: The splits.
      root: An existing folder that can be written to.
      name: The name of the data set.

    Returns:
      The folder, root/<name>/<version>.
    """
    target = root / name / _VERSION
    # Shards are written elsewhere first: whoever reads finds all of them or none.
    with cache.scratch(root) as scratch:
        builder = _builder_class(name)(content, data_dir=scratch, file_format="array_record")
        array_records.prepare(builder)
        target.parent.mkdir(exist_ok=True)
        try:
            os.rename(scratch / name / _VERSION, target)
        except OSError:
            if find(root, name) != target:  # another process was faster
                raise
    return target


def read(folder: Path) -> Content:
    """Reads a prepared folder, in the order of the official archive.

    Args:
      folder: The folder that `find` returned.

    Returns:
      The splits, with the labels named "label" only.

    Raises:
      ValueError: The folder is damaged, or has other features.
    """
    tfds = array_records.tensorflow_datasets()

    try:
        builder = tfds.builder_from_directory(folder)
        features, splits = builder.info.features, builder.info.splits
        missing = {"id", "image", "label"} - set(features) or {"train", "test"} - set(splits)
        if not missing:
            names = {"label": tuple(features["label"].names)}
            return Content(_read(builder, "train"), _read(builder, "test"), names)
    except Exception as error:  # of protobuf, ArrayRecord, JSON or the file system
        raise ValueError(
            f"{str(folder)!r} cannot be read ({type(error).__name__}: {error}). Delete it, and it "
            "is prepared again."
        ) from error
    raise ValueError(
        f"{str(folder)!r} must have the features id, image and label and the splits train and "
        f"test; {', '.join(sorted(missing))} is missing."
    )


def _read(builder: Any, split: str) -> ArchiveSplit:
    tfds = array_records.tensorflow_datasets()

    skip = {"image": tfds.decode.SkipDecoding()}
    source = builder.as_data_source(split=split, decoders=skip)
    images = np.empty((len(source), SIDE, SIDE, 3), np.uint8)
    labels, ids = np.empty(len(source), np.int64), []
    for row, example in enumerate(array_records.examples(source)):
        images[row], labels[row] = image_files.decode(example["image"]), example["label"]
        ids.append(example["id"])
    # tensorflow-datasets shuffles what it writes; the ids count through the archive.
    order = np.argsort(np.array(ids), kind="stable")
    return ArchiveSplit(images[order], {"label": labels[order]})


@functools.cache
def _builder_class(dataset_name: str) -> Any:
    """Returns the builder; in a function, because its base class is slow to import."""
    tfds = array_records.tensorflow_datasets()

    class Cifar(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore
        """Images with their labels, with the features of tensorflow-datasets' own builder."""

        name = dataset_name
        VERSION = tfds.core.Version(_VERSION)

        def __init__(self, content: Content, **kwargs: Any) -> None:
            self._content = content
            super().__init__(**kwargs)

        # The features of the official builder, so that its readers take this folder for theirs.
        def _info(self) -> Any:
            classes = {
                kind: tfds.features.ClassLabel(names=names)
                for kind, names in self._content.names.items()
            }
            image = tfds.features.Image(shape=(SIDE, SIDE, 3))
            features = {"id": tfds.features.Text(), "image": image, **classes}
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            del dl_manager  # the archive is there already
            return {
                split: self._generate_examples(split, getattr(self._content, split))
                for split in ("train", "test")
            }

        # In the order of the archive, which `disable_shuffling` keeps.
        def _generate_examples(
            self, split: str, batch: ArchiveSplit
        ) -> Iterator[tuple[int, dict[str, Any]]]:
            labels = {kind: values.tolist() for kind, values in batch.labels.items()}
            for row, image in enumerate(batch.images):
                example = {kind: values[row] for kind, values in labels.items()}
                example |= {"id": f"{split}_{row:05d}", "image": io.BytesIO(_png(image))}
                yield row, example

    return Cifar


def _png(image: np.ndarray) -> bytes:
    """Encodes an RGB image [H, W, 3] as PNG without compression, which would save only 5 %.

    It does not use Pillow, which takes several times as long for images of 32 pixels.
    """
    height, width, _ = image.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # 0 in front of a row: it is not filtered
    rows[:, 1:] = image.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits a channel, RGB
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 0)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
