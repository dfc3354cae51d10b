"""Orbax checkpoints of a run: its latest and its best epoch.

Only this module imports Orbax, and only when a function here is called. Saves are synchronous: when
`save` returns, the checkpoint is on the disk under its final name. A process killed during a save
leaves a temporary folder, which the next start removes, and the previous checkpoint, which is
whole.
"""

import contextlib
import importlib
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrobust import files
from jaxrobust.types import PyTree


def _orbax() -> Any:
    """Orbax's v1 interface, wherever this release keeps it."""
    try:
        return importlib.import_module("orbax.checkpoint.v1")
    except ModuleNotFoundError:
        return importlib.import_module("orbax.checkpoint.experimental.v1")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds back Orbax's warnings of what is expected: remains of a killed save or deletion."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class RunCheckpoints:
    """The checkpoints of one training run, under one directory; a context manager.

    Two are kept: the latest, and the one with the lowest score (the earliest among equals). Both
    carry the JSON `metadata` that they were saved with.

    Args:
      directory: Made if it is not there.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        ocp = _orbax()
        keep = ocp.training.preservation_policies
        policy = keep.AnyPreservationPolicy(
            [
                keep.LatestN(1),
                # Sorted upwards, the last one is kept.
                keep.BestN(
                    get_metric_fn=lambda metrics: (-metrics["score"], -metrics["epoch"]),
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        with _quiet():
            self._checkpointer = ocp.training.Checkpointer(
                Path(directory).absolute(),
                # Whenever asked: by default Orbax skips a save while another is under way.
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                preservation_policy=policy,
                cleanup_tmp_directories=True,
            )

    def __enter__(self) -> "RunCheckpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._checkpointer.close()

    @property
    def directory(self) -> Path:
        """Where the checkpoints are."""
        return Path(self._checkpointer.directory)

    @property
    def latest_step(self) -> int | None:
        """The step of the latest checkpoint; None if there is none."""
        latest = self._checkpointer.latest
        return None if latest is None else int(latest.step)

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps of all checkpoints, ascending."""
        return tuple(int(checkpoint.step) for checkpoint in self._checkpointer.checkpoints)

    def save(
        self, step: int, tree: PyTree, metadata: Mapping[str, Any], score: float | None, epoch: int
    ) -> None:
        """Saves a checkpoint and deletes those no longer kept; does nothing if `step` is saved.

        Args:
          step: Its number, above that of the latest.
          tree: Arrays.
          metadata: JSON.
          score: Lower is better. None for a checkpoint that must not count as the best.
          epoch: Decides between equal scores: the earlier one.
        """
        if step == self.latest_step:
            return
        metrics = None if score is None else {"score": score, "epoch": epoch}
        with _quiet():
            self._checkpointer.save(
                step, _flatten(tree), metrics=metrics, custom_metadata=dict(metadata)
            )

    def metadata(self, step: int) -> dict[str, Any]:
        """What `save` was given as metadata."""
        return dict(self._checkpointer.metadata(step).custom_metadata)

    def restore(self, step: int, template: PyTree) -> PyTree:
        """The tree saved at `step`.

        Args:
          step: One of `steps`.
          template: A tree of arrays, or of shapes (`jax.eval_shape`), of the same structure.

        Returns:
          A tree like `template`, of JAX arrays.

        Raises:
          ValueError: The checkpoint holds other names, shapes or types than `template`.
        """
        expected = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            for name, leaf in _flatten(template).items()
        }
        saved = self._checkpointer.metadata(step).metadata
        different = files.differences(_described(saved), _described(expected))
        if different:
            raise ValueError(
                f"The checkpoint {self._checkpointer.directory / str(step)} does not fit the model "
                "or the optimizer: " + "; ".join(different) + "."
            )
        restored = self._checkpointer.load(step, _on_this_device(expected))
        treedef = jax.tree.structure(template)
        return jax.tree.unflatten(treedef, [restored[name] for name in expected])


def load_leaves(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A checkpoint that `RunCheckpoints` saved, by the flat names of its leaves; nothing is written.

    Args:
      path: Of one checkpoint: `<directory>/<step>`.

    Returns:
      ({name: array}, metadata).

    Raises:
      FileNotFoundError: No such checkpoint, or one that is not whole.
    """
    source = Path(path).absolute()
    ocp = _orbax()
    if not ocp.is_orbax_checkpoint(source):
        raise FileNotFoundError(f"No checkpoint at {source}.")
    saved = ocp.metadata(source)
    return ocp.load(source, _on_this_device(saved.metadata)), dict(saved.custom_metadata)


def _on_this_device(leaves: Any) -> Any:
    """The shapes of arrays, and where to put them: a checkpoint may come from another device."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), leaves
    )


def _flatten(tree: PyTree) -> dict[str, Any]:
    """Leaves by their path: a flat dict has no None or tuple for Orbax to stumble on."""
    return {
        ".".join(escaped(jax.tree_util.keystr((key,), simple=True)) for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def escaped(name: str) -> str:
    """A name without the characters that separate names in paths.

    Example:
      >>> escaped("classifier.0"), unescaped("classifier%2E0")
      ('classifier%2E0', 'classifier.0')
    """
    return name.replace("%", "%25").replace(".", "%2E").replace("/", "%2F")


def unescaped(name: str) -> str:
    """The name that `escaped` was given."""
    return name.replace("%2F", "/").replace("%2E", ".").replace("%25", "%")


def _described(leaves: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}" for name, leaf in leaves.items()}
