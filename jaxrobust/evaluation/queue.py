"""Keeps the lanes of an attack busy: the host's side of an attack on many images.

A job is one start of the attack on one image. Jobs wait in a queue; every few steps the lanes that have
finished are read, and refilled with waiting jobs. Once a job has fooled its image, with `until_fooled`,
the image's other jobs are cancelled. What a job finds depends on its image, its restart and the key
alone: whether an image is fooled depends neither on the number of lanes nor on the order of the jobs.
"""

import dataclasses
import functools
import json
import operator
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import attacks, compilation, files
from jaxrobust.attacks import judging, lanes
from jaxrobust.types import Attack

_SAVE_EVERY = 30.0  # seconds between two states on the disk, or 20 times what saving takes
_NEVER = np.iinfo(np.int64).max


@dataclasses.dataclass(eq=False)
class Found:
    """What the jobs have found so far, by image; host arrays.

    Attributes:
      images: float32 [N, H, W, C], the best point of each image's jobs.
      success: bool [N], whether it fools.
      rank: float32 [N], what points that fool equally are compared by.
      restart: int [N], the start that found it.
      first_success: int [N], steps to the first success, counted through the restarts in their order.
      num_steps: int [N], steps taken.
      num_queries: int [N].
      num_gradients: int [N].
      saw_nan: bool [N], whether an answer held a NaN.
      finished: bool [restarts, N], the jobs that are over, cancelled or not wanted.
    """

    images: np.ndarray
    success: np.ndarray
    rank: np.ndarray
    restart: np.ndarray
    first_success: np.ndarray
    num_steps: np.ndarray
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
            first_success=np.full(size, _NEVER, np.int64),
            num_steps=np.zeros(size, np.int64),
            num_queries=np.zeros(size, np.int64),
            num_gradients=np.zeros(size, np.int64),
            saw_nan=np.zeros(size, bool),
            finished=np.tile(~wanted, (num_restarts, 1)),
        )

    @property
    def steps_to_success(self) -> np.ndarray:
        """Int [N], steps before the first point that fooled; all that were taken where none did."""
        return np.where(self.first_success < _NEVER, self.first_success, self.num_steps)

    def save(self, path: Path, description: str) -> None:
        """All or nothing."""
        with files.replace(path) as partial:
            np.savez(partial, description=np.array(description), **vars(self))

    @classmethod
    def load(cls, path: Path, description: str) -> "Found":
        """What `save` saved.

        Raises:
          ValueError: A state of another attack, or none.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive}
        except Exception as error:  # zip and numpy have errors of many classes
            raise ValueError(f"{path} holds no attack; delete it to go on: {error}") from error
        if str(arrays.pop("description", "")) != description:
            raise ValueError(
                f"{path} holds another attack (settings, images, classifier or key differ); name "
                "another file, or delete it to start anew."
            )
        return cls(**arrays)

    def merge(self, row: int, restart: int, success: bool, rank: float) -> bool:
        """Whether a job's point is better than what its image has; of equals the earlier restart's."""
        new, old = (
            (success, rank, -restart),
            (self.success[row], self.rank[row], -self.restart[row]),
        )
        if new <= old:
            return False
        self.success[row], self.rank[row], self.restart[row] = success, rank, restart
        return True


def description(
    attack: Attack,
    function: Any,
    images: np.ndarray,
    labels: np.ndarray,
    wanted: np.ndarray,
    key: jax.Array,
) -> str:
    """What decides about an attack's outcome, in a line: so that a file is recognised."""

    def crc(arrays: list[np.ndarray]) -> int:
        return functools.reduce(
            lambda value, array: zlib.crc32(np.ascontiguousarray(array).tobytes(), value), arrays, 0
        )

    return json.dumps(
        {
            "attack": attacks.to_dict(attack) if type(attack).__name__ in attacks.ATTACKS else None,
            "images": crc([images, labels, wanted]),
            "classifier": crc([np.asarray(leaf) for leaf in jax.tree.leaves(function)]),
            "key": np.asarray(jax.random.key_data(key)).tolist(),
        }
    )


