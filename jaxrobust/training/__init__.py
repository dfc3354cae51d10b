"""Clean and adversarial training of image classifiers, which resumes after an interruption."""

from jaxrobust.training.compression.admm import ADMM, rho_for_pull
from jaxrobust.training.compression.budget_schedules import check_sequences, source_sequences
from jaxrobust.training.compression.compatibility import check_compression
from jaxrobust.training.compression.hydra import Hydra
from jaxrobust.training.compression.method import Compression
from jaxrobust.training.compression.rigl import RigL
from jaxrobust.training.run.arguments import Data, initial_variables
from jaxrobust.training.run.batch_statistics import reestimate_batch_stats
from jaxrobust.training.run.fingerprint import describe
from jaxrobust.training.run.fit import FitResult, Host, fit
from jaxrobust.training.run.saved_runs import load_run
from jaxrobust.training.run.two_phase import Phases, TwoPhase, two_phase
from jaxrobust.training.step.adversaries import (
    Adversary,
    Batch,
    Warmup,
    as_adversary,
    step_once,
)
from jaxrobust.training.step.attack_schedule import AttackSchedule
from jaxrobust.training.step.averaging import EMA, Averaging
from jaxrobust.training.step.distillation import Distillation
from jaxrobust.training.step.eval_step import eval_step
from jaxrobust.training.step.free_replays import FreeReplays
from jaxrobust.training.step.learning_rates import Constant, Cosine, Plateau, Steps
from jaxrobust.training.step.mart import MART
from jaxrobust.training.step.n_fgsm import NFGSM
from jaxrobust.training.step.network import Network, Passes, with_variables
from jaxrobust.training.step.objectives import CrossEntropy, Objective
from jaxrobust.training.step.optimizers import SGD, Adam, AdamW
from jaxrobust.training.step.recipe import Recipe, Validation
from jaxrobust.training.step.state import TrainState, create_state
from jaxrobust.training.step.trades import TRADES, KLAscent
from jaxrobust.training.step.train_step import train_step
from jaxrobust.training.step.weight_perturbation import AWP

__all__ = [
    "ADMM",
    "AWP",
    "EMA",
    "MART",
    "NFGSM",
    "SGD",
    "TRADES",
    "Adam",
    "AdamW",
    "Adversary",
    "AttackSchedule",
    "Averaging",
    "Batch",
    "Compression",
    "Constant",
    "Cosine",
    "CrossEntropy",
    "Data",
    "Distillation",
    "FitResult",
    "FreeReplays",
    "Host",
    "Hydra",
    "KLAscent",
    "Network",
    "Objective",
    "Passes",
    "Phases",
    "Plateau",
    "Recipe",
    "RigL",
    "Steps",
    "TrainState",
    "TwoPhase",
    "Validation",
    "Warmup",
    "as_adversary",
    "check_compression",
    "check_sequences",
    "create_state",
    "describe",
    "eval_step",
    "fit",
    "initial_variables",
    "load_run",
    "reestimate_batch_stats",
    "rho_for_pull",
    "source_sequences",
    "step_once",
    "train_step",
    "two_phase",
    "with_variables",
]
