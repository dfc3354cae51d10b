"""Attacks in lanes: each lane has its own image, its own hyper-parameters and its own step.

`engine.run` attacks a batch whose images start and end together. Here a lane that is finished is
refilled with the next image while the other lanes go on. These functions are pure;
`jaxrobust.evaluation.attack_dataset` keeps the queue of images.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxrobust import compilation
from jaxrobust.attacks import conversation, judging
from jaxrobust.attacks.attack import Attack, epsilon_of, overrides
from jaxrobust.types import Array, Evaluation, LogitsFn, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Lanes:
    """L attacks under way.

    Attributes:
      attack: The attack, with leaves [L].
      originals: Clean images [L, H, W, C].
      labels: int32 [L].
      keys: PRNG keys [L] of the starts.
      states: The attack's states, stacked.
      progress: The best point of each lane so far.
      finished: bool [L], whether a lane has nothing more to do. A finished lane does not change.
    """

    attack: Attack
    originals: Array
    labels: Array
    keys: Array
    states: PyTree
    progress: judging.Best
    finished: Array


def start(
    attack: Attack, keys: Array, images: Array, labels: Array, restarts: Array, idle: Array
) -> Lanes:
    """Makes lanes before their first step.

    Args:
      attack: The attack, as `conversation.per_image` returns it.
      keys: PRNG keys [L], one for each image; restart r uses the key folded with r, as in `engine.run`.
      images: float32 [L, H, W, C] in [0, 1].
      labels: int32 [L].
      restarts: int32 [L], the number of each lane's restart.
      idle: bool [L], the lanes without work.
    """
    folded = jax.vmap(jax.random.fold_in)(keys, restarts)
    states = conversation.start(attack, folded, images, labels, restarts)
    progress = judging.Best.start(images)
    return Lanes(attack, images, labels, folded, states, progress, idle)


def refill(lanes: Lanes, fresh: Lanes, which: Array) -> Lanes:
    """Replaces some lanes, int [F], by fresh ones; a lane that is named twice must get equal ones."""
    return jax.tree.map(lambda old, new: old.at[which].set(new), lanes, fresh)


def pick(images: Array, which: Array) -> Array:
    """Returns the images of some lanes, int [F]."""
    return images[which]


def advance(lanes: Lanes, logits_fn: LogitsFn, num_steps: Array, *, until_fooled: bool) -> Lanes:
    """Takes steps in every lane that is not finished.

    A lane is finished once its last point has been judged. With `until_fooled` it is also finished once
    a point has fooled; for an attack that looks for the closest point, once a point within its epsilon
    has fooled.

    Args:
      lanes: The lanes before the steps.
      logits_fn: Images [L, H, W, C] -> logits [L, K].
      num_steps: int32 scalar, the largest number of steps. It stops early once all lanes are finished.
      until_fooled: Whether a success ends a lane.

    Returns:
      The lanes after the steps.
    """

    def goes_on(carry: tuple[Array, Lanes]) -> Array:
        taken, lanes = carry
        return (taken < num_steps) & ~jnp.all(lanes.finished)

    def step(carry: tuple[Array, Lanes]) -> tuple[Array, Lanes]:
        taken, lanes = carry
        moved = _step(lanes, logits_fn, until_fooled)
        return taken + 1, conversation.where_rows(lanes.finished, lanes, moved)

    return jax.lax.while_loop(goes_on, step, (jnp.int32(0), lanes))[1]


def _step(lanes: Lanes, logits_fn: LogitsFn, until_fooled: bool) -> Lanes:
    attack, step = lanes.attack, lanes.progress.num_steps
    is_last = step >= attack.num_steps
    if overrides(attack, Attack.done):
        is_last |= conversation.done(attack, lanes.states)
    best, evaluation = turn(lanes, logits_fn, step, is_last=is_last)
    finished = is_last
    if until_fooled:
        finished |= best.fooled if attack.keep != "closest" else _is_close(attack, best)
    states = conversation.tell(attack, lanes.states, evaluation)
    return dataclasses.replace(lanes, states=states, progress=best, finished=finished)


def turn(
    lanes: Lanes,
    logits_fn: LogitsFn,
    step: Array,
    *,
    is_last: Array | bool,
    with_gradient: bool = True,
) -> tuple[judging.Best, Evaluation]:
    """Asks one question in every lane and judges the points by the answers.

    Args:
      lanes: The lanes before the question.
      logits_fn: Images [L, H, W, C] -> logits [L, K].
      step: int32 or int32 [L], the number of the answer, for a classifier whose answers are random.
      is_last: bool or bool [L], whether these are final points, which do not count as steps.
      with_gradient: Whether to differentiate.

    Returns:
      (the best points, judged and counted; the answers, which the attack has not been told yet).
    """
    attack, states = lanes.attack, lanes.states
    keys = conversation.answer_keys(lanes.keys, step)
    points, evaluation = conversation.evaluate(
        attack, logits_fn, states, keys, with_gradient, lanes.finished
    )
    best = judging.judge(
        attack, lanes.progress, lanes.originals, lanes.labels, points, evaluation, states, is_last
    )
    queries, gradients = conversation.cost(attack, logits_fn, states, evaluation)
    # A value that the engine knows beforehand stays out of its program.
    taken = int(not is_last) if isinstance(is_last, bool) else (~is_last).astype(jnp.int32)
    # A last point may be differentiated for nothing: other lanes are still under way.
    return best.counted(taken, queries, taken * gradients), evaluation


def _is_close(attack: Attack, best: judging.Best) -> Array:
    """Says whether the closest point that fooled lies within epsilon, bool [L]."""
    return best.success & judging.is_within(-best.rank, epsilon_of(attack))


def advance_in_groups(
    lanes: Lanes, logits_fn: LogitsFn, num_steps: Array, *, until_fooled: bool, group: int | None
) -> Lanes:
    """Takes steps as `advance` does, one group of lanes after the other.

    A group whose lanes are all finished costs nothing.

    Args:
      lanes: The L lanes before the steps.
      logits_fn: Images [G, H, W, C] -> logits [G, K], for groups of G lanes.
      num_steps: int32 scalar, the largest number of steps.
      until_fooled: Whether a success ends a lane.
      group: How many lanes a group has, a divisor of L; None makes one group of all.

    Returns:
      The lanes after the steps.
    """
    total = len(lanes.finished)
    if group is None or total <= group:
        return advance(lanes, logits_fn, num_steps, until_fooled=until_fooled)
    groups = jax.tree.map(lambda leaf: leaf.reshape(-1, group, *leaf.shape[1:]), lanes)
    moved = jax.lax.map(
        lambda few: advance(few, logits_fn, num_steps, until_fooled=until_fooled), groups
    )
    return jax.tree.map(lambda leaf: leaf.reshape(total, *leaf.shape[2:]), moved)


def advance_on_devices(
    lanes: Lanes,
    logits_fn: LogitsFn,
    num_steps: Array,
    *,
    until_fooled: bool,
    group: int | None,
    num_devices: int,
) -> Lanes:
    """Takes steps as `advance_in_groups` does, with an equal share of the lanes on each device."""
    step = functools.partial(advance_in_groups, until_fooled=until_fooled, group=group)
    if num_devices == 1:
        return step(lanes, logits_fn, num_steps)
    rows, all_of_it = jax.sharding.PartitionSpec("lanes"), jax.sharding.PartitionSpec()
    # No device waits for another one within the steps: each loop ends when its own lanes are done.
    return jax.shard_map(
        step,
        mesh=_mesh(num_devices),
        in_specs=(rows, all_of_it, all_of_it),
        out_specs=rows,
        check_vma=False,
    )(lanes, logits_fn, num_steps)


def _mesh(num_devices: int) -> jax.sharding.Mesh:
    return jax.sharding.Mesh(jax.local_devices()[:num_devices], ("lanes",))


def by_rows(num_devices: int) -> jax.sharding.NamedSharding:
    """Returns the sharding that puts an equal share of the lanes on each of the process's devices."""
    return jax.sharding.NamedSharding(_mesh(num_devices), jax.sharding.PartitionSpec("lanes"))


def everywhere(num_devices: int) -> jax.sharding.NamedSharding:
    """Returns the sharding that puts a copy on each of this process's devices."""
    return jax.sharding.NamedSharding(_mesh(num_devices), jax.sharding.PartitionSpec())


def reorder(lanes: Lanes, order: Array) -> Lanes:
    """Puts the lanes into another order, int [L]."""
    return jax.tree.map(lambda leaf: leaf[order], lanes)


compiled_start = compilation.jit(start)
compiled_refill = compilation.jit(refill, donate_argnums=0)
compiled_pick = compilation.jit(pick)
compiled_reorder = compilation.jit(reorder)
compiled_advance = compilation.jit(
    advance_on_devices,
    exact_types=True,
    static_argnames=("until_fooled", "group", "num_devices"),
    donate_argnums=0,
)
