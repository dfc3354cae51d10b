"""Keeps the lanes of an attack busy: the host's side of an attack on many images.

A job is one start of the attack on one image. Jobs wait in a queue; every few steps the lanes that have
finished are read, and refilled with waiting jobs. Once a job has fooled its image, with `until_fooled`,
the image's other jobs are cancelled. What a job finds depends on its image, its restart and the key
alone: whether an image is fooled depends neither on the number of lanes nor on the order of the jobs.
"""

import contextlib
import dataclasses
import operator
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import compilation, programs
from jaxrobust.attacks import Attack, judging, lanes
from jaxrobust.evaluation.found import NEVER, Found

_SAVE_EVERY = 30.0  # seconds between two states on the disk, or 20 times what saving takes
_MANY_STEPS = 1000  # that are worth a program for the number of jobs at hand


class Keeper(Protocol):
    """What keeps a queue on the disk (`jaxrobust.evaluation.state.State`)."""

    def save(self, queue: "Queue") -> None:
        """Keeps `found` and the lanes as they stand."""

    def restore_lanes(self, queue: "Queue") -> None:
        """Puts back the lanes that were kept, if they fit."""


@dataclasses.dataclass(eq=False)
class Queue:
    """An attack on N images, and how it is run.

    Attributes:
      attack: From `conversation.per_image` for the N images, with numpy leaves.
      logits_fn: Images [B, H, W, C] -> logits [B, K].
      watch: That notices a change of its weights.
      images: float32 [N, H, W, C] in [0, 1].
      labels: int32 [N].
      keys: PRNG keys [N].
      found: The jobs' state.
      num_lanes: How many jobs at a time, before `lane_count` has rounded it.
      num_devices: Of this process, that share the lanes.
      until_fooled: Whether an image's first success ends its jobs.
      progress: Called with (questions done, questions in all) to the classifier: num_steps + 1 for each
        job, whether it needs all of them or not.
      state: The file that keeps the state, if any.
      waiting: (restart, row) of the jobs that wait; the next one is at the end.
      row: int [L], the image in each lane; -1 for a lane that is free.
      restart: int [L], of the job in each lane.
      steps: int [L], that it has taken.
      group: How many lanes of a device take their steps together; None: all of them.
      running: The lanes; None before the first job.
      is_whole: Whether `found`, the jobs and the lanes belong together, so that they can be kept.
      functions: The classifier as an argument of compiled code, by how many images it is shown.
      radius: float [N], within which the closest point leaves its image.
    """

    attack: Attack
    logits_fn: Any
    watch: programs.Watch
    images: np.ndarray
    labels: np.ndarray
    keys: jax.Array
    found: Found
    num_lanes: int
    num_devices: int
    until_fooled: bool
    progress: Callable[[int, int], None] | None
    state: Keeper | None
    waiting: list[tuple[int, int]] = dataclasses.field(init=False)
    row: np.ndarray = dataclasses.field(init=False)
    restart: np.ndarray = dataclasses.field(init=False)
    steps: np.ndarray = dataclasses.field(init=False)
    group: int | None = dataclasses.field(init=False)
    running: lanes.Lanes | None = dataclasses.field(init=False, default=None)
    is_whole: bool = dataclasses.field(init=False, default=False)
    functions: dict[int, Any] = dataclasses.field(init=False, default_factory=dict)
    radius: np.ndarray = dataclasses.field(init=False)

    def run(self) -> None:
        """Runs all jobs to their end; what they find is in `found`."""
        self._begin()
        num_jobs = len(self.waiting) + int((self.row >= 0).sum())
        saved, pause = time.monotonic(), _SAVE_EVERY
        # A look at the lanes costs about a millisecond, a fooled image that waits for it some steps.
        # An even number: attacks that want a gradient every other time keep in step with each other.
        steps = jnp.int32(min(max(self.attack.num_steps // 20, 1), 25) * 2)
        try:
            while True:
                with self._apart():
                    goes_on = self._refill()
                if not goes_on:
                    self.watch.check()
                    break
                self.watch.check(always=False)
                function = self._function()
                assert self.running is not None
                with self._apart():
                    self.running = lanes.compiled_advance(
                        self.running,
                        function,
                        steps,
                        until_fooled=self.until_fooled,
                        group=self.group,
                        num_devices=self.num_devices,
                    )
                looked = self._look()
                with self._apart():
                    self._harvest(*looked)
                self._tell(num_jobs)
                if self.state is not None and time.monotonic() - saved > pause:
                    start = time.monotonic()
                    self.state.save(self)
                    saved = time.monotonic()
                    pause = max(_SAVE_EVERY, 20 * (saved - start))
        except BaseException as error:  # Ctrl-C, or an error: what was found is not lost
            if self.state is not None and self.is_whole:
                try:
                    self.state.save(self)
                except Exception as second:  # the first error is the one to be told
                    error.add_note(f"The state could not be kept: {second}")
            raise
        self._tell(num_jobs)
        self.running = None
        if self.state is not None:
            self.state.save(self)

    @contextlib.contextmanager
    def _apart(self) -> Iterator[None]:
        """Around what leaves `found`, the jobs and the lanes apart while it runs, or where it fails."""
        self.is_whole = False
        yield
        self.is_whole = True

    def _begin(self) -> None:
        """All lanes free, or as an earlier process has left them."""
        num_jobs = int((~self.found.finished).sum())
        self.group, size = lane_count(
            self.num_lanes, num_jobs, self.num_devices, self.attack.num_steps
        )
        if self.num_devices > 1:  # whatever device they were on
            self.keys = jax.device_put(self.keys, lanes.everywhere(self.num_devices))
        self.row, self.restart = np.full(size, -1), np.zeros(size, np.int64)
        self.steps = np.zeros(size, np.int64)
        if self.until_fooled and self.attack.keep == "closest":
            self.radius = np.broadcast_to(radius(self.attack), len(self.images))
        if self.state is not None:
            self.state.restore_lanes(self)
        under_way = {(int(self.restart[lane]), int(self.row[lane])) for lane in self._busy()}
        # All first starts come before all second ones.
        left = np.flatnonzero(~self.found.finished)[::-1]
        jobs = (divmod(int(job), len(self.images)) for job in left)
        self.waiting = [job for job in jobs if job not in under_way]

    def _function(self) -> Any:
        """The classifier for as many images as a group has lanes, on every device."""
        lanes_of_one = len(self.row) // self.num_devices
        size = lanes_of_one if self.group is None else min(self.group, lanes_of_one)
        if size not in self.functions:
            self.watch.check()  # all of them are of the classifier that the run began with
            shape = (size, *self.images.shape[1:])
            images = jax.ShapeDtypeStruct(shape, np.float32)
            function = programs.as_argument(self.logits_fn, images)
            if self.num_devices > 1:  # whatever device it was on
                function = jax.device_put(function, lanes.everywhere(self.num_devices))
            self.functions[size] = function
        return self.functions[size]

    def _busy(self) -> np.ndarray:
        return np.flatnonzero(self.row >= 0)

    def start(self, which: np.ndarray) -> lanes.Lanes:
        """Lanes before their first step, of the jobs that stand in these."""
        rows = np.maximum(self.row[which], 0)  # a lane without a job gets any, and is idle
        started = lanes.compiled_start(
            jax.tree.map(operator.itemgetter(rows), self.attack),
            self.keys[rows],
            jnp.asarray(self.images[rows]),
            jnp.asarray(self.labels[rows]),
            jnp.asarray(self.restart[which], jnp.int32),
            jnp.asarray(self.row[which] < 0),
        )
        if len(which) == len(self.row) and self.num_devices > 1:
            started = jax.device_put(started, lanes.by_rows(self.num_devices))
        return started

    def _refill(self) -> bool:
        """Puts waiting jobs into the lanes that are free; False once there is nothing to do."""
        fresh = []
        turns = _in_turn(len(self.row), self.num_devices)
        for lane in turns[self.row[turns] < 0]:
            while self.waiting and self._is_left(self.waiting[-1][1]):
                self.found.finished[self.waiting.pop()] = True
            if not self.waiting:
                break
            self.restart[lane], self.row[lane] = self.waiting.pop()
            self.steps[lane] = 0
            fresh.append(lane)
        if not len(self._busy()):
            return False
        if self.running is None:
            self.running = self.start(np.arange(len(self.row)))
        elif fresh:
            for piece in self._pieces(fresh):
                started = self.start(piece)
                self.running = lanes.compiled_refill(self.running, started, jnp.asarray(piece))
            self._share()
        elif not self.waiting:
            self._close_ranks()
        return True

    def _is_left(self, row: int) -> bool:
        """Whether the image's other jobs are cancelled."""
        if not (self.until_fooled and self.found.success[row]):
            return False
        if self.attack.keep != "closest":
            return True
        return bool(judging.is_within(-self.found.rank[row], self.radius[row]))

    def _close_ranks(self) -> None:
        """Busy lanes to the front, shared by the devices, where that saves work; no job waits."""
        busy, size = self.row >= 0, len(self.row)
        count = int(busy.sum())
        if self.group is None:
            # All lanes take their steps together: fewer of them, where it is worth a compilation.
            kept = self.num_devices * (1 << max(-(-count // self.num_devices) - 1, 0).bit_length())
            if 4 * kept > size:
                return
        else:
            # A group with none that is busy costs nothing, and a step ends with the last device.
            kept = size
            groups = busy.reshape(self.num_devices, -1, self.group).any(axis=2).sum(axis=1).max()
            if -(-count // (self.num_devices * self.group)) >= groups:
                return
        assert self.running is not None
        order = np.empty(kept, int)
        busy_first = np.concatenate([np.flatnonzero(busy), np.flatnonzero(~busy)])[:kept]
        order[_in_turn(kept, self.num_devices)] = busy_first
        self.row, self.restart, self.steps = self.row[order], self.restart[order], self.steps[order]
        self.running = lanes.compiled_reorder(self.running, jnp.asarray(order))
        self._share()

    def _share(self) -> None:
        """Every device has its lanes, wherever XLA has left them."""
        if self.num_devices > 1:
            self.running = jax.device_put(self.running, lanes.by_rows(self.num_devices))

    def _look(self) -> tuple[np.ndarray, dict[str, np.ndarray], dict[int, int], np.ndarray]:
        """What the lanes have come to, all of it on the host.

        Returns:
          (bool [L], the lanes that are over; what each lane has counted; {row: the lane that has
          found its best point}; these points).
        """
        assert self.running is not None
        seen = self.running.progress
        names = [name for name in vars(seen) if name != "images"]
        finished, *values = jax.device_get(
            [self.running.finished, *(getattr(seen, name) for name in names)]
        )
        told = dict(zip(names, values, strict=True))
        over, better = finished & (self.row >= 0), dict[int, int]()
        for lane in np.flatnonzero(over):
            row, restart = int(self.row[lane]), int(self.restart[lane])
            candidate = (told["success"][lane], told["rank"][lane], -restart)
            rival = better.get(row)
            if rival is not None:
                known = (told["success"][rival], told["rank"][rival], -self.restart[rival])
                if candidate > known:
                    better[row] = int(lane)
            elif self.found.is_better(row, restart, *candidate[:2]):
                better[row] = int(lane)
        points = [
            np.asarray(lanes.compiled_pick(seen.images, jnp.asarray(piece)))
            for piece in self._pieces(list(better.values()))
        ]
        none = np.zeros((0, *self.images.shape[1:]), np.float32)
        return over, told, better, np.concatenate([none, *points])[: len(better)]

    def _harvest(
        self,
        over: np.ndarray,
        told: dict[str, np.ndarray],
        better: dict[int, int],
        points: np.ndarray,
    ) -> None:
        """Takes over what was seen, and frees the lanes that are over or whose image is left."""
        self.steps = told["num_steps"].astype(np.int64)
        if not over.any():
            return
        found = self.found
        for (row, winner), point in zip(better.items(), points, strict=True):
            found.images[row] = point
            found.success[row], found.rank[row] = told["success"][winner], told["rank"][winner]
            found.restart[row] = self.restart[winner]
        beaten = np.array([row >= 0 and self._is_left(int(row)) for row in self.row]) & ~over
        free = over | beaten
        jobs = self.row[free], self.restart[free]
        found.steps[jobs] = told["num_steps"][free]
        found.first[jobs] = np.where(told["fooled"], told["first_success"], NEVER)[free]
        for name in ("num_queries", "num_gradients"):
            np.add.at(getattr(found, name), self.row[free], told[name][free])
        np.logical_or.at(found.saw_nan, self.row[free], told["saw_nan"][free])
        found.finished[self.restart[free], self.row[free]] = True
        self.row[free] = -1
        if beaten.any():
            assert self.running is not None
            sharding = self.running.finished.sharding
            finished = self.running.finished | jax.device_put(beaten, sharding)
            self.running = dataclasses.replace(self.running, finished=finished)

    def _pieces(self, which: list[int]) -> list[np.ndarray]:
        """Lanes in pieces of one length, the last filled up with its last: one length, one program."""
        length = max(len(self.row) // 8, 1)
        pieces = [which[i : i + length] for i in range(0, len(which), length)]
        return [np.array(piece + piece[-1:] * (length - len(piece))) for piece in pieces]

    def _tell(self, num_jobs: int) -> None:
        if self.progress is None or not num_jobs:
            return
        each, busy = self.attack.num_steps + 1, self._busy()
        over = num_jobs - len(self.waiting) - len(busy)
        self.progress(over * each + int(self.steps[busy].sum()), num_jobs * each)


def _in_turn(size: int, num_devices: int) -> np.ndarray:
    """All lanes, int [L]: the first of every device, then the second of every device, and so on."""
    return np.arange(size).reshape(num_devices, -1).T.ravel()


def radius(attack: Any) -> np.ndarray:  # Any: not every Attack has an epsilon
    """The epsilon of an attack that has one: a number, or one for each image."""
    return np.asarray(attack.epsilon)


def lane_count(
    num_lanes: int, num_jobs: int, num_devices: int, num_steps: int
) -> tuple[int | None, int]:
    """Lanes to compile for: other numbers of jobs compile nothing, but for an attack of many steps.

    Args:
      num_lanes: As many as were asked for.
      num_jobs: That there are.
      num_devices: That share the lanes.
      num_steps: Of the attack.

    Returns:
      (how many lanes take their steps together, how many there are in all).
    """
    sizes = compilation.group_sizes()
    if sizes is None:
        # No more than twice as many as there are jobs: here an idle lane costs as much as a busy one.
        num_lanes = min(num_lanes, 1 << max(num_jobs - 1, 0).bit_length())
        return None, _multiple(num_lanes, num_devices)
    if num_steps < _MANY_STEPS:
        sizes = sizes[:1]
    busy = -(-min(num_lanes, num_jobs) // num_devices)
    group = min(sizes, key=lambda size: (_multiple(busy, size), -size))
    return group, _multiple(num_lanes, group * num_devices)


def device_count(num_lanes: int) -> int:
    """How many of this process's devices have lanes to share: no more than make a group each."""
    sizes = compilation.group_sizes()
    return min(jax.local_device_count(), -(-num_lanes // (sizes[0] if sizes else 1)))


def _multiple(number: int, factor: int) -> int:
    """The smallest multiple of the factor that is not below the number, nor 0."""
    return max(-(-number // factor), 1) * factor
