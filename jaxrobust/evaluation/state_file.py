"""The file from which a killed attack is resumed."""

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

_OF_PROCESS = ".process"  # and its number: the end of the name of another process's file


def description(
    attack: Attack,
    images: np.ndarray,
    labels: np.ndarray,
    wanted: np.ndarray,
    key: jax.Array,
    until_fooled: bool,
) -> str:
    """Returns one line of JSON with everything that decides the outcome, except the classifier."""

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
    """The file of one attack: arrays by name, and a description of the attack and the classifier.

    Attributes:
      path: The path of the file.
      description: The attack and its jobs, as `description` returns them.
      identity: What identifies the classifier: {"program", "weights": digests, "clean_logits",
        "moved_logits": float32 [_, K]}. Digests must be equal; logits are compared up to a tolerance,
        because another machine rounds differently.
    """

    path: Path
    description: str
    identity: dict[str, Any]

    def of(self, rank: int) -> "StateFile":
        """Returns the file of a process; that of the first one has no number."""
        name = f"{self.path.name}{_OF_PROCESS}{rank}" if rank else self.path.name
        return dataclasses.replace(self, path=self.path.with_name(name))

    def load_all(self) -> dict[int, dict[str, np.ndarray]]:
        """Returns the saved arrays of every process that has a file: {its number: what `load` returns}.

        An earlier call may have had more processes than this one.
        """
        arrays, start = {0: self.load()}, f"{self.path.name}{_OF_PROCESS}"
        for path in self.path.parent.glob("*"):
            number = path.name.removeprefix(start)
            if path.name.startswith(start) and number.isdecimal():
                arrays[int(number)] = self.of(int(number)).load()
        return {rank: arrays[rank] for rank in sorted(arrays) if arrays[rank]}

    def save(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes the arrays, whole or not at all."""
        with files.replace(self.path) as partial:
            facts: Any = {"description": self.description, **self.identity, **arrays}
            np.savez(partial, **facts)

    def load(self) -> dict[str, np.ndarray]:
        """Returns the saved arrays, or an empty dict if there is no file.

        Raises:
          ValueError: The file is of another attack, or is not the state of an attack.
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
            raise ValueError(
                f"{self.path} is not the state of an attack; delete it to go on: {error}"
            ) from error
        changed = [*_differences(saved, self.description), *_changes(before, self.identity)]
        if changed:
            raise ValueError(
                f"{self.path} holds another attack: {'; '.join(changed)}. Use another file, or delete "
                "this one to start again."
            )
        return arrays


def _differences(saved: str, current: str) -> list[str]:
    """Lists the differences between two descriptions."""
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
    """Lists the differences between two classifiers."""
    if before["program"] is None or before["weights"] is None:
        return [
            "it was written by an earlier release, which did not save what identifies the classifier"
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
