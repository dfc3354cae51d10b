"""The lanes of an attack on the host's side: which job is in which lane, and how far it is."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import compilation
from jaxrobust.attacks import lanes
from jaxrobust.types import PyTree

_MANY_STEPS = 1000  # of an attack, that are worth a program for the number of jobs at hand

Start = Callable[[np.ndarray, np.ndarray], lanes.Lanes]
"""Jobs' images and restarts, int [L] each (an image of -1: no job) -> lanes before their first step."""


@dataclasses.dataclass(eq=False)
class Seats:
    """L lanes, shared by the devices of this process.

    Attributes:
      asked: How many lanes the user asked for, before `lane_count` rounded the number.
      num_devices: The number of devices of this process that share the lanes.
      group: How many lanes of a device take their steps together; None means all of them.
      is_long: Whether the attack is worth another compilation when the number of jobs changes.
      row: int [L], the image in each lane; -1 for a free lane.
      restart: int [L], the restart of the job in each lane.
      steps: int [L], the steps that the job in each lane has taken.
      running: The lanes; None before the first job.
    """

    asked: int
    num_devices: int
    group: int | None
    is_long: bool
    row: np.ndarray
    restart: np.ndarray
    steps: np.ndarray
    running: lanes.Lanes | None = None

    @classmethod
    def free(cls, num_lanes: int, num_jobs: int, num_steps: int) -> "Seats":
        """Returns free lanes; `lane_count` decides how many."""
        num_devices = device_count(num_lanes)
        group, size = lane_count(num_lanes, num_jobs, num_devices, num_steps)
        row, restart, steps = np.full(size, -1), np.zeros(size, np.int64), np.zeros(size, np.int64)
        return cls(num_lanes, num_devices, group, num_steps >= _MANY_STEPS, row, restart, steps)

    @property
    def busy(self) -> np.ndarray:
        """The lanes with a job, int."""
        return np.flatnonzero(self.row >= 0)

    @property
    def vacant(self) -> np.ndarray:
        """The lanes without a job, int; devices alternate, so that all get the same number of jobs."""
        turns = _in_turn(len(self.row), self.num_devices)
        return turns[self.row[turns] < 0]

    @property
    def together(self) -> int:
        """How many lanes evaluate the classifier together."""
        lanes_of_one = len(self.row) // self.num_devices
        return lanes_of_one if self.group is None else min(self.group, lanes_of_one)

    def take(self, lane: int, restart: int, row: int) -> None:
        """Puts a job into a free lane."""
        self.row[lane], self.restart[lane], self.steps[lane] = row, restart, 0

    def start(self, fresh: Sequence[int], start: Start) -> None:
        """Starts the lanes that have just got a job, or all lanes if none is running."""
        running: Any = self.running
        if running is None:
            running = start(self.row, self.restart)
        else:
            for piece in self._pieces(fresh):
                started = start(self.row[piece], self.restart[piece])
                running = lanes.compiled_refill(running, started, jnp.asarray(piece))
        self.running = self._shared(running)

    def advance(self, function: Any, num_steps: jax.Array, until_fooled: bool) -> None:
        """Takes steps in every lane that is not finished."""
        assert self.running is not None
        self.running = lanes.compiled_advance(
            self.running,
            function,
            num_steps,
            until_fooled=until_fooled,
            group=self.group,
            num_devices=self.num_devices,
        )

    def look(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Returns (bool [L], the lanes whose job is over; each lane's counts, by name), on the host."""
        assert self.running is not None
        seen = self.running.progress
        names = [name for name in vars(seen) if name != "images"]
        finished, *values = jax.device_get(
            [self.running.finished, *(getattr(seen, name) for name in names)]
        )
        return finished & (self.row >= 0), dict(zip(names, values, strict=True))

    def points(self, which: Sequence[int]) -> np.ndarray:
        """Returns the best points [F, H, W, C] of some lanes, on the host."""
        assert self.running is not None
        images = self.running.progress.images
        picked = [
            np.asarray(lanes.compiled_pick(images, jnp.asarray(piece)))
            for piece in self._pieces(which)
        ]
        none = np.zeros((0, *images.shape[1:]), np.float32)
        return np.concatenate([none, *picked])[: len(which)]

    def leave(self, over: np.ndarray, beaten: np.ndarray) -> None:
        """Frees lanes, bool [L] each: those whose job is over, and those whose job is cancelled."""
        assert self.running is not None
        self.row[over | beaten] = -1
        if beaten.any():
            # Not put on the device of the lanes: jax would compile all programs anew for lanes that
            # must stay on a device.
            finished = self.running.finished | jnp.asarray(beaten)
            self.running = dataclasses.replace(self.running, finished=finished)

    def close_ranks(self) -> None:
        """Moves busy lanes to the front, shared by the devices, if that saves work; no job waits."""
        busy, size = self.row >= 0, len(self.row)
        count = int(busy.sum())
        if self.group is None:
            # All lanes take their steps together: fewer of them, where it is worth a compilation.
            if not self.is_long:
                return
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
        self.running = self._shared(lanes.compiled_reorder(self.running, jnp.asarray(order)))

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the lanes' arrays to save, by names that begin with "lane"; none if no lane runs."""
        if self.running is None:
            return {}
        return {f"lane{name}": leaf for name, leaf in _named(self.running).items()} | {
            "lane/asked": self._asked(),
            "lane/group": np.array(self.group or 0),
            "lane/row": self.row,
            "lane/restart": self.restart,
            "lane/steps": self.steps,
        }

    def restore(self, arrays: Mapping[str, np.ndarray], start: Start) -> bool:
        """Restores saved lanes, if the same number was asked for and the devices can share them.

        Args:
          arrays: The saved arrays, other ones included.
          start: The function that starts lanes, which gives their shapes and types.

        Returns:
          Whether the lanes were restored. If not, nothing has changed, and the jobs start again.
        """
        if not np.array_equal(arrays.get("lane/asked", ()), self._asked()):
            return False
        group, row, restart = (arrays[f"lane/{name}"] for name in ("group", "row", "restart"))
        if len(row) % (max(int(group), 1) * self.num_devices):
            return False
        template = self._shared(start(row, restart))
        shapes = {name: leaf.shape for name, leaf in _named(template).items()}
        kept = {name: arrays[f"lane{name}"] for name in shapes if f"lane{name}" in arrays}
        if {name: leaf.shape for name, leaf in kept.items()} != shapes:
            return False
        self.group, self.row, self.restart = int(group) or None, row, restart
        self.steps = arrays["lane/steps"]
        restored = jax.tree_util.tree_map_with_path(
            lambda path, leaf: _like(kept[jax.tree_util.keystr(path)], leaf), template
        )
        self.running = self._shared(restored)
        return True

    def _asked(self) -> np.ndarray:
        """The settings from which the number of lanes was computed; the number may shrink later."""
        return np.array([self.asked, self.group is not None])

    def _shared(self, running: lanes.Lanes) -> lanes.Lanes:
        """Moves every device's lanes to it, wherever XLA has left them."""
        if self.num_devices == 1:
            return running
        shared: lanes.Lanes = jax.device_put(running, lanes.by_rows(self.num_devices))
        return shared

    def _pieces(self, which: Sequence[int]) -> list[np.ndarray]:
        """Cuts lanes into pieces of one length, so that one program serves all; the last is padded."""
        length = max(len(self.row) // 8, 1)
        pieces = [list(which[i : i + length]) for i in range(0, len(which), length)]
        return [np.array(piece + piece[-1:] * (length - len(piece))) for piece in pieces]


def _in_turn(size: int, num_devices: int) -> np.ndarray:
    """All lanes, int [L]: the first of every device, then the second of every device, and so on."""
    return np.arange(size).reshape(num_devices, -1).T.ravel()


def lane_count(
    num_lanes: int, num_jobs: int, num_devices: int, num_steps: int
) -> tuple[int | None, int]:
    """Computes for how many lanes to compile.

    Where lanes have groups, another number of jobs means another compilation only for an attack of many
    steps; elsewhere only if there are fewer jobs than lanes.

    Args:
      num_lanes: How many lanes the user asked for.
      num_jobs: The number of jobs.
      num_devices: The number of devices that share the lanes.
      num_steps: The number of steps of the attack.

    Returns:
      (how many lanes take their steps together, or None for all; how many lanes there are in all).
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
    """Computes how many of this process's devices share the lanes; each needs at least one group."""
    sizes = compilation.group_sizes()
    return min(jax.local_device_count(), -(-num_lanes // (sizes[0] if sizes else 1)))


def _multiple(number: int, factor: int) -> int:
    """The smallest multiple of the factor, above 0, that is at least the number."""
    return max(-(-number // factor), 1) * factor


def _named(tree: PyTree) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): _plain(leaf) for path, leaf in leaves}


def _plain(leaf: jax.Array) -> np.ndarray:
    """The array as it can be saved: a PRNG key as its data."""
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def _like(array: np.ndarray, leaf: jax.Array) -> Any:
    # If they were put on a named device, jax would compile all programs anew for lanes that must stay.
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(leaf))
    return jnp.asarray(array.astype(leaf.dtype))
