"""The queue of jobs that keeps the lanes of an attack on many images busy.

A job is one restart of the attack on one image. Jobs wait in a queue; every few steps the lanes that
have finished are read and refilled with waiting jobs. With `until_fooled`, the other jobs of an image
are cancelled once one has fooled it. The result of a job depends only on its image, its restart and the
key, so whether an image is fooled does not depend on the number of lanes or the order of the jobs.
"""

import contextlib
import dataclasses
import operator
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import programs
from jaxrobust.attacks import judging, lanes
from jaxrobust.attacks.attack import Attack, epsilon_of
from jaxrobust.evaluation.found import NEVER, Found
from jaxrobust.evaluation.seats import Seats
from jaxrobust.evaluation.state_file import StateFile

_SAVE_EVERY = 30.0  # seconds between two states on the disk, or 20 times what saving takes


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """An attack on N images.

    Attributes:
      attack: The attack, as `conversation.per_image` returns it for N images, with numpy leaves.
      images: float32 [N, H, W, C] in [0, 1].
      labels: int32 [N], the classes to leave; for a targeted attack the classes to reach.
      keys: PRNG keys [N], on every device that has lanes.
      until_fooled: Whether an image's first success ends its jobs.
    """

    attack: Attack
    images: np.ndarray
    labels: np.ndarray
    keys: jax.Array
    until_fooled: bool

    @property
    def radius(self) -> np.ndarray:
        """The attack's epsilon for each image, float [N]."""
        return np.asarray(epsilon_of(self.attack))

    def start(self, row: np.ndarray, restart: np.ndarray) -> lanes.Lanes:
        """Returns lanes before their first step.

        Args:
          row: int [L], the image of each lane's job; a lane with -1 is idle.
          restart: int [L], the restart of each lane's job.
        """
        rows = np.maximum(row, 0)  # a lane without a job gets any image
        started: lanes.Lanes = lanes.compiled_start(
            jax.tree.map(operator.itemgetter(rows), self.attack),
            self.keys[rows],
            jnp.asarray(self.images[rows]),
            jnp.asarray(self.labels[rows]),
            jnp.asarray(restart, jnp.int32),
            jnp.asarray(row < 0),
        )
        return started


@dataclasses.dataclass(frozen=True, eq=False)
class Oracle:
    """The classifier under attack.

    Attributes:
      logits_fn: Images [B, H, W, C] -> logits [B, K].
      watch: The watch that notices a change of the classifier's weights.
      num_devices: The number of devices that hold a copy of the classifier.
      functions: {number of images: the classifier as an argument of compiled code}.
    """

    logits_fn: Any
    watch: programs.Watch
    num_devices: int
    functions: dict[int, Any] = dataclasses.field(default_factory=dict)

    def function(self, size: int, image_shape: tuple[int, ...]) -> Any:
        """Returns the classifier for `size` images of a shape at a time, on every device."""
        if size not in self.functions:
            self.watch.check()  # all of them are of the classifier that the run began with
            images = jax.ShapeDtypeStruct((size, *image_shape), np.float32)
            function = programs.as_argument(self.logits_fn, images)
            # Whatever device it was on. If there is only one, arrays of numpy are put there, once.
            where = lanes.everywhere(self.num_devices) if self.num_devices > 1 else None
            self.functions[size] = jax.device_put(function, where)
        return self.functions[size]


