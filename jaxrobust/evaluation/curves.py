"""Robust accuracy over the size of the perturbation."""

from collections.abc import Sequence
from typing import Any

import jax

from jaxrobust.evaluation.classification import Progress
from jaxrobust.evaluation.robustness import attack_dataset, attack_label, robust_accuracy
from jaxrobust.evaluation.thresholds import at_epsilon
from jaxrobust.types import Attack, LogitsFn


def robustness_curve(
    attack: Attack,
    logits_fn: LogitsFn,
    images: Any,
    labels: Any,
    epsilons: Sequence[float],
    *,
    key: jax.Array,
    model: str,
    batch_size: int = 128,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Robust accuracy at several epsilons (docs/result_format.md, CURVE); compiles nothing anew.

    The attack's step size, where it has one, keeps its proportion to epsilon.

    Args:
      attack: Untargeted, with an epsilon above 0.
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K].
      images: uint8, or floating in [0, 1], [N, H, W, C].
      labels: int [N].
      epsilons: In pixel units, not negative; 0 is the accuracy on clean images.
      key: A PRNG key, the same for every epsilon.
      model: The model's name.
      batch_size: Images at a time.
      progress: Called with (epsilons done, how many there are).

    Returns:
      {"model", "label", "points": [{"epsilon", "robust_accuracy": a rate}]}.

    Raises:
      ValueError: An attack without an epsilon above 0, or anything that `attack_dataset` refuses.
    """
    points = []
    for done, epsilon in enumerate(epsilons, start=1):
        swept = at_epsilon(attack, epsilon)
        report = attack_dataset(swept, logits_fn, images, labels, key=key, batch_size=batch_size)
        points.append({"epsilon": float(epsilon), "robust_accuracy": robust_accuracy(report)})
        if progress is not None:
            progress(done, len(epsilons))
    return {"model": model, "label": attack_label(attack, epsilon=False), "points": points}
