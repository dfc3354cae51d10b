"""The three networks of the comparison and the images they are attacked on.

    python -m experiments.benchmarks.parity.networks --shared SHARED --cifar cifar10-jpeg.tar.xz

- reference: the trained CNN in SHARED/reference/sports10_cnn, on its own 50 images.
- cifar_standard: a resnet_small of widths 16, 32, 64 on cifar10_jpeg (CIFAR-10 encoded anew as JPEG).
- cifar_robust: the same network, trained on under two steps of PGD (Madry et al. 2018,
  https://arxiv.org/abs/1706.06083).

Both CIFAR networks are attacked on the same 200 test images. Expected time: half an hour on 2 cores for
the trainings, which go on where they were killed. Expected numbers: at least 70 % of the clean images
right for cifar_standard (78 %), and 20 to 40 % under PGD at 8/255 for cifar_robust (22 %).
"""

import dataclasses
import json
import tarfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.parity import export
from jaxrobust import attacks, data, evaluation, models, studies, training
from jaxrobust.attacks import PGD
from jaxrobust.data.augment import Augmentation

NAMES = ("reference", "cifar_standard", "cifar_robust")
WIDTHS = (16, 32, 64)
NUM_IMAGES = 200
_SEED = 0
_NUM_ROBUST = 25_000  # adversarial training takes three times as long for each image
_TEACHER = PGD(epsilon=8 / 255, step_size=6 / 255, num_steps=2)
_AUGMENT = Augmentation(flip=0.5, translate=0.125)
_SGD = training.SGD(nesterov=True, weight_decay=5e-4)
_STANDARD = training.Recipe(
    num_epochs=6,
    batch_size=128,
    optimizer=_SGD,
    schedule=training.Cosine(0.1, warmup_epochs=1),
    augmentation=_AUGMENT,
)
_ROBUST = training.Recipe(
    num_epochs=2,
    batch_size=128,
    optimizer=_SGD,
    schedule=training.Cosine(0.05),
    adversary=_TEACHER,
    augmentation=_AUGMENT,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      shared: The folder that holds reference/sports10_cnn.
      cifar: cifar10-jpeg.tar.xz, or the folder that it unpacks to (train and test).
      results_dir: The networks go to <results_dir>/parity/networks.
    """

    shared: Path
    cifar: Path
    results_dir: Path = Path("results")


def reference(folder: Path, shared: Path) -> export.Network:
    """The network of `shared`, in PyTorch's weights from the start."""
    source = shared / "reference" / "sports10_cnn"
    if not source.is_dir():
        raise FileNotFoundError(f"`shared` must hold reference/sports10_cnn, got {str(shared)!r}.")
    with np.load(source / "valid.npz") as archive:
        images, labels = archive["images"], archive["labels"]
    variables = models.from_torch("cnn", dict(np.load(source / "state_dict.npz")))
    # ImageNet's, which it was trained with.
    mean = np.array([0.485, 0.456, 0.406], np.float32)
    std = np.array([0.229, 0.224, 0.225], np.float32)
    classifier = models.Classifier(models.create("cnn").apply, variables, mean, std)
    path = folder / "reference.npz"
    recipe = {"data": "sports10", "training": "by its authors, in PyTorch"}
    pixels = images.astype(np.float32) / np.float32(255)
    export.save(path, "cnn", models.create("cnn").widths, classifier, pixels, labels, recipe)
    return export.read("reference", path)


def cifar(folder: Path, source: Path) -> tuple[export.Network, export.Network]:
    """The standard and the robust network, trained where they are not there yet.

    Args:
      folder: Where networks go.
      source: The tar file, or the folder that it unpacks to.

    Returns:
      (standard, robust).

    Raises:
      ValueError: Networks of another recipe in the folder.
    """
    recipes = {
        "cifar_standard": _described(_STANDARD),
        "cifar_robust": _described(_ROBUST) | {"num_train": _NUM_ROBUST},
    }
    networks = _ready(folder, recipes)
    if len(networks) < len(recipes):
        dataset = data.load("image_folder", _unpacked(source, folder), cache_dir=folder / "cache")
        _train(folder, dataset, recipes)
        networks = _ready(folder, recipes)
    return networks[0], networks[1]


def _ready(folder: Path, recipes: dict[str, dict[str, Any]]) -> list[export.Network]:
    networks = []
    for name, recipe in recipes.items():
        path = folder / f"{name}.npz"
        if path.exists():
            networks.append(export.read(name, path))
            if networks[-1].recipe != json.loads(json.dumps(recipe)):  # tuples are lists there
                raise ValueError(f"{path} was trained by another recipe; delete it to train anew.")
    return networks


def _described(recipe: training.Recipe) -> dict[str, Any]:
    teacher = recipe.adversary
    default, chosen = map(training.describe, (training.Recipe(), recipe))
    words = {
        "data": "cifar10_jpeg",
        # What is no default: a value that comes with a later release changes no recipe.
        "training": {
            name: value
            for name, value in chosen.items()
            if name == "num_epochs" or (name != "adversary" and value != default[name])
        },
        "num_images": NUM_IMAGES,
        "image_seed": _SEED,
    }
    return words if teacher is None else words | {"attack": attacks.to_dict(teacher)}


def _unpacked(source: Path, folder: Path) -> Path:
    if source.is_dir():
        return source
    if not source.is_file():
        raise FileNotFoundError(f"`cifar` must be a tar file or a folder, got {str(source)!r}.")
    target, done = folder / "cifar10_jpeg", folder / "cifar10_jpeg.unpacked"
    if not done.exists():
        print(f"Unpacking {source.name} ...", flush=True)
        with tarfile.open(source) as archive:
            archive.extractall(target, filter="data")
        done.touch()
    return target


def _train(folder: Path, dataset: data.Dataset, recipes: dict[str, dict[str, Any]]) -> None:
    rows = np.random.default_rng(_SEED).permutation(len(dataset.test))[:NUM_IMAGES]
    images = dataset.test.images[rows].astype(np.float32) / np.float32(255)
    labels = dataset.test.labels[rows]
    network = models.create("resnet_small", widths=WIDTHS)
    order = np.random.default_rng(_SEED).permutation(len(dataset.train))
    variables = None
    for name, recipe, used in (
        ("cifar_standard", _STANDARD, slice(None)),
        ("cifar_robust", _ROBUST, np.sort(order[:_NUM_ROBUST])),
    ):
        fitted = training.fit(
            network,
            training.Data(
                (dataset.train.images[used], dataset.train.labels[used]),
                mean=dataset.mean,
                std=dataset.std,
            ),
            recipe,
            run_dir=folder / f"train_{name}",
            # The robust one goes on from the standard one: it learns faster than from nothing.
            variables=variables,
        )
        variables = fitted.variables
        classifier = models.Classifier(network.apply, variables, dataset.mean, dataset.std)
        path = folder / f"{name}.npz"
        export.save(path, "resnet_small", WIDTHS, classifier, images, labels, recipes[name])
        test = evaluation.logits(classifier, dataset.test.images).argmax(axis=1)
        print(f"{name}: {100 * np.mean(test == dataset.test.labels):.1f} % of the test split right")


def main(config: Config) -> None:
    """Makes what is missing and prints how the networks stand."""
    folder = config.results_dir / "parity" / "networks"
    for network in (reference(folder, config.shared), *cifar(folder, config.cifar)):
        arguments = (network.classifier, network.images, network.labels)
        clean = evaluation.logits(network.classifier, network.images).argmax(axis=1)
        words = [f"{network.name}: clean {100 * np.mean(clean == network.labels):.1f} %"]
        for radius in (2, 4, 8):
            attack = PGD(radius / 255, radius / 4 / 255, num_steps=20)
            report = evaluation.attack_dataset(attack, *arguments, key=jax.random.key(0))
            robust = np.mean(report.attacked & ~report.success)
            words.append(f"PGD-20 at {radius}/255 {100 * robust:.1f} %")
        print(", ".join(words), flush=True)


if __name__ == "__main__":
    studies.run_script(main, Config)
