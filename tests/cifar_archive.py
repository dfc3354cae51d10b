"""Small archives in the layout of the official ones, for the tests of CIFAR."""

import dataclasses
import hashlib
import io
import struct
import tarfile
from pathlib import Path

import numpy as np

from jaxrobust import data
from jaxrobust.data import archives

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PER_BATCH = 4
NUM_TEST = 3


def python2_pickle(value: object) -> bytes:
    """Pickles as Python 2 and its numpy did, protocol 2: a string is neither bytes nor text.

    Python 3 cannot write that.
    """
    return b"\x80\x02" + _written(value) + b"."


def _written(value: object) -> bytes:
    if isinstance(value, bytes):
        return b"T" + struct.pack("<i", len(value)) + value
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(_written, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_written(v) for pair in value.items() for v in pair) + b"u"
    assert isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 2
    new = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + _written(0) + b"\x85"
    new += _written(b"b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + b"".join(map(_written, (b"u1", 0, 1))) + b"\x87R"
    dtype += (
        b"(" + _written(3) + _written(b"|") + b"NNN" + b"".join(map(_written, (-1, -1, 0))) + b"tb"
    )
    shape = b"".join(map(_written, value.shape)) + b"\x86"
    return new + b"(" + _written(1) + shape + dtype + b"\x89" + _written(value.tobytes()) + b"tb"


def images_and_labels(seed: int, count: int, num_classes: int) -> tuple[np.ndarray, list[int]]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
    return images, rng.integers(0, num_classes, count).tolist()


def batch(seed: int, count: int, num_classes: int, **labels: list[int]) -> dict[bytes, object]:
    images, _ = images_and_labels(seed, count, num_classes)
    content: dict[bytes, object] = {
        b"data": images.transpose(0, 3, 1, 2).reshape(count, -1),
        b"filenames": [b"photo_s_%06d.png" % row for row in range(count)],
        b"batch_label": b"a batch",
    }
    return content | {key.encode(): values for key, values in labels.items()}


def members(name: str, per_batch: int = PER_BATCH, num_test: int = NUM_TEST) -> dict[str, bytes]:
    """The files of a small archive: batch k has the images and labels of seed k, test those of 9."""
    if name == "cifar10":
        names = [b"airplane", b"automobile", b"bird", b"cat", b"deer"]
        names += [b"dog", b"frog", b"horse", b"ship", b"truck"]
        batches = {f"data_batch_{seed}": (seed, per_batch) for seed in range(1, 6)}
        batches["test_batch"] = (9, num_test)
        found = {
            member: batch(seed, count, 10, labels=images_and_labels(seed, count, 10)[1])
            for member, (seed, count) in batches.items()
        }
        found["batches.meta"] = {b"num_cases_per_batch": per_batch, b"label_names": names}
        folder = "cifar-10-batches-py"
    else:
        found = {}
        for member, (seed, count) in {"train": (1, per_batch), "test": (9, num_test)}.items():
            fine = images_and_labels(seed, count, 100)[1]
            coarse = [label // 5 for label in fine]
            found[member] = batch(seed, count, 100, fine_labels=fine, coarse_labels=coarse)
        found["meta"] = {
            b"fine_label_names": [b"fine_%d" % label for label in range(100)],
            b"coarse_label_names": [b"coarse_%d" % label for label in range(20)],
        }
        folder = "cifar-100-python"
    return {f"{folder}/{member}": python2_pickle(content) for member, content in found.items()}


def write(path: Path, content: dict[str, bytes]) -> Path:
    """A tar file of these files, with the folders' own entries, as the official ones have."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = "w:" + path.suffix.removeprefix(".")
    with tarfile.open(path, mode) as archive:
        for folder in sorted({str(Path(name).parent) for name in content}):
            entry = tarfile.TarInfo(folder)
            entry.type = tarfile.DIRTYPE
            archive.addfile(entry)
        for name, bytes_ in content.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(bytes_)
            archive.addfile(entry, io.BytesIO(bytes_))
    return path


def official(name: str, content: bytes, url: str | None = None) -> archives.Archive:
    """What `archives.ARCHIVES` would say of an archive if this were the official one."""
    known = archives.ARCHIVES[name]
    return dataclasses.replace(
        known,
        url=url or known.url,
        num_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def check(dataset: data.Dataset, name: str) -> None:
    """Images, labels and files of the small archive, in its order."""
    num_classes, seeds = (10, range(1, 6)) if name == "cifar10" else (100, [1])
    train = [images_and_labels(seed, PER_BATCH, num_classes) for seed in seeds]
    test = [images_and_labels(9, NUM_TEST, num_classes)]
    for split, parts in ((dataset.train, train), (dataset.test, test)):
        np.testing.assert_array_equal(split.images, np.concatenate([part[0] for part in parts]))
        np.testing.assert_array_equal(split.labels, np.concatenate([part[1] for part in parts]))
        named = [dataset.class_names[label] for label in split.labels]
        assert split.files == tuple(f"{name}/{row:05d}" for row, name in enumerate(named))
        assert split.labels.dtype == np.int32 and not split.images.flags.writeable
    assert dataset.num_classes == num_classes and dataset.name == name