@dataclasses.dataclass(eq=False)
class Queue:
    """An attack on N images, and how it is run.

    Attributes:
      attack: From `conversation.per_image` for the N images, with numpy leaves.
      function: From `compilation.as_argument`.
      images: float32 [N, H, W, C] in [0, 1].
      labels: int32 [N].
      keys: PRNG keys [N].
      found: The jobs' state.
      num_lanes: How many jobs at a time.
      num_devices: Of this process, that share the lanes.
      until_fooled: Whether an image's first success ends its jobs.
      progress: Called with (questions done, questions in all) to the classifier: num_steps + 1 for each
        job, whether it needs all of them or not.
      save: Called with nothing from time to time, and where a run is interrupted.
    """

    attack: Attack
    function: Any
    images: np.ndarray
    labels: np.ndarray
    keys: jax.Array
    found: Found
    num_lanes: int
    num_devices: int
    until_fooled: bool
    progress: Callable[[int, int], None] | None
    save: Callable[[], None] | None

    def run(self) -> None:
        """Runs all jobs to their end; what they find is in `found`."""
        try:
            self._run()
        except BaseException:  # Ctrl-C, or an error: what was found is not lost
            if self.save is not None:
                self.save()
            raise

    def _run(self) -> None:
        num_jobs = int((~self.found.finished).sum())
        # The next one is at the end; all first starts come before all second ones.
        self.waiting = [
            divmod(int(job), len(self.images)) for job in np.flatnonzero(~self.found.finished)[::-1]
        ]
        self.size = lane_count(self.num_lanes, len(self.waiting), self.num_devices)
        self.row = np.full(self.size, -1)  # of the job in each lane
        self.restart = np.zeros(self.size, np.int64)
        # A look at the lanes costs about a millisecond, a fooled image that waits for it some steps.
        steps = jnp.int32(min(max(self.attack.num_steps // 10, 1), 50))
        running: lanes.Lanes | None = None
        saved, pause = time.monotonic(), _SAVE_EVERY
        while True:
            running = self._refill(running)
            if running is None:
                self._tell(running, num_jobs)
                break
            running = lanes.compiled_advance(
                running,
                self.function,
                steps,
                until_fooled=self.until_fooled,
                num_devices=self.num_devices,
            )
            running = self._harvest(running)
            self._tell(running, num_jobs)
            if self.save is not None and time.monotonic() - saved > pause:
                start = time.monotonic()
                self.save()
                saved = time.monotonic()
                pause = max(_SAVE_EVERY, 20 * (saved - start))

    def _tell(self, running: lanes.Lanes | None, num_jobs: int) -> None:
        if self.progress is None or not num_jobs:
            return
        each, under_way = self.attack.num_steps + 1, 0
        if running is not None:
            under_way = int(np.asarray(running.progress.num_steps)[self.row >= 0].sum())
        over = num_jobs - int((~self.found.finished).sum())
        self.progress(over * each + under_way, num_jobs * each)

    def _refill(self, running: lanes.Lanes | None) -> lanes.Lanes | None:
        """The lanes with waiting jobs in those that are free; None once there is nothing to do."""
        fresh = np.zeros(self.size, bool)
        for lane in np.flatnonzero(self.row < 0):
            while self.waiting and self._is_cancelled(*self.waiting[-1]):
                self.found.finished[self.waiting.pop()] = True
            if not self.waiting:
                break
            self.restart[lane], self.row[lane] = self.waiting.pop()
            fresh[lane] = True
        if not (self.row >= 0).any():
            return None
        if fresh.any():
            rows = np.maximum(self.row, 0)  # a lane without a job gets any, and is idle
            started = lanes.compiled_start(
                jax.tree.map(operator.itemgetter(rows), self.attack),
                self.keys[rows],
                jnp.asarray(self.images[rows]),
                jnp.asarray(self.labels[rows]),
                jnp.asarray(self.restart, jnp.int32),
                jnp.asarray(self.row < 0),
            )
            return (
                started
                if running is None
                else lanes.compiled_refill(running, started, jnp.asarray(fresh))
            )
        if compilation.group_size() is not None and self.num_devices == 1 and not self.waiting:
            return self._close_ranks(running)
        return running

    def _is_cancelled(self, restart: int, row: int) -> bool:
        return self.until_fooled and self._is_fooled(row)

    def _is_fooled(self, row: int) -> bool:
        if self.attack.keep != "closest":
            return bool(self.found.success[row])
        return bool(self.found.success[row]) and is_within(
            -self.found.rank[row], radius(self.attack)[row]
        )

    def _close_ranks(self, running: lanes.Lanes | None) -> lanes.Lanes | None:
        """Busy lanes to the front, where that leaves a group with none: such a group costs nothing."""
        group, busy = compilation.group_size() or 1, self.row >= 0
        groups = int(np.add.reduceat(busy, np.arange(0, self.size, group)).astype(bool).sum())
        if running is None or -(-int(busy.sum()) // group) >= groups:
            return running
        order = np.argsort(~busy, kind="stable")
        self.row, self.restart = self.row[order], self.restart[order]
        return lanes.compiled_reorder(running, jnp.asarray(order))

    def _harvest(self, running: lanes.Lanes) -> lanes.Lanes:
        """Takes over what finished lanes have found, and frees those whose image is fooled."""
        busy = self.row >= 0
        over = np.asarray(running.finished) & busy
        if not over.any():
            return running
        seen = running.progress
        success, rank = np.asarray(seen.success), np.asarray(seen.rank)
        fooled, first = np.asarray(seen.fooled), np.asarray(seen.first_success)
        better = {}  # {row: lane}
        for lane in np.flatnonzero(over):
            row, restart = int(self.row[lane]), int(self.restart[lane])
            self.found.finished[restart, row] = True
            if fooled[lane]:
                steps = restart * self.attack.num_steps + int(first[lane])
                self.found.first_success[row] = min(self.found.first_success[row], steps)
            if self.found.merge(row, restart, bool(success[lane]), float(rank[lane])):
                better[row] = lane
        if better:
            rows, chosen = (np.array(list(part)) for part in (better.keys(), better.values()))
            # All lanes, to pick on the host: a choice on the device compiles for each of its sizes.
            self.found.images[rows] = np.asarray(seen.images)[chosen]
        beaten = np.zeros(self.size, bool)
        for lane in np.flatnonzero(busy & ~over):
            beaten[lane] = self._is_cancelled(int(self.restart[lane]), int(self.row[lane]))
        self._count(seen, over | beaten)
        self.found.finished[self.restart[beaten], self.row[beaten]] = True
        self.row[over | beaten] = -1
        if not beaten.any():
            return running
        finished = running.finished | jax.device_put(beaten, running.finished.sharding)
        return dataclasses.replace(running, finished=finished)

    def _count(self, seen: judging.Progress, which: np.ndarray) -> None:
        rows = self.row[which]
        for name in ("num_steps", "num_queries", "num_gradients"):
            np.add.at(getattr(self.found, name), rows, np.asarray(getattr(seen, name))[which])
        np.logical_or.at(self.found.saw_nan, rows, np.asarray(seen.saw_nan)[which])


def radius(attack: Attack) -> np.ndarray:
    """The epsilon of an attack that has one: a number, or one for each image."""
    return np.asarray(vars(attack)["epsilon"])


def is_within(length: Any, epsilon: Any) -> Any:
    """Whether a perturbation's norm is at most epsilon, up to float32's rounding."""
    return length <= epsilon * (1 + 1e-6)


def lane_count(num_lanes: int, num_jobs: int, num_devices: int) -> int:
    """Lanes to compile for: few different numbers, so that other numbers of jobs compile nothing."""
    group = compilation.group_size()
    if group is None:
        # No more than twice as many as there are jobs: here an idle lane costs as much as a busy one.
        group, num_lanes = num_devices, min(num_lanes, 1 << max(num_jobs - 1, 0).bit_length())
    else:
        group *= num_devices
    return max(-(-num_lanes // group), 1) * group
