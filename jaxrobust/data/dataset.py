"""`Dataset`, the decoded data set in memory that `load` returns."""

import dataclasses
from typing import NamedTuple

import numpy as np


class SkippedFile(NamedTuple):
    """A file that was left out of the data set because it cannot be read as an image.

    Attributes:
      file: The path of the file within the data set's folder, such as "train/golf/17.jpg".
      reason: Why it cannot be read.
    """

    file: str
    reason: str


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """A split of a data set: images and their labels, in a fixed order.

    Attributes:
      images: uint8 [N, H, W, C], read-only.
      labels: int32 [N], indices into the `class_names` of the data set, read-only.
      files: The N unique names of the images: "<class>/<file>" within the folder of the split.

    Raises:
      TypeError: `images` are not uint8 or `labels` are not integers.
      ValueError: The shapes or lengths do not match.

    Example:
      >>> split = Split(np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 1]), ("a/1.png", "b/1.png"))
      >>> len(split)
      2
    """

    images: np.ndarray
    labels: np.ndarray
    files: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8:
            raise TypeError(f"`images` must be uint8, got {self.images.dtype}.")
        if self.images.ndim != 4:
            raise ValueError(f"`images` must be [N, H, W, C], got shape {self.images.shape}.")
        if not np.issubdtype(self.labels.dtype, np.integer):
            raise TypeError(f"`labels` must be integers, got {self.labels.dtype}.")
        if self.labels.shape != self.images.shape[:1] or len(self.files) != len(self.labels):
            raise ValueError(
                f"`images`, `labels` and `files` must have equal lengths, got {len(self.images)}, "
                f"labels of shape {self.labels.shape} and {len(self.files)}."
            )
        # Views, so that freezing them leaves the caller's own arrays writeable.
        images, labels = self.images.view(), self.labels.astype(np.int32)
        images.flags.writeable = labels.flags.writeable = False
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "files", tuple(self.files))

    def __len__(self) -> int:
        return len(self.images)

    def spread(self, most: int | None) -> "Split":
        """Returns at most `most` images at even distances, so that all classes keep their shares.

        Args:
          most: The largest number of images; None: all of them.
        """
        if most is None or most >= len(self):
            return self
        return self.take(np.linspace(0, len(self) - 1, most).round().astype(int))

    def take(self, rows: np.ndarray) -> "Split":
        """Returns the split of these rows, int [M]."""
        return Split(self.images[rows], self.labels[rows], tuple(self.files[r] for r in rows))

    def __repr__(self) -> str:
        return f"Split({len(self)} images of {self.images.shape[1:]})"


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A decoded data set for image classification.

    Attributes:
      name: The name that was given to `load`.
      train: The train split. Take a validation set from it.
      test: The test split, for the final evaluation only.
      class_names: The K names of the classes; label k means `class_names[k]`.
      mean: float32 [C], the mean of pixel values in [0, 1], for the normalisation of the network.
      std: float32 [C], their standard deviation.
      skipped_files: The damaged files that were left out; empty unless `skip_damaged` was True.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    skipped_files: tuple[SkippedFile, ...] = ()

    @property
    def num_classes(self) -> int:
        """The number of classes, K."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape (H, W, C) of every image in both splits."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels
