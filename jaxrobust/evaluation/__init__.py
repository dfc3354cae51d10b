"""Evaluation: accuracy, robustness and transfer, with counts, intervals and a record per image."""

from jaxrobust.evaluation.classification import evaluate, logits
from jaxrobust.evaluation.rates import Rate, rate
from jaxrobust.evaluation.results import (
    claim_run,
    configuration,
    encode_array,
    environment,
    write_json,
)
from jaxrobust.evaluation.robustness import (
    AttackReport,
    attack_dataset,
    label,
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
    "claim_run",
    "configuration",
    "encode_array",
    "environment",
    "evaluate",
    "label",
    "logits",
    "rate",
    "records",
    "robust_accuracy",
    "success_rate",
    "summarise",
    "transfer_matrix",
    "write_json",
]
