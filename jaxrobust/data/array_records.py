"""Reads files through tensorflow-datasets, without TensorFlow and without an internet connection.

A builder copies the bytes of the files into ArrayRecord shards, which are read back as a random access
data source. Neither step decodes the files, which would need TensorFlow or OpenCV.
"""

import contextlib
import functools
import io
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrobust import packages

# Two threads that redirect the output at once may restore each other's.
_OUTPUT_LOCK = threading.Lock()
_READ_AT_ONCE = 64  # examples, which may be photographs of some megabytes


def tensorflow_datasets() -> Any:
    """Imports tensorflow-datasets, and array_record, which it would import only for a shard."""
    with packages.extra("data", "Reading a data set"):
        import array_record  # noqa: F401
        import tensorflow_datasets
    return tensorflow_datasets


@functools.cache
def _builder_class() -> Any:
    """Returns the builder; in a function, because its base class is slow to import."""
    tfds = tensorflow_datasets()

    class ImageFiles(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore
        """Encoded images, numbered in the order in which their paths were given."""

        VERSION = tfds.core.Version("1.0.0")

        def __init__(self, paths: Sequence[Path], **kwargs: Any) -> None:
            self._paths = paths
            super().__init__(**kwargs)

        def _info(self) -> Any:
            features = {
                "image": tfds.features.Image(),
                "index": tfds.features.Scalar(dtype=np.int64),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        # One split of all files: it is a way to read them, not a data set.
        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            del dl_manager  # nothing is downloaded
            return {"files": self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
            for index, path in enumerate(self._paths):
                yield index, {"image": path.read_bytes(), "index": index}

    return ImageFiles


def contents(paths: Sequence[Path], folder: Path) -> Iterator[tuple[int, bytes]]:
    """Copies files into ArrayRecord shards and reads them back.

    Args:
      paths: The paths of the files.
      folder: An existing, empty folder for the shards.

    Yields:
      (position in `paths`, bytes of the file), in the order of `paths`.
    """
    if not paths:  # a builder that generates nothing is an error
        return
    tfds = tensorflow_datasets()

    builder = _builder_class()(paths, data_dir=folder, file_format="array_record")
    prepare(builder)
    skip = {"image": tfds.decode.SkipDecoding()}
    for example in examples(builder.as_data_source(split="files", decoders=skip)):
        yield int(example["index"]), example["image"]


def examples(source: Any) -> Iterator[dict[str, Any]]:
    """Yields the examples of a data source in order; in batches, which is three times as fast."""
    for start in range(0, len(source), _READ_AT_ONCE):
        yield from source.__getitems__(range(start, min(start + _READ_AT_ONCE, len(source))))


def prepare(builder: Any) -> None:
    """Lets a builder of tensorflow-datasets write its shards, without any output."""
    tfds = tensorflow_datasets()

    config = tfds.download.DownloadConfig(
        try_download_gcs=False, compute_stats=tfds.download.ComputeStatsMode.SKIP
    )
    # It announces a download and draws progress bars for what is a copy of local files.
    quiet = io.StringIO()
    with _OUTPUT_LOCK, contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        builder.download_and_prepare(download_config=config)
