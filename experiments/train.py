r"""Trains networks, clean or adversarially, and attacks what comes out.

    python -m experiments.train --models resnet18 --methods pgd --data cifar10_jpeg --data-dir DATA
    python -m experiments.train --models simple_cnn --methods standard pgd trades n_fgsm --data digits

Every network of --models is trained with every method of --methods, and attacked with --suite on
--num-images test images; one table has them all. Methods:

    standard   clean images
    pgd        the last point of PGD (Madry et al. 2018, https://arxiv.org/abs/1706.06083)
    trades     clean images, and as little change as possible around them (Zhang et al. 2019,
               https://arxiv.org/abs/1901.08573)
    fgsm_rs    one step of 1.25 epsilon from a random point (Wong et al. 2020,
               https://arxiv.org/abs/2001.03994)
    n_fgsm     one step from wide noise (de Jorge et al. 2022, https://arxiv.org/abs/2202.01181)
    free       each batch --train-steps times, the perturbation goes on (Shafahi et al. 2019,
               https://arxiv.org/abs/1904.12843); its epochs, warm-ups and milestones are as many times
               fewer

All settings of `jaxrobust.training.TrainConfig` are there as --training.*, among them weighted losses
(natural_weight; of pgd, fgsm_rs and n_fgsm), a warm-up of epsilon (attack_warmup_epochs), adversarial
weight perturbation (awp_gamma), a moving average (ema_decay) and bfloat16 (compute_type). The attack of
pgd and trades may grow in stages: --attack-milestones 10 20 --attack-epsilons 2/255 4/255 8/255
--attack-steps 2 4 10.
--num-validation training images are held out; the weights of the epoch that does best on them, under
PGD where the training is adversarial, are those attacked in the end: the last ones of a long
adversarial training are not the best. The test images decide nothing.

Expected time: the network's arithmetic decides; simple_cnn on 50,000 images of 32x32 takes about half a
minute for an epoch on 2 cores, the first line of each epoch says what yours takes. --quick (digits, 2
epochs) takes under a minute. A run that was killed goes on with the same command.

Expected numbers: README.md.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np

from jaxrobust import checks, data, evaluation, models, studies, training
from jaxrobust.attacks import PGD
from jaxrobust.data.augment import Augmentation
from jaxrobust.reports import BANNERS
from jaxrobust.reports.formatting import rate_words
from jaxrobust.studies import blocks, suite_run, suites
from jaxrobust.training import NFGSM, AttackSchedule, FreeReplays, KLAscent, TrainConfig

Method = Literal["standard", "pgd", "trades", "fgsm_rs", "n_fgsm", "free"]

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


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      models: Names of networks (`jaxrobust.models.MODELS`).
      methods: How each is trained.
      data: digits, sports10, cifar10, cifar100, cifar10_jpeg, or a folder of images.
      data_dir: Where a named data set lies.
      download: Fetch cifar10 or cifar100 into data_dir if it is not there (170 MB).
      widths: Of the network, where there is one: other than the published ones.
      training: All other settings of training.
      epsilon: Radius in pixel units, of the attacks and of training, as in 0.03 or 8/255.
      norm: Of the ball; "l2" and "l1" with pgd and trades (without l1) alone.
      train_steps: Of the attack in training, for pgd and trades; replays for free.
      attack_milestones: Epochs after which the attack of pgd and trades is another one.
      attack_epsilons: Its radii in training, one more than milestones; none: always `epsilon`.
      attack_steps: Its steps, one more than milestones; none: always `train_steps`.
      num_train: How many training images; None: all.
      num_validation: Of them, how many decide about the best epoch instead of being trained on.
      weights: Of the best epoch or of the last.
      suite: standard, plus or rand (AutoAttack), one attack in small letters, or none.
      num_images: Test images that the suite attacks; the clean accuracy is of all of them.
      diagnostics: Whether to make the sanity checks.
      num_devices: That share each batch.
      run: Name of the run; results go to <results_dir>/train/<run>.
      results_dir: Where results go.
      quick: Few images, epochs and steps, to see that everything runs.
    """

    models: tuple[str, ...] = ("simple_cnn",)
    methods: tuple[Method, ...] = ("standard", "pgd")
    data: str = "digits"
    data_dir: Path | None = None
    download: bool = False
    widths: tuple[int, ...] = ()
    training: TrainConfig = TrainConfig(  # noqa: RUF009 (it cannot be changed)
        num_epochs=30,
        batch_size=128,
        optimizer="sgd",
        learning_rate=0.1,
        weight_decay=5e-4,
        nesterov=True,
        schedule="cosine",
        warmup_epochs=1,
        monitor="validation_accuracy",
    )
    epsilon: str = "8/255"
    norm: Literal["linf", "l2", "l1"] = "linf"
    train_steps: int = 10
    attack_milestones: tuple[int, ...] = ()
    attack_epsilons: tuple[str, ...] = ()
    attack_steps: tuple[int, ...] = ()
    num_train: int | None = None
    num_validation: int = 1000
    weights: Literal["best", "last"] = "best"
    suite: str = "standard"
    num_images: int = 200
    diagnostics: bool = True
    num_devices: int = 1
    run: str = "default"
    results_dir: Path = Path("results")
    quick: bool = False

    @property
    def radius(self) -> float:
        """Epsilon as a number."""
        return suites.number("epsilon", self.epsilon)


