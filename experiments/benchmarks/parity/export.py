"""Networks as .npz files that both sides of the comparison read.

weights/<name>    by PyTorch's names and in its layouts
ours/<path>       the same weights as jaxrobust's variables
images            float32 [N, H, W, C] in [0, 1]
labels            int32 [N]
logits            float32 [N, K], as jaxrobust computes them
mean, std         float32 [C]
architecture      the network's name, "cnn" or "resnet_small"
widths            int [stages]
recipe            JSON: how it was trained
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from jaxrobust import evaluation, files, models
from jaxrobust.models.torch_layouts import layout
from jaxrobust.types import PyTree

# Of each kind of layer: PyTorch's name of an array -> (our collection, our name).
_NAMES = {
    "conv": {"weight": ("params", "kernel"), "bias": ("params", "bias")},
    "dense": {"weight": ("params", "kernel"), "bias": ("params", "bias")},
    "bn": {
        "weight": ("params", "scale"),
        "bias": ("params", "bias"),
        "running_mean": ("batch_stats", "mean"),
        "running_var": ("batch_stats", "var"),
    },
}


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A trained network with the images that it is attacked on.

    Attributes:
      name: "reference", "cifar_standard" or "cifar_robust".
      path: Its .npz file, which the PyTorch side reads.
      classifier: Ours.
      images: float32 [N, H, W, C] in [0, 1].
      labels: int32 [N].
      recipe: How it was trained, in words and numbers.
    """

    name: str
    path: Path
    classifier: models.Classifier
    images: np.ndarray
    labels: np.ndarray
    recipe: dict[str, Any]


def to_torch(architecture: str, variables: PyTree) -> dict[str, np.ndarray]:
    """Our variables by PyTorch's names: the inverse of `models.from_torch`, of any widths.

    Args:
      architecture: "cnn", "resnet_small" or "resnet18".
      variables: {"params": ..., "batch_stats": ...}.

    Returns:
      {PyTorch's name: float32 array in its layout}.
    """
    ours = traverse_util.flatten_dict(variables, sep="/")
    weights = {}
    for layer in layout(architecture, models.create(architecture)):
        for suffix, (collection, leaf) in _NAMES[layer.kind].items():
            if layer.kind == "conv" and suffix == "bias" and not layer.bias:
                continue
            value = np.asarray(ours.pop(f"{collection}/{layer.ours}/{leaf}"), np.float32)
            axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[value.ndim]
            weights[f"{layer.theirs}.{suffix}"] = np.ascontiguousarray(value.transpose(axes))
    if ours:
        raise ValueError(f"`variables` has leaves that {architecture!r} lacks: {sorted(ours)}.")
    return weights


def save(
    path: Path,
    architecture: str,
    widths: tuple[int, ...],
    classifier: models.Classifier,
    images: np.ndarray,
    labels: np.ndarray,
    recipe: dict[str, Any],
) -> None:
    """Writes a network and its images.

    Args:
      path: Of the .npz file.
      architecture: "cnn" or "resnet_small".
      widths: Of its stages.
      classifier: Ours.
      images: float32 [N, H, W, C] in [0, 1].
      labels: int [N].
      recipe: JSON values.
    """
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
        "widths": np.array(widths),
        "recipe": json.dumps(recipe),
    }
    with files.replace(path) as file:
        np.savez(file, **arrays)


def read(name: str, path: Path) -> Network:
    """What `save` wrote."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = dict(archive)
    variables = {
        key.removeprefix("ours/"): value for key, value in arrays.items() if key.startswith("ours/")
    }
    widths = tuple(arrays["widths"].tolist())
    classifier = models.Classifier(
        models.create(str(arrays["architecture"]), widths=widths).apply,
        traverse_util.unflatten_dict(variables, sep="/"),
        arrays["mean"],
        arrays["std"],
    )
    return Network(
        name,
        path,
        classifier,
        arrays["images"],
        arrays["labels"],
        json.loads(str(arrays["recipe"])),
    )


def fingerprint(path: Path) -> str:
    """SHA-256 of the weights, images and labels in a file.

    Not of the logits, which are rounded as the machine and its number of threads will have it.
    """
    digest = hashlib.sha256()
    with np.load(path, allow_pickle=False) as archive:
        for name in sorted(set(archive.files) - {"logits", "recipe"}):
            array = np.ascontiguousarray(archive[name])
            digest.update(f"{name} {array.dtype} {array.shape} ".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()
