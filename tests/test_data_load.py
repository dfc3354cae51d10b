"""Data sets: names, image folders and what can be wrong with them, and the cache."""

import io
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxrobust import data
from jaxrobust.data import cache, decoding, pictures

SHARED = Path(os.environ.get("JAXROBUST_SHARED", Path(__file__).parents[2] / "shared"))
SPORTS10 = SHARED / "data" / "sports10"
REFERENCE = SHARED / "reference" / "sports10_cnn" / "valid.npz"


def picture(seed: int, size: tuple[int, int] = (6, 6)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(values)


@pytest.fixture
def root(tmp_path):
    """Two classes, two images each in train, one each in test; PNG, so that pixels are exact."""
    seed = 0
    for split, count in (("train", 2), ("test", 1)):
        for name in ("cat", "Dog"):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                picture(seed).save(folder / f"{index}.png")
                seed += 1
    return tmp_path / "pets"


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXROBUST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def load(root, **options):
    return data.load("image_folder", root, **options)


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
    with pytest.raises(ValueError, match=r"pets/test' holds no class"):
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
    with pytest.raises(ValueError, match=r"pets/test/cat' holds no readable image"):
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
    decoded = pictures.decode(encode(gray))
    np.testing.assert_array_equal(decoded, np.asarray(gray)[..., None].repeat(3, -1))
    palette = picture(1).quantize(8)
    np.testing.assert_array_equal(
        pictures.decode(encode(palette)), np.asarray(palette.convert("RGB"))
    )
    cmyk = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
    decoded = pictures.decode(encode(cmyk, "TIFF"))
    np.testing.assert_array_equal(decoded, np.full((4, 4, 3), (255, 0, 0)))


def test_transparency_lies_over_white():
    clear_red = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    np.testing.assert_array_equal(pictures.decode(encode(clear_red)), np.full((2, 2, 3), 255))
    black = Image.new("LA", (2, 2), (0, 255))
    np.testing.assert_array_equal(pictures.decode(encode(black)), np.zeros((2, 2, 3)))
    palette = Image.new("P", (2, 2))
    palette.putpalette([0, 0, 0, 9, 9, 9])
    encoded = encode(palette, transparency=0)
    np.testing.assert_array_equal(pictures.decode(encoded), np.full((2, 2, 3), 255))


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it clockwise to see it upright
    image = picture(3, (4, 2))
    decoded = pictures.decode(encode(image, exif=exif))
    np.testing.assert_array_equal(decoded, np.rot90(np.asarray(image), -1))


def test_decode_errors_are_the_same_each_time():
    for content in (b"", b"no image", jpeg_bytes()[:300]):
        reasons = set()
        for _ in range(2):
            with pytest.raises(pictures.DamagedImageError) as error:
                pictures.decode(content)
            reasons.add(str(error.value))
        assert len(reasons) == 1


# The cache.


@pytest.fixture
def decodings(monkeypatch):
    """Counts how often files are decoded rather than read from the cache."""
    calls = []
    original = decoding._decode_files

    def counted(*args):
        calls.append(args)
        return original(*args)

    monkeypatch.setattr(decoding, "_decode_files", counted)
    return calls


def test_second_load_comes_from_the_cache(root, decodings):
    first, second = load(root), load(root)
    assert len(decodings) == 1
    np.testing.assert_array_equal(first.train.images, second.train.images)
    np.testing.assert_array_equal(first.test.labels, second.test.labels)
    assert (first.train.files, first.class_names) == (second.train.files, second.class_names)


def test_cached_damage_is_still_an_error(root, decodings):
    (root / "train" / "cat" / "0a.jpg").write_text("no image")
    assert load(root, skip_damaged=True).skipped_files == (("train/cat/0a.jpg", "not an image"),)
    with pytest.raises(ValueError, match=r"0a\.jpg"):
        load(root)
    assert load(root, skip_damaged=True).skipped_files == (("train/cat/0a.jpg", "not an image"),)
    assert len(decodings) == 1


def change_content(root):
    path = root / "train" / "cat" / "0.png"
    picture(50, (6, 6)).save(path)


def change_time(root):
    path = root / "train" / "cat" / "0.png"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1000))


def add_file(root):
    picture(51).save(root / "test" / "cat" / "new.png")


def rename_file(root):
    (root / "train" / "cat" / "0.png").rename(root / "train" / "cat" / "5.png")


def remove_file(root):
    (root / "train" / "cat" / "0.png").unlink()


@pytest.mark.parametrize(
    "change", [change_content, change_time, add_file, rename_file, remove_file]
)
def test_changed_folder_is_decoded_anew(root, decodings, change):
    load(root)
    change(root)
    pets = load(root)
    assert len(decodings) == 2
    files = {f"train/{file}" for file in pets.train.files}
    files |= {f"test/{file}" for file in pets.test.files}
    assert files == {str(path.relative_to(root)) for path in root.rglob("*.png")}
    for image, file in zip(pets.train.images, pets.train.files, strict=True):
        np.testing.assert_array_equal(image, np.asarray(Image.open(root / "train" / file)))


def test_other_image_size_is_decoded_anew(root, decodings):
    assert load(root, image_size=4).image_shape == (4, 4, 3)
    assert load(root, image_size=5).image_shape == (5, 5, 3)
    assert load(root, image_size=4).image_shape == (4, 4, 3)
    assert len(decodings) == 2


