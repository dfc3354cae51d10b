"""Evaluation: accuracy, robustness and transfer, with counts, intervals and a record per image."""

from jaxrobust.evaluation.classification import evaluate, logits
from jaxrobust.evaluation.pictures import explanations, gallery, right_and_wrong
from jaxrobust.evaluation.rates import Rate, rate
from jaxrobust.evaluation.results import (
    configuration,
    encode_array,
    environment,
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
from jaxrobust.evaluation.script import (
    Stages,
    model_entry,
    result_header,
    run_folder,
    run_script,
)

__all__ = [
    "AttackReport",
    "Rate",
    "Stages",
    "attack_dataset",
    "configuration",
    "encode_array",
    "environment",
    "evaluate",
    "explanations",
    "gallery",
    "label",
    "logits",
    "model_entry",
    "rate",
    "records",
    "result_header",
    "right_and_wrong",
    "robust_accuracy",
    "run_folder",
    "run_script",
    "success_rate",
    "summarise",
    "transfer_matrix",
]
