"""Trains networks, on clean images or adversarially, and attacks the trained networks.

    python -m experiments.train --models resnet18 --methods pgd --data cifar10_jpeg --data-dir DATA
    python -m experiments.train --models simple_cnn --methods standard pgd trades n_fgsm --data digits

Every network of --models is trained with every method of --methods, and attacked with --suite on
--num-images test images. One table has all results. The methods are:

    standard   clean images
    pgd        the last points of PGD (https://arxiv.org/abs/1706.06083)
    trades     clean images, and stable predictions around them (https://arxiv.org/abs/1901.08573)
    mart       like pgd, with a larger weight of wrong predictions
               (https://openreview.net/forum?id=rklOg6EFwS)
    fgsm_rs    one step of 1.25 epsilon from a random point (https://arxiv.org/abs/2001.03994)
    n_fgsm     one step from wide noise (https://arxiv.org/abs/2202.01181)
    free       --train-steps steps on each batch, each of which also updates the perturbation; epochs,
               warm-ups and milestones are divided by that number (https://arxiv.org/abs/1904.12843)

The options --training.* are the values of a recipe (`jaxrobust.training.Recipe`). The attack of pgd,
trades and mart may grow in stages: --attack-milestones 10 20 --attack-epsilons 2/255 4/255 8/255
--attack-steps 2 4 10. --num-validation training images are held out. The weights of the best epoch on
them (under PGD if the training is adversarial) are attacked in the end, because the last weights of a
long adversarial training are not the best. Nothing is chosen by the test images.

Expected time: it depends on the arithmetic of the network. simple_cnn on 50,000 images of 32x32 takes
about half a minute per epoch on 2 cores, and the first line of each epoch says what yours takes.
--quick (digits, 2 epochs) takes under a minute. If a run is killed, the same command resumes it.

Expected numbers: docs/results/index.md.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.train.methods import check, recipe
from experiments.train.settings import PRESETS, Settings
from jaxrobust import data, models, processes, studies, training
from jaxrobust.data.augment import Augmentation
from jaxrobust.evaluation import Execution
from jaxrobust.studies import records, suite_names, suite_run

# Photographs are mirrored and moved by up to an eighth, as is usual for CIFAR; digits are not.
_PHOTOGRAPHS = Augmentation(flip=0.5, translate=0.125)


@dataclasses.dataclass(frozen=True)
class Variant:
    """A network and the method by which it is trained."""

    network: str
    method: str

    @property
    def name(self) -> str:
        """The name in tables and of stages, by which finished runs are read again."""
        return f"{self.network}, {self.method}"

    @property
    def stem(self) -> str:
        """The name in files and folders."""
        return f"{self.network}-{self.method}"


def main(settings: Settings) -> Path:
    """Trains and attacks; returns the report's path."""
    check(settings)
    dataset = data.load(settings.data, settings.data_dir, download=settings.download)
    splits = _split(settings, dataset)
    augmentation = None if dataset.name == "digits" else _PHOTOGRAPHS
    variants = [Variant(n, m) for n in settings.models for m in settings.methods]
    recipes = {v.name: recipe(settings, v.method, augmentation) for v in variants}
    image = jax.ShapeDtypeStruct((1, *dataset.image_shape), np.float32)
    for name in settings.models:  # raises if sizes do not fit, before anything is trained
        jax.eval_shape(_network(settings, name, dataset).init, jax.random.key(0), image)
    suite: dict[str, Any] = {}
    label = ""
    if settings.suite != "none":
        suite, label = suite_names.labelled(
            *(settings.suite, settings.radius, settings.norm, dataset.num_classes),
            max_steps=20 if settings.quick else None,
        )
    run = studies.start(
        "train",
        settings,
        also={"suite": {name: training.describe(attack) for name, attack in suite.items()}},
        ignored=("download", "num_devices"),
    )
    rows = np.random.default_rng(settings.seed).permutation(len(dataset.test))
    rows = np.sort(rows[: settings.num_images])
    images, labels = dataset.test.images[rows], dataset.test.labels[rows]
    outcomes = []
    for variant in variants:
        classifier, entry = _trained(run, dataset, splits, variant, recipes[variant.name])
        target = classifier, images, labels
        execution = Execution(path=run.folder / "suite" / variant.stem)
        attacked = suite_run.SuiteRun(run, suite, label, variant.name, target, rows, execution)
        outcomes.append((variant, entry, _attacked(attacked, variant) if suite else None))
    return run.finish(
        f"Training on {dataset.name}",
        dataset,
        Path(__file__).with_name("report.md.j2"),
        recipes={name: training.describe(made) for name, made in recipes.items()},
        printed=("results",),
        outcomes=outcomes,
        models=[entry for _, entry, _ in outcomes],
        suites=[found for *_, found in outcomes if found],
    )


