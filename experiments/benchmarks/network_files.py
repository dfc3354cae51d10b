"""Networks and images in .npz files that both sides of a benchmark read.

weights/<name>    weights by PyTorch's names and in its layouts
ours/<path>       the same weights as jaxrobust's variables, unless PyTorch drew them
images            float32 [N, H, W, C] in [0, 1]
labels            int [N]
logits            float32 [N, K], as the side that wrote the file computes them
mean, std         float32 [C]
architecture      the network's name in layers.json
widths            int [stages]
recipe            JSON: how the network was trained
"""

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from experiments.benchmarks import harness
from jaxrobust import evaluation, files, models
from jaxrobust.models.torch_layouts import layout
from jaxrobust.types import LogitsFn, PyTree

Arrays = dict[str, np.ndarray]
Build = Callable[[str, Arrays], LogitsFn]
"""Builds our network from PyTorch's name of a network and its weights."""

# Of the logits. On a GPU both sides multiply at reduced precision, and in different orders.
_TOLERANCE = {"cpu": 1e-4, "cuda": 0.05}


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A trained network of ours, its file, and the images of this file that it is attacked on."""

    name: str
    path: Path
    classifier: models.Classifier
    images: np.ndarray
    labels: np.ndarray
    recipe: dict[str, Any]

    @property
    def target(self) -> tuple[models.Classifier, np.ndarray, np.ndarray]:
        """The classifier, images and labels, which attacks take."""
        return self.classifier, self.images, self.labels

    def first(self, count: int) -> "Network":
        """Returns the network with only the first `count` of its images."""
        images, labels = self.images[:count], self.labels[:count]
        return dataclasses.replace(self, images=images, labels=labels)


@dataclasses.dataclass(frozen=True, eq=False)
class Drawn:
    """A network that PyTorch has drawn, and noise images, whose `labels` are its predictions."""

    name: str
    weights: Arrays
    images: np.ndarray
    labels: np.ndarray
    logits: np.ndarray

    def build(self, builds: Mapping[str, Build], tolerance: float = 1e-4) -> dict[str, LogitsFn]:
        """Builds our networks with these weights.

        Raises:
          RuntimeError: The logits differ by more than `tolerance` times the largest of PyTorch's.
        """
        functions = {key: build(self.name, self.weights) for key, build in builds.items()}
        for key, function in functions.items():
            logits = evaluation.logits(function, self.images, min(len(self.images), 128))
            difference = np.abs(logits - self.logits).max() / np.abs(self.logits).max()
            if not difference <= tolerance:
                raise RuntimeError(f"{self.name} of {key}: the logits differ by {difference:.2g}.")
        return functions


def _places(architecture: str) -> Iterator[tuple[str, str]]:
    """Yields (PyTorch's name, our path) of each array, in PyTorch's order."""
    for layer in layout(architecture, models.create(architecture)):
        for suffix, collection, leaf in layer.leaves:
            yield f"{layer.theirs}.{suffix}", f"{collection}/{layer.ours}/{leaf}"


def to_torch(architecture: str, variables: PyTree) -> Arrays:
    """Returns our variables by PyTorch's names: the inverse of `models.from_torch`, for any widths."""
    ours = traverse_util.flatten_dict(variables, sep="/")
    weights = {}
    for name, path in _places(architecture):
        value = np.asarray(ours.pop(path), np.float32)
        axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[value.ndim]
        weights[name] = np.ascontiguousarray(value.transpose(axes))
    if ours:
        raise ValueError(f"`variables` has leaves that {architecture!r} lacks: {sorted(ours)}.")
    return weights


def from_torch(architecture: str, weights: Arrays) -> PyTree:
    """Returns our variables from weights that torch_worker.py has drawn, which have other names."""
    names = [name for name, _ in _places(architecture)]
    values = [v for name, v in weights.items() if not name.endswith("num_batches_tracked")]
    return models.from_torch(architecture, dict(zip(names, values, strict=True)))


def save(
    path: Path,
    architecture: str,
    classifier: models.Classifier,
    images: np.ndarray,
    labels: np.ndarray,
    widths: tuple[int, ...] = (),
    recipe: dict[str, Any] | None = None,
) -> None:
    """Writes a network of ours; `widths` are needed if they are not the first in layers.json."""
    variables = traverse_util.flatten_dict(classifier.variables, sep="/")
    arrays: dict[str, Any] = {
        **{f"weights/{k}": v for k, v in to_torch(architecture, classifier.variables).items()},
        **{f"ours/{k}": np.asarray(v) for k, v in variables.items()},
        "images": images,
        "labels": np.asarray(labels, np.int32),
        "logits": evaluation.logits(classifier, images),
        "mean": np.asarray(classifier.mean, np.float32),
        "std": np.asarray(classifier.std, np.float32),
        "architecture": architecture,
        "widths": np.array(widths, int),
        "recipe": json.dumps(recipe),
    }
    with files.replace(path) as file:
        np.savez(file, **arrays)


def read(name: str, path: Path) -> Network:
    """Reads a file that `save` wrote."""
    arrays = _arrays(path)
    module = models.create(str(arrays["architecture"]), widths=tuple(arrays["widths"].tolist()))
    variables = traverse_util.unflatten_dict(_below("ours/", arrays), sep="/")
    classifier = models.Classifier(module.apply, variables, arrays["mean"], arrays["std"])
    recipe = json.loads(str(arrays["recipe"]))
    return Network(name, path, classifier, arrays["images"], arrays["labels"], recipe)


def _arrays(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def _below(prefix: str, arrays: Arrays) -> Arrays:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def fingerprint(path: Path) -> str:
    """SHA-256 of a file's weights, images and labels, without logits, whose rounding may differ."""
    digest = hashlib.sha256()
    for name, array in sorted(_arrays(path).items()):
        if name not in ("logits", "recipe"):
            whole = np.ascontiguousarray(array)  # a number becomes an array with one entry
            digest.update(f"{name} {whole.dtype} {whole.shape} ".encode() + whole.tobytes())
    return digest.hexdigest()


def load(ask: harness.Ask, path: Path, **settings: Any) -> harness.Row:
    """Has the peer load a network; returns its device, its threads, and the difference of logits.

    Raises:
      ValueError: The logits of the two sides differ too much.
    """
    device = harness.peer_device()
    hello = ask("load", path=str(path.resolve()), device=device, **settings)
    if not hello["logits_difference"] <= _TOLERANCE[device]:
        raise ValueError(
            f"The two sides' logits of {path} differ by {hello['logits_difference']:.2g}."
        )
    return hello


def draw(ask: harness.Ask, name: str, batch_size: int, **settings: Any) -> Drawn:
    """Has the peer draw a network and images; `settings` are those of `load` in torch_worker.py."""
    drawn: dict[str, Any] = {"side": 32, "statistics_batch": 64}
    drawn |= {"mean": harness.IMAGENET_MEAN, "std": harness.IMAGENET_STD}
    drawn |= {key: settings.pop(key) for key in tuple(drawn) if key in settings}
    drawn |= {"architecture": name, "batch_size": batch_size}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.npz"
        ask("load", path=str(path), draw=drawn, device=harness.peer_device(), **settings)
        arrays = _arrays(path)
    found = (arrays[key] for key in ("images", "labels", "logits"))
    return Drawn(name, _below("weights/", arrays), *found)
