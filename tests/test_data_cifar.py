"""CIFAR: archives and prepared folders."""

import os
import pickle
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import cifar_archive
import numpy as np
import pytest
from PIL import Image

from jaxrobust import data, studies
from jaxrobust.data import archives, pickled, prepared

pytestmark = pytest.mark.usefixtures("cache_dir")  # a cache for each test

CIFAR = ("cifar10", "cifar100")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder with both archives, small ones, which count as the official ones."""
    folder = tmp_path / "data"
    for name in CIFAR:
        file_name = archives.ARCHIVES[name].file_name
        path = cifar_archive.write(folder / file_name, cifar_archive.members(name))
        archive = cifar_archive.official(name, path.read_bytes())
        monkeypatch.setitem(archives.ARCHIVES, name, archive)
    return folder


# The archives.


def test_what_is_known_of_the_official_archives():
    known = {a.file_name: (a.url, a.num_bytes, a.sha256[:8]) for a in archives.ARCHIVES.values()}
    site = "https://www.cs.toronto.edu/~kriz/"
    assert known == {
        "cifar-10-python.tar.gz": (f"{site}cifar-10-python.tar.gz", 170498071, "6d958be0"),
        "cifar-100-python.tar.gz": (f"{site}cifar-100-python.tar.gz", 169001437, "85cd44d0"),
    }
    assert all(len(archive.sha256) == 64 for archive in archives.ARCHIVES.values())


@pytest.mark.parametrize("name", CIFAR)
def test_archive_is_read_as_it_is(root, name):
    cifar_archive.check(data.load(name, root), name)


def test_class_names_mean_and_std(root):
    ten, hundred = (data.load(name, root) for name in CIFAR)
    assert list(ten.class_names) == cifar_archive.CLASSES
    assert hundred.class_names[:2] == ("fine_0", "fine_1")
    np.testing.assert_allclose(ten.mean, [0.4914, 0.4822, 0.4465])
    np.testing.assert_allclose(ten.std, [0.2470, 0.2435, 0.2616])
    np.testing.assert_allclose(hundred.mean, [0.5071, 0.4865, 0.4409])
    np.testing.assert_allclose(hundred.std, [0.2673, 0.2564, 0.2762])


def test_archive_in_a_folder_of_the_data_sets_name(root):
    (root / "cifar10").mkdir()
    name = archives.ARCHIVES["cifar10"].file_name
    (root / name).rename(root / "cifar10" / name)
    cifar_archive.check(data.load("cifar10", root), "cifar10")


def test_prepared_folder_takes_the_archives_place(root, cache_dir):
    data.load("cifar10", root)
    assert (root / "cifar10" / "3.0.2" / "dataset_info.json").is_file()
    (root / archives.ARCHIVES["cifar10"].file_name).unlink()
    for path in cache_dir.iterdir():
        path.unlink()
    cifar_archive.check(data.load("cifar10", root), "cifar10")
    assert {path.name for path in root.iterdir()} == {"cifar10", "cifar-100-python.tar.gz"}


@pytest.mark.parametrize("name", CIFAR)
def test_tensorflow_datasets_reads_what_was_prepared(root, name):
    import tensorflow_datasets as tfds

    loaded = data.load(name, root)
    source = tfds.data_source(name, data_dir=root, split="train")
    for row, example in enumerate(source):
        assert example["id"].decode() == f"train_{row:05d}"
        assert example["label"] == loaded.train.labels[row]
        np.testing.assert_array_equal(example["image"], loaded.train.images[row])
        assert name == "cifar10" or example["coarse_label"] == example["label"] // 5
    assert "tensorflow" not in sys.modules


def test_second_load_comes_from_the_cache(root, monkeypatch):
    first = data.load("cifar10", root)
    monkeypatch.setattr(prepared, "read", None)
    monkeypatch.setattr(pickled, "read", None)
    np.testing.assert_array_equal(data.load("cifar10", root).train.images, first.train.images)


def test_folder_that_cannot_be_written_to(root, monkeypatch):
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != root and access(path, mode))
    cifar_archive.check(data.load("cifar10", root), "cifar10")
    assert {path.suffix for path in root.iterdir()} == {".gz"}
    monkeypatch.setattr(pickled, "read", None)
    cifar_archive.check(data.load("cifar10", root), "cifar10")


def test_other_image_size(root):
    resized = data.load("cifar10", root, image_size=8)
    images, _ = cifar_archive.images_and_labels(1, cifar_archive.PER_BATCH, 10)
    expected = Image.fromarray(images[0]).resize((8, 8), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(resized.train.images[0], np.asarray(expected))
    assert data.load("cifar10", root).image_shape == (32, 32, 3)


@pytest.mark.parametrize("size, words", [(-9, "bytes"), (None, "SHA-256")])
def test_other_archive_is_refused(root, size, words):
    path = root / archives.ARCHIVES["cifar10"].file_name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content[:size])
    with pytest.raises(
        ValueError, match=rf"cifar-10-python.*not the official.*got .*{words}.*again"
    ):
        data.load("cifar10", root, download=True)
    assert path.is_file() and not (root / "cifar10").exists()


def replace_member(root, monkeypatch, name, content):
    """The archive with another batch, which counts as the official one nevertheless."""
    path = root / archives.ARCHIVES["cifar10"].file_name
    members = cifar_archive.members("cifar10") | {f"cifar-10-batches-py/{name}": content}
    cifar_archive.write(path, {key: value for key, value in members.items() if value is not None})
    archive = cifar_archive.official("cifar10", path.read_bytes())
    monkeypatch.setitem(archives.ARCHIVES, "cifar10", archive)


class Harm:
    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_malicious_pickle_is_refused(root, monkeypatch, tmp_path, protocol):
    monkeypatch.chdir(tmp_path)
    replace_member(root, monkeypatch, "data_batch_3", pickle.dumps({b"data": Harm()}, protocol))
    with pytest.raises(
        ValueError, match=r"data_batch_3 was not read: its pickle asks for posix.mkdir"
    ):
        data.load("cifar10", root)
    assert not (tmp_path / "harm").exists() and not (root / "cifar10").exists()


@pytest.mark.parametrize(
    "asked", ["builtins.eval", "numpy.load", "numpy.core.multiarray.fromfile", "_codecs.decode"]
)
def test_nothing_but_arrays_is_let_in(asked):
    module, name = asked.rsplit(".", 1)
    with pytest.raises(ValueError, match=rf"asks for {asked},"):
        pickled.unpickle(f"c{module}\n{name}\n.".encode(), "batch")


def test_encodings_other_than_that_of_bytes_are_refused():
    with pytest.raises(ValueError, match=r"asks for the encoding 'zip'"):
        pickled.unpickle(b"\x80\x02c_codecs\nencode\nX\x01\0\0\0aX\x03\0\0\0zip\x86R.", "batch")


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_python_3_are_read_too(protocol):
    value = {b"data": np.arange(6, dtype=np.uint8).reshape(2, 3), b"labels": [1, 2], "x": b"\xff"}
    if protocol > 4:  # arrays travel in another way there, which no archive uses
        value.pop(b"data")
    found = pickled.unpickle(pickle.dumps(value, protocol), "batch")
    assert found.keys() == value.keys() and found["x"] == b"\xff"
    np.testing.assert_array_equal(found.get(b"data"), value.get(b"data"))


@pytest.mark.parametrize(
    "member, content, message",
    [
        ("data_batch_2", None, r"data_batch_2 is missing"),
        ("data_batch_2", b"\x80\x02}", r"data_batch_2 is not a pickle"),
        ("data_batch_2", cifar_archive.python2_pickle([1]), r"must be a pickled dictionary"),
        ("data_batch_2", cifar_archive.python2_pickle({b"labels": [1]}), r"must hold `data`"),
        (
            "test_batch",
            cifar_archive.python2_pickle(cifar_archive.batch(1, 2, 10, labels=[1])),
            r"must hold `labels`, an integer for each image",
        ),
        (
            "test_batch",
            cifar_archive.python2_pickle(cifar_archive.batch(1, 2, 10, labels=[1, 10])),
            r"`label` must be 0 to 9.*got 1 to 10",
        ),
        ("batches.meta", cifar_archive.python2_pickle({}), r"must hold `label_names`"),
    ],
)
def test_batches_of_another_form_are_named(root, monkeypatch, member, content, message):
    replace_member(root, monkeypatch, member, content)
    with pytest.raises(ValueError, match=message):
        data.load("cifar10", root)


# Prepared folders.


def official_folder(root, name, **options):
    """A folder as tensorflow-datasets' own class prepares it: shuffled, in several shards."""
    import tensorflow_datasets as tfds

    class Official(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("3.0.2")

        def _info(self):
            features = {
                "id": tfds.features.Text(),
                "image": tfds.features.Image(shape=(32, 32, 3)),
                "label": tfds.features.ClassLabel(names=cifar_archive.CLASSES),
            }
            if options.get("without"):
                del features[options["without"]]
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {
                "train": self._generate_examples("train"),
                "test": self._generate_examples("test"),
            }

        def _generate_examples(self, split):
            for row in range(20 if split == "train" else 3):
                seed, place = (1 + row // 4, row % 4) if split == "train" else (9, row)
                images, labels = cifar_archive.images_and_labels(seed, 3 if seed == 9 else 4, 10)
                example = {
                    "id": f"{split}_{row:05d}",
                    "image": Image.fromarray(images[place]),
                    "label": labels[place],
                }
                example.pop(options.get("without"), None)
                yield row, example

    Official.name = name
    config = tfds.download.DownloadConfig(
        try_download_gcs=False, compute_stats=tfds.download.ComputeStatsMode.SKIP, num_shards=3
    )
    builder = Official(data_dir=root, file_format="array_record")
    builder.download_and_prepare(download_config=config)
    return root / name / "3.0.2"


@pytest.mark.parametrize("below", ["", "cifar10", "cifar10/3.0.2"])
def test_official_folder_is_read_as_it_is(tmp_path, below):
    folder = official_folder(tmp_path / "tfds", "cifar10")
    assert len(list(folder.glob("*train*"))) == 3
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "tfds").rglob("*")}
    cifar_archive.check(data.load("cifar10", tmp_path / "tfds" / below), "cifar10")
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "tfds").rglob("*")}