def main(config: Config) -> Path:
    """Trains and attacks; returns the report's path."""
    _check(config)
    if config.quick:
        config = _shortened(config)
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


def _check(config: Config) -> None:
    """Refuses what is out of range. Not in `Config`: the command line would frame the words."""
    largest = 1.0 if config.norm == "linf" else math.inf
    checks.number("epsilon", config.radius, above=0.0, maximum=largest)
    checks.integer("train_steps", config.train_steps, minimum=1)
    checks.integer("num_validation", config.num_validation, minimum=1)
    checks.integer("num_images", config.num_images, minimum=1)
    if config.num_train is not None:
        checks.integer("num_train", config.num_train, minimum=2)
    if config.training.loss != "cross_entropy":
        raise ValueError("`training.loss` is chosen by the method: name trades in `methods`.")
    for name in config.models:
        checks.one_of("models", name, tuple(models.MODELS))
    for name in ("models", "methods"):
        values = getattr(config, name)
        if not values or len(set(values)) < len(values):
            raise ValueError(f"`{name}` must be at least one and no name twice, got {values}.")
    _check_stages(config, largest)
    only_linf = {"fgsm_rs", "n_fgsm", "free"} & set(config.methods)
    if only_linf and config.norm != "linf":
        raise ValueError(f"`norm` must be 'linf' for {', '.join(sorted(only_linf))}.")
    if "trades" in config.methods and config.norm == "l1":
        raise ValueError("`norm` must be 'linf' or 'l2' for trades.")
    for method in config.methods:
        checks.one_of("methods", method, get_args(Method))
        attack, settings = _method(config, method)  # the attack checks its own settings
        stages = attack.stages if isinstance(attack, AttackSchedule) else ((1, attack),)
        for _, one in stages:
            training.check_objective(training.objective_of(settings), one)


def _check_stages(config: Config, largest: float) -> None:
    """Refuses stages of the attack that would not be reached, or change nothing."""
    milestones = config.attack_milestones
    values = {name: getattr(config, name) for name in ("attack_epsilons", "attack_steps")}
    if bool(milestones) != any(values.values()):
        raise ValueError(
            "`attack_milestones` need `attack_epsilons` or `attack_steps`, and these need them."
        )
    if milestones and not {"pgd", "trades"} & set(config.methods):
        raise ValueError("`attack_milestones` are of the methods pgd and trades.")
    num_epochs = config.training.num_epochs
    if list(milestones) != sorted(set(milestones) & set(range(1, num_epochs))):
        raise ValueError(
            f"`attack_milestones` must ascend and be at least 1 and below the {num_epochs} epochs, got "
            f"{milestones}."
        )
    for name, given in values.items():
        if given and len(given) != len(milestones) + 1:
            raise ValueError(
                f"`{name}` must be none or {len(milestones) + 1}, one more than `attack_milestones`, "
                f"got {given}."
            )
    for epsilon in config.attack_epsilons:
        value = suites.number("attack_epsilons", epsilon)
        checks.number("attack_epsilons", value, above=0.0, maximum=largest)
    for steps in config.attack_steps:
        checks.integer("attack_steps", steps, minimum=1)


