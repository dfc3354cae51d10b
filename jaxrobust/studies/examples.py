"""The images that a command line names: a data set, a folder of images or an .npz."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxrobust import checks, data
from jaxrobust.evaluation.classification import as_float


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Images to measure on.

    Attributes:
      name: Of the data set.
      images: float32 [N, H, W, C] in [0, 1].
      labels: int [N].
      indices: int [N], the images' places in the data set's test split.
      class_names: As many as the data set names.
      num_train: Images of its train split; None if it has none.
      skipped_files: Of the data set, in words.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    class_names: tuple[str, ...]
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

    def names(self, num_classes: int) -> list[str]:
        """The names of so many classes; those without one are called by their number."""
        unnamed = [str(k) for k in range(len(self.class_names), num_classes)]
        return [*self.class_names[:num_classes], *unnamed]


def load_examples(
    name: str,
    num_images: int,
    seed: int = 0,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
) -> Examples:
    """Images of a test split, chosen at random and in the order of the split.

    The same seed chooses the same images, whatever the model.

    Args:
      name: A name or a folder of `jaxrobust.data.load`, or an .npz with `images` (uint8, or floating
        in [0, 1]) [N, H, W, C], `labels` int [N] and perhaps `class_names` [K].
      num_images: How many at most.
      seed: Of the choice.
      data_dir: As in `load`.
      image_size: As in `load`.

    Raises:
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
        if name not in data.NAMES and not path.is_dir():
            raise FileNotFoundError(
                f"`data` must be one of {data.NAMES}, an existing folder of images or an .npz, "
                f"got {name!r}."
            )
        loaded = data.load(name, data_dir, image_size)
        whole = Examples(
            name=Path(loaded.name).name,
            images=loaded.test.images,
            labels=loaded.test.labels,
            indices=np.arange(len(loaded.test)),
            class_names=loaded.class_names,
            num_train=len(loaded.train),
            skipped_files=tuple(f"{file}: {why}" for file, why in loaded.skipped_files),
        )
    count = len(whole.labels)
    chosen = np.sort(np.random.default_rng(seed).permutation(count)[:num_images])
    return dataclasses.replace(
        whole,
        images=as_float(whole.images[chosen]),
        labels=whole.labels[chosen],
        indices=chosen,
    )


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
    return Examples(path.stem, images, labels, np.arange(len(labels)), names)
