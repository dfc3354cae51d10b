"""Trains two small networks on handwritten digits, attacks both, explains both, writes a report.

    python -m experiments.quickstart

Expected time: 1 to 2 minutes on 2 cores; with --quick half of that. Needs no data and no network: the
digits come with scikit-learn.

Expected numbers: the standard network has at least 97 % of the clean test images right and under 5 %
of them under PGD at epsilon 0.15; the adversarially trained one keeps at least 55 %.

Source: the procedure of the two Sports-10 reports (see experiments/sports10.py) on data that is
always there; adversarial training as in Madry et al. 2018, https://arxiv.org/abs/1706.06083.
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from jaxrobust import checks, data, evaluation, models, studies, training
from jaxrobust.attacks import FGSM, PGD
from jaxrobust.reports import BANNERS
from jaxrobust.types import Attack


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      epsilon: Radius of the linf ball, in pixel units (1 is black to white).
      num_epochs: Of each network.
      num_steps: Of the PGD that attacks.
      train_steps: Of the PGD that trains.
      num_checked: Images that the sanity checks look at, of each network.
      num_shown: Images in the gallery of each network.
      seed: Of everything random.
      run: Name of the run; results go to <results_dir>/quickstart/<run>.
      results_dir: Where results go.
      quick: Two epochs and fewer steps, to see that everything runs.
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

    def __post_init__(self) -> None:
        checks.number("epsilon", self.epsilon, above=0.0, maximum=1.0)
        checks.integer("num_checked", self.num_checked, minimum=1)
        checks.integer("num_shown", self.num_shown, minimum=0)
        _recipe(self), _teacher(self), _attacks(self)  # each checks its own settings


def _recipe(config: Config, teacher: Attack | None = None) -> training.Recipe:
    return training.Recipe(
        num_epochs=config.num_epochs,
        schedule=training.Cosine(2e-3),
        adversary=teacher,
        seed=config.seed,
    )


def _teacher(config: Config) -> Attack:
    checks.integer("train_steps", config.train_steps, minimum=1)
    return PGD(config.epsilon, 2.5 * config.epsilon / config.train_steps, config.train_steps)


def _attacks(config: Config) -> list[Attack]:
    return [FGSM(config.epsilon), PGD(config.epsilon, config.epsilon / 10, config.num_steps)]


def main(config: Config) -> Path:
    """Runs the study; returns the report's path."""
    if config.quick:
        config = dataclasses.replace(
            config, num_epochs=2, num_steps=10, train_steps=3, num_checked=10
        )
    folder = studies.open_run(config.results_dir, "quickstart", config.run, config)
    stages = studies.Stages()
    digits = data.load("digits")
    test = digits.test
    network = models.create("simple_cnn", widths=(16, 32, 64), hidden_width=128)

    train = digits.train.images, digits.train.labels
    data_of_digits = training.Data(train, mean=digits.mean, std=digits.std)
    classifiers, entries = {}, []
    for name, teacher in (("standard", None), ("robust", _teacher(config))):
        with stages(f"train {name}"):
            fitted = training.fit(
                network,
                data_of_digits,
                _recipe(config, teacher),
                run_dir=folder / f"train_{name}",
            )
        stages.count_resumed(f"train {name}", fitted.seconds)
        classifier = models.Classifier(network.apply, fitted.variables, digits.mean, digits.std)
        classifiers[name] = classifier
        how = (
            "clean images" if teacher is None else f"images under {config.train_steps} steps of PGD"
        )
        entries.append(
            studies.model_entry(
                name,
                classifier,
                test.images,
                test.labels,
                digits.class_names,
                params=fitted.variables["params"],
                history=fitted.history,
                seconds_per_epoch=fitted.seconds_per_epoch,
                description=f"simple_cnn, trained on {how} (8x8 digits, enlarged, in 3 channels)",
                attack=teacher,
            )
        )

    attack_entries, gallery, curves, diagnostics, found = [], [], [], [], {}
    key = jax.random.key(config.seed)
    for name, classifier in classifiers.items():
        for attack in _attacks(config):
            with stages(f"{evaluation.attack_label(attack)} on {name}") as progress:
                found[name] = evaluation.attack_dataset(
                    attack, classifier, test.images, test.labels, key=key, progress=progress
                )
            attack_entries.append(evaluation.summarise(found[name], name, digits.class_names))
        with stages(f"sanity checks of {name}") as progress:
            sane = evaluation.sanity(
                classifier,
                test.images,
                test.labels,
                config.epsilon,
                key=key,
                num_images=config.num_checked,
                progress=progress,
            )
        diagnostics.append({"model": name} | sane)
        with stages(f"explain {name}"):
            shown = studies.spread(found[name].attacked, config.num_shown)
            gallery += studies.gallery(classifier, found[name], shown, model=name)
        with stages(f"curve over epsilon, {name}") as progress:
            curves.append(
                evaluation.robustness_curve(
                    attack,
                    classifier,
                    test.images,
                    test.labels,
                    np.linspace(0, 2 * config.epsilon, 7).tolist(),
                    key=key,
                    model=name,
                    progress=progress,
                )
            )

    title = "Handwritten digits: a standard and an adversarially trained network"
    result = studies.result_header("quickstart", title, config, config.seed, digits) | {
        "summary": _summary(config, entries, attack_entries, diagnostics),
        "timings": stages.seconds,
        "models": entries,
        "attacks": attack_entries,
        "diagnostics": diagnostics,
        "transfer": [evaluation.transfer_matrix(classifiers, found)],
        "gallery": gallery,
        "curves": curves,
    }
    return studies.finish(folder, result)


def _summary(
    config: Config, entries: list[dict], attack_entries: list[dict], diagnostics: list[dict]
) -> list[str]:
    """What came out, in words."""
    sentences = []
    for entry, sane in zip(entries, diagnostics, strict=True):
        clean = entry["evaluation"]["accuracy"]
        strongest = [a for a in attack_entries if a["model"] == entry["name"]][-1]
        robust = strongest["robust_accuracy"]
        rate, low, high = (f"{100 * robust[part]:.1f}" for part in ("rate", "low", "high"))
        sentences.append(
            f"The {entry['name']} network has {100 * clean['rate']:.1f} % of the {clean['n']} test "
            f"images right, and {rate} % (95 % interval {low} to {high} %) when PGD with "
            f"{config.num_steps} steps may change every pixel by up to {config.epsilon:g}. "
            f"{BANNERS[sane['verdict']]}"
        )
    return sentences


if __name__ == "__main__":
    studies.run_script(main, Config)
