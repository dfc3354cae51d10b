"""Runs any attack on a batch: the one place where attacks meet the classifier.

An attack is a conversation about one image (`jaxrobust.types.Attack`). The engine vmaps its side of
it, evaluates the classifier once per step on the whole batch, and differentiates every row's own
objective: rows never mix, so a NaN row or a padded row leaves the others as they are.

`craft` and `run` are pure. `attack(key, logits_fn, images, labels)` compiles `run` as one program
whose arguments include the attack's floats and, for a Classifier, its weights: sweeping epsilon or
going to a pruned variant compiles nothing.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxrobust import checks, compilation
from jaxrobust.types import Array, Attack, AttackResult, Evaluation, LogitsFn, PyTree

KEEP = ("best", "closest", "last")


def attack_batch(
    attack: Attack, key: Array, logits_fn: LogitsFn, images: Array, labels: Array
) -> AttackResult:
    """Attacks a batch in one compiled program; every attack's `__call__` is this function.

    Image i uses the key folded with i, so its result does not depend on the images beside it.

    Args:
      attack: What to run.
      key: A PRNG key (`jax.random.key(0)`).
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K]. A pytree of arrays that is
        callable (a Classifier, a `jax.tree_util.Partial`) is an argument of the compiled program; a
        plain function is a constant of it, compiled once for each function.
      images: float32 [B, H, W, C] in [0, 1].
      labels: int [B]: true classes, or the classes to reach if `attack.targeted`.

    Returns:
      AttackResult, all fields [B, ...].

    Raises:
      TypeError: Integer images, fractional labels, a logits_fn that cannot be called, an attack that
        lacks a part of `jaxrobust.types.Attack` or is no pytree.
      ValueError: Shapes that do not fit; images outside [0, 1] and labels outside 0 .. K - 1 where
        the values are known, which is everywhere but under a transformation.
    """
    _check_attack(attack)
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    checks.images_and_labels(images, labels)
    function = compilation.as_argument(logits_fn)
    images = images.astype(jnp.float32)
    num_classes = compilation.logits_shape(function, images)[1]
    if not checks.is_traced(images, labels):
        checks.value_range(images)
        checks.label_range("labels", labels, num_classes)
    keys = fold_keys(key, jnp.arange(images.shape[0]))
    return compiled_run(as_arrays(attack), keys, function, images, labels.astype(jnp.int32))


def _check_attack(attack: Attack) -> None:
    """Says what an attack of one's own still lacks."""
    name = type(attack).__name__
    missing = [part for part in _PARTS if not hasattr(attack, part)]
    if missing:
        raise TypeError(
            f"{name} is no attack: it lacks {', '.join(missing)} (docs/architecture.md)."
        )
    if jax.tree_util.all_leaves([attack]):
        raise TypeError(
            f"{name} must be a pytree: put @jax.tree_util.register_dataclass above its @dataclass."
        )


_PARTS = (
    *("num_steps", "num_restarts", "targeted", "keep", "uses_gradient"),
    *("init", "ask", "objective", "tell"),
)


def fold_keys(key: Array, indices: Array) -> Array:
    """One key per image, from the image's index in its data set.

    Args:
      key: A PRNG key.
      indices: int [B].

    Returns:
      Keys [B].
    """
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)


