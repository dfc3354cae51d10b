"""Trains two small networks on handwritten digits, attacks and explains both, and writes a report.

    python -m experiments.quickstart

The picture beside the report, picture.png, is that of the README.

Expected time: 1 to 2 minutes on 2 cores; with --quick half of that. The digits come with scikit-learn.

Expected numbers: the standard network classifies at least 97 % of the clean test images correctly, and
under 5 % under PGD at epsilon 0.15; the adversarially trained network at least 55 %.

Source: the procedure of the two Sports-10 reports (see experiments/sports10) on data that needs no
files; adversarial training as in Madry et al. 2018, https://arxiv.org/abs/1706.06083.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from jaxrobust import data, evaluation, models, reports, studies, training
from jaxrobust.attacks import FGSM, PGD
from jaxrobust.studies import records, suite_names


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings.

    Attributes:
      epsilon: The radius of the linf ball in pixel units (1 is black to white), such as 0.15.
      num_epochs: The number of epochs of each training.
      num_steps: The number of steps of the PGD that attacks the trained networks.
      train_steps: The number of steps of the PGD that makes the training images.
      num_checked: The number of images that the sanity checks use, for each network.
      num_shown: The number of images in the gallery of each network.
      seed: The seed of everything random.
      run: The name of the run; results go to <results_dir>/quickstart/<run>.
      results_dir: The folder of all results.
      quick: Use two epochs and fewer steps, unless others are given, to see that everything runs.
    """

    epsilon: float = 0.15
    num_epochs: int = 8
    num_steps: int = 40
    train_steps: int = 7
    num_checked: int = 50
    num_shown: int = 6
    seed: int = 0
    run: str = "default"
    results_dir: Path = Path("results")
    quick: bool = False


PRESETS = {"quick": {"num_epochs": 2, "num_steps": 10, "train_steps": 3, "num_checked": 10}}


def main(settings: Settings) -> Path:
    """Runs the study; returns the report's path."""
    epsilon = suite_names.epsilon("epsilon", f"{settings.epsilon:.9g}")
    studies.check_settings(settings, {"num_shown": 0, "seed": 0})
    size = 2.5 * epsilon / settings.train_steps
    teachers = {"standard": None, "robust": PGD(epsilon, size, settings.train_steps)}
    schedule, seed = training.Cosine(2e-3), settings.seed
    recipes = {
        name: training.Recipe(settings.num_epochs, schedule=schedule, adversary=teacher, seed=seed)
        for name, teacher in teachers.items()
    }
    pgd = PGD(epsilon, epsilon / 10, settings.num_steps)

    run = studies.start("quickstart", settings)
    digits = data.load("digits")
    trained = {name: _trained(run, digits, name, recipe) for name, recipe in recipes.items()}
    classifiers = {name: classifier for name, (classifier, _) in trained.items()}
    attacked, found = {}, {}
    for name, classifier in classifiers.items():
        attacked[name], found[name] = _attacked(run, digits, name, classifier, pgd)
    transfer = evaluation.transfer_matrix(classifiers, attacked)
    records.add_transfer(run.facts, transfer, attack="PGD")
    _draw(run, digits, classifiers["standard"], attacked["standard"])
    kinds = ("attacks", "sanity", "curves", "gallery")
    names: Any = {kind: [one for of in found.values() for one in of[kind]] for kind in kinds}
    return run.finish(
        "Handwritten digits: a standard and an adversarially trained network",
        digits,
        Path(__file__).with_name("report.md.j2"),
        class_names=digits.class_names,
        models=[entry for _, entry in trained.values()],
        transfer=[transfer],
        **names,
    )


def _trained(
    run: studies.Run, digits: data.Dataset, name: str, recipe: training.Recipe
) -> tuple[models.Classifier, dict[str, Any]]:
    """Returns a trained network, and the record of its training and its accuracy."""
    network = models.create("simple_cnn", widths=(16, 32, 64), hidden_width=128)
    train = digits.train.images, digits.train.labels
    images = training.Data(train, mean=digits.mean, std=digits.std)
    fitted = run.fit(f"train {name}", f"train_{name}", network, images, recipe)
    classifier = models.Classifier(network.apply, fitted.variables, digits.mean, digits.std)
    steps = run.settings.train_steps
    how = "clean images" if recipe.adversary is None else f"images under {steps} steps of PGD"
    entry = studies.model_entry(
        name,
        classifier,
        digits.test.images,
        digits.test.labels,
        digits.class_names,
        trained=studies.Trained(fitted.history, fitted.seconds_per_epoch, recipe.adversary),
        description=f"simple_cnn, trained on {how} (8x8 digits, enlarged, in 3 channels)",
    )
    records.add_model(run.facts, entry, network=name)
    return classifier, entry


def _attacked(
    run: studies.Run, digits: data.Dataset, name: str, classifier: models.Classifier, pgd: PGD
) -> tuple[evaluation.AttackReport, dict[str, list[Any]]]:
    """Returns the report of PGD on a network, and the records of all attacks on it."""
    given: tuple[Any, Any, Any] = (classifier, digits.test.images, digits.test.labels)
    found: dict[str, list[Any]] = {"attacks": []}
    for attack in (FGSM(pgd.epsilon), pgd):
        report = run.attack(f"{evaluation.attack_label(attack)} on {name}", attack, *given)
        summary = evaluation.summarise(report, name, digits.class_names)
        records.add_attack(run.facts, summary, network=name, attack=type(attack).__name__)
        found["attacks"].append(summary)
    with run.stages(f"sanity checks of {name}") as progress:
        execution = evaluation.Execution(progress=progress)
        options: Any = {"num_images": run.settings.num_checked, "execution": execution}
        sanity = evaluation.sanity(*given, pgd.epsilon, key=run.key, **options)
        found["sanity"] = [{"model": name} | sanity]
    with run.stages(f"explain {name}"):
        shown = studies.spread(report.attacked, run.settings.num_shown)
        found["gallery"] = studies.gallery(classifier, report, shown, model=name)
    epsilons = np.linspace(0, 2 * pgd.epsilon, 7).tolist()
    with run.stages(f"curve over epsilon, {name}") as progress:
        execution = evaluation.Execution(progress=progress)
        options = {"key": run.key, "model": name, "execution": execution}
        curve = evaluation.robustness_curve(pgd, *given, evaluation.Sweep(epsilons), **options)
        records.add_curve(run.facts, curve, network=name, attack="PGD")
        found["curves"] = [curve]
    return report, found


def _draw(
    run: studies.Run,
    digits: data.Dataset,
    classifier: models.Classifier,
    report: evaluation.AttackReport,
) -> None:
    """Writes picture.png, which shows the first image that PGD changed from right to wrong, if any."""
    turned = np.flatnonzero(report.attacked & report.success)[:1].tolist()
    for entry in studies.gallery(classifier, report, turned, model="standard"):
        reports.write_example(run.folder / "picture.png", entry, digits.class_names)


if __name__ == "__main__":
    studies.run_script(main, Settings, PRESETS)
