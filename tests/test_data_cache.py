"""The cache of decoded images, and what loading may not do."""

import os
import subprocess
import sys
import textwrap
import threading
import time

import image_folder
import numpy as np
import pytest
from image_folder import load, picture
from PIL import Image

from jaxrobust.data import cache, decoding

pytestmark = pytest.mark.usefixtures("cache_dir")  # a cache for each test


@pytest.fixture
def root(tmp_path):
    return image_folder.make(tmp_path / "pets")


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
