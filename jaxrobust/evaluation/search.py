"""Runs the jobs of one attack on many images, shared among processes and resumable from a file."""

import dataclasses
import functools
import heapq
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import checks, losses, processes, programs
from jaxrobust.attacks import Attack, conversation, engine, judging, lanes
from jaxrobust.attacks.attack import epsilon_of
from jaxrobust.evaluation.answers import answers, as_float, check_company, check_processes
from jaxrobust.evaluation.attack_report import attack_label
from jaxrobust.evaluation.classification import predictions
from jaxrobust.evaluation.execution import Execution
from jaxrobust.evaluation.found import Found
from jaxrobust.evaluation.queue import Oracle, Queue, Task
from jaxrobust.evaluation.seats import Seats
from jaxrobust.evaluation.state_file import StateFile, description
from jaxrobust.programs.company import unusual
from jaxrobust.types import Array, LogitsFn, Stochastic, as_key, fold_keys

# Images, and how far their pixels are moved at most, to see what the classifier makes of such.
_ASKED, _MOVED = 32, 4 / 255
_NOT_SHARED = "`execution.path` must be in a folder that all processes see, got {} in this one."


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """A classifier and images that have been checked against it.

    Attributes:
      function: The classifier, as it was given.
      images: float32 [N, H, W, C] in [0, 1].
      labels: int [N], the true classes.
      clean_logits: float32 [N, K], the logits of the images.
      watch: The watch that notices a change of the classifier's weights.
      remarks: Sentences about how the classifier is evaluated; usually empty.
    """

    function: Any
    images: np.ndarray
    labels: np.ndarray
    clean_logits: np.ndarray
    watch: programs.Watch
    remarks: tuple[str, ...] = ()

    @property
    def one_image(self) -> jax.ShapeDtypeStruct:
        """The shape and type of a batch of one image."""
        return jax.ShapeDtypeStruct((1, *self.images.shape[1:]), np.float32)


def prepare(
    logits_fn: LogitsFn,
    images: Any,
    labels: Any,
    batch_size: int = 128,
    *,
    any_rows: bool = False,
) -> Prepared:
    """Checks images and labels against the classifier; the errors are those of `attack_dataset`.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K].
      images: [N, H, W, C], uint8 or floating point in [0, 1], with N at least 1.
      labels: int [N], the true classes.
      batch_size: How many images to evaluate at a time.
      any_rows: Whether an answer may depend on the other images of the batch, for callers that check
        that themselves.
    """
    clean = as_float(images)
    labels = np.asarray(labels)
    checks.images_and_labels(clean, labels)
    if len(clean) == 0:
        raise ValueError("`images` must hold at least one image, got none.")
    num_classes = programs.logits_shape(logits_fn, clean[:1])[1]
    checks.label_range("labels", labels, num_classes)
    check_processes(logits_fn, clean)
    watch = programs.Watch(logits_fn, clean)
    remark = programs.guard(logits_fn, clean[:batch_size])
    clean_logits = answers(logits_fn, clean, batch_size)
    if not any_rows:
        check_company(logits_fn, clean, batch_size, clean_logits, thorough=True)
    if np.isnan(clean_logits).any(axis=1).all():
        raise ValueError(
            "`logits_fn` must return numbers, got NaN for every clean image: check its weights and its "
            "normalisation."
        )
    for sentence in unusual(clean_logits):
        warnings.warn(sentence, stacklevel=3)
    remarks = () if remark is None else (remark,)
    return Prepared(logits_fn, clean, labels, clean_logits, watch, remarks)


