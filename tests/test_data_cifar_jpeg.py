"""CIFAR-10 as JPEG: tar files and folders."""

import io
import os
import time

import cifar_archive
import numpy as np
import pytest
from PIL import Image

from jaxrobust import data, studies
from jaxrobust.data import decoding

pytestmark = pytest.mark.usefixtures("cache_dir")  # a cache for each test


def jpeg_members(classes=("cat", "airplane"), count=2):
    """Files of a tar file, not in their order."""
    content = {}
    for split in ("test", "train"):
        for name in classes:
            for row in reversed(range(count)):
                image = cifar_archive.images_and_labels(len(content), 1, 10)[0][0]
                buffer = io.BytesIO()
                Image.fromarray(image).save(buffer, "JPEG")
                content[f"{split}/{name}/{row:04d}.jpg"] = buffer.getvalue()
    return content


@pytest.fixture
def tar_file(tmp_path):
    return cifar_archive.write(tmp_path / "place" / "cifar10-jpeg.tar.xz", jpeg_members())


def check_jpeg(loaded):
    assert loaded.class_names == ("airplane", "cat") and loaded.name == "cifar10_jpeg"
    content = jpeg_members()
    for name, split in (("train", loaded.train), ("test", loaded.test)):
        assert split.files == tuple(
            f"{c}/000{row}.jpg" for c in ("airplane", "cat") for row in (0, 1)
        )
        np.testing.assert_array_equal(split.labels, [0, 0, 1, 1])
        for image, file in zip(split.images, split.files, strict=True):
            expected = Image.open(io.BytesIO(content[f"{name}/{file}"]))
            np.testing.assert_array_equal(image, np.asarray(expected))
    np.testing.assert_allclose(loaded.mean, [0.4914, 0.4822, 0.4465])
    np.testing.assert_allclose(loaded.std, [0.2470, 0.2435, 0.2616])


def test_jpeg_from_the_tar_file_or_its_folder(tar_file, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    check_jpeg(data.load("cifar10_jpeg", tar_file))
    check_jpeg(data.load("cifar10_jpeg", tar_file.parent))
    assert [p for p in sorted(tmp_path.rglob("*")) if "cache" not in p.parts] == before


@pytest.mark.parametrize("below", ["", "cifar10_jpeg"])
def test_jpeg_from_the_unpacked_folder(tmp_path, below):
    for name, content in jpeg_members().items():
        path = tmp_path / "unpacked" / below / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    check_jpeg(data.load("cifar10_jpeg", tmp_path / "unpacked"))


@pytest.mark.parametrize("suffix", ["tar", "gz", "bz2"])
def test_jpeg_tar_file_of_another_compression(tmp_path, suffix):
    path = cifar_archive.write(tmp_path / "file.gz", jpeg_members())
    if suffix == "tar":
        import gzip

        path = tmp_path / "file.tar"
        path.write_bytes(gzip.decompress((tmp_path / "file.gz").read_bytes()))
    elif suffix == "bz2":
        path = cifar_archive.write(tmp_path / "file.bz2", jpeg_members())
    check_jpeg(data.load("cifar10_jpeg", path))


def test_jpeg_is_read_once(tar_file, monkeypatch):
    first = data.load("cifar10_jpeg", tar_file)
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "decode_contents", None)
        second = data.load("cifar10_jpeg", tar_file)
    np.testing.assert_array_equal(first.train.images, second.train.images)
    os.utime(tar_file, ns=(0, 1000))
    monkeypatch.setattr(decoding, "decode_contents", None)
    with pytest.raises(TypeError):
        data.load("cifar10_jpeg", tar_file)


def test_jpeg_image_size(tar_file):
    assert data.load("cifar10_jpeg", tar_file, image_size=8).image_shape == (8, 8, 3)


def test_jpeg_damaged_image_is_an_error_or_listed(tar_file):
    content = jpeg_members() | {"train/cat/0000.jpg": b"no image", "train/cat/._0.jpg": b"clutter"}
    cifar_archive.write(tar_file, content)
    with pytest.raises(
        ValueError, match=r"tar\.xz/train/cat/0000\.jpg: not an image(?s:.*)skip_dam"
    ):
        data.load("cifar10_jpeg", tar_file)
    loaded = data.load("cifar10_jpeg", tar_file, skip_damaged=True)
    assert loaded.skipped_files == (("train/cat/0000.jpg", "not an image"),)
    assert loaded.train.files[2:] == ("cat/0001.jpg",)


def test_jpeg_broken_or_strange_tar_files_are_named(tar_file):
    whole = tar_file.read_bytes()
    for content in (whole[:-400], b"no tar file", b""):
        tar_file.write_bytes(content)
        with pytest.raises(ValueError, match=r"tar\.xz cannot be read as a tar file"):
            data.load("cifar10_jpeg", tar_file)
    content = jpeg_members()
    cifar_archive.write(tar_file, content | {"train/cat/more/0.jpg": b""})
    with pytest.raises(ValueError, match=r"must have train/<class>.*got 'train/cat/more/0\.jpg'"):
        data.load("cifar10_jpeg", tar_file)
    cifar_archive.write(tar_file, content | {"train/dog/0.jpg": b""})
    with pytest.raises(ValueError, match=r"the same classes.*\['dog'\]"):
        data.load("cifar10_jpeg", tar_file)


def test_jpeg_missing_data_say_what_to_place(tmp_path):
    with pytest.raises(ValueError, match=r"needs `data_dir`.*cifar10-jpeg\.tar\.xz"):
        data.load("cifar10_jpeg")
    with pytest.raises(FileNotFoundError, match=r"cifar10-jpeg\.tar\.xz.*got '.*nowhere'"):
        data.load("cifar10_jpeg", tmp_path / "nowhere")


@pytest.mark.slow
def test_jpeg_of_the_real_file(shared):
    path = shared / "data" / "cifar10-jpeg.tar.xz"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    loaded = data.load("cifar10_jpeg", path)
    assert (
        list(loaded.class_names) == cifar_archive.CLASSES
    )  # sorted names are in the official order
    for split, count in ((loaded.train, 5000), (loaded.test, 1000)):
        assert np.bincount(split.labels).tolist() == [count] * 10
        assert split.images.shape == (10 * count, 32, 32, 3)
    mean = loaded.train.images.mean((0, 1, 2), np.float64) / 255
    std = loaded.train.images.reshape(-1, 3).std(0, dtype=np.float64) / 255
    np.testing.assert_allclose(mean, loaded.mean, atol=0.002)
    np.testing.assert_allclose(std, loaded.std, atol=0.005)
    started = time.monotonic()
    data.load("cifar10_jpeg", path)
    assert time.monotonic() - started < 5  # a second where nothing else runs


def test_jpeg_examples_of_a_command_line(tar_file):
    jpeg = studies.load_examples("cifar10_jpeg", 9, data_dir=tar_file)
    assert (jpeg.name, len(jpeg.labels)) == ("cifar10_jpeg", 4)
