"""Loads the images that a command line names: a data set, a folder of images or an .npz file."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxrobust import checks, data
from jaxrobust.data.folder import is_hidden
from jaxrobust.data.loading import TEST_SPLITS
from jaxrobust.evaluation.answers import as_float


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """The images that an experiment evaluates.

    Attributes:
      name: The name of the data set.
      images: float32 [N, H, W, C] in [0, 1].
      labels: int [N].
      indices: int [N], the images' indices in the data set's test split.
      class_names: The names of the classes, which may be fewer than the classes.
      label_range: The smallest and the largest label of the whole split, not only of these images.
      num_train: The number of training images; None if there are none or they were not read.
      skipped_files: The files that could not be read, each with the reason.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    class_names: tuple[str, ...]
    label_range: tuple[int, int]
    num_train: int | None = None
    skipped_files: tuple[str, ...] = ()

    def entry(self, num_classes: int) -> dict[str, Any]:
        """Returns the part "data" of result.json, with a name for each of a model's classes."""
        return {
            "name": self.name,
            "class_names": self.names(num_classes),
            "num_train": self.num_train,
            "num_test": len(self.labels),
            "image_shape": list(self.images.shape[1:]),
            "skipped_files": list(self.skipped_files),
        }

    def check_labels(self, num_classes: int) -> None:
        """Raises ValueError unless all labels of the whole split are below the number of classes.

        It checks all labels, so that an error does not depend on the seed.
        """
        checks.label_range("labels", np.asarray(self.label_range), num_classes)

    def names(self, num_classes: int) -> list[str]:
        """Returns a different name for each class; a class without a name is called by its number."""
        unnamed = [str(k) for k in range(len(self.class_names), num_classes)]
        names = [*self.class_names[:num_classes], *unnamed]
        # Some classes of ImageNet have the same name: their numbers tell them apart.
        return [f"{n} ({k})" if names.count(n) > 1 else n for k, n in enumerate(names)]


def load_examples(
    name: str,
    num_images: int,
    seed: int = 0,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    download: bool = False,
) -> Examples:
    """Loads random images of a test split, in the order of the split.

    The same seed chooses the same images for every model.

    Args:
      name: A name or a folder, as `jaxrobust.data.load` takes it, or an .npz file with `images` (uint8,
        or floating point in [0, 1]) [N, H, W, C], `labels` int [N] and optionally `class_names` [K].
        From a folder of images only the test split is read; if there is a train split, it must have the
        same class folders.
      num_images: The largest number of images.
      seed: The seed of the random choice.
      data_dir: The folder of the data, as in `jaxrobust.data.load`.
      image_size: The size that images are resized to, as in `jaxrobust.data.load`.
      download: Whether a missing data set may be downloaded, as in `jaxrobust.data.load`.

    Raises:
      ConnectionError: A download failed.
      FileNotFoundError: There is no such file or folder.
      TypeError: The images or labels have the wrong type.
      ValueError: The images lie outside [0, 1] or have the wrong shape, the labels do not fit the
        images, or `jaxrobust.data.load` raises it.
    """
    checks.integer("num_images", num_images, minimum=1)
    path = Path(name).expanduser()
    if path.suffix == ".npz":
        whole = _archive(path)
    else:
        root = Path(data_dir).expanduser() if name == "image_folder" and data_dir else path
        is_folder = name == "image_folder" or name not in data.NAMES
        if is_folder and not root.is_dir():
            raise FileNotFoundError(
                f"`data` must be one of {data.NAMES}, an existing folder of images or an .npz file, "
                f"got {name!r}."
            )
        if is_folder and download:
            raise ValueError(f"`download` is for named data sets, got the folder {name!r}.")
        whole = _folder(root) if is_folder else _named(name, data_dir, image_size, download)
    # The choice depends only on the seed and the number of images.
    count = len(whole.labels)
    chosen = np.sort(np.random.default_rng(seed).permutation(count)[:num_images])
    images = whole.images[chosen]
    if images.dtype == object:  # paths of a folder's files: only the chosen ones are read
        images = _pictures(images.tolist(), image_size)
    return dataclasses.replace(
        whole,
        images=as_float(images),
        labels=whole.labels[chosen],
        indices=chosen,
    )


