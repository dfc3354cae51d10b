"""The jobs of one attack on many images: what is asked for, and who does which share of it."""

import dataclasses
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import checks, programs
from jaxrobust.attacks import Attack, conversation, engine, judging
from jaxrobust.evaluation import queue
from jaxrobust.evaluation.answers import answers, as_float, check_company
from jaxrobust.evaluation.classification import predictions
from jaxrobust.evaluation.found import Found
from jaxrobust.evaluation.state import State, description
from jaxrobust.programs.company import unusual
from jaxrobust.types import Array, LogitsFn, Stochastic, as_key, fold_keys

SEARCH_TYPES = ("float32", "bfloat16")
# Images, and how far their pixels are moved at most, to see what the classifier makes of such.
_ASKED, _MOVED = 32, 4 / 255

Progress = Callable[[int, int], None]
"""Called with (questions done, questions in all) as an attack goes on."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How an attack is run; the arguments of `attack_dataset`, which explains them."""

    num_lanes: int = 128
    until_fooled: bool = False
    search_type: str = "float32"
    path: str | os.PathLike[str] | None = None
    progress: Progress | None = None
    draw: int = 1  # which answers of a `Stochastic` classifier judge; 0 are those to clean images

    def __post_init__(self) -> None:
        checks.integer("num_lanes", self.num_lanes, minimum=1)
        checks.one_of("search_type", self.search_type, SEARCH_TYPES)


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """A classifier and checked images.

    Attributes:
      function: The classifier, as it was given.
      images: float32 [N, H, W, C] in [0, 1].
      labels: int [N].
      clean_logits: float32 [N, K].
      watch: That notices a change of weights.
      remarks: Sentences on how the classifier is evaluated; mostly none.
    """

    function: Any
    images: np.ndarray
    labels: np.ndarray
    clean_logits: np.ndarray
    watch: programs.Watch
    remarks: tuple[str, ...] = ()

    @property
    def one_image(self) -> jax.ShapeDtypeStruct:
        """Shape and type of a batch of one."""
        return jax.ShapeDtypeStruct((1, *self.images.shape[1:]), np.float32)


def prepare(
    logits_fn: LogitsFn,
    images: Any,
    labels: Any,
    batch_size: int = 128,
    *,
    any_rows: bool = False,
) -> Examples:
    """Checks images and labels against the classifier; the errors are those of `attack_dataset`.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K].
      images: uint8, or floating in [0, 1], [N, H, W, C], N of at least 1.
      labels: int [N].
      batch_size: Images at a time.
      any_rows: Whether answers may depend on the batch: for those who look at that themselves.
    """
    clean = as_float(images)
    labels = np.asarray(labels)
    checks.images_and_labels(clean, labels)
    if len(clean) == 0:
        raise ValueError("`images` must hold at least one image, got none.")
    num_classes = programs.logits_shape(logits_fn, clean[:1])[1]
    checks.label_range("labels", labels, num_classes)
    watch = programs.Watch(logits_fn, clean)
    remark = programs.guard(logits_fn, clean[:batch_size])
    clean_logits = answers(logits_fn, clean, batch_size)
    if not any_rows:
        check_company(logits_fn, clean, batch_size, clean_logits, thorough=True)
    if np.isnan(clean_logits).any(axis=1).all():
        raise ValueError(
            "`logits_fn` must return numbers, got NaN for every clean image: its weights or its "
            "normalisation may be at fault."
        )
    for sentence in unusual(clean_logits):
        warnings.warn(sentence, stacklevel=3)
    remarks = () if remark is None else (remark,)
    return Examples(logits_fn, clean, labels, clean_logits, watch, remarks)


def search(
    attack: Attack,
    examples: Examples,
    aims: np.ndarray,
    wanted: np.ndarray,
    *,
    key: jax.Array,
    options: Options,
) -> Found:
    """Runs an attack's jobs on the wanted images.

    Args:
      attack: What to run.
      examples: N images.
      aims: int [N], the classes to leave or, targeted, to reach.
      wanted: bool [N].
      key: As in `attack_dataset`.
      options: How.

    Returns:
      What was found, of all N images.
    """
    engine.check_attack(attack)
    engine.check_image(attack, examples.images.shape[1:])
    random = isinstance(examples.function, Stochastic)
    if options.until_fooled and (attack.keep == "last" or random):
        # The point that is returned may be another one than the first that fooled.
        options = dataclasses.replace(options, until_fooled=False)
    if options.until_fooled and attack.keep == "closest" and not hasattr(attack, "epsilon"):
        raise ValueError(
            f"`until_fooled` needs an epsilon for an attack that looks for the smallest perturbation; "
            f"{type(attack).__name__} has none."
        )
    if options.search_type == "float32":
        return _run(attack, examples, aims, wanted, key, options)
    lower = dataclasses.replace(examples, function=_rounded(examples.function))
    path = None if options.path is None else f"{os.fspath(options.path)}.bfloat16"
    first = _run(attack, lower, aims, wanted, key, dataclasses.replace(options, path=path))
    again = wanted & first.success & ~_fools(attack, examples, aims, first, options)
    if not again.any():
        return first
    return first.replaced(again, _run(attack, examples, aims, again, key, options))


