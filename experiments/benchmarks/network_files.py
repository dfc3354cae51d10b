"""Networks and images in .npz files that both sides of a benchmark read.

weights/<name>    by PyTorch's names and in its layouts
ours/<path>       the same weights as jaxrobust's variables, unless PyTorch drew them
images            float32 [N, H, W, C] in [0, 1]
labels            int [N]
logits            float32 [N, K], as the side that wrote the file computes them
mean, std         float32 [C]
architecture      the network's name in layers.json
widths            int [stages]
recipe            JSON: how it was trained
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
"""Builds ours from PyTorch's name of a network and its weights."""

# Of the logits. A GPU multiplies at reduced precision, on both sides, and not in the same order.
_TOLERANCE = {"cpu": 1e-4, "cuda": 0.05}


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A trained network of ours: its file, and the images that it is attacked on, as they are there."""

    name: str
    path: Path
    classifier: models.Classifier
    images: np.ndarray
    labels: np.ndarray
    recipe: dict[str, Any]

    @property
    def target(self) -> tuple[models.Classifier, np.ndarray, np.ndarray]:
        """What attacks take: the classifier, images and labels."""
        return self.classifier, self.images, self.labels

    def first(self, count: int) -> "Network":
        """With the first of its images alone."""
        images, labels = self.images[:count], self.labels[:count]
        return dataclasses.replace(self, images=images, labels=labels)


@dataclasses.dataclass(frozen=True, eq=False)
class Drawn:
    """What PyTorch has drawn: a network, and noise that it takes for `labels`."""

    name: str
    weights: Arrays
    images: np.ndarray
    labels: np.ndarray
    logits: np.ndarray

    def build(self, builds: Mapping[str, Build], tolerance: float = 1e-4) -> dict[str, LogitsFn]:
        """Ours with these weights; RuntimeError where logits differ by more than that share."""
        functions = {key: build(self.name, self.weights) for key, build in builds.items()}
        for key, function in functions.items():
            logits = evaluation.logits(function, self.images, min(len(self.images), 128))
            difference = np.abs(logits - self.logits).max() / np.abs(self.logits).max()
            if not difference <= tolerance:
                raise RuntimeError(f"{self.name} of {key}: the logits differ by {difference:.2g}.")
        return functions


def _places(architecture: str) -> Iterator[tuple[str, str]]:
    """(PyTorch's name, the path of ours) of each array, in PyTorch's order."""
    for layer in layout(architecture, models.create(architecture)):
        for suffix, collection, leaf in layer.leaves:
            yield f"{layer.theirs}.{suffix}", f"{collection}/{layer.ours}/{leaf}"


def to_torch(architecture: str, variables: PyTree) -> Arrays:
    """Our variables by PyTorch's names: the inverse of `models.from_torch`, of any widths."""
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
    """Ours from what torch_worker.py has drawn, whose names of weights are others."""
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
    """Writes a network of ours; `widths` where they are not the first ones in layers.json."""
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
    """What `save` wrote."""
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
    """SHA-256 of a file's weights, images and labels; not of logits, which each machine rounds anew."""
    digest = hashlib.sha256()
    for name, array in sorted(_arrays(path).items()):
        if name not in ("logits", "recipe"):
            whole = np.ascontiguousarray(array)  # of which a number is an array of one
            digest.update(f"{name} {whole.dtype} {whole.shape} ".encode() + whole.tobytes())
    return digest.hexdigest()


def load(ask: harness.Ask, path: Path, **settings: Any) -> harness.Row:
    """Has the peer take a network: its device and threads, and how far its logits are from ours."""
    device = harness.peer_device()
    hello = ask("load", path=str(path.resolve()), device=device, **settings)
    if not hello["logits_difference"] <= _TOLERANCE[device]:
        raise ValueError(f"The sides' logits of {path} differ by {hello['logits_difference']:.2g}.")
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
