"""Attack reports on disk: a fixed set of adversarial images, to be shown to other models later."""

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
    """Saves a report, whole or not at all, as an .npz of its arrays and its attack as JSON.

    Args:
      path: Of the file; its folder is made, an existing file replaced.
      report: Of one of `attacks.ATTACKS`.
    """
    arrays = {name: getattr(report, name) for name in _ARRAYS if getattr(report, name) is not None}
    description = json.dumps(attacks.to_dict(report.attack))
    with files.replace(Path(path)) as partial:
        np.savez_compressed(partial, attack=np.array(description), **arrays)


def load_attack(path: str | os.PathLike[str]) -> AttackReport:
    """Loads a report that `save_attack` saved; no pickles are read.

    Raises:
      FileNotFoundError: No such file.
      ValueError: The file holds no attack report.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in _ARRAYS if name in archive}
            attack = attacks.from_dict(json.loads(str(archive["attack"])))
        return AttackReport(attack=attack, **({"targets": None} | arrays))
    except FileNotFoundError:
        raise
    except Exception as error:  # zip, JSON and numpy have errors of many classes
        raise ValueError(f"{path} holds no attack report; delete it to go on: {error}") from error