def _shortened(config: Config) -> Config:
    # Of the stages of an attack the first and the last.
    ends = slice(None, None, max(1, len(config.attack_milestones)))
    return dataclasses.replace(
        config,
        attack_milestones=(1,) if config.attack_milestones else (),
        attack_epsilons=config.attack_epsilons[ends],
        attack_steps=tuple(min(steps, 2) for steps in config.attack_steps[ends]),
        training=dataclasses.replace(
            config.training,
            num_epochs=2,
            warmup_epochs=0,
            attack_warmup_epochs=min(config.training.attack_warmup_epochs, 1),
            awp_warmup_epochs=min(config.training.awp_warmup_epochs, 1),
        ),
        train_steps=min(config.train_steps, 2),
        num_train=min(config.num_train or 1000, 1000),
        num_validation=min(config.num_validation, 100),
        num_images=min(config.num_images, 20),
    )


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


def _method(config: Config, method: str) -> tuple[Any, TrainConfig]:
    """What makes the training images, and the settings that go with it."""
    epsilon, steps, settings = config.radius, config.train_steps, config.training
    attack: Any = None
    if method in ("standard", "trades", "free"):
        settings = dataclasses.replace(settings, natural_weight=0.0)
    if method == "pgd":
        attack = _staged(config, PGD)
    elif method == "trades":
        attack = _staged(config, KLAscent)
        settings = dataclasses.replace(settings, loss="trades")
    elif method == "fgsm_rs":
        attack = PGD(epsilon, 1.25 * epsilon, num_steps=1)
    elif method == "n_fgsm":
        attack = NFGSM(epsilon)
    elif method == "free":
        attack = FreeReplays(epsilon, steps)
        settings = _fewer_epochs(settings, steps)
    return attack, settings


def _staged(config: Config, attack: type[PGD] | type[KLAscent]) -> Any:
    """The attack of training, or those of its stages; a step is 2.5 epsilon over their number."""
    starts = [1, *(milestone + 1 for milestone in config.attack_milestones)]
    epsilons = config.attack_epsilons or (config.epsilon,) * len(starts)
    numbers = config.attack_steps or (config.train_steps,) * len(starts)
    radii = [suites.number("attack_epsilons", epsilon) for epsilon in epsilons]
    stages = tuple(
        (start, attack(radius, 2.5 * radius / steps, steps, config.norm))
        for start, radius, steps in zip(starts, radii, numbers, strict=True)
    )
    return AttackSchedule(stages) if len(stages) > 1 else stages[0][1]


def _fewer_epochs(settings: TrainConfig, replays: int) -> TrainConfig:
    """The settings of a training that takes so many steps where others take one."""

    def fewer(epochs: int) -> int:
        return max(1, round(epochs / replays)) if epochs else 0

    num_epochs = fewer(settings.num_epochs)
    return dataclasses.replace(
        settings,
        num_epochs=num_epochs,
        warmup_epochs=min(fewer(settings.warmup_epochs), num_epochs - 1),
        milestones=tuple(sorted({fewer(milestone) for milestone in settings.milestones})),
        attack_warmup_epochs=min(fewer(settings.attack_warmup_epochs), num_epochs),
        awp_warmup_epochs=min(fewer(settings.awp_warmup_epochs), num_epochs),
    )


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
    sizes = {"widths": config.widths} if config.widths else {}
    network = _network(config, model, dataset)
    attack, settings = _method(config, method)
    judge = None
    if attack is not None:
        size = 2.5 * config.radius / _VALIDATION_STEPS
        judge = PGD(config.radius, size, _VALIDATION_STEPS, config.norm)
    with study.stages(f"train {name}"):
        fitted = training.fit(
            network,
            study.train,
            settings,
            run_dir=study.folder / "training" / f"{model}-{method}",
            mean=dataset.mean,
            std=dataset.std,
            validation=study.validation,
            augment=None if dataset.name == "digits" else _PHOTOGRAPHS,
            attack=attack,
            validation_attack=judge,
            num_devices=config.num_devices,
        )
    study.stages.count_resumed(f"train {name}", fitted.seconds)
    chosen = fitted.best_variables if config.weights == "best" else fitted.variables
    classifier = models.Classifier(network.apply, chosen, dataset.mean, dataset.std)
    path = study.folder / "models" / f"{model}-{method}"
    if not path.exists():
        facts = {"model": model, "num_classes": dataset.num_classes, "sizes": sizes}
        normalisation = {"mean": dataset.mean.tolist(), "std": dataset.std.tolist()}
        training.save_variables(path, chosen, facts | normalisation)
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
    recipe = {"training": training.describe(settings), "attack": training.describe(attack)}
    suite = _attacked(study, name, classifier) if study.suite else None
    return _Run(name, entry, suite, recipe, fitted)


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
