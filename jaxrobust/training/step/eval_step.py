"""One evaluation step as a pure function."""

import jax
import jax.numpy as jnp

from jaxrobust import losses
from jaxrobust.attacks import Attack
from jaxrobust.training.step.adversaries import Batch, Metrics, as_adversary, check_attack
from jaxrobust.training.step.train_step import to_unit_range
from jaxrobust.types import Array, LogitsFn


def eval_step(
    logits_fn: LogitsFn,
    batch: tuple[Array, Array],
    valid: Array | None = None,
    *,
    attack: Attack | None = None,
    key: Array | None = None,
) -> Metrics:
    """Sums the loss and the correct predictions over a batch.

    Args:
      logits_fn: A function from images, float32 [B, H, W, C] in [0, 1], to logits [B, K], such as a
        Classifier.
      batch: (images [B, H, W, C], uint8 or floating in [0, 1]; labels int [B]).
      valid: bool [B]; rows that are False, such as padding, do not count. None: all rows count.
      attack: An untargeted attack whose last point replaces each image. None: the images stay clean.
      key: A PRNG key, which the attack needs.

    Returns:
      Scalars: {"loss": the sum of the cross-entropies in nats, "correct": int32, the number of correct
      predictions, "count": int32, the number of rows that count}.

    Raises:
      TypeError: `attack` is not an attack. FreeReplays, for instance, is only a way to train.
      ValueError: The attack has no key or is targeted.

    Example:
      >>> batch = jnp.zeros((2, 1, 1, 1), jnp.uint8), jnp.array([0, 1])
      >>> {k: round(float(v), 3) for k, v in eval_step(lambda x: jnp.zeros((2, 2)), batch).items()}
      {'loss': 1.386, 'correct': 1.0, 'count': 2.0}
    """
    images, labels = batch
    if valid is None:
        valid = jnp.ones(labels.shape, bool)
    images = to_unit_range(images)
    if attack is not None:
        if key is None:
            raise ValueError("`attack` needs a PRNG key: give `key`.")
        check_attack("attack", attack)
        images = as_adversary(attack).craft(Batch(images, labels, key, logits_fn), None)
    logits = logits_fn(images)
    loss = jax.vmap(losses.cross_entropy)(logits, labels)
    return {
        "loss": jnp.sum(jnp.where(valid, loss, 0.0)),
        "correct": jnp.sum(valid & (jnp.argmax(logits, -1) == labels), dtype=jnp.int32),
        "count": jnp.sum(valid, dtype=jnp.int32),
    }
