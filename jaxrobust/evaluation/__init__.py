"""Evaluation: accuracy, robustness and transfer, with counts, intervals and a record per image."""

from jaxrobust.evaluation.classification import evaluate, logits
from jaxrobust.evaluation.curves import robustness_curve
from jaxrobust.evaluation.rates import Rate, rate
from jaxrobust.evaluation.robustness import (
    AttackReport,
    attack_dataset,
    attack_label,
    records,
    robust_accuracy,
    success_rate,
    summarise,
    transfer_matrix,
)

__all__ = [
    "AttackReport",
    "Rate",
    "attack_dataset",
    "attack_label",
    "evaluate",
    "logits",
    "rate",
    "records",
    "robust_accuracy",
    "robustness_curve",
    "success_rate",
    "summarise",
    "transfer_matrix",
]
