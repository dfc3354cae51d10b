"""Reproduces carefully everything that two course reports measured on Sports-10 photographs.

    python -m experiments.sports10 --data-dir DIR
    python -m experiments.sports10 --data-dir DIR --quick
    python -m experiments.sports10 --data-dir DIR --preset source

DIR has train/<class>/*.jpg and valid/<class>/*.jpg (data/README.md). Five networks are trained, four
of them with cross-validation (problem A); attacked and defended (problem B); pruned, fine-tuned,
quantised and timed (problem C). If a run is killed or stopped with Ctrl-C, the same command resumes it
at the unfinished stage. --quick reduces everything, to see that it runs. --preset source trains
networks beside ours nearly as the reports do: with a learning rate or early stopping that watches a
tenth of the training photographs (one network: the test photographs), and 50 epochs of resnet_small
with three seeds and folds.

Expected time on 2 cores: --quick just under 2 minutes. A run without cnn's folds and last two seeds,
and with the defences of one network only, took about 85 minutes; the whole has not been timed.

Expected numbers: docs/results/index.md. docs/results/coverage.md lists each table of the two reports
and where it is here.

Source: the two Sports-10 reports that the project reproduces, A (mlp, cnn; 58 and 82 % of 50
photographs) and B (simple_cnn, resnet_small; 68 and 72 %). Both choose the epoch or the learning rate
by the test images. Here nothing is chosen by the test images: they are only shown beside the training
curve, and the weights are those of the last epoch, or their moving average. The preset source chooses
by a tenth of the training photographs, and by the test images in cnn_plateau_by_test alone. The recipe
of our own network was chosen on held-out training photographs (networks.py).
"""

from pathlib import Path

from experiments.sports10 import classification, compression, defences, folds, published, robustness
from experiments.sports10.config import EPSILONS, PRESETS, Config, check
from experiments.sports10.networks import FINE_TUNING, SUBJECTS
from experiments.sports10.study import Study, photographs
from jaxrobust import checks, studies, training

# Constants that results depend on, besides the settings: a run with other constants is not resumed.
CONSTANTS = {
    "epsilons": EPSILONS,
    "curve": robustness.CURVE,
    "folds": [folds.EPSILON, folds.NUM_STEPS, folds.CONTROL],
    "defences": [
        *(defences.SMALL, defences.ADVERSARIAL_SHARE, defences.NOISE_SHARE),
        *(defences.SIGMA, defences.RADII, defences.COPIES, defences.ALARMS, defences.BITS),
    ],
    "ticket rounds": compression.ROUNDS,
}
# The sections of the report that --publish writes, as far as a run has them: all but pictures and the
# records of single images.
PUBLISHED = (
    *(
        "key-figures",
        "models",
        "training",
        "confusion",
        "classes",
        "certainty",
        "ensembles",
        "confusions",
    ),
    *("attribution", "attacks", "transfer", "epsilons", "transfer-rates", "map-shift", "published"),
    *("defences", "detection", "sparsity", "layers", "latency", "pruned-attacks", "half"),
    *("pruned-transfer", "tickets"),
    *(f"compress-{name.replace('_', '-')}" for name in SUBJECTS),
)


def main(config: Config) -> Path:
    """Runs the study; returns the report's path."""
    check(config)
    dataset = photographs(config, 32)
    checks.one_of("target", config.target, dataset.class_names)  # --target chooses another
    recipes = training.describe({**SUBJECTS, "fine-tuning": FINE_TUNING})
    run = studies.start("sports10", config, also={"recipes": recipes, "constants": CONSTANTS})
    study = Study(config, run)
    run.facts.read(Path(__file__).with_name("published.csv"), source="reports")
    for name in config.models:
        for seed in study.seeds_of(name):
            study.trained(name, seed)
    folds.measure(study)
    names = classification.measure(study) | robustness.measure(study) | published.measure(study)
    defences.measure(study)
    names |= compression.measure(study)
    return run.finish(
        f"Sports-10: {dataset.num_classes} classes, classified, attacked and compressed",
        study.dataset(config.models[0]),
        Path(__file__).with_name("report.md.j2"),
        recipes=recipes,
        study=study,
        subjects=SUBJECTS,
        folds=folds,
        defences=defences,
        **names,
    )


if __name__ == "__main__":
    studies.run_script(main, Config, PRESETS, published=PUBLISHED)
