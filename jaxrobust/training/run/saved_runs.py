"""Reads the weights of a training run from its folder, without the model that was trained."""

import json
import os
from pathlib import Path
from typing import Any

from jaxrobust import checks
from jaxrobust.training.run.checkpoints import load_leaves, unescaped
from jaxrobust.training.run.epoch_decisions import best_epoch
from jaxrobust.types import PyTree


def load_run(
    run_dir: str | os.PathLike[str], weights: str = "last"
) -> tuple[PyTree, dict[str, Any]]:
    """Reads the weights of a run of `fit`, finished or not.

    The folder is not changed. `with_variables(model, ...)` puts the weights into a linen or nnx module.

    Args:
      run_dir: The `run_dir` that `fit` was given.
      weights: "last" for the latest checkpoint, or "best" for the best epoch on the validation set. If
        the recipe has an `averaging`, it is the average of the weights.

    Returns:
      ({"params": ..., "batch_stats": ...}, the settings of the run from its settings.json: "model" is
      the class and sizes of the model, "mean" and "std" are its normalisation).

    Raises:
      FileNotFoundError: The folder does not exist or has no checkpoint.
      ValueError: `weights` is neither, or is "best" for a run without validation; or the run has a
        compression. Its checkpoints do not hold the compressed network: call `fit` again with the same
        arguments, which returns it at once.
    """
    checks.one_of("weights", weights, ("last", "best"))
    folder = Path(run_dir).absolute()
    settings_path = folder / "settings.json"
    steps = sorted(int(path.name) for path in folder.glob("checkpoints/*") if path.name.isdigit())
    if not settings_path.is_file() or not steps:
        raise FileNotFoundError(
            "`run_dir` must be the folder of a run of jaxrobust.training.fit with a checkpoint, got "
            f"{folder}."
        )
    settings = json.loads(settings_path.read_text(encoding="utf-8"))
    compression = settings.get("recipe", settings).get("compression")
    if compression is not None:
        raise ValueError(
            f"`run_dir` {folder} holds a run with a compression, whose checkpoints are not yet "
            "compressed: call `fit` again with the same arguments, which returns the network at once."
        )
    leaves, metadata = load_leaves(folder / "checkpoints" / str(steps[-1]))
    if weights == "best":
        history = metadata["history"]
        # "config" is that of runs of earlier releases.
        known = settings["recipe"]["validation"] if "recipe" in settings else settings["config"]
        best = best_epoch(known.get("monitor", "validation_loss"), history)
        if best is None:
            raise ValueError(
                f"`weights` must be 'last' for a run without validation, such as {folder}."
            )
        if history[best - 1]["step"] != steps[-1]:
            step = str(history[best - 1]["step"])
            leaves, _ = load_leaves(folder / "checkpoints" / step)
    # The state comes first in a checkpoint, the totals of the epoch second (loop.Position).
    average = _subtree(leaves, "0.average.")
    if average:
        return average, settings
    found = {name: _subtree(leaves, f"0.{name}.") for name in ("params", "batch_stats")}
    return {name: tree for name, tree in found.items() if tree}, settings


def _subtree(leaves: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Returns nested dicts of the leaves whose flat names begin with a prefix."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        if name.startswith(prefix):
            *parents, last = map(unescaped, name.removeprefix(prefix).split("."))
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = leaf
    return tree
