"""Runs attacks on batches: the only place where attacks meet the classifier.

An attack is written for one image (`jaxrobust.attacks.Attack`). The engine vmaps its methods, evaluates
the classifier once per step on the whole batch, and differentiates every row's own objective. Rows
never mix, so a NaN row or a padded row does not affect the others.

`craft`, `ascend`, `verify` and `run` (`ascend`, then `verify`) are pure functions. `attack(key,
logits_fn, images, labels)` compiles the ascent as one program whose arguments include the attack's
floats and the classifier's weights, so another epsilon or a pruned variant compiles nothing. A second,
small program classifies the resulting images again: `success` is its verdict, because XLA may round
differently within the first program.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrobust import checks, compilation, programs
from jaxrobust.attacks import conversation
from jaxrobust.attacks.attack import Attack, overrides
from jaxrobust.attacks.conversation import answer_keys, evaluate, per_image, tell, where_rows
from jaxrobust.attacks.judging import Best
from jaxrobust.attacks.lanes import Lanes, turn
from jaxrobust.programs import company
from jaxrobust.types import Array, AttackResult, LogitsFn, PyTree, Stochastic, as_key, fold_keys

KEEP = ("best", "closest", "last")


def attack_batch(
    attack: Attack, key: Array, logits_fn: LogitsFn, images: Array, labels: Array
) -> AttackResult:
    """Attacks a batch; `Attack.__call__`, which calls this, describes the arguments."""
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
            first = images[: shape[0]]
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
    """Checks that a value is a complete attack.

    Args:
      attack: Any value.

    Raises:
      TypeError: It does not inherit `Attack`, lacks an attribute or a method, or is not a pytree.
      ValueError: Its `keep` is unknown.
    """
    name = type(attack).__name__
    if not isinstance(attack, Attack):
        raise TypeError(f"{name} is not an attack: it must inherit jaxrobust.attacks.Attack.")
    missing = [fact for fact in _FACTS if not hasattr(attack, fact)]
    missing += [method.__name__ for method in _METHODS if not overrides(attack, method)]
    if missing:
        raise TypeError(
            f"{name} is not an attack: it lacks {', '.join(missing)} (docs/extending.md)."
        )
    if jax.tree_util.all_leaves([attack]):
        raise TypeError(
            f"{name} must be a pytree: put @jax.tree_util.register_dataclass above its @dataclass."
        )
    checks.one_of("keep", attack.keep, KEEP)


def check_image(attack: Attack, shape: tuple[int, ...]) -> None:
    """Raises the error that the attack would raise for images of this shape, (H, W, C), if any."""

    def begin(attack: Attack, key: Array, image: Array) -> PyTree:
        return attack.init(key, image, jnp.int32(0), jnp.int32(0))

    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((), jnp.float32), attack)
    jax.eval_shape(begin, one, as_key(jax.random.key(0)), jax.ShapeDtypeStruct(shape, jnp.float32))


_FACTS = ("norm", "num_steps", "num_restarts", "targeted", "keep", "uses_gradient")
_METHODS = (Attack.init, Attack.ask, Attack.objective, Attack.tell)


def run(
    attack: Attack, keys: Array, logits_fn: LogitsFn, images: Array, labels: Array
) -> AttackResult:
    """Attacks a batch and returns the best point of every image.

    The function is pure and does not compile itself.

    Args:
      attack: The attack, as `conversation.per_image` returns it.
      keys: PRNG keys [B], one for each image. Restart r uses the key folded with r.
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
    """Classifies images once and says which of them fool. The function is pure.

    Args:
      logits_fn: Images [B, H, W, C] -> logits [B, K].
      images: float32 [B, H, W, C] in [0, 1].
      labels: int32 [B], the classes to leave, or to reach if `targeted`.
      targeted: Whether the labels are the classes to reach.

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
    """`verify` with the compiled program with which everything else is evaluated."""
    size, places = _microbatch(len(images)), jnp.arange(len(images))
    parts = [slice(start, start + size) for start in range(0, len(images), size)]
    logits = [company.compiled_answer(function, images[part], places[part]) for part in parts]
    return compiled_fooled(jnp.concatenate(logits), labels, targeted=targeted)


def ascend(
    attack: Attack, keys: Array, logits_fn: LogitsFn, images: Array, labels: Array
) -> AttackResult:
    """Attacks a batch as `run` does, but does not classify the resulting images again.

    Its `success` is what the attack has seen on its way; if nothing had to be judged it is False.

    Args:
      attack: The attack, as `conversation.per_image` returns it.
      keys: PRNG keys [B], one for each image.
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
    best = Best.start(images)

    def restart(best: Best, index: Array) -> tuple[Best, None]:
        restart_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, index)
        return _attempt(attack, restart_keys, logits_fn, images, labels, index, best), None

    if attack.num_restarts == 1:
        # Written out: a loop of one round would keep XLA from seeing through it.
        best, _ = restart(best, jnp.int32(0))
    else:
        best, _ = jax.lax.scan(restart, best, jnp.arange(attack.num_restarts))
    return AttackResult(
        images=best.images,
        success=best.success,
        num_steps=jnp.where(best.fooled, best.first_success, best.num_steps),
        num_queries=best.num_queries,
        num_gradients=best.num_gradients,
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
    # Each part has rows of every device among which the rows are divided, as in a training step.
    parts = jax.tree.map(
        lambda leaf: leaf.reshape(size, total // size, *leaf.shape[1:]).swapaxes(0, 1), rows
    )
    results = jax.lax.map(lambda part: function(*part), parts)
    return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1).reshape(total, *leaf.shape[2:]), results)


