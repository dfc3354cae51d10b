"""Makes the parts of a result.json: an experiment's numbers, and what is needed to reproduce them."""

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
    """Returns versions, device and commit, on which figures depend besides the configuration."""
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
        "onednn": list(compilation.onednn_types()),
        "commit": commit(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def commit() -> str | None:
    """Returns the commit of the source tree, with a mark if files have changed; None without a tree.

    The value of the first call, which `start` makes, is remembered, because the tree may change
    during a long run.
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
    """Converts a configuration dataclass to JSON values, with absolute paths.

    `results_dir`, `run` and `processes` are left out: they determine where results go and who computes
    them, but not what they are.
    """
    fields = {
        name: str(value.expanduser().resolve()) if isinstance(value, Path) else value
        for name, value in dataclasses.asdict(config).items()
        if name not in ("results_dir", "run", "processes")
    }
    return json.loads(json.dumps(fields, default=str))


@dataclasses.dataclass(frozen=True)
class Trained:
    """How a model was trained, for `model_entry`.

    Attributes:
      history: One row per epoch.
      seconds_per_epoch: The seconds that an epoch of training took.
      attack: The attack on the training images, if there was one.
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
    """Evaluates a model and makes its entry in result.json (docs/result_format.md, MODEL).

    Args:
      name: The model's name.
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K].
      images: The images of the test split, uint8 [N, H, W, C].
      labels: int [N].
      class_names: K names.
      trained: How the model was trained; None for a model that somebody else trained.
      description: A sentence about how it was trained.
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
    """Returns the part "data" of result.json."""
    return {
        "name": dataset.name,
        "class_names": list(dataset.class_names),
        "num_train": len(dataset.train),
        "num_test": len(dataset.test),
        "image_shape": list(dataset.image_shape),
        "skipped_files": [f"{file}: {reason}" for file, reason in dataset.skipped_files],
    }
