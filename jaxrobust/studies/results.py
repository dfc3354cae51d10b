"""result.json: where an experiment's numbers go, with what is needed to make them again."""

import dataclasses
import functools
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxrobust import compilation, data
from jaxrobust._version import __version__
from jaxrobust.attacks import Attack
from jaxrobust.evaluation import attack_label, evaluate
from jaxrobust.studies.classifiers import num_parameters
from jaxrobust.types import LogitsFn


def environment() -> dict[str, Any]:
    """Versions, device and commit: what a figure depends on besides its configuration."""
    versions = {name: _version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")}
    device = jax.devices()[0]
    return {
        "jaxrobust": __version__,
        "python": platform.python_version(),
        **versions,
        "platform": platform.platform(),
        "device": " ".join(dict.fromkeys([device.platform, device.device_kind])),
        "num_devices": jax.device_count(),
        "num_cpus": os.cpu_count(),
        "onednn": compilation.with_onednn(),
        "commit": commit(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def commit() -> str | None:
    """The commit of the source tree, marked where files differ from it; None outside of one.

    Remembered from the first call, which `start` makes: at the end of a long run the tree may
    have moved on from the code that is running.
    """
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def configuration(config: Any) -> dict[str, Any]:
    """A configuration dataclass as JSON values, paths in one spelling.

    Left out is what decides where results go and not what they are: `results_dir` and `run`.
    """
    fields = {
        name: str(value.expanduser().resolve()) if isinstance(value, Path) else value
        for name, value in dataclasses.asdict(config).items()
        if name not in ("results_dir", "run")
    }
    return json.loads(json.dumps(fields, default=str))


@dataclasses.dataclass(frozen=True)
class Trained:
    """How a model was trained, for `model_entry`.

    Attributes:
      history: One row per epoch.
      seconds_per_epoch: Of training.
      attack: That the training images were under, if any.
    """

    history: Sequence[Mapping[str, Any]]
    seconds_per_epoch: float | None = None
    attack: Attack | None = None


def model_entry(
    name: str,
    logits_fn: LogitsFn,
    images: Any,
    labels: Any,
    class_names: Sequence[str],
    *,
    trained: Trained | None = None,
    description: str | None = None,
) -> dict[str, Any]:
    """A model as it goes into result.json (docs/result_format.md, MODEL).

    Args:
      name: Of the model.
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K].
      images: Of the test split, uint8 [N, H, W, C].
      labels: int [N].
      class_names: K names.
      trained: How; None for a model that somebody else trained.
      description: A sentence on how it was trained.
    """
    trained = trained or Trained(())
    entry: dict[str, Any] = {
        "name": name,
        "num_parameters": num_parameters(logits_fn),
        "training": {
            "seconds_per_epoch": trained.seconds_per_epoch,
            "epochs": [dict(row) for row in trained.history],
        },
        "evaluation": evaluate(logits_fn, images, labels, class_names),
    }
    if trained.attack is not None:
        entry["training"]["attack"] = attack_label(trained.attack)
    if description is not None:
        entry["description"] = description
    return entry


def data_entry(dataset: data.Dataset) -> dict[str, Any]:
    """The part "data" of result.json."""
    return {
        "name": dataset.name,
        "class_names": list(dataset.class_names),
        "num_train": len(dataset.train),
        "num_test": len(dataset.test),
        "image_shape": list(dataset.image_shape),
        "skipped_files": [f"{file}: {reason}" for file, reason in dataset.skipped_files],
    }
