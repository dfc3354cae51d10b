"""The weights of a training run, read from its folder without the network that was trained."""

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
    """The weights that a run of `fit` has come to, finished or not; the folder is only read.

    `with_variables(model, ...)` puts them into a linen or nnx module.

    Args:
      run_dir: That `fit` was given.
      weights: "last", those of the latest checkpoint, or "best", those of the best epoch on the
        validation set. Of either the moving average, if one was kept.

    Returns:
      ({"params": ..., "batch_stats": ...}, the run's settings as its settings.json has them: "model" is
      the network's class and sizes, "mean" and "std" its normalisation).

    Raises:
      FileNotFoundError: No such folder, or one without a checkpoint.
      ValueError: `weights` are neither, or "best" of a run without validation; a run with a
        compression, whose checkpoints hold what is trained and not the compressed network: `fit`
        itself, called again, returns that at once.
    """
    checks.one_of("weights", weights, ("last", "best"))
    folder = Path(run_dir).absolute()
    settings_path = folder / "settings.json"
    steps = sorted(int(path.name) for path in folder.glob("checkpoints/*") if path.name.isdigit())
    if not settings_path.is_file() or not steps:
        raise FileNotFoundError(
            f"{folder} holds no run of jaxrobust.training.fit with a checkpoint."
        )
    settings = json.loads(settings_path.read_text(encoding="utf-8"))
    compression = settings.get("recipe", settings).get("compression")
    if compression is not None:
        raise ValueError(
            f"{folder} holds a run with a compression, whose network `fit` makes of its checkpoints: "
            "call it again with the same arguments, it returns at once."
        )
    leaves, metadata = load_leaves(folder / "checkpoints" / str(steps[-1]))
    if weights == "best":
        history = metadata["history"]
        # "config" is that of runs of earlier releases.
        known = settings["recipe"]["validation"] if "recipe" in settings else settings["config"]
        best = best_epoch(known.get("monitor", "validation_loss"), history)
        if best is None:
            raise ValueError(f"`weights` must be 'last' for a run without validation: {folder}.")
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
    """Nested dicts of what stands below a prefix in flat names."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        if name.startswith(prefix):
            *parents, last = map(unescaped, name.removeprefix(prefix).split("."))
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = leaf
    return tree