def search(
    attack: Attack,
    prepared: Prepared,
    aims: np.ndarray,
    wanted: np.ndarray,
    *,
    key: jax.Array,
    until_fooled: bool,
    execution: Execution,
    draw: int = 1,
) -> Found:
    """Runs an attack's jobs on the wanted images.

    Args:
      attack: The attack.
      prepared: The classifier and N images.
      aims: int [N], the classes to leave; for a targeted attack the classes to reach.
      wanted: bool [N], the images to attack.
      key: A PRNG key.
      until_fooled: Whether the attack on an image ends at its first success.
      execution: How to run the jobs; its `path` is a file.
      draw: The number of the draw by which a `Stochastic` classifier judges; 0 is that of clean images.

    Returns:
      The results for all N images.
    """
    engine.check_attack(attack)
    engine.check_image(attack, prepared.images.shape[1:])
    if attack.keep == "last" or isinstance(prepared.function, Stochastic):
        # The point that is returned may be another one than the first that fooled.
        until_fooled = False
    if until_fooled and attack.keep == "closest" and epsilon_of(attack) is None:
        raise ValueError(
            f"`until_fooled` needs an epsilon for an attack that looks for the smallest perturbation; "
            f"{type(attack).__name__} has none."
        )
    run = functools.partial(_run, attack, aims=aims, key=key, until_fooled=until_fooled)
    if execution.search_type == "float32":
        return run(prepared, wanted=wanted, execution=execution)
    lower = dataclasses.replace(prepared, function=_rounded(prepared.function))
    path = None if execution.path is None else f"{os.fspath(execution.path)}.bfloat16"
    first = run(lower, wanted=wanted, execution=dataclasses.replace(execution, path=path))
    again = _undecided(attack, prepared, lower, aims, wanted, first, execution.num_lanes, draw)
    if not again.any():
        return first
    return first.replaced(again, run(prepared, wanted=again, execution=execution))


def beat(
    attack: Attack,
    prepared: Prepared,
    wanted: np.ndarray,
    *,
    key: jax.Array,
    execution: Execution,
    draw: int = 1,
) -> tuple[Found, np.ndarray]:
    """Attacks the wanted images, each until its first success, and says which of them are fooled.

    Args:
      attack: An untargeted attack.
      prepared: The classifier and N images.
      wanted: bool [N], the images to attack, at least one.
      key: A PRNG key.
      execution: How to run the jobs; its `path` is a file.
      draw: The number of the draw by which a `Stochastic` classifier judges.

    Returns:
      (the results for all N images; bool [N], the wanted images that are fooled within epsilon). The
      results are classified again for this, because a random classifier may change its answer.
    """
    of = prepared, prepared.labels
    found = search(attack, *of, wanted, key=key, until_fooled=True, execution=execution, draw=draw)
    beaten = wanted & _fools(attack, *of, found, execution.num_lanes, draw)
    epsilon = epsilon_of(attack)
    if attack.keep == "closest" and epsilon is not None:
        beaten &= judging.is_within(-found.rank, np.asarray(epsilon))
    return found, beaten


def _fools(
    attack: Attack,
    prepared: Prepared,
    aims: np.ndarray,
    found: Found,
    batch_size: int,
    draw: int,
) -> np.ndarray:
    """Says which results fool when they are classified again, bool [N]."""
    logits = answers(prepared.function, found.images, batch_size, draw)
    return _confirmed(attack, logits, aims, found)


def _confirmed(attack: Attack, logits: np.ndarray, aims: np.ndarray, found: Found) -> np.ndarray:
    """Says which results fool according to these logits of their images, bool [N]."""
    predicted = predictions(logits)
    holds: np.ndarray = (predicted == aims) if attack.targeted else (predicted != aims)
    return holds & (predicted >= 0) & (found.restart < attack.num_restarts)


