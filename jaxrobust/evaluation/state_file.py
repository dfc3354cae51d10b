"""A search on the disk, so that one that was killed goes on where it was."""

import dataclasses
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrobust import attacks, files
from jaxrobust.attacks import Attack


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


@dataclasses.dataclass(frozen=True, eq=False)
class StateFile:
    """The file of one search: arrays by name, and what they are of.

    Attributes:
      path: Of the file.
      description: From `description`.
      identity: What tells the classifier from others: {"program", "weights": digests, "clean_logits",
        "moved_logits": float32 [_, K]}. Digests are compared to the letter, logits not to the last
        digit, because another machine rounds in another way.
    """

    path: Path
    description: str
    identity: dict[str, Any]

    def save(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes the arrays, all or nothing."""
        with files.replace(self.path) as partial:
            facts: Any = {"description": self.description, **self.identity, **arrays}
            np.savez(partial, **facts)

    def load(self) -> dict[str, np.ndarray]:
        """The arrays that were saved; none where there is no file.

        Raises:
          ValueError: A file of another attack, or of none.
        """
        if self.path.is_dir():
            raise ValueError(
                f"`execution.path` must be a file for one attack, got the folder {self.path}: name a "
                "file in it."
            )
        if not self.path.exists():
            return {}
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive}
            if not {"rows", "images"} <= arrays.keys():
                raise ValueError("it has no images")
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
        return arrays


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
