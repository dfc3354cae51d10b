"""Data sets: names, arguments, and image folders with what can be wrong with them."""

import os
from pathlib import Path

import image_folder
import numpy as np
import pytest
from image_folder import load, picture
from PIL import Image

from jaxrobust import data

pytestmark = pytest.mark.usefixtures("cache_dir")  # a cache for each test

SHARED = Path(os.environ.get("JAXROBUST_SHARED", Path(__file__).parents[2] / "shared"))
SPORTS10 = SHARED / "data" / "sports10"
REFERENCE = SHARED / "reference" / "sports10_cnn" / "valid.npz"


@pytest.fixture
def root(tmp_path):
    return image_folder.make(tmp_path / "pets")


# Names and arguments.


def test_unknown_name_lists_the_names():
    with pytest.raises(ValueError, match=r"'digits', 'sports10', 'image_folder'.*got 'mnist'"):
        data.load("mnist")


@pytest.mark.parametrize("name", ["sports10", "image_folder"])
def test_data_dir_is_asked_for(name):
    with pytest.raises(ValueError, match=rf"'{name}' needs `data_dir`.*train/<class>/<image>"):
        data.load(name)


@pytest.mark.parametrize("name", ["sports10", "image_folder"])
def test_missing_data_dir_is_named(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere"):
        data.load(name, tmp_path / "nowhere")


def test_image_size_is_checked(root):
    with pytest.raises(TypeError, match="image_size"):
        load(root, image_size=32.0)
    with pytest.raises(ValueError, match="image_size"):
        load(root, image_size=0)


# Digits.


def test_digits_split_is_stratified_and_whole():
    digits = data.load("digits")
    assert digits.train.images.shape == (1437, 32, 32, 3)
    assert digits.test.images.shape == (360, 32, 32, 3)
    assert digits.class_names == tuple("0123456789")
    counts = [np.bincount(split.labels, minlength=10) for split in (digits.train, digits.test)]
    np.testing.assert_array_less(np.abs(counts[1] - (counts[0] + counts[1]) / 5), 1)
    rows = [int(file.split("/")[1]) for file in digits.train.files + digits.test.files]
    assert sorted(rows) == list(range(1797))


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    digits = data.load("digits", image_size=8)
    for split in (digits.train, digits.test):
        rows = [int(file.split("/")[1]) for file in split.files]
        np.testing.assert_array_equal(split.labels, bunch.target[rows])
        expected = np.rint(bunch.images[rows] * 255 / 16)[..., None].repeat(3, -1)
        np.testing.assert_array_equal(split.images, expected)


def test_digits_mean_and_std_are_those_of_the_train_split():
    digits = data.load("digits")
    pixels = digits.train.images.astype(np.float64) / 255
    np.testing.assert_allclose(digits.mean, pixels.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(digits.std, pixels.std((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose([digits.mean[0], digits.std[0]], [0.310, 0.349], atol=5e-4)
    assert digits.mean.dtype == digits.std.dtype == np.float32


# Sports-10.


@pytest.fixture(scope="module")
def sports10(tmp_path_factory):
    if not SPORTS10.is_dir():
        pytest.skip(f"needs Sports-10 in {SPORTS10}; set JAXROBUST_SHARED")
    return data.load("sports10", SPORTS10, cache_dir=tmp_path_factory.mktemp("sports10"))


def test_sports10_reproduces_the_reference(sports10):
    if not REFERENCE.is_file():
        pytest.skip(f"needs the reference images {REFERENCE}; set JAXROBUST_SHARED")
    reference = np.load(REFERENCE)
    np.testing.assert_array_equal(sports10.test.images, reference["images"])
    np.testing.assert_array_equal(sports10.test.labels, reference["labels"])
    assert list(sports10.test.files) == reference["files"].tolist()


def test_sports10_counts(sports10):
    assert (len(sports10.train), len(sports10.test), sports10.num_classes) == (1593, 50, 10)
    counts = dict(zip(sports10.class_names, np.bincount(sports10.train.labels), strict=True))
    assert (counts["football"], counts["tennis"]) == (191, 131)
    np.testing.assert_allclose(sports10.mean, [0.485, 0.456, 0.406])
    np.testing.assert_allclose(sports10.std, [0.229, 0.224, 0.225])


def test_sports10_below_data_dir_takes_valid_and_32_pixels(root, tmp_path):
    (root / "test").rename(root / "valid")
    (root / "test").mkdir()
    root.rename(tmp_path / "sports10")
    for data_dir in (tmp_path, tmp_path / "sports10"):
        dataset = data.load("sports10", data_dir)
        assert dataset.test.files == ("Dog/0.png", "cat/0.png")
        assert dataset.image_shape == (32, 32, 3)


# Image folders.


def test_image_folder_order_labels_and_pixels(root):
    pets = load(root)
    assert pets.class_names == ("Dog", "cat")
    assert pets.train.files == ("Dog/0.png", "Dog/1.png", "cat/0.png", "cat/1.png")
    np.testing.assert_array_equal(pets.train.labels, [0, 0, 1, 1])
    np.testing.assert_array_equal(pets.test.labels, [0, 1])
    assert pets.train.images.dtype == np.uint8 and pets.train.labels.dtype == np.int32
    expected = np.stack([np.asarray(picture(seed)) for seed in (2, 3, 0, 1)])
    np.testing.assert_array_equal(pets.train.images, expected)
    np.testing.assert_array_equal(
        pets.test.images, np.stack([np.asarray(picture(seed)) for seed in (5, 4)])
    )
    assert pets.skipped_files == ()


def test_resizing_is_pillows_bicubic(root):
    expected = picture(2).resize((9, 9), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(load(root, image_size=9).train.images[0], np.asarray(expected))


def test_names_are_sorted_as_strings(root):
    for name in ("10.png", "2.png"):
        picture(9).save(root / "train" / "cat" / name)
    assert load(root).train.files[2:] == ("cat/0.png", "cat/1.png", "cat/10.png", "cat/2.png")


def test_hidden_files_and_files_beside_classes_are_ignored(root):
    for name in ("train/.DS_Store", "train/cat/.DS_Store", "train/cat/Thumbs.db", "train/README"):
        (root / name).write_bytes(b"clutter")
    (root / "train" / ".git").mkdir()
    assert len(load(root).train) == 4


def test_splits_do_not_change_under_the_user(root):
    pets = load(root)
    with pytest.raises(ValueError, match="read-only"):
        pets.train.images[0] = 0
    with pytest.raises(AttributeError):
        pets.name = "other"


@pytest.mark.parametrize("name", ["valid", "val"])
def test_other_names_of_the_test_split(root, name):
    (root / "test").rename(root / name)
    assert len(load(root).test) == 2


def test_two_possible_test_splits_must_be_told_apart(root):
    (root / "val").symlink_to(root / "train")
    with pytest.raises(ValueError, match=r"\['test', 'val'\].*`test_split`"):
        load(root)
    assert len(load(root, test_split="val").test) == 4
    assert len(load(root, test_split="test").test) == 2


def test_the_train_split_is_no_test_split(root):
    with pytest.raises(ValueError, match="test_split"):
        load(root, test_split="train")


@pytest.mark.parametrize("split", ["train", "test"])
def test_missing_split_is_named(root, split):
    (root / split).rename(root / "other")
    with pytest.raises(FileNotFoundError, match=rf"pets/{split}'.*<folder>/<split>/<class>"):
        load(root)


def test_split_without_classes_is_named(root):
    (root / "test").rename(root / "old")
    (root / "test").mkdir()
    with pytest.raises(ValueError, match=r"pets/test' must have a folder for each class"):
        load(root)


@pytest.mark.parametrize("split", ["train", "test"])
def test_class_in_one_split_only_is_named(root, split):
    (root / split / "cat").rename(root / "cat")
    with pytest.raises(ValueError, match=rf"no '.*pets/{split}/cat'"):
        load(root)


def test_empty_class_is_named(root):
    (root / "test" / "cat" / "0.png").rename(root / "test" / "cat" / ".0.png")
    with pytest.raises(ValueError, match=r"pets/test/cat' is empty"):
        load(root)


def test_folder_in_a_class_is_named(root):
    (root / "train" / "cat" / "more").mkdir()
    with pytest.raises(ValueError, match=r"pets/train/cat/more' is a folder"):
        load(root)


def test_sizes_that_differ_ask_for_image_size(root):
    picture(9, (7, 5)).save(root / "test" / "cat" / "0.png")
    message = r"Dog/0\.png' has 6x6 pixels, .*test/cat/0\.png' 7x5\. Give `image_size`"
    with pytest.raises(ValueError, match=message):
        load(root)
    assert load(root, image_size=6).image_shape == (6, 6, 3)


def test_a_part_of_a_split_is_spread_over_it():
    split = data.Split(np.zeros((5, 1, 1, 3), np.uint8), np.arange(5), tuple("abcde"))
    part = split.spread(3)
    assert part.labels.tolist() == [0, 2, 4] and part.files == ("a", "c", "e")
    assert split.spread(None) is split and split.spread(7) is split