def _undecided(
    attack: Attack,
    prepared: Prepared,
    lower: Prepared,
    aims: np.ndarray,
    wanted: np.ndarray,
    found: Found,
    batch_size: int,
    draw: int,
) -> np.ndarray:
    """Says which of the wanted images a search in lower precision leaves open, bool [N].

    They are those with a success that the classifier does not confirm, those that met NaN, and those
    whose best point is as close to a success as the lower precision moves the margin of any best point.
    """
    rows = np.flatnonzero(wanted)
    found, aims = found.taken(rows), aims[rows]
    logits, rounded = (
        answers(one.function, found.images, batch_size, draw, start=rows)
        for one in (prepared, lower)
    )
    margin_of = functools.partial(losses.margin, targeted=attack.targeted)
    margins, others = (
        np.asarray(jax.vmap(margin_of)(jnp.asarray(these), jnp.asarray(aims)))
        for these in (logits, rounded)
    )
    searched = found.restart < attack.num_restarts
    changes = np.abs(margins - others)
    largest = np.max(changes, where=searched & np.isfinite(changes), initial=0)
    is_open = found.success | found.saw_nan | (searched & (margins >= -largest))
    every = np.zeros(len(wanted), bool)
    every[rows] = is_open & ~_confirmed(attack, logits, aims, found)
    return every


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Rounded:
    """A classifier that is computed in bfloat16: its arrays and the images are rounded first."""

    function: Any

    def __call__(self, *arguments: Array) -> Array:
        """Returns logits float32 [B, K] of images [B, H, W, C], or of keys [B] and images."""

        def rounded(leaf: Any) -> Any:
            if not isinstance(leaf, jax.Array | np.ndarray | np.generic | float):
                return leaf  # a function, whose arrays stay as they are
            floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
            return jnp.asarray(leaf, jnp.bfloat16) if floating else leaf

        *keys, images = arguments
        function = jax.tree.map(rounded, self.function)
        return function(*keys, images.astype(jnp.bfloat16)).astype(jnp.float32)


def _rounded(function: Any) -> Any:
    if isinstance(function, Stochastic):
        return dataclasses.replace(function, function=Rounded(function.function))
    return Rounded(function)


def _run(
    attack: Attack,
    prepared: Prepared,
    *,
    aims: np.ndarray,
    wanted: np.ndarray,
    key: jax.Array,
    until_fooled: bool,
    execution: Execution,
) -> Found:
    """Runs this process's share of the jobs, and returns the results of all processes."""
    images, labels, key = prepared.images, aims.astype(np.int32), as_key(key)
    rank = jax.process_index()
    words = description(attack, images, labels, wanted, key, until_fooled)
    if jax.process_count() > 1:
        _check_call(words, execution)
    arrays = jax.tree.map(np.asarray, conversation.per_image(attack, len(labels)))
    found = Found.nothing(images, wanted, attack.num_restarts)
    file, saved = None, dict[int, dict[str, np.ndarray]]()
    origin = np.full(len(labels), -1)  # the process whose file has the results
    if execution.path is not None:
        path = Path(os.fspath(execution.path))
        of_first = StateFile(path, words, identity(prepared, execution.num_lanes))
        saved, file = of_first.load_all(), of_first.of(rank)
        for number, of_one in saved.items():
            origin[found.restore(of_one)] = number
    owner = shares(~found.finished, saved, jax.process_count())
    # Until all processes know that they have read the same, none goes on to write.
    if processes.different({"owner": owner.tolist(), "finished": found.finished.tolist()}):
        raise ValueError(_NOT_SHARED.format(execution.path))
    mine = owner == rank
    elsewhere = (owner >= 0) | (origin >= 0)
    kept = mine | (origin == rank) | ~elsewhere
    # How many lanes there are depends on how many jobs are left, so they come after what was found.
    num_jobs = int((~found.finished & mine).sum())
    seats = Seats.free(execution.num_lanes, num_jobs, attack.num_steps)
    keys = fold_keys(key, jnp.arange(len(labels)))
    if seats.num_devices > 1:  # whatever device they were on
        keys = jax.device_put(keys, lanes.everywhere(seats.num_devices))
    task = Task(arrays, images, labels, keys, until_fooled)
    if seats.restore(saved.get(rank, {}), task.start):
        # Jobs that another process has finished, or has been given, since these lanes were saved.
        other = (seats.row >= 0) & (found.finished[seats.restart, seats.row] | ~mine[seats.row])
        seats.leave(np.zeros_like(other), other)
    oracle = Oracle(prepared.function, prepared.watch, seats.num_devices)
    told = execution.progress
    told = None if told is None else functools.partial(told, attack_label(attack))
    Queue(task, oracle, found, mine, kept, seats, told, file).run()
    return _gathered(found, owner)