@dataclasses.dataclass(eq=False)
class Queue:
    """The jobs of a task that wait for a lane, and everything that is needed to run them.

    Attributes:
      task: The attack and its images.
      oracle: The classifier.
      found: The results so far.
      mine: bool [N], the images that this process attacks.
      kept: bool [N], the images whose results it saves: not those that are in another process's file.
      seats: The lanes.
      progress: Called with (questions done, questions in all) to the classifier: num_steps + 1 for each
        job, needed or not.
      file: The file in which results and lanes are saved, or None.
      waiting: (restart, row) of the waiting jobs; the next one is at the end.
      is_whole: Whether `found`, the jobs and the lanes agree, so that they can be saved.
    """

    task: Task
    oracle: Oracle
    found: Found
    mine: np.ndarray
    kept: np.ndarray
    seats: Seats
    progress: Callable[[int, int], None] | None
    file: StateFile | None
    waiting: list[tuple[int, int]] = dataclasses.field(init=False)
    is_whole: bool = dataclasses.field(init=False, default=False)

    def __post_init__(self) -> None:
        seats = self.seats
        under_way = {(int(seats.restart[lane]), int(seats.row[lane])) for lane in seats.busy}
        # All first starts come before all second ones.
        left = np.flatnonzero(~self.found.finished & self.mine)[::-1]
        jobs = (divmod(int(job), len(self.task.images)) for job in left)
        self.waiting = [job for job in jobs if job not in under_way]

    def run(self) -> None:
        """Runs all jobs to their end and puts their results into `found`."""
        task, seats, watch = self.task, self.seats, self.oracle.watch
        num_jobs = len(self.waiting) + len(seats.busy)
        saved, pause = time.monotonic(), _SAVE_EVERY
        # A look at the lanes costs about a millisecond, a fooled image that waits for it some steps.
        # An even number: attacks that want a gradient every other time keep in step with each other.
        steps = jnp.int32(min(max(task.attack.num_steps // 20, 1), 25) * 2)
        try:
            while True:
                with self._apart():
                    goes_on = self._refill()
                if not goes_on:
                    watch.check()
                    break
                watch.check(always=False)
                function = self.oracle.function(seats.together, task.images.shape[1:])
                with self._apart():
                    seats.advance(function, steps, task.until_fooled)
                looked = self._look()
                with self._apart():
                    self._harvest(*looked)
                self._tell(num_jobs)
                # A large state takes long to save; it is saved the less often.
                if self.file is not None and time.monotonic() - saved > pause:
                    start = time.monotonic()
                    self._save()
                    saved = time.monotonic()
                    pause = max(_SAVE_EVERY, 20 * (saved - start))
        except BaseException as error:  # Ctrl-C, or an error: what was found is not lost
            if self.is_whole:
                try:
                    self._save()
                except Exception as second:  # the first error is the one to be told
                    error.add_note(f"The state could not be kept: {second}")
            raise
        # Without lanes, which nobody needs any more, the file is of a finished attack.
        self._tell(num_jobs)
        seats.running = None
        self._save()

    def _save(self) -> None:
        if self.file is not None:
            self.file.save(self.found.arrays(self.kept) | self.seats.arrays())

    @contextlib.contextmanager
    def _apart(self) -> Iterator[None]:
        """Marks a block during which `found`, the jobs and the lanes do not agree, or if it fails."""
        self.is_whole = False
        yield
        self.is_whole = True

    def _refill(self) -> bool:
        """Puts waiting jobs into free lanes; returns False once there is nothing left to do."""
        seats, fresh = self.seats, []
        for lane in seats.vacant:
            while self.waiting and self._is_left(self.waiting[-1][1]):
                self.found.finished[self.waiting.pop()] = True
            if not self.waiting:
                break
            seats.take(lane, *self.waiting.pop())
            fresh.append(lane)
        if not len(seats.busy):
            return False
        if fresh or seats.running is None:
            seats.start(fresh, self.task.start)
        elif not self.waiting:
            seats.close_ranks()
        return True

    def _is_left(self, row: int) -> bool:
        """Whether the image's other jobs are cancelled."""
        if not (self.task.until_fooled and self.found.success[row]):
            return False
        if self.task.attack.keep != "closest":
            return True
        return bool(judging.is_within(-self.found.rank[row], self.task.radius[row]))

    def _look(self) -> tuple[np.ndarray, dict[str, np.ndarray], dict[int, int], np.ndarray]:
        """Reads the state of the lanes to the host.

        Returns:
          (bool [L], the lanes that are over; the counts of each lane; {row: the lane that has found the
          row's best point}; these points).
        """
        seats, better = self.seats, dict[int, int]()
        over, told = seats.look()

        def standing(lane: Any) -> tuple[Any, ...]:
            return told["success"][lane], told["rank"][lane], -seats.restart[lane]

        for lane in np.flatnonzero(over):
            row = int(seats.row[lane])
            # If several lanes have one image, the best is kept if it beats the earlier result.
            known = standing(better[row]) if row in better else self.found.standing(row)
            if standing(lane) > known:
                better[row] = int(lane)
        return over, told, better, seats.points(list(better.values()))

    def _harvest(
        self,
        over: np.ndarray,
        told: dict[str, np.ndarray],
        better: dict[int, int],
        points: np.ndarray,
    ) -> None:
        """Records the results, and frees lanes that are over or whose image needs no more jobs."""
        seats, found = self.seats, self.found
        seats.steps = told["num_steps"].astype(np.int64)
        if not over.any():
            return
        for (row, winner), point in zip(better.items(), points, strict=True):
            found.images[row] = point
            found.success[row], found.rank[row] = told["success"][winner], told["rank"][winner]
            found.restart[row] = seats.restart[winner]
        # The counts of the lanes, including jobs that were cancelled by their image's success.
        beaten = np.array([row >= 0 and self._is_left(int(row)) for row in seats.row]) & ~over
        free = over | beaten
        rows, restarts = seats.row[free], seats.restart[free]
        found.steps[rows, restarts] = told["num_steps"][free]
        first = np.where(told["fooled"], told["first_success"], NEVER)
        found.first[rows, restarts] = first[free]
        for name in ("num_queries", "num_gradients"):
            np.add.at(getattr(found, name), rows, told[name][free])
        np.logical_or.at(found.saw_nan, rows, told["saw_nan"][free])
        found.finished[restarts, rows] = True
        seats.leave(over, beaten)

    def _tell(self, num_jobs: int) -> None:
        if self.progress is None or not num_jobs:
            return
        each, busy = self.task.attack.num_steps + 1, self.seats.busy
        over = num_jobs - len(self.waiting) - len(busy)
        self.progress(over * each + int(self.seats.steps[busy].sum()), num_jobs * each)