def _split(settings: Settings, dataset: data.Dataset) -> tuple[Any, Any]:
    """Returns (images, labels) for training, and those held out, which the seed alone chooses."""
    order = np.random.default_rng(settings.seed).permutation(len(dataset.train))
    order = order[: settings.num_train]
    if settings.num_validation >= len(order):
        raise ValueError(
            f"`num_validation` must be less than {len(order)}, the number of training images, got "
            f"{settings.num_validation}."
        )
    held_out, kept = (np.sort(rows) for rows in np.split(order, [settings.num_validation]))
    images, labels = dataset.train.images, dataset.train.labels
    return (images[kept], labels[kept]), (images[held_out], labels[held_out])


def _network(settings: Settings, name: str, dataset: data.Dataset) -> Any:
    sizes = {"widths": settings.widths} if settings.widths else {}
    return models.create(name, dataset.num_classes, **sizes)


def _trained(
    run: studies.Run,
    dataset: data.Dataset,
    splits: tuple[Any, Any],
    variant: Variant,
    made: training.Recipe,
) -> tuple[models.Classifier, dict[str, Any]]:
    """Trains and saves a network; returns it, and the record of its training and its accuracy."""
    network = _network(run.settings, variant.network, dataset)
    fitted = run.fit(
        f"train {variant.name}",
        f"training/{variant.stem}",
        network,
        training.Data(*splits, dataset.mean, dataset.std),
        made,
        host=training.Host(run.settings.num_devices),
    )
    chosen = fitted.best_variables if run.settings.weights == "best" else fitted.variables
    classifier = models.Classifier(network.apply, chosen, dataset.mean, dataset.std)
    path = run.folder / "models" / f"{variant.stem}.jrw"
    if processes.is_first() and not path.exists():
        models.save(path, classifier, class_names=dataset.class_names)
    count = f"{len(splits[0][1]):,} images"
    entry = run.stages.remember(
        f"clean accuracy of {variant.name}",
        lambda _: studies.model_entry(
            variant.name,
            classifier,
            dataset.test.images,
            dataset.test.labels,
            dataset.class_names,
            trained=studies.Trained(fitted.history, fitted.seconds_per_epoch),
            description=f"{variant.network}, trained by the method {variant.method} on {count}",
        ),
    )
    records.add_model(run.facts, entry, variant)
    run.facts.add("best epoch", variant, value=fitted.best_epoch)
    run.facts.add("seconds per epoch", variant, value=fitted.seconds_per_epoch)
    run.facts.add("epoch of catastrophic overfitting", variant, value=fitted.catastrophic_epoch)
    return classifier, entry


def _attacked(attacked: suite_run.SuiteRun, variant: Variant) -> dict[str, Any]:
    """Returns the record of the suite, with that of the sanity checks."""
    found = attacked.record(f"attack {variant.name}")
    records.add_suite(attacked.run.facts, found, variant)
    if attacked.run.settings.diagnostics:
        found["diagnostics"] = attacked.sanity(f"sanity checks of {variant.name}")
    return found


if __name__ == "__main__":
    studies.run_script(main, Settings, PRESETS)
