"""The images that a command line names: a data set, a folder of images or an .npz."""

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
    """Images to measure on.

    Attributes:
      name: Of the data set.
      images: float32 [N, H, W, C] in [0, 1].
      labels: int [N].
      indices: int [N], the images' places in the data set's test split.
      class_names: As many as the data set names.
      label_range: The smallest and the largest label of the whole set, chosen or not.
      num_train: Images of its train split; None if it has none, or if that was not read.
      skipped_files: Of the data set, in words.
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
        """The part "data" of result.json, with a name for every class that a model tells apart."""
        return {
            "name": self.name,
            "class_names": self.names(num_classes),
            "num_train": self.num_train,
            "num_test": len(self.labels),
            "image_shape": list(self.images.shape[1:]),
            "skipped_files": list(self.skipped_files),
        }

    def check_labels(self, num_classes: int) -> None:
        """Raises ValueError unless a model with so many classes has all labels of the whole set.

        Of all of them: what is wrong with one should not depend on the seed.
        """
        checks.label_range("labels", np.asarray(self.label_range), num_classes)

    def names(self, num_classes: int) -> list[str]:
        """The names of so many classes, each once; those without one are called by their number."""
        unnamed = [str(k) for k in range(len(self.class_names), num_classes)]
        names = [*self.class_names[:num_classes], *unnamed]
        # Two classes of one name, as ImageNet has them, are told apart by their numbers.
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
    """Images of a test split, chosen at random and in the order of the split.

    The same seed chooses the same images, whatever the model.

    Args:
      name: A name or a folder of `jaxrobust.data.load`, or an .npz with `images` (uint8, or floating
        in [0, 1]) [N, H, W, C], `labels` int [N] and perhaps `class_names` [K]. Of a folder of images
        the test split alone is read; where there is a train split, its class folders must be the same.
      num_images: How many at most.
      seed: Of the choice.
      data_dir: As in `load`.
      image_size: As in `load`.
      download: As in `load`.

    Raises:
      ConnectionError: A download failed.
      FileNotFoundError: No such file or folder.
      TypeError: Images or labels of another type.
      ValueError: Images outside [0, 1] or of another shape, labels that do not fit them, or anything
        that `load` refuses.
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
                f"`data` must be one of {data.NAMES}, an existing folder of images or an .npz, "
                f"got {name!r}."
            )
        if is_folder and download:
            raise ValueError(f"`download` is for named data sets, got the folder {name!r}.")
        whole = _folder(root) if is_folder else _named(name, data_dir, image_size, download)
    # The choice depends on the seed and the number of images alone, whatever the model.
    count = len(whole.labels)
    chosen = np.sort(np.random.default_rng(seed).permutation(count)[:num_images])
    images = whole.images[chosen]
    if images.dtype == object:  # files of a folder: those that are wanted alone are read
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
    """The files of a folder's test split in place of their images."""
    found = [root / split for split in TEST_SPLITS if (root / split).is_dir()]
    if len(found) != 1:
        raise ValueError(
            f"{str(root)!r} must hold one folder of {', '.join(TEST_SPLITS)}, with "
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
    """Names of what lies in a folder, sorted, as `data.load` sorts them."""
    entries = (entry for entry in os.scandir(folder) if not is_hidden(entry.name))
    return sorted(entry.name for entry in entries if entry.is_dir() == folders)


def _pictures(paths: list[Path], image_size: int | None) -> np.ndarray:
    images = [data.read_image(path, image_size) for path in paths]
    sizes = {image.shape for image in images}
    if len(sizes) > 1:
        raise ValueError(
            f"Images must be of one size, got {sorted(sizes)[:3]}; `image_size` resizes them."
        )
    return np.stack(images)


def _archive(path: Path) -> Examples:
    if not path.is_file():
        raise FileNotFoundError(f"`data` must be an existing file, got {str(path)!r}.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive}
    except Exception as error:  # zip and numpy have errors of many classes
        raise ValueError(f"{path} is no .npz of arrays ({type(error).__name__}).") from error
    for needed in ("images", "labels"):
        if needed not in arrays:
            held = ", ".join(arrays) or "nothing"
            raise ValueError(f"{path} must hold `images` and `labels`, got {held}.")
    images, labels = arrays["images"], arrays["labels"]
    # All of them: what is wrong with one image should not depend on the seed.
    checks.images_and_labels(as_float(images), labels)
    if len(labels) == 0:
        raise ValueError(f"{path} must hold at least one image, got none.")
    if labels.min() < 0:
        raise ValueError(f"`labels` must be 0 or more, got {labels.min()}.")
    names = tuple(str(name) for name in arrays.get("class_names", ()))
    return Examples(path.stem, images, labels, np.arange(len(labels)), names, _range(labels))


def _range(labels: np.ndarray) -> tuple[int, int]:
    return int(labels.min()), int(labels.max())