def as_arrays(attack: Attack) -> Attack:
    """The attack with float32 leaves, so that 8/255 and an array of it share compiled code."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), attack)


def run(
    attack: Attack, keys: Array, logits_fn: LogitsFn, images: Array, labels: Array
) -> AttackResult:
    """Attacks a batch and keeps the best point of every image. Pure; not compiled by itself.

    Args:
      attack: What to run; `num_restarts` and `keep` are obeyed here.
      keys: PRNG keys [B], one per image. Restart r uses the key folded with r.
      logits_fn: Images [B, H, W, C] -> logits [B, K].
      images: float32 [B, H, W, C] in [0, 1].
      labels: int32 [B].

    Returns:
      AttackResult.
    """
    checks.one_of("keep", attack.keep, KEEP)
    progress = Progress.start(images)

    def restart(progress: Progress, index: Array) -> tuple[Progress, None]:
        restart_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, index)
        return _attempt(attack, restart_keys, logits_fn, images, labels, progress), None

    if attack.num_restarts == 1:
        # Written out: a loop of one round would keep XLA from seeing through it.
        progress, _ = restart(progress, jnp.int32(0))
    else:
        progress, _ = jax.lax.scan(restart, progress, jnp.arange(attack.num_restarts))
    return AttackResult(
        images=progress.images,
        success=progress.success,
        num_steps=jnp.where(progress.fooled, progress.first_success, progress.num_steps),
        num_queries=progress.num_queries,
        num_gradients=progress.num_gradients,
    )


def run_in_microbatches(
    attack: Attack, keys: Array, logits_fn: LogitsFn, images: Array, labels: Array
) -> AttackResult:
    """`run`, a few images at a time where this machine is faster so; arguments and result as there.

    Rows do not depend on each other, so this changes no result (but for rounding).
    """
    size, total = compilation.microbatch_size(), images.shape[0]
    if size is None or total <= size or total % size:
        return run(attack, keys, logits_fn, images, labels)
    parts = jax.tree.map(
        lambda leaf: leaf.reshape(total // size, size, *leaf.shape[1:]), (keys, images, labels)
    )
    results = jax.lax.map(lambda part: run(attack, part[0], logits_fn, *part[1:]), parts)
    return jax.tree.map(lambda leaf: leaf.reshape(total, *leaf.shape[2:]), results)


compiled_run = compilation.jit(run_in_microbatches)


def craft(attack: Attack, key: Array, logits_fn: LogitsFn, images: Array, labels: Array) -> Array:
    """The attack's last point, without judging any: what adversarial training needs. Pure.

    It saves the forward pass of the final judgement, and ignores restarts.

    Args:
      attack: What to run.
      key: A PRNG key; image i uses it folded with i.
      logits_fn: Images [B, H, W, C] -> logits [B, K].
      images: float32 [B, H, W, C] in [0, 1].
      labels: int32 [B].

    Returns:
      float32 [B, H, W, C] in [0, 1], without a gradient towards anything that came in.
    """
    checks.images_and_labels(images, labels)
    # Restart 0's keys, so that this is the last point of `run`.
    keys = jax.vmap(jax.random.fold_in, (0, None))(fold_keys(key, jnp.arange(len(images))), 0)

    def step(states: PyTree, _: None) -> tuple[PyTree, None]:
        evaluation = evaluate(attack, logits_fn, states)[1]
        return jax.vmap(attack.tell)(states, evaluation), None

    states = jax.vmap(attack.init)(keys, images, labels)
    states, _ = jax.lax.scan(step, states, length=attack.num_steps)
    return jax.lax.stop_gradient(_ask(attack, states))


def _ask(attack: Attack, states: PyTree) -> Array:
    """The points asked about, held inside [0, 1] whatever the attack does."""
    return jnp.clip(jax.vmap(attack.ask)(states), 0.0, 1.0)


def evaluate(
    attack: Attack, logits_fn: LogitsFn, states: PyTree, with_gradient: bool = True
) -> tuple[Array, Evaluation]:
    """Asks every lane for a point and evaluates the classifier there, once for all lanes.

    Args:
      attack: Whose states these are.
      logits_fn: Images [B, H, W, C] -> logits [B, K].
      states: States of B lanes, stacked.
      with_gradient: Whether to differentiate; an attack with `uses_gradient = False` never is.

    Returns:
      (points [B, H, W, C], Evaluation with fields [B, ...]).
    """
    points = _ask(attack, states)

    def objectives(points: Array) -> tuple[Array, Array]:
        logits = logits_fn(points)
        return jax.vmap(attack.objective)(logits, states), logits

    if not (with_gradient and attack.uses_gradient):
        values, logits = objectives(points)
        return points, Evaluation(logits, values, None)
    values, pull_back, logits = jax.vjp(objectives, points, has_aux=True)
    if values.ndim == 1:
        (gradients,) = pull_back(jnp.ones_like(values))
    else:
        # [B, k] objectives: one pull-back for each of the k, all rows at once.
        basis = jnp.eye(values.shape[1], dtype=values.dtype)
        (gradients,) = jax.vmap(
            lambda row: pull_back(jnp.broadcast_to(row, values.shape)), out_axes=1
        )(basis)
    return points, Evaluation(logits, values, gradients)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Progress:
    """The best point of each of B lanes so far, and what it took.

    Attributes:
      images: [B, H, W, C].
      success: bool [B], whether `images` fools.
      rank: float32 [B], what "best" and "closest" compare among points that fool equally.
      fooled: bool [B], whether any point has fooled.
      first_success: int32 [B], steps before the first point that fooled.
      num_steps: int32 [B], steps taken.
      num_queries: int32 [B].
      num_gradients: int32 [B].
    """

    images: Array
    success: Array
    rank: Array
    fooled: Array
    first_success: Array
    num_steps: Array
    num_queries: Array
    num_gradients: Array

    @classmethod
    def start(cls, images: Array) -> "Progress":
        """Before the first question: the images themselves, which any finite point outranks."""
        size = images.shape[0]
        never, zero = jnp.zeros(size, bool), jnp.zeros(size, jnp.int32)
        rank = jnp.full(size, -jnp.inf, jnp.float32)
        return cls(images, never, rank, never, zero, zero, zero, zero)


def judge(
    attack: Attack,
    progress: Progress,
    originals: Array,
    labels: Array,
    points: Array,
    evaluation: Evaluation,
    is_last: bool,
) -> Progress:
    """Counts one evaluation and keeps its points where they are better.

    Args:
      attack: Its `targeted` and `keep` decide what better is.
      progress: Of B lanes, before.
      originals: Clean images [B, H, W, C].
      labels: int32 [B].
      points: What was evaluated, [B, H, W, C].
      evaluation: Of those points.
      is_last: Whether these are the attack's final points, the only ones that "last" looks at.

    Returns:
      Progress, after. `num_steps` is not advanced: steps are counted by whoever takes them.
    """
    predictions = jnp.argmax(evaluation.logits, axis=-1)
    fooling = (predictions == labels) if attack.targeted else (predictions != labels)
    fooling &= ~jnp.any(jnp.isnan(evaluation.logits), axis=-1)
    value = evaluation.value if evaluation.value.ndim == 1 else jnp.max(evaluation.value, axis=1)
    if attack.keep == "closest":
        value = -jnp.sqrt(jnp.sum((points - originals) ** 2, axis=(1, 2, 3)))
    # Above the -inf that stands for nothing yet, and float32 whatever the classifier computes in.
    value = jnp.maximum(value, jnp.finfo(jnp.float32).min).astype(jnp.float32)
    # Lexicographic: fooling first, then the rank. A NaN rank compares false and is never kept.
    better = (fooling & ~progress.success) | (
        (fooling == progress.success) & (value > progress.rank)
    )
    if attack.keep == "last" and not is_last:
        better = jnp.zeros_like(better)
    wide = better[:, None, None, None]
    return dataclasses.replace(
        progress,
        images=jnp.where(wide, points, progress.images),
        success=jnp.where(better, fooling, progress.success),
        rank=jnp.where(better, value, progress.rank),
        fooled=progress.fooled | fooling,
        first_success=jnp.where(
            fooling & ~progress.fooled, progress.num_steps, progress.first_success
        ),
        num_queries=progress.num_queries + 1,
    )


def _attempt(
    attack: Attack,
    keys: Array,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    progress: Progress,
) -> Progress:
    """One start of the attack: its steps, then a forward pass to judge the final points."""

    def step(carry: tuple[PyTree, Progress], _: None) -> tuple[tuple[PyTree, Progress], None]:
        states, progress = carry
        points, evaluation = evaluate(attack, logits_fn, states)
        progress = judge(attack, progress, images, labels, points, evaluation, is_last=False)
        progress = dataclasses.replace(
            progress,
            num_steps=progress.num_steps + 1,
            num_gradients=progress.num_gradients + int(attack.uses_gradient),
        )
        return (jax.vmap(attack.tell)(states, evaluation), progress), None

    states = jax.vmap(attack.init)(keys, images, labels)
    (states, progress), _ = jax.lax.scan(step, (states, progress), length=attack.num_steps)
    points, evaluation = evaluate(attack, logits_fn, states, with_gradient=False)
    return judge(attack, progress, images, labels, points, evaluation, is_last=True)
