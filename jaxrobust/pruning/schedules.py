"""Iterative pruning: schedules of the sparsity, and rounds with retraining and rewinding."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrobust import checks
from jaxrobust.pruning.magnitude import global_magnitude
from jaxrobust.pruning.masks import apply_masks, check_masks, check_sparsity, named_leaves
from jaxrobust.types import Masks, PyTree


def geometric_schedule(sparsity: float, num_rounds: int) -> tuple[float, ...]:
    """Returns sparsities with which each round removes the same fraction of the remaining weights.

    The sparsity after round i of n is s_i = 1 - (1 - sparsity)^(i / n).

    Args:
      sparsity: The sparsity after the last round, in [0, 1).
      num_rounds: The number of rounds n, at least 1.

    Returns:
      The sparsity after each of the n rounds; the last is exactly `sparsity`.

    Raises:
      TypeError: An argument has the wrong type.
      ValueError: An argument is out of range.

    Example:
      >>> [round(s, 3) for s in geometric_schedule(0.488, 3)]
      [0.2, 0.36, 0.488]

    References:
      Frankle, Carbin, "The Lottery Ticket Hypothesis", ICLR 2019, section 1 (iterative pruning),
      https://arxiv.org/abs/1803.03635
    """
    sparsity = check_sparsity("sparsity", sparsity)
    checks.integer("num_rounds", num_rounds, minimum=1)
    rounds = (1 - (1 - sparsity) ** (i / num_rounds) for i in range(1, num_rounds))
    return _ascending(rounds, 0.0, sparsity)


def exponential_schedule(
    sparsity: float, num_steps: int, initial: float = 0.0
) -> tuple[float, ...]:
    """Returns sparsities from `initial` to `sparsity`, in steps of the same fraction of what is left.

    s_i = 1 - (1 - initial) ((1 - sparsity) / (1 - initial))^(i / (n - 1)), i = 0 .. n - 1. This is the
    schedule of NNCF with n pruning steps; with its default of 100 steps it reaches 14.7 % of a target
    of 50 % in 10 epochs. `geometric_schedule` counts its steps from 1 instead.

    Args:
      sparsity: The sparsity of the last step, in [0, 1).
      num_steps: The number of steps n, at least 1; 1 is one-shot pruning: (sparsity,).
      initial: The sparsity of the first step, in [0, sparsity].

    Returns:
      The sparsity of each of the n steps; the last is exactly `sparsity`.

    Raises:
      TypeError: An argument has the wrong type.
      ValueError: An argument is out of range.

    Example:
      >>> [round(s, 3) for s in exponential_schedule(0.5, 4, initial=0.1)]
      [0.1, 0.26, 0.392, 0.5]

    References:
      Kozlov et al., "Neural Network Compression Framework for fast model inference", 2020,
      https://arxiv.org/abs/2002.08679
    """
    sparsity, initial = _range(sparsity, num_steps, initial)
    shrunk = (1 - sparsity) / (1 - initial)
    steps = (
        1 - (1 - initial) * shrunk ** (step / (num_steps - 1)) for step in range(num_steps - 1)
    )
    return _ascending(steps, initial, sparsity)


def cubic_schedule(sparsity: float, num_steps: int, initial: float = 0.0) -> tuple[float, ...]:
    """Returns sparsities that rise fast at first: s_t = sparsity + (initial - sparsity) (1 - t / n)^3.

    Args:
      sparsity: The sparsity after the last step, in [0, 1).
      num_steps: The number of steps n, at least 1.
      initial: The sparsity before the first step, in [0, sparsity].

    Returns:
      The sparsity after each of the n steps, t = 1 .. n; the last is exactly `sparsity`.

    Raises:
      TypeError: An argument has the wrong type.
      ValueError: An argument is out of range.

    Example:
      >>> cubic_schedule(0.8, 2)
      (0.7000000000000001, 0.8)

    References:
      Zhu, Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model
      compression", 2017, equation 1, https://arxiv.org/abs/1710.01878
    """
    sparsity, initial = _range(sparsity, num_steps, initial)
    steps = (
        sparsity + (initial - sparsity) * (1 - step / num_steps) ** 3
        for step in range(1, num_steps)
    )
    return _ascending(steps, initial, sparsity)


def _range(sparsity: float, num_steps: int, initial: float) -> tuple[float, float]:
    sparsity = check_sparsity("sparsity", sparsity)
    checks.integer("num_steps", num_steps, minimum=1)
    initial = check_sparsity("initial", initial)
    if initial > sparsity:
        raise ValueError(f"`initial` must be at most `sparsity` = {sparsity}, got {initial}.")
    return sparsity, initial


def _ascending(values: Iterable[float], first: float, last: float) -> tuple[float, ...]:
    """Returns the values and `last`, ascending and within `first` and `last` in spite of rounding."""
    clipped = (min(max(value, first), last) for value in values)
    return (*itertools.accumulate(clipped, max), last)


class Round(NamedTuple):
    """The result of one round of `iterative`.

    Attributes:
      number: The number of the round, counted from 1.
      sparsity: The sparsity of the round.
      masks: The masks, booleans with the structure of the parameters.
      params: The parameters after retraining, which are 0 where the masks are False.
    """

    number: int
    sparsity: float
    masks: Masks
    params: PyTree


def iterative(
    params: PyTree,
    sparsities: Sequence[float],
    retrain: Callable[[PyTree, Masks, int], PyTree],
    *,
    rewind_to: PyTree | None = None,
    prune: Callable[..., Masks] = global_magnitude,
) -> Iterator[Round]:
    """Prunes, rewinds and retrains in rounds, and yields each round when it is finished.

    Without `rewind_to` training continues with the pruned weights (gradual pruning, fine-tuning). With
    it, the remaining weights restart from those values: the initial ones for a lottery ticket, those of
    an early epoch for deeper networks. A removed weight is never restored.

    `params` may be whole variables, {"params": ..., "batch_stats": ...}: statistics are never pruned,
    and are rewound with the weights.

    Args:
      params: The trained parameters, nested dicts of arrays, which the first round prunes.
      sparsities: The sparsity after each round, in [0, 1), not descending; at least one.
      retrain: A function (masked parameters, masks, number of the round from 1) -> parameters of the
        same structure, in which masked weights are still 0, for instance with
        `training.fit(..., variables=..., masks=...)`. With a `run_dir` for each round, the whole can be
        interrupted and called again.
      rewind_to: Parameters of the same structure and shapes, from before or early in training. None:
        no rewinding.
      prune: A function (params, sparsity, masks=earlier masks or None) -> masks that remove at least
        what the earlier masks do. For random tickets use `functools.partial(random, key)`.

    Returns:
      An iterator of rounds. Arguments are checked at the call; the work is done while iterating.

    Raises:
      TypeError: A sparsity is not a number.
      ValueError: The sparsities are out of range or descend, or `rewind_to` has another structure.
        While iterating: `retrain` or `prune` restored removed weights, or `prune` raised.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.array([[1.0, 2.0, 3.0, 4.0]])}
      >>> retrain = lambda params, masks, number: params
      >>> ones = {"kernel": jnp.ones((1, 4))}
      >>> for done in iterative(params, (0.25, 0.5), retrain, rewind_to=ones):
      ...     print(done.number, done.params["kernel"].tolist())
      1 [[0.0, 1.0, 1.0, 1.0]]
      2 [[0.0, 0.0, 1.0, 1.0]]

    References:
      Frankle, Carbin, "The Lottery Ticket Hypothesis", ICLR 2019, https://arxiv.org/abs/1803.03635
      Frankle, Dziugaite, Roy, Carbin, "Linear Mode Connectivity and the Lottery Ticket Hypothesis",
      ICML 2020, section 4 (rewinding to an early step), https://arxiv.org/abs/1912.05671
    """
    targets = [check_sparsity("sparsities", sparsity) for sparsity in sparsities]
    if not targets or targets != sorted(targets):
        raise ValueError(
            "`sparsities` must have at least one value and must not descend, got "
            f"{tuple(sparsities)}."
        )
    if rewind_to is not None and _shapes(rewind_to) != _shapes(params):
        raise ValueError("`rewind_to` must have the structure and shapes of `params`.")
    return _rounds(params, targets, retrain, rewind_to, prune)


def _rounds(
    params: PyTree,
    sparsities: Sequence[float],
    retrain: Callable[[PyTree, Masks, int], PyTree],
    rewind_to: PyTree | None,
    prune: Callable[..., Masks],
) -> Iterator[Round]:
    masks = None
    for number, sparsity in enumerate(sparsities, start=1):
        previous, masks = masks, prune(params, sparsity, masks=masks)
        check_masks(params, masks)
        if previous is not None:
            _check_removed(masks, previous, f"`prune` in round {number}")
        start = apply_masks(params if rewind_to is None else rewind_to, masks)
        params = retrain(start, masks, number)
        if _shapes(params) != _shapes(start):
            raise ValueError(
                f"`retrain` must return parameters with the structure and shapes that it was given; in "
                f"round {number} it did not."
            )
        _check_removed(params, masks, f"`retrain` in round {number}")
        yield Round(number, sparsity, masks, params)


def _check_removed(tree: PyTree, masks: Masks, culprit: str) -> None:
    """Raises unless `tree` is 0 (or False) wherever the masks are False."""
    kept = dict(named_leaves(masks))
    revived = {path: jnp.sum(~kept[path] & (leaf != 0)) for path, leaf in named_leaves(tree)}
    for path, count in jax.device_get(revived).items():
        if count:
            raise ValueError(f"{culprit} restored {count} removed weights of {path}.")


def _shapes(tree: PyTree) -> object:
    return jax.tree.structure(tree), [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]
