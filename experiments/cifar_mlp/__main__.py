"""Linear and one-hidden-layer classifiers and fooling images on CIFAR-10, as in source 002.

    python -m experiments.cifar_mlp --data cifar10_jpeg --data-dir DIR
    python -m experiments.cifar_mlp --quick

DIR has CIFAR-10 (data/README.md); --quick runs on scikit-learn's digits, offline. A line and a curve
are fitted by gradient descent; a linear classifier and one with a hidden layer are trained by SGD;
eight hyper-parameters are varied, each with all its values and seeds in one compiled program; and the
network is fooled. If a run is killed or stopped with Ctrl-C, the same command resumes it at the
unfinished stage. The report says what the source leaves open, and what was chosen instead.

Expected time: 25 minutes of processor time in all, so at most that on 2 free cores (beside other
programs 31 and 65 minutes were measured on 2 cores and on 1); --quick takes 1 to 2 minutes, mostly
compilation.

Expected numbers on cifar10_jpeg, means of four seeds: one layer 40.5 % of the test images (source: 41.1
%), 100 hidden units 51.8 % (51.4 %), 200 units 52.7 % (52.7 %). Three of the eight conclusions of the
source are found again, four in part. Untargeted PGD with the norm of the source's fooling image fools
two thirds of the correctly classified images; PGD with the source's target fools one in six.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cifar_mlp import claims, fitting, fooling, network, pictures, programs
from experiments.cifar_mlp.claims import Ablation, Variant
from experiments.cifar_mlp.network import Layer, Params
from jaxrobust import attacks, data, evaluation, files, models, studies
from jaxrobust.studies import ANY, Facts, Run, comparison, records

SCALE = 1e-3  # standard deviation of the first weights; the source does not say
NUM_FOLDS = 10  # one of them validates
QUICK_IMAGES = (5120, 1000)  # of the train and of the test split, at most

# Constants that results depend on, besides the settings: a run with other constants is not resumed.
CONSTANTS = {
    "networks": [own._asdict() for own in claims.OWN.values()],
    "ablations": [[a.network, a.hyperparameter, list(a.settings)] for a in claims.ABLATIONS],
    "training": [SCALE, NUM_FOLDS, list(QUICK_IMAGES)],
    "attacks": [attacks.to_dict(attack) for attack in fooling.attacks()],
    "ascent": [fooling.SMALL_STEP, fooling.MOST_STEPS, list(fooling.CURVE)],
}

# The networks that are evaluated; the second one is also attacked.
CLASSIFIERS = (
    Variant("one layer"),
    Variant("hidden layer", "width", 100),
    Variant("hidden layer", "width", 200),
)
# The sections of the report that --publish writes: all tables and charts of the source beside ours.
PUBLISHED = (
    *(
        "conclusions",
        "fitting",
        "models",
        "training",
        "accuracies",
        "mistakes",
        "attacks",
        "fooling",
    ),
    *(ablation.section for ablation in claims.ABLATIONS),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings.

    Attributes:
      data: cifar10_jpeg, cifar10 or digits.
      data_dir: The folder of the data set (data/README.md).
      download: Whether to download cifar10 to data_dir if it is missing.
      num_seeds: The number of trainings of each setting: seed, seed + 1, ...
      num_epochs: The number of epochs; the main classifier with one layer is trained twice as long.
      num_attacked: The number of attacked test images.
      num_shown: The number of pictures of each kind.
      seed: The first seed.
      run: The name of the run; results go to <results_dir>/cifar_mlp/<run>.
      results_dir: The folder of all results.
      quick: Use digits or a tenth of other data, three epochs and two seeds, to see that everything
        runs.
    """

    data: Literal["cifar10_jpeg", "cifar10", "digits"] = "cifar10_jpeg"
    data_dir: Path | None = None
    download: bool = False
    num_seeds: int = 4
    num_epochs: int = 30
    num_attacked: int = 500
    num_shown: int = 5
    seed: int = 0
    run: str = "default"
    results_dir: Path = Path("results")
    quick: bool = False


PRESETS = {
    "quick": {
        "data": "digits",
        "num_seeds": 2,
        "num_epochs": 3,
        "num_attacked": 50,
        "num_shown": 3,
        "quick": True,
    }
}


