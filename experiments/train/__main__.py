r"""Trains networks, clean or adversarially, and attacks what comes out.

    python -m experiments.train --models resnet18 --methods pgd --data cifar10_jpeg --data-dir DATA
    python -m experiments.train --models simple_cnn --methods standard pgd trades n_fgsm --data digits

Every network of --models is trained with every method of --methods, and attacked with --suite on
--num-images test images; one table has them all. Methods:

    standard   clean images
    pgd        the last point of PGD (Madry et al. 2018, https://arxiv.org/abs/1706.06083)
    trades     clean images, and as little change as possible around them (Zhang et al. 2019,
               https://arxiv.org/abs/1901.08573)
    mart       the last point of PGD, where wrong answers weigh more (Wang et al. 2020,
               https://openreview.net/forum?id=rklOg6EFwS)
    fgsm_rs    one step of 1.25 epsilon from a random point (Wong et al. 2020,
               https://arxiv.org/abs/2001.03994)
    n_fgsm     one step from wide noise (de Jorge et al. 2022, https://arxiv.org/abs/2202.01181)
    free       each batch --train-steps times, the perturbation goes on (Shafahi et al. 2019,
               https://arxiv.org/abs/1904.12843); its epochs, warm-ups and milestones are as many times
               fewer

The values of a recipe (`jaxrobust.training.Recipe`) are there as --training.*, among them weighted
losses (natural_weight; of pgd, fgsm_rs and n_fgsm), a warm-up of epsilon (attack_warmup_epochs),
adversarial weight perturbation (awp_gamma), a moving average (ema_decay) and bfloat16 (precision). The
attack of pgd, trades and mart may grow in stages: --attack-milestones 10 20
--attack-epsilons 2/255 4/255 8/255 --attack-steps 2 4 10.
--num-validation training images are held out; the weights of the epoch that does best on them, under
PGD where the training is adversarial, are those attacked in the end: the last ones of a long
adversarial training are not the best. The test images decide nothing.

Expected time: the network's arithmetic decides; simple_cnn on 50,000 images of 32x32 takes about half a
minute for an epoch on 2 cores, the first line of each epoch says what yours takes. --quick (digits, 2
epochs) takes under a minute. A run that was killed goes on with the same command.

Expected numbers: README.md.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.train.config import Config, shortened
from experiments.train.methods import check, prepare
from experiments.train.options import recipe as recipe_of
from jaxrobust import data, evaluation, models, studies, training
from jaxrobust.attacks import PGD
from jaxrobust.data.augment import Augmentation
from jaxrobust.reports import BANNERS
from jaxrobust.reports.formatting import rate_words
from jaxrobust.studies import blocks, suite_run, suites

# Photographs are mirrored and moved by up to an eighth, the usual for CIFAR; digits are neither.
_PHOTOGRAPHS = Augmentation(flip=0.5, translate=0.125)
_VALIDATION_STEPS = 10
_PARTS = [
    {"id": "outcome", "title": "Results"},
    {"id": "robustness", "title": "Robustness", "includes": ["suites"]},
    {
        "id": "trainings",
        "title": "Training",
        "includes": ["data", "models", "training", "confusion", "classes"],
    },
]


def main(config: Config) -> Path:
    """Trains and attacks; returns the report's path."""
    check(config)
    if config.quick:
        config = shortened(config)
    dataset = data.load(config.data, config.data_dir, download=config.download)
    train, validation = _split(config, dataset)
    for name in config.models:  # sizes that do not fit, before the first of them is trained
        image = jax.ShapeDtypeStruct((1, *dataset.image_shape), np.float32)
        jax.eval_shape(_network(config, name, dataset).init, jax.random.key(0), image)
    suite = {}
    if config.suite != "none":
        suite = suites.make_suite(config.suite, config.radius, config.norm, dataset.num_classes)
        suite = suites.shortened(suite, 20) if config.quick else suite
    folder = studies.open_run(
        config.results_dir,
        "train",
        config.run,
        config,
        suite={name: training.describe(attack) for name, attack in suite.items()},
        ignored=("download", "num_devices"),
    )
    study = _Study(config, dataset, train, validation, suite, folder, studies.Stages(folder))
    runs = [_run(study, model, method) for model in config.models for method in config.methods]

    table = blocks.table(
        _COLUMNS,
        [_row(study, run) for run in runs],
        "Clean accuracy is of all test images, robust accuracy of those that were attacked, with 95 % "
        "Wilson intervals; the best epoch is that of the held-out training images.",
    )
    title = f"Training on {dataset.name}"
    result = studies.result_header("train", title, config, config.training.seed, dataset)
    result |= {
        "summary": [_sentence(study, run) for run in runs],
        "timings": study.stages.seconds,
        "models": [run.entry for run in runs],
        "suites": [run.suite for run in runs if run.suite is not None],
        "recipes": {run.name: run.recipe for run in runs},
        "parts": _PARTS,
        "sections": [blocks.section("results", "All runs", [table], part="outcome")],
    }
    print("\n".join(["", *_lines(study, runs), ""]))
    return studies.finish(folder, result)


def _split(config: Config, dataset: data.Dataset) -> tuple[Any, Any]:
    """(images, labels) to train on, and those held out: chosen by the seed alone."""
    order = np.random.default_rng(config.training.seed).permutation(len(dataset.train))
    order = order[: config.num_train]
    if config.num_validation >= len(order):
        raise ValueError(
            f"`num_validation` must be less than the {len(order)} training images, got "
            f"{config.num_validation}."
        )
    rows = np.sort(order[config.num_validation :]), np.sort(order[: config.num_validation])
    train, held_out = ((dataset.train.images[row], dataset.train.labels[row]) for row in rows)
    return train, held_out


