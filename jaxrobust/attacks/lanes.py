"""Attacks in lanes: each lane has its own image, its own hyper-parameters and its own step.

What `engine.run` does for a batch that starts and ends together, this does for lanes that are retired
and refilled while the others go on. Pure functions; `jaxrobust.evaluation.attack_dataset` keeps the
queue.
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
      attack: Its leaves are [L].
      originals: Clean images [L, H, W, C].
      labels: int32 [L].
      keys: PRNG keys [L], of the starts.
      states: Of the attack, stacked.
      progress: What each lane has found.
      finished: bool [L], whether a lane has nothing more to do. It is kept as it is from then on.
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
    """Lanes before their first step.

    Args:
      attack: From `conversation.per_image`.
      keys: PRNG keys [L], one per image; restart r uses its key folded with r, as `engine.run` does.
      images: float32 [L, H, W, C] in [0, 1].
      labels: int32 [L].
      restarts: int32 [L].
      idle: bool [L], lanes without work.

    Returns:
      Lanes.
    """
    folded = jax.vmap(jax.random.fold_in)(keys, restarts)
    states = conversation.start(attack, folded, images, labels, restarts)
    progress = judging.Best.start(images)
    return Lanes(attack, images, labels, folded, states, progress, idle)


def refill(lanes: Lanes, fresh: Lanes, which: Array) -> Lanes:
    """The lanes with fresh ones in the place of some, int [F]; a lane named twice gets equal ones."""
    return jax.tree.map(lambda old, new: old.at[which].set(new), lanes, fresh)


def pick(images: Array, which: Array) -> Array:
    """Those of some lanes, int [F]."""
    return images[which]


def advance(lanes: Lanes, logits_fn: LogitsFn, num_steps: Array, *, until_fooled: bool) -> Lanes:
    """Takes steps in every lane that is not finished.

    A lane is finished once its last point has been judged, and with `until_fooled` once any point has
    fooled; for an attack that looks for the closest point, once one has within its epsilon.

    Args:
      lanes: Before.
      logits_fn: Images [L, H, W, C] -> logits [L, K].
      num_steps: How many at most; none once all lanes are finished.
      until_fooled: Whether a success ends a lane.

    Returns:
      Lanes, after.
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
    """One question in every lane: what its answer makes of the best points, and the answer.

    Args:
      lanes: Before.
      logits_fn: Images [L, H, W, C] -> logits [L, K].
      step: int32, or int32 [L]: which answer this is, for a classifier that answers at random.
      is_last: bool, or bool [L]: whether these are final points, which are judged and no step.
      with_gradient: Whether to differentiate.

    Returns:
      (the best points, judged and counted; the answer, which nobody has been told yet).
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
    # What the engine knows beforehand stays out of its program.
    taken = int(not is_last) if isinstance(is_last, bool) else (~is_last).astype(jnp.int32)
    # A last point may be differentiated for nothing: other lanes are still under way.
    return best.counted(taken, queries, taken * gradients), evaluation


def _is_close(attack: Attack, best: judging.Best) -> Array:
    """Whether the closest point that fooled lies within epsilon, bool [L]."""
    return best.success & judging.is_within(-best.rank, epsilon_of(attack))


def advance_in_groups(
    lanes: Lanes, logits_fn: LogitsFn, num_steps: Array, *, until_fooled: bool, group: int | None
) -> Lanes:
    """`advance`, a group of lanes at a time; a group whose lanes are all finished costs nothing.

    Args:
      lanes: As `advance`, like the result.
      logits_fn: As `advance`.
      num_steps: As `advance`.
      until_fooled: As `advance`.
      group: How many lanes at a time, a divisor of L; None: all of them.
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
    """`advance_in_groups`, an equal share of the lanes on each of this process's devices."""
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
    """An equal share of the lanes on each of this process's devices."""
    return jax.sharding.NamedSharding(_mesh(num_devices), jax.sharding.PartitionSpec("lanes"))


def everywhere(num_devices: int) -> jax.sharding.NamedSharding:
    """A copy on each of this process's devices."""
    return jax.sharding.NamedSharding(_mesh(num_devices), jax.sharding.PartitionSpec())


def reorder(lanes: Lanes, order: Array) -> Lanes:
    """The lanes in another order, int [L]."""
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