def main(settings: Settings) -> Path:
    """Runs the study; returns the report's path."""
    studies.check_settings(settings, {"seed": 0})
    dataset = data.load(settings.data, settings.data_dir, download=settings.download)
    if settings.quick:
        train, test = (dataset.train.spread(QUICK_IMAGES[0]), dataset.test.spread(QUICK_IMAGES[1]))
        dataset = dataclasses.replace(dataset, train=train, test=test)
    run = studies.start("cifar_mlp", settings, also={"constants": CONSTANTS})
    run.facts.read(Path(__file__).with_name("published.csv"), source="002")
    splits = programs.splits_of(dataset, NUM_FOLDS)
    histories: dict[Variant, Any] = {}
    for ablation in claims.TRAINED:
        histories |= fit(run, splits, ablation)
    outcomes = [claims.conclude(run.facts, ablation) for ablation in claims.ABLATIONS]
    run.facts.add("conclusions found", outcomes=np.array([o == "found" for o in outcomes]))

    weights = [load_weights(run, variant) for variant in CLASSIFIERS]
    networks = [models.Classifier(apply, w, dataset.mean, dataset.std) for w in weights]
    tested = (dataset.test.images, dataset.test.labels, dataset.class_names)
    entries = run.stages.remember(
        "evaluate classifiers",
        lambda _: [
            studies.model_entry(variant.name, network, *tested)
            for variant, network in zip(CLASSIFIERS, networks, strict=True)
        ],
    )
    for entry, variant in zip(entries, CLASSIFIERS, strict=True):
        add_evaluation(run.facts, entry, variant)
    return run.finish(
        f"Linear and hidden-layer classifiers on {dataset.name}, varied and fooled",
        dataset,
        Path(__file__).with_name("report.md.j2"),
        class_names=dataset.class_names,
        classifiers=CLASSIFIERS,
        conclusions=list(zip(claims.ABLATIONS, outcomes, strict=True)),
        entries=entries,
        fits=fitting.measure(run),
        histories=histories,
        templates=pictures.templates(weights[0][0].weights, dataset),
        class_means=pictures.class_means(dataset.train),
        units=pictures.units(weights[1], dataset),
        **fooling.measure(run, dataset, networks[1]),
    )


def fit(run: Run, splits: programs.Splits, ablation: Ablation) -> dict[Variant, dict[str, Any]]:
    """Trains all settings of an ablation with all seeds, and adds their accuracies to the facts.

    The weights of the first seed are saved in a file for `load_weights`.

    Returns:
      The measures of `programs.run` for the first seed, by variant and name, as lists over the epochs.
    """
    facts, settings, num_test = run.facts, run.settings, len(splits.test.labels)
    seeds = range(settings.seed, settings.seed + settings.num_seeds)
    # As in the source, the main classifier with one layer has 60 epochs, and the ablations have 30.
    num_epochs = settings.num_epochs * (1 if ablation.hyperparameter else 2)

    def compute(_: Any) -> dict[str, Any]:
        columns = zip(*(variant.hyperparameters for variant in ablation.variants), strict=True)
        varied = programs.Hyperparameters(*map(np.array, columns))
        keys = jax.vmap(jax.random.key)(jnp.array(seeds))
        params, found = jax.device_get(programs.run(keys, varied, splits, SCALE, num_epochs))
        leaves = {f"leaf_{i}": leaf[0] for i, leaf in enumerate(jax.tree.leaves(params))}
        with files.replace(weights_path(run, ablation)) as file:
            np.savez(file, **leaves)
        return {name: values.tolist() for name, values in found.items()}

    record = run.stages.remember(ablation.stage, compute)
    histories = {}
    for place, variant in enumerate(ablation.variants):
        history = {name: np.array(values)[:, place] for name, values in record.items()}
        last = [history[f"{split}_accuracy"][:, -1] for split in ("train", "validation")]
        for seed, test, *others in zip(seeds, history["test_accuracy"], *last, strict=True):
            counted = evaluation.rate(round(test * num_test), num_test) | {"rate": test}
            facts.add_rate("test accuracy", variant, counted, seed=seed)
            facts.add("train accuracy", variant, seed=seed, value=others[0])
            facts.add("validation accuracy", variant, seed=seed, value=others[1])
        for measure in ("train accuracy", "validation accuracy", "test accuracy"):
            measured = facts.where(measure, variant, seed=ANY)
            facts.extend(comparison.means(measured, "seed", measure))
        for epoch, value in enumerate(history["validation_accuracy"].mean(axis=0), start=1):
            facts.add("validation accuracy", variant, epoch=epoch, value=value)
        histories[variant] = {name: values[0].tolist() for name, values in history.items()}
    return histories


def weights_path(run: Run, ablation: Ablation) -> Path:
    """Returns the path of the weights of the first seed, for all settings of an ablation."""
    return run.folder / "weights" / f"{ablation.stage.replace(' ', '-').replace(',', '')}.npz"


def load_weights(run: Run, variant: Variant) -> Params:
    """Loads the weights of the first seed, without the padding of the hidden layer."""
    ablation = next(a for a in claims.TRAINED if variant in a.variants)
    place = ablation.variants.index(variant)
    with np.load(weights_path(run, ablation)) as archive:
        leaves = [archive[f"leaf_{i}"][place] for i in range(len(archive))]
    if len(leaves) == 2:
        return (Layer(*leaves),)
    width = int(variant.hyperparameters.width)
    first, bias, last, last_bias = leaves
    return (Layer(first[:, :width], bias[:width]), Layer(last[:width], last_bias))


def apply(variables: Params, images: jax.Array) -> jax.Array:
    """Returns logits [B, K] for normalised images [B, H, W, C]."""
    return network.logits(variables, images.reshape(len(images), -1))


def add_evaluation(facts: Facts, entry: Mapping[str, Any], variant: claims.Variant) -> None:
    """Adds the accuracy of a classifier, and its three most frequent mistakes."""
    records.add_model(facts, entry, variant)
    names = [row["class"] for row in entry["evaluation"]["per_class"]]
    for true, taken, count in evaluation.mistakes(entry["evaluation"]["confusion_matrix"])[:3]:
        which = {"label": names[true], "prediction": names[taken]}
        facts.add("mistakes", variant, value=count, **which)


if __name__ == "__main__":
    studies.run_script(main, Settings, PRESETS, published=PUBLISHED)
