"""Orbax checkpoints of a run: its latest and its best epoch.

Only this module imports Orbax, and only when a function here is called. Saves are synchronous: when
`save` returns, the checkpoint is on the disk under its final name. A process that is killed during a
save leaves the previous checkpoint intact, and a temporary folder that the next start removes.
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
    """Imports Orbax's v1 interface, whose place differs between releases."""
    try:
        return importlib.import_module("orbax.checkpoint.v1")
    except ModuleNotFoundError:
        return importlib.import_module("orbax.checkpoint.experimental.v1")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences Orbax's warnings about the remains of an interrupted save or deletion."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class RunCheckpoints:
    """The checkpoints of one training run in one directory; a context manager.

    Two are kept: the latest, and the one with the lowest score (the earliest among equals). Each has
    the JSON `metadata` with which it was saved.

    Args:
      directory: The directory, which is created if it does not exist.
      is_kept: Whether the directory outlives the training.
    """

    def __init__(self, directory: str | os.PathLike[str], *, is_kept: bool = True):
        ocp = _orbax()
        self.is_kept = is_kept
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
        """The directory of the checkpoints."""
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
        """Saves a checkpoint and deletes old ones; does nothing if `step` is already saved.

        Args:
          step: The number of the checkpoint, above that of the latest.
          tree: A pytree of arrays.
          metadata: JSON values to save with it.
          score: The score, lower is better. None: the checkpoint cannot be the best.
          epoch: The epoch; among equal scores the earliest epoch is the best.
        """
        if step == self.latest_step:
            return
        metrics = None if score is None else {"score": score, "epoch": epoch}
        with _quiet():
            self._checkpointer.save(
                step, _flatten(tree), metrics=metrics, custom_metadata=dict(metadata)
            )

    def metadata(self, step: int) -> dict[str, Any]:
        """Returns the metadata of the checkpoint of a step."""
        return dict(self._checkpointer.metadata(step).custom_metadata)

    def restore(self, step: int, template: PyTree) -> PyTree:
        """Restores the tree that was saved at `step`.

        Args:
          step: One of `steps`.
          template: A tree of arrays, or of shapes (`jax.eval_shape`), with the same structure.

        Returns:
          A tree of JAX arrays with the structure of `template`.

        Raises:
          ValueError: The names, shapes or types in the checkpoint differ from those of `template`.
        """
        expected = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            for name, leaf in _flatten(template).items()
        }
        saved = self._checkpointer.metadata(step).metadata
        different = files.differences(_described(saved), _described(expected))
        if different:
            raise ValueError(
                f"The checkpoint {self._checkpointer.directory / str(step)} does not match the "
                f"model, the optimizer or the compression: {'; '.join(different)}. It is of another "
                "network or recipe, or of another version of jaxrobust: use another folder, or delete "
                "this one to begin anew."
            )
        restored = self._checkpointer.load(step, _on_this_device(expected))
        treedef = jax.tree.structure(template)
        return jax.tree.unflatten(treedef, [restored[name] for name in expected])


def load_leaves(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a checkpoint of `RunCheckpoints` by the flat names of its leaves; writes nothing.

    Args:
      path: The path of one checkpoint, `<directory>/<step>`.

    Returns:
      ({name: array}, metadata).

    Raises:
      FileNotFoundError: The checkpoint does not exist or is incomplete.
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
    """Returns the leaves by path: a flat dict, because Orbax does not restore None and tuples."""
    return {
        ".".join(escaped(jax.tree_util.keystr((key,), simple=True)) for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def escaped(name: str) -> str:
    """Escapes the characters in a name that separate names in paths.

    Example:
      >>> escaped("classifier.0"), unescaped("classifier%2E0")
      ('classifier%2E0', 'classifier.0')
    """
    return name.replace("%", "%25").replace(".", "%2E").replace("/", "%2F")


def unescaped(name: str) -> str:
    """Returns the name that `escaped` was given."""
    return name.replace("%2F", "/").replace("%2E", ".").replace("%25", "%")


def _described(leaves: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}" for name, leaf in leaves.items()}
