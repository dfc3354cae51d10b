"""How a classifier stands up to an attack, over a whole data set."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import checks, compilation
from jaxrobust.attacks import conversation
from jaxrobust.evaluation import queue
from jaxrobust.evaluation.attack_report import AttackReport
from jaxrobust.evaluation.classification import Progress, as_float, logits
from jaxrobust.types import Array, Attack, LogitsFn, fold_keys

SEARCH_TYPES = ("float32", "bfloat16")


def attack_dataset(
    attack: Attack,
    logits_fn: LogitsFn,
    images: Any,
    labels: Any,
    *,
    key: jax.Array,
    targets: Any = None,
    num_lanes: int = 128,
    until_fooled: bool = False,
    search_type: str = "float32",
    path: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> AttackReport:
    """Attacks every image, a fixed number at a time: one that is finished makes room for the next.

    Image i uses the key folded with i: whether it is fooled depends neither on the number of lanes nor
    on the images beside it nor on the number of devices, but for the rounding of the classifier's own
    arithmetic at other batch sizes. The lanes are shared by the devices of this process, and the images
    by the processes of `jax.distributed`, each of which must make the same call and gets the same
    report.

    Args:
      attack: What to run. Its floats may be arrays [N]: an epsilon for every image.
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K]; a Classifier's weights are
        arguments of the compiled code. May be `jaxrobust.types.Stochastic`.
      images: uint8, or floating in [0, 1], [N, H, W, C], N of at least 1.
      labels: int [N], true classes.
      key: A PRNG key.
      targets: For a targeted attack the class to reach, one for all or [N]. With one for all, images
        that are of that class themselves are not counted.
      num_lanes: How many images, or restarts of images, at a time.
      until_fooled: Whether an image is left at its first success, with all the restarts that are still
        to come. The verdicts are the same, far sooner; the adversarial images are then the first found
        and not the best. An attack that looks for the smallest perturbation is left at the first that
        lies within its epsilon.
      search_type: "float32", or "bfloat16" to search in that type, where a device is faster in it.
        Every success is verified in float32, and what fails that is attacked once more in float32.
        Robust accuracy can only come out higher for it. Of a plain function only the images are cast,
        not the weights inside it.
      path: Of a file (.npz) that keeps what was found: a killed attack goes on from it, and starts only
        what was under way anew.
      progress: Called with (questions done, questions in all) to the classifier: num_steps + 1 for each
        restart of each image, whether it needs all of them or not.

    Returns:
      AttackReport.

    Raises:
      TypeError: Labels or targets that are no integers.
      ValueError: Labels, targets or images out of range or of the wrong shape; a targeted attack
        without targets, or targets for an untargeted one, or targets that are the labels; NaN logits
        for all clean images; a file that holds another attack. All before anything is attacked.
    """
    examples = prepare(logits_fn, images, labels)
    if attack.targeted != (targets is not None):
        raise ValueError(
            "`targets` must be given for a targeted attack and for no other, got "
            f"{'targets' if targets is not None else 'none'} with targeted={attack.targeted}."
        )
    aims = examples.labels
    if targets is not None:
        targets = aims = _targets(targets, examples.labels, examples.clean_logits.shape[1])
    found = search(
        attack,
        examples,
        aims,
        np.ones(len(aims), bool),
        key=key,
        num_lanes=num_lanes,
        until_fooled=until_fooled,
        search_type=search_type,
        path=path,
        progress=progress,
    )
    return AttackReport(
        attack=attack,
        labels=examples.labels,
        targets=targets,
        clean_images=examples.images,
        images=found.images,
        clean_logits=examples.clean_logits,
        logits=logits(logits_fn, found.images, num_lanes),
        num_steps=found.steps_to_success,
        num_queries=found.num_queries,
        num_gradients=found.num_gradients,
        saw_nan=found.saw_nan | np.isnan(examples.clean_logits).any(axis=1),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """A classifier and checked images.

    Attributes:
      function: From `compilation.as_argument`.
      images: float32 [N, H, W, C] in [0, 1].
      labels: int [N].
      clean_logits: float32 [N, K].
    """

    function: Any
    images: np.ndarray
    labels: np.ndarray
    clean_logits: np.ndarray


def prepare(logits_fn: LogitsFn, images: Any, labels: Any, batch_size: int = 128) -> Examples:
    """Checks images and labels against the classifier; the errors are those of `attack_dataset`."""
    clean = as_float(images)
    labels = np.asarray(labels)
    checks.images_and_labels(clean, labels)
    if len(clean) == 0:
        raise ValueError("`images` must hold at least one image, got none.")
    function = compilation.as_argument(logits_fn)
    checks.label_range("labels", labels, compilation.logits_shape(function, clean[:1])[1])
    clean_logits = logits(logits_fn, clean, batch_size)
    if np.isnan(clean_logits).any(axis=1).all():
        raise ValueError(
            "`logits_fn` must return numbers, got NaN for every clean image: its weights or its "
            "normalisation may be at fault."
        )
    return Examples(function, clean, labels, clean_logits)


def search(
    attack: Attack,
    examples: Examples,
    aims: np.ndarray,
    wanted: np.ndarray,
    *,
    key: jax.Array,
    num_lanes: int,
    until_fooled: bool,
    search_type: str,
    path: str | os.PathLike[str] | None,
    progress: Progress | None,
) -> queue.Found:
    """Runs an attack's jobs on the wanted images.

    Args:
      attack: What to run.
      examples: N images.
      aims: int [N], the classes to leave or, targeted, to reach.
      wanted: bool [N].
      key: As in `attack_dataset`, like the arguments after it.
      num_lanes: At least 1.
      until_fooled: Whether an image's first success ends its jobs.
      search_type: One of SEARCH_TYPES.
      path: Of the file that keeps the state.
      progress: Called with (questions done, questions in all).

    Returns:
      What was found, of all N images.
    """
    checks.integer("num_lanes", num_lanes, minimum=1)
    checks.one_of("search_type", search_type, SEARCH_TYPES)
    if until_fooled and attack.keep == "closest" and not hasattr(attack, "epsilon"):
        raise ValueError(
            f"`until_fooled` needs an epsilon for an attack that looks for the smallest perturbation; "
            f"{type(attack).__name__} has none."
        )
    if search_type == "float32":
        return _run(
            attack, examples, aims, wanted, key, num_lanes, until_fooled, "", path, progress
        )
    lower = dataclasses.replace(examples, function=Rounded(examples.function))
    found = _run(
        attack, lower, aims, wanted, key, num_lanes, until_fooled, ".bfloat16", path, progress
    )
    predicted = logits(examples.function, found.images, num_lanes).argmax(axis=1)
    holds = (predicted == aims) if attack.targeted else (predicted != aims)
    again = wanted & found.success & ~holds
    if not again.any():
        return found
    second = _run(attack, examples, aims, again, key, num_lanes, until_fooled, "", path, progress)
    counts = ("num_steps", "num_queries", "num_gradients")
    for name, values in vars(found).items():
        if name not in ("finished", *counts):
            values[again] = getattr(second, name)[again]
    for name in counts:
        getattr(found, name)[again] += getattr(second, name)[again]
    return found


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Rounded:
    """A classifier computed in bfloat16: its arrays and the images are rounded first."""

    function: Any

    def __call__(self, images: Array) -> Array:
        """Images [B, H, W, C] -> logits float32 [B, K]."""

        def rounded(leaf: Any) -> Any:
            floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
            return jnp.asarray(leaf, jnp.bfloat16) if floating else leaf

        function = jax.tree.map(rounded, self.function)
        return function(images.astype(jnp.bfloat16)).astype(jnp.float32)


def _run(
    attack: Attack,
    examples: Examples,
    aims: np.ndarray,
    wanted: np.ndarray,
    key: jax.Array,
    num_lanes: int,
    until_fooled: bool,
    suffix: str,
    path: str | os.PathLike[str] | None,
    progress: Progress | None,
) -> queue.Found:
    """This process's share of the jobs, and what all processes found."""
    images, labels = examples.images, aims.astype(np.int32)
    mine = np.zeros(len(labels), bool)
    rank, processes = jax.process_index(), jax.process_count()
    # Of those wanted, so that every process has as many to attack.
    mine[np.flatnonzero(wanted)[rank::processes]] = True
    arrays = jax.tree.map(np.asarray, conversation.per_image(attack, len(labels)))
    found, save = None, None
    if path is not None:
        kept = Path(f"{os.fspath(path)}{suffix}" + (f".{rank}" if processes > 1 else ""))
        words = queue.description(attack, examples.function, images, labels, mine, key)
        found = queue.Found.load(kept, words) if kept.exists() else None

        def save() -> None:
            assert found is not None
            found.save(kept, words)

    if found is None:
        found = queue.Found.nothing(images, mine, attack.num_restarts)
    queue.Queue(
        attack=arrays,
        function=examples.function,
        images=images,
        labels=labels,
        keys=fold_keys(key, jnp.arange(len(labels))),
        found=found,
        num_lanes=num_lanes,
        num_devices=jax.local_device_count(),
        until_fooled=until_fooled,
        progress=progress,
        save=save,
    ).run()
    if save is not None:
        save()
    return found if processes == 1 else _gathered(found, wanted)


def _gathered(found: queue.Found, wanted: np.ndarray) -> queue.Found:
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


def _targets(targets: Any, labels: np.ndarray, num_classes: int) -> np.ndarray:
    array = np.asarray(targets)
    checks.integers("targets", array)
    if array.shape not in ((), labels.shape):
        raise ValueError(
            f"`targets` must be one class or of shape {labels.shape}, got shape {array.shape}."
        )
    checks.label_range("targets", array, num_classes)
    if array.shape == labels.shape and (array == labels).any():
        first = int(np.flatnonzero(array == labels)[0])
        raise ValueError(
            f"`targets` must differ from the labels, got the label of {int((array == labels).sum())} "
            f"of {len(labels)} images, image {first} the first."
        )
    return np.broadcast_to(array, labels.shape)
