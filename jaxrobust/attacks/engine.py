"""Runs any attack on a batch: the one place where attacks meet the classifier.

An attack is a conversation about one image (`jaxrobust.types.Attack`). The engine vmaps its side of
it, evaluates the classifier once per step on the whole batch, and differentiates every row's own
objective: rows never mix, so a NaN row or a padded row leaves the others as they are.

`craft`, `ascend`, `verify` and `run`, which is both of these, are pure. `attack(key, logits_fn, images,
labels)` compiles the ascent as one program whose arguments include the attack's floats and the
classifier's weights: sweeping epsilon or going to a pruned variant compiles nothing. A second, small
program shows the images again: success is what the returned images have there, not what XLA made of
them within the first.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import checks, compilation, programs
from jaxrobust.attacks import conversation
from jaxrobust.attacks.conversation import answer_keys, each, evaluate, per_image, tell, where_rows
from jaxrobust.attacks.judging import Progress, judge
from jaxrobust.programs import company
from jaxrobust.types import (
    Array,
    Attack,
    AttackResult,
    LogitsFn,
    PyTree,
    Stochastic,
    as_key,
    fold_keys,
)

KEEP = ("best", "closest", "last")


def attack_batch(
    attack: Attack, key: Array, logits_fn: LogitsFn, images: Array, labels: Array
) -> AttackResult:
    """Attacks a batch in one compiled program; every attack's `__call__` is this function.

    Image i uses the key folded with i, so its result does not depend on the images beside it.

    Args:
      attack: What to run.
      key: A PRNG key (`jax.random.key(0)`).
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K]. A callable pytree that holds
        its weights as leaves (a Classifier, a `jax.tree_util.Partial`) is an argument of the compiled
        program. Anything else is traced at each call, which takes 0.1 to 0.2 s for a ResNet-50: what
        it closes over is what it closes over now, and equal programs are compiled once.
      images: float32 [B, H, W, C] in [0, 1].
      labels: int [B]: true classes, or the classes to reach if `attack.targeted`.

    Returns:
      AttackResult, all fields [B, ...].

    Raises:
      TypeError: Integer images, fractional labels, a logits_fn that cannot be called, an attack that
        lacks a part of `jaxrobust.types.Attack` or is no pytree.
      ValueError: Shapes that do not fit; images outside [0, 1], labels outside 0 .. K - 1 and a
        classifier whose answer to an image depends on the images beside it, where the values are
        known, which is everywhere but under a transformation.
    """
    check_attack(attack)
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    checks.images_and_labels(images, labels)
    images = images.astype(jnp.float32)
    shape = (_microbatch(images.shape[0]), *images.shape[1:])
    function = programs.as_argument(logits_fn, jax.ShapeDtypeStruct(shape, jnp.float32))
    num_classes = programs.logits_shape(function, jax.ShapeDtypeStruct(shape, jnp.float32))[1]
    if not checks.is_traced(images, labels):
        checks.value_range(images)
        checks.label_range("labels", labels, num_classes)
        if len(images) and not checks.is_traced(function):
            first = np.asarray(images[: shape[0]])
            if programs.guard(logits_fn, first, function):
                function = programs.as_argument(logits_fn, first)
            company.check_once(logits_fn, function, first)
    keys = fold_keys(key, jnp.arange(images.shape[0]))
    arrays = per_image(attack, images.shape[0])
    labels = labels.astype(jnp.int32)
    found = compiled_ascend(arrays, keys, function, images, labels)
    success = _shown_again(function, found.images, labels, targeted=attack.targeted)
    return dataclasses.replace(found, success=success)


def check_attack(attack: Attack) -> None:
    """Says what an attack of one's own still lacks.

    Raises:
      TypeError: A part of `jaxrobust.types.Attack`, or that it is a pytree.
      ValueError: An unknown `keep`.
    """
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
    checks.one_of("keep", attack.keep, KEEP)


def check_image(attack: Attack, shape: tuple[int, ...]) -> None:
    """Raises what the attack raises for images of this shape [H, W, C], before anything is attacked."""

    def begin(attack: Attack, key: Array, image: Array) -> PyTree:
        return attack.init(key, image, jnp.int32(0), jnp.int32(0))

    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((), jnp.float32), attack)
    jax.eval_shape(begin, one, as_key(jax.random.key(0)), jax.ShapeDtypeStruct(shape, jnp.float32))


_PARTS = (
    *("norm", "num_steps", "num_restarts", "targeted", "keep", "uses_gradient"),
    *("init", "ask", "objective", "tell"),
)


def run(
    attack: Attack, keys: Array, logits_fn: LogitsFn, images: Array, labels: Array
) -> AttackResult:
    """Attacks a batch and keeps the best point of every image. Pure; not compiled by itself.

    Args:
      attack: What to run, from `per_image`; `num_restarts` and `keep` are obeyed here.
      keys: PRNG keys [B], one per image. Restart r uses the key folded with r.
      logits_fn: Images [B, H, W, C] -> logits [B, K].
      images: float32 [B, H, W, C] in [0, 1].
      labels: int32 [B].

    Returns:
      AttackResult.
    """
    found = ascend(attack, keys, logits_fn, images, labels)
    success = verify(logits_fn, found.images, labels, targeted=attack.targeted)
    return dataclasses.replace(found, success=success)


def verify(logits_fn: LogitsFn, images: Array, labels: Array, *, targeted: bool) -> Array:
    """Whether images fool when they are shown once, as anybody would show them. Pure.

    Args:
      logits_fn: Images [B, H, W, C] -> logits [B, K].
      images: float32 [B, H, W, C] in [0, 1].
      labels: int32 [B].
      targeted: Whether labels name the class to reach.

    Returns:
      bool [B], False wherever a logit is NaN.
    """

    def show(images: Array, places: Array) -> Array:
        return company.answer(logits_fn, images, places)

    logits = _in_microbatches(show, (images, jnp.arange(len(images))))
    return _fooled(logits, labels, targeted=targeted)


def _fooled(logits: Array, labels: Array, *, targeted: bool) -> Array:
    predictions = jnp.argmax(logits, axis=-1)
    fooling = (predictions == labels) if targeted else (predictions != labels)
    return fooling & ~jnp.any(jnp.isnan(logits), axis=-1)


def _shown_again(function: Any, images: Array, labels: Array, *, targeted: bool) -> Array:
    """`verify` with the compiled program that everything else is evaluated with."""
    size, places = _microbatch(len(images)), jnp.arange(len(images))
    parts = [slice(start, start + size) for start in range(0, len(images), size)]
    logits = [company.compiled_answer(function, images[part], places[part]) for part in parts]
    return compiled_fooled(jnp.concatenate(logits), labels, targeted=targeted)


def ascend(
    attack: Attack, keys: Array, logits_fn: LogitsFn, images: Array, labels: Array
) -> AttackResult:
    """`run` without the last look: its `success` is what the attack itself has seen, or nothing.

    Args:
      attack: As for `run`, like the others.
      keys: PRNG keys [B].
      logits_fn: Images [B, H, W, C] -> logits [B, K].
      images: float32 [B, H, W, C] in [0, 1].
      labels: int32 [B].

    Returns:
      AttackResult.
    """

    def part(attack: Attack, keys: Array, images: Array, labels: Array) -> AttackResult:
        return _ascend(attack, keys, logits_fn, images, labels)

    return _in_microbatches(part, (attack, keys, images, labels))


def _ascend(
    attack: Attack, keys: Array, logits_fn: LogitsFn, images: Array, labels: Array
) -> AttackResult:
    progress = Progress.start(images)

    def restart(progress: Progress, index: Array) -> tuple[Progress, None]:
        restart_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, index)
        return _attempt(attack, restart_keys, logits_fn, images, labels, index, progress), None

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


def _microbatch(total: int) -> int:
    """How many of so many images are worked on at a time."""
    size = compilation.microbatch_size()
    return total if size is None or total <= size or total % size else size


def _in_microbatches(function: Callable[..., Any], rows: PyTree) -> Any:
    """`function(*rows)`, a few rows at a time where this machine is faster so.

    Rows do not depend on each other, so this changes no result (but for rounding).
    """
    total = len(jax.tree.leaves(rows[-1])[0])
    size = _microbatch(total)
    if size == total:
        return function(*rows)
    parts = jax.tree.map(lambda leaf: leaf.reshape(total // size, size, *leaf.shape[1:]), rows)
    results = jax.lax.map(lambda part: function(*part), parts)
    return jax.tree.map(lambda leaf: leaf.reshape(total, *leaf.shape[2:]), results)


compiled_ascend = compilation.jit(ascend, exact_types=True)
compiled_fooled = compilation.jit(_fooled, static_argnames="targeted")


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
    attack = per_image(attack, len(images))
    # Restart 0's keys, so that this is the last point of `run`.
    keys = jax.vmap(jax.random.fold_in, (0, None))(fold_keys(key, jnp.arange(len(images))), 0)

    def step(states: PyTree, index: Array) -> tuple[PyTree, None]:
        evaluation = evaluate(attack, logits_fn, states, answer_keys(keys, index))[1]
        return tell(attack, states, evaluation), None

    states = conversation.start(attack, keys, images, labels, jnp.int32(0))
    states, _ = jax.lax.scan(step, states, jnp.arange(attack.num_steps))
    return jax.lax.stop_gradient(conversation.ask(attack, states))


def _attempt(
    attack: Attack,
    keys: Array,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    restart: Array,
    progress: Progress,
) -> Progress:
    """One start of the attack: its steps, then a forward pass to judge the final points."""

    def step(carry: tuple[PyTree, Progress], index: Array) -> tuple[tuple[PyTree, Progress], None]:
        states, progress = carry
        points, evaluation = evaluate(attack, logits_fn, states, answer_keys(keys, index))
        judged = judge(attack, progress, images, labels, points, evaluation, states, is_last=False)
        judged = _counted(
            judged, conversation.cost(attack, logits_fn, states, evaluation), num_steps=1
        )
        following = tell(attack, states, evaluation), judged
        if not hasattr(attack, "done"):
            return following, None
        return where_rows(each(attack, "done", states), carry, following), None

    states = conversation.start(attack, keys, images, labels, restart)
    before = progress.num_steps
    steps = jnp.arange(attack.num_steps)
    (states, progress), _ = jax.lax.scan(step, (states, progress), steps)
    if attack.keep == "last" and attack.num_restarts == 1 and not hasattr(attack, "done"):
        # Nothing to choose: whether the last point fools is seen when it is shown again.
        samples = logits_fn.num_samples if isinstance(logits_fn, Stochastic) else 1
        points = conversation.ask(attack, states)
        progress = dataclasses.replace(progress, images=points)
        return _counted(progress, (samples, 0), num_steps=0)
    last = answer_keys(keys, progress.num_steps - before)
    points, evaluation = evaluate(attack, logits_fn, states, last, with_gradient=False)
    progress = judge(attack, progress, images, labels, points, evaluation, states, is_last=True)
    return _counted(progress, conversation.cost(attack, logits_fn, states, evaluation), num_steps=0)


def _counted(progress: Progress, cost: tuple[int, Array | int], num_steps: int) -> Progress:
    return dataclasses.replace(
        progress,
        num_steps=progress.num_steps + num_steps,
        num_queries=progress.num_queries + cost[0],
        num_gradients=progress.num_gradients + cost[1],
    )
