"""Evaluation: accuracy, robustness, transfer and latency, with counts, intervals and every record."""

from jaxrobust.evaluation.archive import load_attack, save_attack
from jaxrobust.evaluation.classification import evaluate, logits
from jaxrobust.evaluation.curves import robustness_curve
from jaxrobust.evaluation.latency import compare_latency, disk_latency, latency
from jaxrobust.evaluation.rates import Rate, rate
from jaxrobust.evaluation.robustness import (
    AttackReport,
    attack_dataset,
    attack_label,
    records,
    robust_accuracy,
    success_rate,
    summarise,
)
from jaxrobust.evaluation.statistics import (
    holm,
    mcnemar,
    mean_interval,
    median_interval,
    paired_difference,
    paired_mean_difference,
)
from jaxrobust.evaluation.thresholds import (
    at_epsilon,
    confidences,
    epsilon_for_success,
    steps_for_success,
)
from jaxrobust.evaluation.transfer import transfer_matrix, transfer_rates

__all__ = [
    "AttackReport",
    "Rate",
    "at_epsilon",
    "attack_dataset",
    "attack_label",
    "compare_latency",
    "confidences",
    "disk_latency",
    "epsilon_for_success",
    "evaluate",
    "holm",
    "latency",
    "load_attack",
    "logits",
    "mcnemar",
    "mean_interval",
    "median_interval",
    "paired_difference",
    "paired_mean_difference",
    "rate",
    "records",
    "robust_accuracy",
    "robustness_curve",
    "save_attack",
    "steps_for_success",
    "success_rate",
    "summarise",
    "transfer_matrix",
    "transfer_rates",
]
