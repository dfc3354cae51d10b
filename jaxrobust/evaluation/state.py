"""A search on the disk, so that one that was killed goes on where it was."""

import dataclasses
import json
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import attacks, files
from jaxrobust.attacks import Attack
from jaxrobust.evaluation.found import Found
from jaxrobust.evaluation.queue import Queue
from jaxrobust.types import PyTree


def description(
    attack: Attack,
    images: np.ndarray,
    labels: np.ndarray,
    wanted: np.ndarray,
    key: jax.Array,
    until_fooled: bool,
) -> str:
    """What decides about an attack's outcome, but for the classifier, in a line."""

    def crc(array: np.ndarray) -> int:
        return zlib.crc32(np.ascontiguousarray(array).tobytes())

    return json.dumps(
        {
            "attack": attacks.to_dict(attack) | {"module": type(attack).__module__},
            "jobs": [crc(images), crc(labels), crc(wanted), attack.num_restarts],
            "key": np.asarray(jax.random.key_data(key)).tolist(),
            "until_fooled": until_fooled,
        },
        default=str,
    )


@dataclasses.dataclass(eq=False)
class State:
    """The file of one search: what was found, and the lanes as they stand.

    Attributes:
      path: Of the file.
      description: From `description`.
      identity: What tells the classifier from others: {"program", "weights": digests, "clean_logits",
        "moved_logits": float32 [_, K]}. Digests are compared to the letter, logits not to the last
        digit, because another machine rounds in another way.
      kept: The lanes that were read, until they are restored.
    """

    path: Path
    description: str
    identity: dict[str, Any]
    kept: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def save(self, queue: Queue) -> None:
        """All or nothing."""
        found = queue.found
        rows = np.flatnonzero(found.restart < len(found.finished))
        arrays = vars(found) | {"images": found.images[rows], "rows": rows}
        if queue.running is not None:
            arrays |= {f"lane{name}": leaf for name, leaf in _named(queue.running).items()}
            arrays |= {"lane/asked": _asked(queue), "lane/group": np.array(queue.group or 0)}
            arrays |= {"lane/row": queue.row}
            arrays |= {"lane/restart": queue.restart, "lane/steps": queue.steps}
        with files.replace(self.path) as partial:
            np.savez(partial, description=self.description, **self.identity, **arrays)

    def restore(self, found: Found) -> None:
        """What `save` saved of `found`, if there is a file.

        Raises:
          ValueError: A file of another attack, or of none.
        """
        if not self.path.exists():
            return
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive}
            rows, images = arrays.pop("rows"), arrays.pop("images")
            saved = str(arrays.pop("description"))
            before = {name: arrays.pop(name, None) for name in self.identity}
        except Exception as error:  # zip and numpy have errors of many classes
            raise ValueError(f"{self.path} holds no attack; delete it to go on: {error}") from error
        changed = [*_differences(saved, self.description), *_changes(before, self.identity)]
        if changed:
            raise ValueError(
                f"{self.path} holds another attack: {'; '.join(changed)}. Name another file, or delete "
                "this one to start anew."
            )
        self.kept = {name: arrays.pop(name) for name in [*arrays] if name.startswith("lane")}
        found.images[rows] = images
        for name, values in arrays.items():
            setattr(found, name, values)

    def restore_lanes(self, queue: Queue) -> None:
        """Puts back the lanes that were read, if as many were asked for and the devices can share them.

        Where not, their jobs start anew.
        """
        kept, self.kept = self.kept, {}
        if not kept or not np.array_equal(kept["lane/asked"], _asked(queue)):
            return
        if len(kept["lane/row"]) % (max(int(kept["lane/group"]), 1) * queue.num_devices):
            return
        free = queue.group, queue.row, queue.restart, queue.steps
        queue.group = int(kept["lane/group"]) or None
        queue.row, queue.restart = kept["lane/row"], kept["lane/restart"]
        queue.steps = kept["lane/steps"]
        template = queue.start(np.arange(len(queue.row)))
        if any(
            f"lane{name}" not in kept or kept[f"lane{name}"].shape != leaf.shape
            for name, leaf in _named(template).items()
        ):
            queue.group, queue.row, queue.restart, queue.steps = free
            return
        queue.running = jax.tree_util.tree_map_with_path(
            lambda path, leaf: _like(kept[f"lane{jax.tree_util.keystr(path)}"], leaf), template
        )


def _differences(saved: str, current: str) -> list[str]:
    """What differs between two descriptions."""
    names = {
        "attack": "the attack",
        "jobs": "the images, their labels, or which of them are attacked",
        "key": "the key",
        "until_fooled": "`until_fooled`",
    }
    before, now = json.loads(saved), json.loads(current)
    found = files.differences({"attack": before["attack"]}, {"attack": now["attack"]})
    return found + [
        f"{words} differ{'s' * (name != 'jobs')}"
        for name, words in names.items()
        if name != "attack" and before.get(name) != now[name]
    ]


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two classifiers, in words."""
    if before["program"] is None or before["weights"] is None:
        return [
            "it was written by an earlier release, which did not keep what tells classifiers apart"
        ]
    found = []
    if str(before["program"]) != now["program"]:
        found.append(
            "the classifier computes something else (its equations, backward rules included, or the "
            "release of jax)"
        )
    if str(before["weights"]) != now["weights"]:
        found.append("the classifier has other weights")
    for name, words in (("clean_logits", "clean images"), ("moved_logits", "perturbed images")):
        if not _alike(before[name], now[name]):
            found.append(f"the classifier has other logits for {words}")
    return found


def _alike(before: np.ndarray | None, now: np.ndarray) -> bool:
    if before is None or before.shape != now.shape:
        return False
    return bool(np.allclose(before, now, 1e-3, 1e-3, equal_nan=True))


def _asked(queue: Queue) -> np.ndarray:
    """What the number of lanes was made of; it may have shrunk since."""
    return np.array([queue.num_lanes, queue.group is not None])


def _named(tree: PyTree) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): _plain(leaf) for path, leaf in leaves}


def _plain(leaf: jax.Array) -> np.ndarray:
    """The array for the disk, which knows no keys."""
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def _like(array: np.ndarray, leaf: jax.Array) -> Any:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.device_put(
            jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(leaf)),
            leaf.sharding,
        )
    return jax.device_put(array.astype(leaf.dtype), leaf.sharding)