compiled_ascend = compilation.jit(ascend, exact_types=True)
compiled_fooled = compilation.jit(_fooled, static_argnames="targeted")


def craft(attack: Attack, key: Array, logits_fn: LogitsFn, images: Array, labels: Array) -> Array:
    """Returns the attack's last points without judging them, for adversarial training.

    It saves the forward pass of the final judgement and ignores restarts. The function is pure.

    Args:
      attack: The attack.
      key: A PRNG key; image i uses it folded with i.
      logits_fn: Images [B, H, W, C] -> logits [B, K].
      images: float32 [B, H, W, C] in [0, 1].
      labels: int32 [B].

    Returns:
      float32 [B, H, W, C] in [0, 1]. No gradient flows through it to the arguments.
    """
    checks.images_and_labels(images, labels)
    attack = per_image(attack, len(images))
    # Restart 0's keys, so that this is the last point of `run`.
    keys = jax.vmap(jax.random.fold_in, (0, None))(fold_keys(key, jnp.arange(len(images))), 0)

    def part(attack: Attack, keys: Array, images: Array, labels: Array) -> Array:
        def step(states: PyTree, index: Array) -> tuple[PyTree, None]:
            evaluation = evaluate(attack, logits_fn, states, answer_keys(keys, index))[1]
            return tell(attack, states, evaluation), None

        states = conversation.start(attack, keys, images, labels, jnp.int32(0))
        states, _ = jax.lax.scan(step, states, jnp.arange(attack.num_steps))
        return conversation.ask(attack, states)

    return jax.lax.stop_gradient(_in_microbatches(part, (attack, keys, images, labels)))


def _attempt(
    attack: Attack,
    keys: Array,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    restart: Array,
    best: Best,
) -> Best:
    """One start of the attack: its steps, then a forward pass to judge the final points."""
    ends_early = overrides(attack, Attack.done)
    states = conversation.start(attack, keys, images, labels, restart)
    # Here no lane is finished before the others, and a Python bool leaves no trace in the program.
    begun = Lanes(attack, images, labels, keys, states, best, finished=False)  # type: ignore[arg-type]

    def step(carry: tuple[PyTree, Best], index: Array) -> tuple[tuple[PyTree, Best], None]:
        states, best = carry
        lanes = dataclasses.replace(begun, states=states, progress=best)
        judged, evaluation = turn(lanes, logits_fn, index, is_last=False)
        following = tell(attack, states, evaluation), judged
        if not ends_early:
            return following, None
        # Once a state is done, this step is undone for it; its point is judged below.
        return where_rows(conversation.done(attack, states), carry, following), None

    before = best.num_steps
    (states, best), _ = jax.lax.scan(step, (states, best), jnp.arange(attack.num_steps))
    if attack.keep == "last" and attack.num_restarts == 1 and not ends_early:
        # Nothing to choose: whether the last point fools is seen when it is shown again.
        samples = logits_fn.num_samples if isinstance(logits_fn, Stochastic) else 1
        points = conversation.ask(attack, states)
        return dataclasses.replace(best, images=points).counted(0, samples, 0)
    ended = dataclasses.replace(begun, states=states, progress=best)
    taken = best.num_steps - before
    return turn(ended, logits_fn, taken, is_last=True, with_gradient=False)[0]
