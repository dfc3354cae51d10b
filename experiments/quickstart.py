"""Trains two small networks on handwritten digits, attacks both, explains both, writes a report.

    python -m experiments.quickstart

Expected time: under 3 minutes on 2 cores; with --quick under 1. Needs no data and no network: the
digits come with scikit-learn.

Expected numbers: the standard network has at least 97 % of the clean test images right and under 15 %
of them under PGD at epsilon 0.15; the adversarially trained one keeps at least 60 %.

Source: the procedure of the two Sports-10 reports (see experiments/sports10.py) on data that is
always there; adversarial training as in Madry et al. 2018, https://arxiv.org/abs/1706.06083.
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from jaxrobust import data, evaluation, files, models, reports, training
from jaxrobust.attacks import FGSM, PGD


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      epsilon: Radius of the linf ball, in pixel units (1 is black to white).
      num_epochs: Of each network.
      num_steps: Of the PGD that attacks.
      train_steps: Of the PGD that trains.
      num_shown: Images in the gallery of each network.
      seed: Of everything random.
      run: Name of the run; results go to <results_dir>/quickstart/<run>.
      results_dir: Where results go.
      quick: A tenth of the work, to see that everything runs.
    """

    epsilon: float = 0.15
    num_epochs: int = 8
    num_steps: int = 40
    train_steps: int = 7
    num_shown: int = 6
    seed: int = 0
    run: str = "default"
    results_dir: Path = Path("results")
    quick: bool = False


def main(config: Config) -> Path:
    """Runs the study; returns the report's path."""
    if config.quick:
        config = dataclasses.replace(config, num_epochs=2, num_steps=10, train_steps=3)
    folder = evaluation.run_folder(config.results_dir, "quickstart", config.run)
    files.claim(folder, evaluation.configuration(config))
    stages = evaluation.Stages()
    digits = data.load("digits")
    test = digits.test
    network = models.create("simple_cnn", widths=(16, 32, 64), hidden_width=128)
    training_attack = PGD(
        config.epsilon, 2.5 * config.epsilon / config.train_steps, config.train_steps
    )

    classifiers, entries = {}, []
    for name, teacher in (("standard", None), ("robust", training_attack)):
        with stages(f"train {name}"):
            fitted = training.fit(
                network,
                (digits.train.images, digits.train.labels),
                training.TrainConfig(
                    num_epochs=config.num_epochs,
                    learning_rate=2e-3,
                    schedule="cosine",
                    seed=config.seed,
                ),
                run_dir=folder / f"train_{name}",
                mean=digits.mean,
                std=digits.std,
                attack=teacher,
            )
        classifiers[name] = models.Classifier(
            network.apply, fitted.variables, digits.mean, digits.std
        )
        how = "clean images" if teacher is None else f"images under PGD-{config.train_steps}"
        entries.append(
            evaluation.model_entry(
                name,
                classifiers[name],
                test.images,
                test.labels,
                digits.class_names,
                params=fitted.variables["params"],
                history=fitted.history,
                seconds_per_epoch=fitted.seconds_per_epoch,
                description=f"simple_cnn, trained on {how}",
            )
        )

    pgd = PGD(config.epsilon, config.epsilon / 10, config.num_steps)
    attack_entries, gallery, curves, reports_of_pgd = [], [], [], {}
    key = jax.random.key(config.seed)
    for name, classifier in classifiers.items():
        for attack in (FGSM(config.epsilon), pgd):
            stage = f"{evaluation.label(attack)} on {name}"
            with stages(stage) as progress:
                report = evaluation.attack_dataset(
                    attack, classifier, test.images, test.labels, key=key, progress=progress
                )
            attack_entries.append(evaluation.summarise(report, name, digits.class_names))
        reports_of_pgd[name] = report
        with stages(f"explain {name}"):
            shown = np.flatnonzero(report.attacked)[:: max(1, len(test) // config.num_shown)]
            gallery += evaluation.gallery(
                classifier, report, shown[: config.num_shown].tolist(), model=name
            )
        with stages(f"curve over epsilon, {name}"):
            points = []
            for epsilon in np.linspace(0, 2 * config.epsilon, 7)[1:]:
                swept = dataclasses.replace(pgd, epsilon=float(epsilon), step_size=epsilon / 10)
                report = evaluation.attack_dataset(
                    swept, classifier, test.images, test.labels, key=key
                )
                accuracy = evaluation.robust_accuracy(report)
                points.append({"epsilon": float(epsilon), "robust_accuracy": accuracy})
            clean = next(e for e in entries if e["name"] == name)["evaluation"]["accuracy"]
            points.insert(0, {"epsilon": 0.0, "robust_accuracy": clean})
            label = f"PGD, {config.num_steps} steps"
            curves.append({"model": name, "label": label, "points": points})

    result = evaluation.result_header(
        "quickstart",
        "Handwritten digits: a standard and an adversarially trained network",
        config,
        config.seed,
        digits,
    ) | {
        "summary": _summary(config, entries, attack_entries),
        "timings": stages.seconds,
        "models": entries,
        "attacks": attack_entries,
        "transfer": [evaluation.transfer_matrix(classifiers, reports_of_pgd)],
        "gallery": gallery,
        "curves": curves,
    }
    files.write_json(folder / "result.json", result)
    path = reports.write_report(folder / "result.json")
    for sentence in result["summary"]:
        print(sentence)
    print(f"Report: {path}")
    return path


def _summary(config: Config, entries: list[dict], attack_entries: list[dict]) -> list[str]:
    """What came out, in words."""
    sentences = []
    for entry in entries:
        clean = entry["evaluation"]["accuracy"]
        broken = [a for a in attack_entries if a["model"] == entry["name"] and a["name"] == "PGD"]
        robust = broken[0]["robust_accuracy"]
        sentences.append(
            f"The {entry['name']} network has {clean['rate']:.1%} of {clean['n']} clean test images "
            f"right and {robust['rate']:.1%} (95 % interval {robust['low']:.1%} to "
            f"{robust['high']:.1%}) when PGD with {config.num_steps} steps may change every pixel by "
            f"up to {config.epsilon:g}."
        )
    return sentences


if __name__ == "__main__":
    evaluation.run_script(main, Config)
