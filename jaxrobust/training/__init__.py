"""Training of image classifiers, clean or adversarial, that survives being killed."""

from jaxrobust.training.adversaries import NFGSM, AttackSchedule, FreeReplays, KLAscent
from jaxrobust.training.checkpoint import load_variables, save_variables
from jaxrobust.training.compression import ADMM, Compression, check_compression
from jaxrobust.training.config import TrainConfig
from jaxrobust.training.dynamic import RigL
from jaxrobust.training.fingerprint import describe
from jaxrobust.training.finished import load_run
from jaxrobust.training.fitting import FitResult, fit, initial_variables
from jaxrobust.training.objectives import Objective
from jaxrobust.training.optimizers import make_optimizer, make_schedule
from jaxrobust.training.phases import TwoPhase, two_phase
from jaxrobust.training.programs import objective_of
from jaxrobust.training.scores import Hydra
from jaxrobust.training.sequences import check_sequences, source_sequences
from jaxrobust.training.state import TrainState, create_state
from jaxrobust.training.statistics import reestimate_batch_stats
from jaxrobust.training.step import check_objective, eval_step, train_step

__all__ = [
    "ADMM",
    "NFGSM",
    "AttackSchedule",
    "Compression",
    "FitResult",
    "FreeReplays",
    "Hydra",
    "KLAscent",
    "Objective",
    "RigL",
    "TrainConfig",
    "TrainState",
    "TwoPhase",
    "check_compression",
    "check_objective",
    "check_sequences",
    "create_state",
    "describe",
    "eval_step",
    "fit",
    "initial_variables",
    "load_run",
    "load_variables",
    "make_optimizer",
    "make_schedule",
    "objective_of",
    "reestimate_batch_stats",
    "save_variables",
    "source_sequences",
    "train_step",
    "two_phase",
]
