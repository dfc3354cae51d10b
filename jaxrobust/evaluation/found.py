"""What an attack on many images has found so far, image by image."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

# Of 32 bits: more do not survive a gather over processes.
NEVER = np.iinfo(np.int32).max


@dataclasses.dataclass(eq=False)
class Found:
    """What the jobs have found so far, by image; host arrays.

    Attributes:
      images: float32 [N, H, W, C], the best point of each image's jobs.
      success: bool [N], whether it fools.
      rank: float32 [N], what points that fool equally are compared by.
      restart: int [N], the start that found it.
      steps: int [N, restarts], steps that each job has taken.
      first: int [N, restarts], its steps before the first point that fooled; the largest if none.
      num_queries: int [N].
      num_gradients: int [N].
      saw_nan: bool [N], whether an answer held a NaN.
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
        """Before the first job; wanted, bool [N]: the images to attack."""
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

    def arrays(self) -> dict[str, np.ndarray]:
        """What a file keeps of it: of `images` those that an attack has moved, with their `rows`."""
        rows = np.flatnonzero(self.restart < len(self.finished))
        return vars(self) | {"images": self.images[rows], "rows": rows}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes over what `arrays` returned; of an empty mapping nothing."""
        if arrays:
            self.images[arrays["rows"]] = arrays["images"]
        for name in (vars(self).keys() & arrays.keys()) - {"images"}:
            setattr(self, name, arrays[name])

    @property
    def steps_to_success(self) -> np.ndarray:
        """Int [N], steps before the first point that fooled, through the restarts in their order.

        All that were taken where none did. Of a restart that was cancelled those until then count.
        """
        before = np.cumsum(self.steps, axis=1) - self.steps
        fooled = self.first < NEVER
        rows, which = np.arange(len(fooled)), fooled.argmax(axis=1)
        found: np.ndarray = before[rows, which] + self.first[rows, which]
        return np.where(fooled.any(axis=1), found, self.steps.sum(axis=1))

    def standing(self, row: int) -> tuple[Any, ...]:
        """What an image's best points are compared by: the larger is better, of equals the earlier."""
        return self.success[row], self.rank[row], -self.restart[row]

    def replaced(self, which: np.ndarray, other: "Found") -> "Found":
        """With the rows of another search in the place of these, bool [N]; what they took adds up."""
        for name, values in vars(self).items():
            if name in ("steps", "num_queries", "num_gradients", "saw_nan"):
                values[which] += getattr(other, name)[which]  # of booleans: either
            elif name != "finished":
                values[which] = getattr(other, name)[which]
        return self