def test_folder_of_another_format_is_named(root):
    folder = root / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text('{"name": "cifar10", "fileFormat": "tfrecord"}')
    with pytest.raises(
        ValueError, match=r"cifar10/3\.0\.2' must have.*'array_record', got 'tfrecord'"
    ):
        data.load("cifar10", root)


def test_folder_of_another_data_set_is_not_taken_for_it(tmp_path):
    official_folder(tmp_path / "tfds", "cifar10")
    with pytest.raises(FileNotFoundError, match=r"no 'cifar100'"):
        data.load("cifar100", tmp_path / "tfds" / "cifar10")


def test_folder_with_other_features_is_named(tmp_path):
    official_folder(tmp_path / "tfds", "cifar10", without="label")
    with pytest.raises(ValueError, match=r"3\.0\.2' must have the features.*label is missing"):
        data.load("cifar10", tmp_path / "tfds")


def test_damaged_folder_is_named(tmp_path):
    folder = official_folder(tmp_path / "tfds", "cifar10")
    for shard in folder.glob("*train*"):
        shard.write_bytes(b"")
    with pytest.raises(ValueError, match=r"3\.0\.2' cannot be read.*Delete it"):
        data.load("cifar10", tmp_path / "tfds")


def test_changed_folder_is_read_anew(root):
    data.load("cifar10", root)
    shard = next((root / "cifar10" / "3.0.2").glob("*train*"))
    os.utime(shard, ns=(0, 1000))
    first = prepared.identity(root / "cifar10" / "3.0.2")
    os.utime(shard, ns=(0, 2000))
    assert prepared.identity(root / "cifar10" / "3.0.2") != first
    cifar_archive.check(data.load("cifar10", root), "cifar10")


