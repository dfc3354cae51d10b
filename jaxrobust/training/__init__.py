"""Training of image classifiers, clean or adversarial, that survives being killed."""

from jaxrobust.training.adversaries import NFGSM, AttackSchedule, FreeReplays, KLAscent
from jaxrobust.training.checkpoint import load_variables, save_variables
from jaxrobust.training.config import TrainConfig
from jaxrobust.training.fingerprint import describe
from jaxrobust.training.finished import load_run
from jaxrobust.training.fitting import FitResult, fit, initial_variables
from jaxrobust.training.objectives import Objective
from jaxrobust.training.optimizers import make_optimizer, make_schedule
from jaxrobust.training.programs import objective_of
from jaxrobust.training.state import TrainState, create_state
from jaxrobust.training.step import check_objective, eval_step, train_step

__all__ = [
    "NFGSM",
    "AttackSchedule",
    "FitResult",
    "FreeReplays",
    "KLAscent",
    "Objective",
    "TrainConfig",
    "TrainState",
    "check_objective",
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
    "save_variables",
    "train_step",
]
