"""Chooses the best of the points that an attack has asked about."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxrobust import norms
from jaxrobust.attacks.attack import Attack, overrides
from jaxrobust.types import Array, Evaluation, PyTree


def is_within(length: Any, epsilon: Any) -> Any:
    """Says whether a perturbation's norm is at most epsilon, up to rounding in float32."""
    return length <= epsilon * (1 + 1e-5)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Best:
    """The best point of each of B lanes so far, and the cost of finding it.

    Attributes:
      images: [B, H, W, C], the best points.
      success: bool [B], whether the best point fools.
      rank: float32 [B], the value by which "best" and "closest" compare points that both fool or both
        do not.
      fooled: bool [B], whether any point has fooled.
      first_success: int32 [B], the steps before the first point that fooled.
      num_steps: int32 [B], the steps taken.
      num_queries: int32 [B], the images that the classifier evaluated.
      num_gradients: int32 [B], the gradients computed.
      saw_nan: bool [B], whether a logit or a gradient has been NaN.
    """

    images: Array
    success: Array
    rank: Array
    fooled: Array
    first_success: Array
    num_steps: Array
    num_queries: Array
    num_gradients: Array
    saw_nan: Array

    @classmethod
    def start(cls, images: Array) -> "Best":
        """Starts with the images themselves, which any point without NaN replaces."""
        size = images.shape[0]
        never, zero = jnp.zeros(size, bool), jnp.zeros(size, jnp.int32)
        rank = jnp.full(size, -jnp.inf, jnp.float32)
        return cls(images, never, rank, never, zero, zero, zero, zero, never)

    def counted(self, steps: Array | int, queries: Array | int, gradients: Array | int) -> "Best":
        """Adds to the counts: one number for all lanes, or int32 [B]."""
        return dataclasses.replace(
            self,
            num_steps=self.num_steps + steps,
            num_queries=self.num_queries + queries,
            num_gradients=self.num_gradients + gradients,
        )


def judge(
    attack: Attack,
    best: Best,
    originals: Array,
    labels: Array,
    points: Array,
    evaluation: Evaluation,
    states: PyTree,
    is_last: Array | bool,
) -> Best:
    """Keeps the points of one evaluation that are better than the best points so far.

    Args:
      attack: The attack. Its `targeted` and `keep` decide which point is better.
      best: The best points of B lanes so far.
      originals: Clean images [B, H, W, C].
      labels: int32 [B].
      points: The points that were evaluated, [B, H, W, C].
      evaluation: The answers at these points.
      states: The states that asked about them, stacked.
      is_last: bool or bool [B], whether these are the attack's final points; `keep` "last" considers
        only those.

    Returns:
      The new best points. The caller counts steps, queries and gradients (`Best.counted`).
    """
    predictions = jnp.argmax(evaluation.logits, axis=-1)
    fooling = (predictions == labels) if attack.targeted else (predictions != labels)
    nan = no_answer = jnp.any(jnp.isnan(evaluation.logits), axis=-1)
    fooling &= ~no_answer
    value = evaluation.value if evaluation.value.ndim == 1 else jnp.max(evaluation.value, axis=1)
    if attack.keep == "closest":
        value = -jax.vmap(lambda change: norms.norm(change, attack.norm))(points - originals)
    # Above the -inf that stands for nothing yet, and float32 whatever the classifier computes in.
    value = jnp.maximum(value, jnp.finfo(jnp.float32).min).astype(jnp.float32)
    if evaluation.gradient is not None:
        axes = tuple(range(1, evaluation.gradient.ndim))
        nan |= jnp.any(jnp.isnan(evaluation.gradient), axis=axes)
    # Lexicographic: fooling first, then the rank. A NaN rank compares false and is never kept.
    better = (fooling & ~best.success) | (
        (fooling == best.success) & (value > best.rank) & ~no_answer
    )
    if overrides(attack, Attack.eligible):
        eligible = jax.vmap(lambda one, *row: one.eligible(*row))(attack, states)
        fooling, better = fooling & eligible, better & eligible
    if attack.keep == "last":
        better &= is_last
    wide = better[:, None, None, None]
    return dataclasses.replace(
        best,
        images=jnp.where(wide, points, best.images),
        success=jnp.where(better, fooling, best.success),
        rank=jnp.where(better, value, best.rank),
        fooled=best.fooled | fooling,
        first_success=jnp.where(fooling & ~best.fooled, best.num_steps, best.first_success),
        saw_nan=best.saw_nan | nan,
    )