def test_processes_may_prepare_at_once(root, tmp_path):
    content = pickled.read(
        root / archives.ARCHIVES["cifar10"].file_name, archives.ARCHIVES["cifar10"]
    )
    threads = [
        threading.Thread(target=prepared.write, args=(content, root, "cifar10")) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.name for path in (root / "cifar10").iterdir()] == ["3.0.2"]
    cifar_archive.check(data.load("cifar10", root), "cifar10")


@pytest.mark.parametrize("name", [*CIFAR, "cifar10_jpeg"])
def test_there_is_one_test_split(tmp_path, name):
    with pytest.raises(ValueError, match=rf"`test_split` of '{name}' must be 'test', got 'valid'"):
        data.load(name, tmp_path, test_split="valid")


def test_examples_of_a_command_line(root, tmp_path):
    ten = studies.load_examples("cifar10", 2, data_dir=root)
    assert ten.images.shape == (2, 32, 32, 3) and ten.num_train == 20
    assert list(ten.class_names) == cifar_archive.CLASSES
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="--download"):
        studies.load_examples("cifar10", 2, data_dir=tmp_path / "empty")
    with pytest.raises(ValueError, match="`download` is for named data sets"):
        studies.load_examples(str(root), 2, download=True)


def test_no_tensorflow_and_no_network(root, tmp_path):
    """Not even where TensorFlow is installed, which a package of that name stands for."""
    (tmp_path / "site" / "tensorflow").mkdir(parents=True)
    (tmp_path / "site" / "tensorflow" / "__init__.py").write_text(
        "raise SystemExit('tensorflow was imported')"
    )
    script = """
        import socket, sys
        import cifar_archive
        from pathlib import Path
        from jaxrobust import data
        from jaxrobust.data import archives

        def refuse(*args, **kwargs):
            raise SystemExit("the network was used")

        socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
        sys.path.append(sys.argv[2])
        root = Path(sys.argv[1])
        content = (root / archives.ARCHIVES["cifar10"].file_name).read_bytes()
        archives.ARCHIVES["cifar10"] = cifar_archive.official("cifar10", content)
        from_archive = data.load("cifar10", root, cache_dir=sys.argv[2] + "/one")
        assert "tensorflow_datasets" in sys.modules
        prepared = data.load("cifar10", root, cache_dir=sys.argv[2] + "/other")
        assert (from_archive.train.images == prepared.train.images).all()
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(root), str(tmp_path / "site")]
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