def _network(config: Config, name: str, dataset: data.Dataset) -> Any:
    sizes = {"widths": config.widths} if config.widths else {}
    return models.create(name, dataset.num_classes, **sizes)


@dataclasses.dataclass(frozen=True, eq=False)
class _Study:
    """What all trainings of a run share."""

    config: Config
    dataset: data.Dataset
    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]
    suite: dict[str, Any]
    folder: Path
    stages: studies.Stages


@dataclasses.dataclass(frozen=True, eq=False)
class _Run:
    """One network, trained and attacked."""

    name: str
    entry: dict[str, Any]
    suite: dict[str, Any] | None
    recipe: dict[str, Any]
    fitted: training.FitResult


def _run(study: _Study, model: str, method: str) -> _Run:
    config, dataset = study.config, study.dataset
    name = f"{model}, {method}"
    network = _network(config, model, dataset)
    attack, options = prepare(config, method)
    judge = None
    if attack is not None:
        size = 2.5 * config.radius / _VALIDATION_STEPS
        judge = PGD(config.radius, size, _VALIDATION_STEPS, config.norm)
    augmentation = None if dataset.name == "digits" else _PHOTOGRAPHS
    recipe = recipe_of(options, method, attack, judge, augmentation)
    with study.stages(f"train {name}"):
        fitted = training.fit(
            network,
            training.Data(study.train, study.validation, dataset.mean, dataset.std),
            recipe,
            run_dir=study.folder / "training" / f"{model}-{method}",
            host=training.Host(config.num_devices),
        )
    study.stages.count_resumed(f"train {name}", fitted.seconds)
    chosen = fitted.best_variables if config.weights == "best" else fitted.variables
    classifier = models.Classifier(network.apply, chosen, dataset.mean, dataset.std)
    path = study.folder / "models" / f"{model}-{method}.jrw"
    if not path.exists():
        models.save(path, classifier, class_names=dataset.class_names)
    test = dataset.test
    entry = study.stages.remember(
        f"clean accuracy of {name}",
        lambda _: studies.model_entry(
            name,
            classifier,
            test.images,
            test.labels,
            dataset.class_names,
            params=chosen["params"],
            history=fitted.history,
            seconds_per_epoch=fitted.seconds_per_epoch,
            description=f"{model}, trained by the method {method} on {len(study.train[1]):,} images",
        ),
    )
    suite = _attacked(study, name, classifier) if study.suite else None
    return _Run(name, entry, suite, training.describe(recipe), fitted)


def _attacked(study: _Study, name: str, classifier: models.Classifier) -> dict[str, Any]:
    """The suite on some of the test images, with the sanity checks."""
    config, test = study.config, study.dataset.test
    rows = np.random.default_rng(config.training.seed).permutation(len(test))
    rows = np.sort(rows[: config.num_images])
    images, labels = test.images[rows], test.labels[rows]
    key = jax.random.key(config.training.seed)

    def attack(_: Any) -> dict[str, Any]:
        report, seconds = suite_run.run_suite(
            study.suite,
            classifier,
            images,
            labels,
            key=key,
            folder=study.folder / "suite" / name.replace(", ", "-"),
        )
        report = dataclasses.replace(report, seconds=seconds)
        summary = evaluation.summarise_suite(report, name)
        label = suites.label(config.suite, config.radius, config.norm, shortened=config.quick)
        return summary | {"label": label, "indices": rows.tolist()}

    def sane(progress: Any) -> dict[str, Any]:
        return evaluation.sanity(
            classifier,
            images,
            labels,
            config.radius,
            key=jax.random.fold_in(key, 1),
            norm=config.norm,
            progress=progress,
        )

    summary = study.stages.remember(f"attack {name}", attack)
    study.stages.count_resumed(f"attack {name}", sum(a["seconds"] for a in summary["attacks"]))
    if config.diagnostics:
        checked = study.stages.remember(f"sanity checks of {name}", sane)
        summary = summary | {"diagnostics": checked}
    return summary


_COLUMNS = ["network, method", "clean", "robust", "best epoch", "seconds an epoch", "sanity"]


def _row(study: _Study, run: _Run) -> list[Any]:
    robust = None if run.suite is None else run.suite["robust_accuracy"]
    verdict = None if run.suite is None else (run.suite.get("diagnostics") or {}).get("verdict")
    seconds = run.fitted.seconds_per_epoch
    return [
        run.name,
        run.entry["evaluation"]["accuracy"],
        robust,
        run.fitted.best_epoch,
        None if seconds is None else round(seconds, 1),
        verdict,
    ]


def _lines(study: _Study, runs: list[_Run]) -> list[str]:
    """The table for a terminal."""

    def cell(value: Any) -> str:
        if isinstance(value, dict):
            return f"{100 * value['rate']:.1f} % of {value['n']:,}"
        return "-" if value is None else str(value)

    rows = [_COLUMNS, *([cell(value) for value in _row(study, run)] for run in runs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _sentence(study: _Study, run: _Run) -> str:
    clean = run.entry["evaluation"]["accuracy"]
    text = f"{run.name}: {rate_words(clean)} of the {clean['n']:,} test images right"
    if run.fitted.catastrophic_epoch is not None:
        text = f"Catastrophic overfitting in epoch {run.fitted.catastrophic_epoch}. {text}"
    if run.suite is None:
        return f"{text}."
    robust = run.suite["robust_accuracy"]
    text += f", and {rate_words(robust)} of {robust['n']:,} under {run.suite['label']}."
    diagnostics = run.suite.get("diagnostics")
    return text if diagnostics is None else f"{text} {BANNERS[diagnostics['verdict']]}"


if __name__ == "__main__":
    studies.run_script(main, Config)
