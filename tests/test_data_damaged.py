"""Image files: damaged ones, and what becomes of those of other colour modes."""

import io
import os

import image_folder
import numpy as np
import pytest
from image_folder import load, picture
from PIL import Image

from jaxrobust.data import image_files

pytestmark = pytest.mark.usefixtures("cache_dir")  # a cache for each test


@pytest.fixture
def root(tmp_path):
    return image_folder.make(tmp_path / "pets")


# Damaged files.


def jpeg_bytes(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    picture(seed, (64, 64)).save(buffer, "JPEG")
    return buffer.getvalue()


DAMAGE = {
    "text": (lambda path: path.write_text("no image"), "not an image"),
    "empty": (lambda path: path.write_bytes(b""), "not an image"),
    "cut short": (lambda path: path.write_bytes(jpeg_bytes()[:-500]), "truncated"),
    "16 bits": (
        lambda path: Image.fromarray(np.full((6, 6), 9000, np.uint16)).save(path, "PNG"),
        "8 bits",
    ),
    "dead link": (lambda path: path.symlink_to(path.with_name("gone")), "link to nothing"),
    "pipe": (os.mkfifo, "not a file"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_file_is_an_error_or_listed(root, kind):
    damage, reason = DAMAGE[kind]
    damage(root / "train" / "cat" / "0a.jpg")
    with pytest.raises(
        ValueError, match=rf"pets/train/cat/0a\.jpg: .*{reason}.*(?s:.*)skip_damaged"
    ):
        load(root)
    pets = load(root, skip_damaged=True)
    assert [skipped.file for skipped in pets.skipped_files] == ["train/cat/0a.jpg"]
    assert reason in pets.skipped_files[0].reason
    assert pets.train.files == ("Dog/0.png", "Dog/1.png", "cat/0.png", "cat/1.png")
    np.testing.assert_array_equal(pets.train.images[2], np.asarray(picture(0)))
    np.testing.assert_array_equal(pets.train.labels, [0, 0, 1, 1])


def test_first_file_damaged_keeps_the_rest_in_place(root):
    (root / "train" / "Dog" / "0.png").write_text("no image")
    pets = load(root, skip_damaged=True)
    assert pets.train.files == ("Dog/1.png", "cat/0.png", "cat/1.png")
    np.testing.assert_array_equal(pets.train.images[0], np.asarray(picture(3)))
    np.testing.assert_array_equal(pets.test.images[0], np.asarray(picture(5)))


def test_many_damaged_files_are_counted_and_listed_in_order(root):
    for split in ("test", "train"):
        for index in range(4):
            (root / split / "cat" / f"bad{index}").write_text("no image")
    with pytest.raises(ValueError, match=r"^8 file\(s\).*(?s:.*)bad3(?s:.*)\.\.\."):
        load(root)
    names = [skipped.file for skipped in load(root, skip_damaged=True).skipped_files]
    assert names == [f"{split}/cat/bad{i}" for split in ("train", "test") for i in range(4)]


def test_class_without_a_readable_image_is_an_error_even_then(root):
    (root / "test" / "cat" / "0.png").write_text("no image")
    with pytest.raises(ValueError, match=r"pets/test/cat' has no image that can be read"):
        load(root, skip_damaged=True)


def test_folder_without_a_readable_image_is_an_error(root):
    for path in root.rglob("*.png"):
        path.write_text("no image")
    with pytest.raises(ValueError, match=r"train/Dog/0\.png': not an image"):
        load(root, skip_damaged=True)


# From bytes to pixels.


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_gray_palette_and_cmyk_become_rgb():
    gray = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4))
    decoded = image_files.decode(encode(gray))
    np.testing.assert_array_equal(decoded, np.asarray(gray)[..., None].repeat(3, -1))
    palette = picture(1).quantize(8)
    np.testing.assert_array_equal(
        image_files.decode(encode(palette)), np.asarray(palette.convert("RGB"))
    )
    cmyk = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
    decoded = image_files.decode(encode(cmyk, "TIFF"))
    np.testing.assert_array_equal(decoded, np.full((4, 4, 3), (255, 0, 0)))


def test_transparency_lies_over_white():
    clear_red = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    np.testing.assert_array_equal(image_files.decode(encode(clear_red)), np.full((2, 2, 3), 255))
    black = Image.new("LA", (2, 2), (0, 255))
    np.testing.assert_array_equal(image_files.decode(encode(black)), np.zeros((2, 2, 3)))
    palette = Image.new("P", (2, 2))
    palette.putpalette([0, 0, 0, 9, 9, 9])
    encoded = encode(palette, transparency=0)
    np.testing.assert_array_equal(image_files.decode(encoded), np.full((2, 2, 3), 255))


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it clockwise to see it upright
    image = picture(3, (4, 2))
    decoded = image_files.decode(encode(image, exif=exif))
    np.testing.assert_array_equal(decoded, np.rot90(np.asarray(image), -1))


def test_decode_errors_are_the_same_each_time():
    for content in (b"", b"no image", jpeg_bytes()[:300]):
        reasons = set()
        for _ in range(2):
            with pytest.raises(image_files.DamagedImageError) as error:
                image_files.decode(content)
            reasons.add(str(error.value))
        assert len(reasons) == 1
