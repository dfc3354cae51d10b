"""Attack reports on disk, such as adversarial images to be shown to other models later."""

import json
import os
from pathlib import Path

import numpy as np

from jaxrobust import attacks, files
from jaxrobust.evaluation.attack_report import AttackReport

_ARRAYS = (
    *("labels", "targets", "clean_images", "images", "clean_logits", "logits"),
    *("num_steps", "num_queries", "num_gradients", "saw_nan"),
)


def save_attack(path: str | os.PathLike[str], report: AttackReport) -> None:
    """Saves a report as an .npz file, whole or not at all.

    Args:
      path: The path of the file. Its folder is made if it is missing; an existing file is replaced.
      report: The report; of an attack of your own, `load_attack` must be given the class.
    """
    arrays = {name: getattr(report, name) for name in _ARRAYS if getattr(report, name) is not None}
    description = json.dumps(attacks.to_dict(report.attack))
    with files.replace(Path(path)) as partial:
        np.savez_compressed(partial, attack=np.array(description), **arrays)


def load_attack(path: str | os.PathLike[str], *own: type[attacks.Attack]) -> AttackReport:
    """Loads a report that `save_attack` has saved. It reads no pickles.

    Args:
      path: The path of the file.
      *own: Classes of your own attacks, if the report may be of one of them.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: The file is not an attack report, or the report of an attack that is neither in
        `attacks.ATTACKS` nor in `own`.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in _ARRAYS if name in archive}
            attack = attacks.from_dict(json.loads(str(archive["attack"])), *own)
        return AttackReport(attack=attack, **({"targets": None} | arrays))
    except FileNotFoundError:
        raise
    except Exception as error:  # zip, JSON and numpy have errors of many classes
        raise ValueError(f"{path} is not an attack report; delete it to go on: {error}") from error
