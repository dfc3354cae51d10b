"""The results so far of an attack on many images, image by image."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

# 32 bits, because a gather over processes keeps no more.
NEVER = np.iinfo(np.int32).max


@dataclasses.dataclass(eq=False)
class Found:
    """The results of all jobs so far, for each image, as arrays on the host.

    Attributes:
      images: float32 [N, H, W, C], the best point of each image's jobs.
      success: bool [N], whether the best point fools.
      rank: float32 [N], the value by which points are compared that both fool or both do not.
      restart: int [N], the restart that found the best point.
      steps: int [N, restarts], the steps that each job has taken.
      first: int [N, restarts], each job's steps before its first point that fooled; `NEVER` if none.
      num_queries: int [N], the images that the classifier evaluated.
      num_gradients: int [N], the gradients computed.
      saw_nan: bool [N], whether a logit or a gradient was NaN.
      finished: bool [restarts, N], the jobs that are over, cancelled or not wanted.
    """

    images: np.ndarray
    success: np.ndarray
    rank: np.ndarray
    restart: np.ndarray
    steps: np.ndarray
    first: np.ndarray
    num_queries: np.ndarray
    num_gradients: np.ndarray
    saw_nan: np.ndarray
    finished: np.ndarray

    @classmethod
    def nothing(cls, images: np.ndarray, wanted: np.ndarray, num_restarts: int) -> "Found":
        """Returns the results before the first job. `wanted`, bool [N], are the images to attack."""
        size = len(images)
        return cls(
            images=images.copy(),
            success=np.zeros(size, bool),
            rank=np.full(size, -np.inf, np.float32),
            restart=np.full(size, num_restarts, np.int64),
            steps=np.zeros((size, num_restarts), np.int64),
            first=np.full((size, num_restarts), NEVER, np.int64),
            num_queries=np.zeros(size, np.int64),
            num_gradients=np.zeros(size, np.int64),
            saw_nan=np.zeros(size, bool),
            finished=np.tile(~wanted, (num_restarts, 1)),
        )

    def taken(self, rows: np.ndarray) -> "Found":
        """Returns the results of these images, int [M]; `finished` is [restarts, M]."""
        values = {name: value[rows] for name, value in vars(self).items() if name != "finished"}
        return Found(**values, finished=self.finished[:, rows])

    def arrays(self, kept: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the arrays to save.

        Args:
          kept: bool [N], the images of which results are saved; the jobs of others are not finished.

        Returns:
          The fields by name. `images` has only those that have changed, and `rows` says which.
        """
        rows = np.flatnonzero(kept & (self.restart < len(self.finished)))
        return vars(self) | {
            "images": self.images[rows],
            "rows": rows,
            "finished": self.finished & kept,
        }

    def restore(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Takes over each image for which `arrays` has more finished jobs than this object.

        So the results of several processes, one after the other, become the results of all.

        Returns:
          bool [N], the images that were taken over.
        """
        finished, rows = arrays["finished"], arrays["rows"]
        ahead = finished.sum(axis=0) > self.finished.sum(axis=0)
        kept = ahead[rows]
        self.images[rows[kept]] = arrays["images"][kept]
        self.finished[:, ahead] = finished[:, ahead]
        for name in (vars(self).keys() & arrays.keys()) - {"images", "finished"}:
            getattr(self, name)[ahead] = arrays[name][ahead]
        return np.asarray(ahead)

    @property
    def steps_to_success(self) -> np.ndarray:
        """The steps before the first point that fooled, int [N], counted through the restarts in order.

        If no point fooled, these are all steps. A cancelled restart counts the steps until then.
        """
        before = np.cumsum(self.steps, axis=1) - self.steps
        fooled = self.first < NEVER
        rows, which = np.arange(len(fooled)), fooled.argmax(axis=1)
        found: np.ndarray = before[rows, which] + self.first[rows, which]
        return np.where(fooled.any(axis=1), found, self.steps.sum(axis=1))

    def standing(self, row: int) -> tuple[Any, ...]:
        """Returns a key by which to compare an image's best points; the larger one is better."""
        return self.success[row], self.rank[row], -self.restart[row]

    def replaced(self, which: np.ndarray, other: "Found") -> "Found":
        """Replaces rows, bool [N], by those of another search, and adds up the costs of both."""
        for name, values in vars(self).items():
            if name in ("steps", "num_queries", "num_gradients", "saw_nan"):
                values[which] += getattr(other, name)[which]  # of booleans: either
            elif name != "finished":
                values[which] = getattr(other, name)[which]
        return self