def fooled(
    attack: Attack, examples: Examples, aims: np.ndarray, found: Found, options: Options
) -> np.ndarray:
    """Bool [N]: what was found fools when it is shown again, within epsilon.

    Shown again, because what a random classifier took it for once need not be what it takes it for.
    """
    holds = _fools(attack, examples, aims, found, options)
    if attack.keep == "closest" and hasattr(attack, "epsilon"):
        holds &= judging.is_within(-found.rank, queue.radius(attack))
    return holds


def _fools(
    attack: Attack, examples: Examples, aims: np.ndarray, found: Found, options: Options
) -> np.ndarray:
    shown = answers(examples.function, found.images, options.num_lanes, options.draw)
    predicted = predictions(shown)
    holds: np.ndarray = (predicted == aims) if attack.targeted else (predicted != aims)
    return holds & (predicted >= 0) & (found.restart < attack.num_restarts)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Rounded:
    """A classifier computed in bfloat16: its arrays and the images are rounded first."""

    function: Any

    def __call__(self, *arguments: Array) -> Array:
        """Images [B, H, W, C], or keys [B] and images -> logits float32 [B, K]."""

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
    examples: Examples,
    aims: np.ndarray,
    wanted: np.ndarray,
    key: jax.Array,
    options: Options,
) -> Found:
    """This process's share of the jobs, and what all processes found."""
    images, labels, key = examples.images, aims.astype(np.int32), as_key(key)
    mine = np.zeros(len(labels), bool)
    rank, processes = jax.process_index(), jax.process_count()
    # Of those wanted, so that every process has as many to attack.
    mine[np.flatnonzero(wanted)[rank::processes]] = True
    arrays = jax.tree.map(np.asarray, conversation.per_image(attack, len(labels)))
    found, state = Found.nothing(images, mine, attack.num_restarts), None
    if options.path is not None:
        path = Path(os.fspath(options.path) + (f".{rank}" if processes > 1 else ""))
        words = description(attack, images, labels, mine, key, options.until_fooled)
        state = State(path, words, identity(examples, options.num_lanes))
        state.restore(found)
    queue.Queue(
        attack=arrays,
        logits_fn=examples.function,
        watch=examples.watch,
        images=images,
        labels=labels,
        keys=fold_keys(key, jnp.arange(len(labels))),
        found=found,
        num_lanes=options.num_lanes,
        num_devices=queue.device_count(options.num_lanes),
        until_fooled=options.until_fooled,
        progress=options.progress,
        state=state,
    ).run()
    return found if processes == 1 else _gathered(found, wanted)


def identity(examples: Examples, batch_size: int) -> dict[str, Any]:
    """What tells a classifier from others: its program, its weights, and answers to images.

    Answers to clean images alone would not do: a classifier that rounds its images gives the same ones
    to images of 8 bits. So a few are moved off these levels.
    """
    few = examples.images[:_ASKED]
    noise = np.random.default_rng(0).uniform(-_MOVED, _MOVED, few.shape).astype(np.float32)
    moved = np.clip(few + noise, 0.0, 1.0)
    return programs.fingerprint(examples.function, examples.one_image) | {
        "clean_logits": examples.clean_logits,
        "moved_logits": answers(examples.function, moved, batch_size),
    }


def _gathered(found: Found, wanted: np.ndarray) -> Found:
    """Every process's images from the process that attacked them."""
    from jax.experimental import multihost_utils

    rows = np.flatnonzero(wanted)
    for name, values in vars(found).items():
        if name == "finished":
            continue
        parts = np.asarray(multihost_utils.process_allgather(values))
        for rank in range(len(parts)):
            values[rows[rank :: len(parts)]] = parts[rank][rows[rank :: len(parts)]]
    return found