def shares(
    left: np.ndarray, saved: Mapping[int, Mapping[str, np.ndarray]], num_processes: int
) -> np.ndarray:
    """Shares images among processes, so that each gets the same number, or one more.

    Args:
      left: bool [restarts, N], the jobs that are left.
      saved: {number of a process: its saved arrays}. A process keeps the images that are in its lanes.
      num_processes: The number of processes.

    Returns:
      int [N], the process that attacks each image; -1 for images without a job that is left.

    Example:
      >>> shares(np.array([[True, True, False, True, True]]), {}, 2)
      array([ 0,  1, -1,  0,  1])
    """
    is_open = np.asarray(left.any(axis=0))
    owner = np.full(len(is_open), -1)
    for rank in reversed(range(num_processes)):  # of two that have an image, the first keeps it
        arrays, none = saved.get(rank, {}), np.zeros(0, int)
        rows, restarts = arrays.get("lane/row", none), arrays.get("lane/restart", none)
        owner[rows[(rows >= 0) & left[restarts, rows]]] = rank
    loads = [(int((owner == rank).sum()), rank) for rank in range(num_processes)]
    heapq.heapify(loads)
    for row in np.flatnonzero(is_open & (owner < 0)):
        count, rank = loads[0]
        owner[row] = rank
        heapq.heapreplace(loads, (count + 1, rank))
    return owner


def _check_call(words: str, execution: Execution) -> None:
    """Raises unless all processes make the same attack, and keep its state in the same folder."""
    known: dict[str, Any] = json.loads(words)
    compared = {
        "the attack": known["attack"],
        "the images, their labels, or which of them are attacked": known["jobs"],
        "the key": known["key"],
        "`until_fooled`": known["until_fooled"],
        "`execution.num_lanes`": execution.num_lanes,
        "whether there is an `execution.path`": execution.path is not None,
    }
    unlike = processes.different(compared)
    if unlike:
        raise ValueError(
            "An attack must have the same arguments in all processes; they differ in "
            f"{', '.join(unlike)}."
        )
    if execution.path is not None and not processes.share(Path(execution.path).parent):
        raise ValueError(_NOT_SHARED.format(execution.path))


def identity(prepared: Prepared, batch_size: int) -> dict[str, Any]:
    """Returns what identifies a classifier: its program, its weights, and its logits for some images.

    Logits of clean images alone are not enough, because a classifier that rounds its images gives the
    same logits for images of 8 bits. So a few images are moved off these levels.
    """
    few = prepared.images[:_ASKED]
    noise = np.random.default_rng(0).uniform(-_MOVED, _MOVED, few.shape).astype(np.float32)
    moved = np.clip(few + noise, 0.0, 1.0)
    return programs.fingerprint(prepared.function, prepared.one_image) | {
        "clean_logits": prepared.clean_logits,
        "moved_logits": answers(prepared.function, moved, batch_size),
    }


def _gathered(found: Found, owner: np.ndarray) -> Found:
    """Collects the results of every image from the process that attacked it."""
    if jax.process_count() == 1:
        return found
    rows = [np.flatnonzero(owner == rank) for rank in range(jax.process_count())]
    size = max(len(of_one) for of_one in rows)
    if not size:
        return found
    # All processes send the same number of images.
    sent = np.resize(np.append(rows[jax.process_index()], 0), size)
    for name, values in vars(found).items():
        if name != "finished":
            for of_one, part in zip(rows, processes.gathered(values[sent]), strict=True):
                values[of_one] = part[: len(of_one)]
    return found
