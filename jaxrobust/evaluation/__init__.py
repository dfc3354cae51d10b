"""Evaluation: accuracy, robustness, transfer and latency, with counts and confidence intervals."""

from jaxrobust.evaluation.archive import load_attack, save_attack
from jaxrobust.evaluation.attack_report import (
    AttackReport,
    attack_label,
    median_norm,
    records,
    robust_accuracy,
    success_rate,
    summarise,
)
from jaxrobust.evaluation.auto_attack import auto_attack, auto_attack_suite
from jaxrobust.evaluation.certification import certified_accuracy
from jaxrobust.evaluation.classification import evaluate, logits, mistakes
from jaxrobust.evaluation.collapse import loss_alarm
from jaxrobust.evaluation.curves import Sweep, curve_from_norms, robustness_curve
from jaxrobust.evaluation.diagnostics import sanity
from jaxrobust.evaluation.execution import Execution
from jaxrobust.evaluation.latency import (
    compare_latency,
    dataset_latency,
    disk_latency,
    latency,
)
from jaxrobust.evaluation.rates import Rate, rate
from jaxrobust.evaluation.robustness import attack_dataset
from jaxrobust.evaluation.statistics import (
    holm,
    mcnemar,
    mean_interval,
    median_interval,
    paired_difference,
    paired_mean_difference,
)
from jaxrobust.evaluation.suite import SuiteReport, attack_suite, summarise_suite
from jaxrobust.evaluation.thresholds import (
    Crossing,
    at_epsilon,
    confidences,
    epsilon_for_success,
    steps_for_success,
)
from jaxrobust.evaluation.transfer import transfer_curves, transfer_matrix, transfer_rates
from jaxrobust.evaluation.universal import (
    UniversalPerturbation,
    UniversalResult,
    universal_perturbation,
)
from jaxrobust.evaluation.weights import weight_histogram

__all__ = [
    "AttackReport",
    "Crossing",
    "Execution",
    "Rate",
    "SuiteReport",
    "Sweep",
    "UniversalPerturbation",
    "UniversalResult",
    "at_epsilon",
    "attack_dataset",
    "attack_label",
    "attack_suite",
    "auto_attack",
    "auto_attack_suite",
    "certified_accuracy",
    "compare_latency",
    "confidences",
    "curve_from_norms",
    "dataset_latency",
    "disk_latency",
    "epsilon_for_success",
    "evaluate",
    "holm",
    "latency",
    "load_attack",
    "logits",
    "loss_alarm",
    "mcnemar",
    "mean_interval",
    "median_interval",
    "median_norm",
    "mistakes",
    "paired_difference",
    "paired_mean_difference",
    "rate",
    "records",
    "robust_accuracy",
    "robustness_curve",
    "sanity",
    "save_attack",
    "steps_for_success",
    "success_rate",
    "summarise",
    "summarise_suite",
    "transfer_curves",
    "transfer_matrix",
    "transfer_rates",
    "universal_perturbation",
    "weight_histogram",
]