def test_where_the_cache_lies(tmp_path, monkeypatch):
    assert cache.folder() == tmp_path / "cache"
    assert cache.folder(tmp_path / "given") == tmp_path / "given"
    monkeypatch.delenv("JAXROBUST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder() == tmp_path / "xdg" / "jaxrobust"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.folder() == tmp_path / "home" / ".cache" / "jaxrobust"


def test_cache_that_cannot_be_written_says_how_to_move_it(root, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"file/cache.*JAXROBUST_CACHE"):
        load(root, cache_dir=tmp_path / "file" / "cache")


def test_nothing_is_left_in_the_cache_but_the_arrays(root, cache_dir):
    load(root)
    assert [path.suffix for path in cache_dir.iterdir()] == [".npz"]


@pytest.mark.parametrize("size", [0, 100, -10])
def test_broken_cache_file_is_decoded_anew(root, cache_dir, decodings, size):
    expected = load(root).train.images
    (file,) = cache_dir.iterdir()
    file.write_bytes(file.read_bytes()[:size])
    np.testing.assert_array_equal(load(root).train.images, expected)
    assert len(decodings) == 2
    load(root)
    assert len(decodings) == 2


def test_flipped_bit_in_the_cache_is_noticed(root, cache_dir, decodings):
    expected = load(root).train.images
    (file,) = cache_dir.iterdir()
    content = bytearray(file.read_bytes())
    content[content.index(expected.tobytes()[:32])] ^= 1
    file.write_bytes(content)
    np.testing.assert_array_equal(load(root).train.images, expected)
    assert len(decodings) == 2


def test_killed_while_writing_leaves_no_arrays(tmp_path):
    """The process dies with half of the file written; whoever comes next finds nothing."""
    script = """
        import os, sys
        from pathlib import Path
        import numpy as np
        from jaxrobust.data import cache

        def half(file, **arrays):
            file.write(b"PK half of an archive")
            file.flush()
            os._exit(9)

        np.savez = half
        cache.write(Path(sys.argv[1]), {"images": np.zeros(9)})
    """
    path = tmp_path / "arrays.npz"
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(path)], check=False)
    assert done.returncode == 9
    assert not path.exists() and cache.read(path) is None
    assert list(tmp_path.glob("scratch-*/arrays.npz"))

    cache.write(path, {"images": np.ones(2)})
    np.testing.assert_array_equal(cache.read(path)["images"], [1, 1])


def test_leftovers_of_killed_processes_are_removed_after_a_day(tmp_path):
    old, young = tmp_path / "scratch-old", tmp_path / "scratch-young"
    for folder in (old, young):
        folder.mkdir()
        (folder / "arrays.npz").write_bytes(b"half")
    os.utime(old, (0, time.time() - 25 * 3600))
    cache.write(tmp_path / "arrays.npz", {"x": np.ones(1)})
    assert not old.exists() and young.exists()


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "arrays.npz"
    cache.write(path, {"x": np.ones(1)})

    def full(file, **arrays):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        cache.write(path, {"x": np.zeros(1)})
    np.testing.assert_array_equal(cache.read(path)["x"], [1])
    assert list(tmp_path.iterdir()) == [path]


def test_readers_find_whole_files_while_writers_replace_them(tmp_path):
    path = tmp_path / "arrays.npz"
    arrays = [{"x": np.full(20_000, value)} for value in (0, 1)]
    cache.write(path, arrays[0])

    def write(which):
        for _ in range(30):
            cache.write(path, arrays[which])

    writers = [threading.Thread(target=write, args=(which,)) for which in (0, 1)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        found = cache.read(path)
        assert found is not None and len(set(found["x"].tolist())) == 1
    for writer in writers:
        writer.join()


def test_threads_may_load_at_once(root):
    loaded = []
    output = sys.stdout, sys.stderr
    threads = [
        threading.Thread(target=lambda size=size: loaded.append(load(root, image_size=size)))
        for size in (3, 4, 5, 5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(pets.image_shape[0] for pets in loaded) == [3, 4, 5, 5]
    assert (sys.stdout, sys.stderr) == output


def test_processes_may_load_at_once(root, cache_dir):
    script = "import sys; from jaxrobust import data; d = data.load('image_folder', sys.argv[1]);"
    script += "print(d.train.images.sum(), len(d.test))"
    command = [sys.executable, "-c", script, str(root)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = {process.communicate()[0] for process in both}
    assert outputs == {f"{load(root).train.images.sum()} 2\n"}
    assert [path.suffix for path in cache_dir.iterdir()] == [".npz"]


# What an import and a load may not do.


def run_python(script: str, *args: object) -> str:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_import_is_light():
    script = """
        import sys
        import jaxrobust.data
        heavy = {"tensorflow_datasets", "tensorflow", "array_record", "PIL", "sklearn", "flax"}
        print(sorted(heavy & set(sys.modules)))
    """
    assert run_python(script) == "[]\n"


def test_load_imports_no_tensorflow_uses_no_network_and_prints_nothing(root, tmp_path):
    """Not even where TensorFlow is installed, which a package of that name stands for."""
    (tmp_path / "site" / "tensorflow").mkdir(parents=True)
    (tmp_path / "site" / "tensorflow" / "__init__.py").write_text(
        "raise SystemExit('tensorflow was imported')"
    )
    script = """
        import socket, sys

        def refuse(*args, **kwargs):
            raise SystemExit("the network was used")

        socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
        sys.path.append(sys.argv[2])

        from jaxrobust import data
        pets = data.load("image_folder", sys.argv[1])
        assert len(pets.train) == 4 and "tensorflow_datasets" in sys.modules
        data.load("digits")
    """
    assert run_python(script, root, tmp_path / "site") == ""
