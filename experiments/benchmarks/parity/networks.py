"""The three networks of the comparison and the images they are attacked on.

    python -m experiments.benchmarks.parity.networks --shared SHARED --cifar cifar10-jpeg.tar.xz

- reference: the trained CNN in SHARED/reference/sports10_cnn, on its own 50 images.
- cifar_standard: a resnet_small of widths 16, 32, 64 on cifar10_jpeg (CIFAR-10 encoded anew as JPEG).
- cifar_robust: the same network, trained further under two steps of PGD (Madry et al. 2018,
  https://arxiv.org/abs/1706.06083).

Both CIFAR networks are attacked on the same 200 test images. Expected time: half an hour on 2 cores for
the trainings, which the same command resumes if they are killed. Expected numbers: cifar_standard has
at least 70 % of the clean images right (78 %), and cifar_robust 20 to 40 % under PGD at 8/255 (22 %).
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.benchmarks import harness, network_files
from jaxrobust import attacks, data, evaluation, models, studies, training
from jaxrobust.attacks import PGD
from jaxrobust.data.augment import Augmentation
from jaxrobust.studies.outcomes import right_ones

NAMES = ("reference", "cifar_standard", "cifar_robust")
WIDTHS = (16, 32, 64)
NUM_IMAGES = 200
_SEED = 0
# ImageNet's statistics, with which the reference was trained.
_PIXELS: dict[str, Any] = {
    "mean": np.array(harness.IMAGENET_MEAN, np.float32),
    "std": np.array(harness.IMAGENET_STD, np.float32),
}
_STANDARD = training.Recipe(
    num_epochs=6,
    batch_size=128,
    optimizer=training.SGD(nesterov=True, weight_decay=5e-4),
    schedule=training.Cosine(0.1, warmup_epochs=1),
    augmentation=Augmentation(flip=0.5, translate=0.125),
)
_ROBUST = dataclasses.replace(
    _STANDARD,
    num_epochs=2,
    schedule=training.Cosine(0.05),
    adversary=PGD(epsilon=8 / 255, step_size=6 / 255, num_steps=2),
)
# (recipe, number of training images): adversarial training takes three times as long per image.
_RECIPES = {"cifar_standard": (_STANDARD, None), "cifar_robust": (_ROBUST, 25_000)}


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


def reference(folder: Path, shared: Path) -> network_files.Network:
    """Returns the network in `shared`, which was trained in PyTorch."""
    source = shared / "reference" / "sports10_cnn"
    if not source.is_dir():
        raise FileNotFoundError(f"`shared` must hold reference/sports10_cnn, got {str(shared)!r}.")
    with np.load(source / "valid.npz") as archive:
        images, labels = archive["images"], archive["labels"]
    module = models.create("cnn")
    variables = models.from_torch("cnn", dict(np.load(source / "state_dict.npz")))
    classifier = models.Classifier(module.apply, variables, **_PIXELS)
    path, images = folder / "reference.npz", images.astype(np.float32) / np.float32(255)
    recipe = {"data": "sports10", "training": "by its authors, in PyTorch"}
    network_files.save(path, "cnn", classifier, images, labels, module.widths, recipe)
    return network_files.read("reference", path)


def cifar(folder: Path, source: Path) -> list[network_files.Network]:
    """Returns the standard and the robust network in `folder`, and trains those that do not exist.

    `source` is the tar file, or the folder that it unpacks to.

    Raises:
      ValueError: A network in `folder` was trained by another recipe.
    """
    networks: list[network_files.Network] = []
    for name in _RECIPES:
        path = folder / f"{name}.npz"
        if not path.exists():
            dataset = data.load("cifar10_jpeg", source, cache_dir=folder / "cache")
            # The robust network starts from the standard one, because it learns faster so.
            _train(path, dataset, networks[-1].classifier.variables if networks else None)
        network = network_files.read(name, path)
        if network.recipe != _described(name):
            raise ValueError(f"{path} was trained by another recipe; delete it to train anew.")
        networks.append(network)
    return networks


def _described(name: str) -> dict[str, Any]:
    recipe, num_train = _RECIPES[name]
    default, chosen = map(training.describe, (training.Recipe(), recipe))
    chosen.pop("adversary")
    # Only values that are not defaults, so that a new option of a later release changes no recipe.
    changed = {k: v for k, v in chosen.items() if k == "num_epochs" or v != default[k]}
    words: dict[str, Any] = {"data": "cifar10_jpeg", "training": changed}
    words |= {"num_images": NUM_IMAGES, "image_seed": _SEED}
    if recipe.adversary is not None:
        words |= {"attack": attacks.to_dict(recipe.adversary), "num_train": num_train}
    return json.loads(json.dumps(words))  # in the form that is read back: tuples become lists


def _train(path: Path, dataset: data.Dataset, variables: Any) -> None:
    """Trains the network of this path, from `variables` or, if they are None, from random weights."""
    recipe, num_train = _RECIPES[path.stem]
    order = np.random.default_rng(_SEED).permutation(len(dataset.train))
    train = dataset.train if num_train is None else dataset.train.take(np.sort(order[:num_train]))
    network = models.create("resnet_small", widths=WIDTHS)
    fitted = training.fit(
        network,
        training.Data((train.images, train.labels), **_PIXELS),
        recipe,
        run_dir=path.with_name(f"train_{path.stem}"),
        variables=variables,
    )
    classifier = models.Classifier(network.apply, fitted.variables, **_PIXELS)
    rows = np.random.default_rng(_SEED).permutation(len(dataset.test))[:NUM_IMAGES]
    images = dataset.test.images[rows].astype(np.float32) / np.float32(255)
    labels, words = dataset.test.labels[rows], _described(path.stem)
    network_files.save(path, "resnet_small", classifier, images, labels, WIDTHS, words)
    right = right_ones(classifier, dataset.test.images, dataset.test.labels)
    print(f"{path.stem}: {100 * right.mean():.1f} % of the test split right")


def select(config: Any) -> list[network_files.Network]:
    """Returns the networks that the settings of parity or auto_attack name, and trains no others."""
    with_cifar = config.cifar is not None and not config.quick
    names = [name for name in config.networks if name == "reference" or with_cifar]
    if not names:
        raise ValueError(
            "`networks` must name a network that can be used (the CIFAR networks need `cifar`, and "
            f"`quick` does not use them), got {config.networks}."
        )
    home = config.results_dir / "parity" / "networks"
    used = [reference(home, config.shared)] if "reference" in names else []
    used += cifar(home, config.cifar) if names != ["reference"] else []
    return [network for network in used if network.name in names]


def main(config: Config) -> None:
    """Makes the missing networks and prints the accuracies of all."""
    folder = config.results_dir / "parity" / "networks"
    for network in (reference(folder, config.shared), *cifar(folder, config.cifar)):
        words = [f"{network.name}: clean {100 * right_ones(*network.target).mean():.1f} %"]
        for radius in (2, 4, 8):
            attack = PGD(radius / 255, radius / 4 / 255, num_steps=20)
            report = evaluation.attack_dataset(attack, *network.target, key=jax.random.key(0))
            robust = np.mean(report.attacked & ~report.success)
            words.append(f"PGD-20 at {radius}/255 {100 * robust:.1f} %")
        print(", ".join(words), flush=True)


if __name__ == "__main__":
    studies.run_script(main, Config)
