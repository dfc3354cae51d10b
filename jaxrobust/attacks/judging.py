"""What is kept of the points that an attack has asked about."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxrobust import norms
from jaxrobust.attacks.conversation import each
from jaxrobust.types import Array, Attack, Evaluation, PyTree


def is_within(length: Any, epsilon: Any) -> Any:
    """Whether a perturbation's norm is at most epsilon, up to float32's rounding of its sum."""
    return length <= epsilon * (1 + 1e-5)


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
    def start(cls, images: Array) -> "Progress":
        """Before the first question: the images themselves, which any finite point outranks."""
        size = images.shape[0]
        never, zero = jnp.zeros(size, bool), jnp.zeros(size, jnp.int32)
        rank = jnp.full(size, -jnp.inf, jnp.float32)
        return cls(images, never, rank, never, zero, zero, zero, zero, never)


def judge(
    attack: Attack,
    progress: Progress,
    originals: Array,
    labels: Array,
    points: Array,
    evaluation: Evaluation,
    states: PyTree,
    is_last: Array | bool,
) -> Progress:
    """Keeps the points of one evaluation where they are better.

    Args:
      attack: Its `targeted` and `keep` decide what better is.
      progress: Of B lanes, before.
      originals: Clean images [B, H, W, C].
      labels: int32 [B].
      points: What was evaluated, [B, H, W, C].
      evaluation: Of those points.
      states: That asked about them.
      is_last: bool, or bool [B]: whether these are the attack's final points, the only ones that
        "last" looks at.

    Returns:
      Progress, after. Steps, queries and gradients are counted by whoever takes them.
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
    better = (fooling & ~progress.success) | (
        (fooling == progress.success) & (value > progress.rank) & ~no_answer
    )
    if hasattr(attack, "eligible"):
        eligible = each(attack, "eligible", states)
        fooling, better = fooling & eligible, better & eligible
    if attack.keep == "last":
        better &= is_last
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
        saw_nan=progress.saw_nan | nan,
    )