def _named(
    name: str, data_dir: str | os.PathLike[str] | None, image_size: int | None, download: bool
) -> Examples:
    loaded = data.load(name, data_dir, image_size, download=download)
    return Examples(
        name=loaded.name,
        images=loaded.test.images,
        labels=loaded.test.labels,
        indices=np.arange(len(loaded.test)),
        class_names=loaded.class_names,
        label_range=_range(loaded.test.labels),
        num_train=len(loaded.train),
        skipped_files=tuple(f"{file}: {why}" for file, why in loaded.skipped_files),
    )


def _folder(root: Path) -> Examples:
    """Returns a folder's test split, with the paths of the files in place of the images."""
    found = [root / split for split in TEST_SPLITS if (root / split).is_dir()]
    if len(found) != 1:
        raise ValueError(
            f"{str(root)!r} must hold exactly one of the folders {', '.join(TEST_SPLITS)}, with "
            f"<class>/<image> in it, got {len(found)} of them."
        )
    classes = _visible(found[0], folders=True)
    train = root / "train"
    if train.is_dir() and _visible(train, folders=True) != classes:
        raise ValueError(f"{str(train)!r} and {str(found[0])!r} must hold the same class folders.")
    files = [[found[0] / name / file for file in _visible(found[0] / name)] for name in classes]
    if not all(files) or not files:
        raise ValueError(f"{str(found[0])!r} must hold at least one class, and images in each.")
    labels = np.repeat(np.arange(len(classes)), [len(of_class) for of_class in files])
    paths = np.empty(len(labels), object)
    paths[:] = [file for of_class in files for file in of_class]
    return Examples(
        root.name, paths, labels, np.arange(len(labels)), tuple(classes), _range(labels)
    )


def _visible(folder: Path, *, folders: bool = False) -> list[str]:
    """Returns the names of a folder's files or folders, sorted as `data.load` sorts them."""
    entries = (entry for entry in os.scandir(folder) if not is_hidden(entry.name))
    return sorted(entry.name for entry in entries if entry.is_dir() == folders)


def _pictures(paths: list[Path], image_size: int | None) -> np.ndarray:
    images = [data.read_image(path, image_size) for path in paths]
    sizes = {image.shape for image in images}
    if len(sizes) > 1:
        raise ValueError(
            f"Images must have the same size, got {sorted(sizes)[:3]}; `image_size` resizes them."
        )
    return np.stack(images)


def _archive(path: Path) -> Examples:
    if not path.is_file():
        raise FileNotFoundError(f"`data` must be an existing file, got {str(path)!r}.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive}
    except Exception as error:  # zip and numpy have errors of many classes
        raise ValueError(
            f"{path} is not an .npz file of arrays ({type(error).__name__})."
        ) from error
    for needed in ("images", "labels"):
        if needed not in arrays:
            held = ", ".join(arrays) or "nothing"
            raise ValueError(f"{path} must hold `images` and `labels`, got {held}.")
    images, labels = arrays["images"], arrays["labels"]
    # All images are checked, so that an error does not depend on the seed.
    checks.images_and_labels(as_float(images), labels)
    if len(labels) == 0:
        raise ValueError(f"{path} must hold at least one image, got none.")
    if labels.min() < 0:
        raise ValueError(f"`labels` must be 0 or more, got {labels.min()}.")
    names = tuple(str(name) for name in arrays.get("class_names", ()))
    return Examples(path.stem, images, labels, np.arange(len(labels)), names, _range(labels))


def _range(labels: np.ndarray) -> tuple[int, int]:
    return int(labels.min()), int(labels.max())
