"""Filter pruning, accuracy and robustness of four networks: all that source 003 measured.

    python -m experiments.pruned_benchmark --data cifar10_jpeg --data-dir DIR
    python -m experiments.pruned_benchmark --data cifar10_jpeg --data-dir DIR --preset cpu
    python -m experiments.pruned_benchmark --quick

DIR holds the data set (data/README.md); --quick without it runs on scikit-learn's digits, offline. Base
networks are trained, pruned by L1, L2 and geometric median to several sparsities while they are
fine-tuned, and their filters taken out for real. Seven attacks, with the source's parameters and at
8/255, are made on every base network and shown to everything made of it and to the other architectures;
every network is attacked itself besides. Time and file sizes are those of the smaller networks.

What the source does not have: a control, fine-tuned alike and not pruned, with which pruned networks
are compared image by image; attacks on the pruned networks; epsilons that leave the image what it is.

Resumable: killed or stopped with Ctrl-C, the same command goes on with the stage, in a training with
the epoch, that it had not finished. --preset cpu takes smaller networks of the same families and a part
of the images. Training trains, test images decide nothing: every figure is of the last epoch.

Expected time: README.md.

Source: 003, "Benchmarking Adversarial Robustness of Compressed Deep Learning Models". It trains base
networks for 10 epochs and does not say for how many it fine-tunes: --fine-tuning-epochs. Of its
milestones (10, 20, 30) its base networks reach none; here fine-tuning has its own, of the pruned
networks and of the controls alike. It names no augmentation and no weight decay: there is none.
"""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.pruned_benchmark import (
    accuracy,
    cost,
    crafting,
    networks,
    pictures,
    robustness,
    threats,
    trainings,
    transfer,
    verdicts,
)
from experiments.pruned_benchmark.config import INITIAL, Config, complete
from experiments.pruned_benchmark.study import Study, Variant
from jaxrobust import data, studies, training
from jaxrobust.studies.outcomes import rate_of

PARTS = [
    {"id": "accuracy", "title": "Accuracy"},
    {"id": "robustness", "title": "Robustness"},
    {"id": "transfer-part", "title": "Transfer"},
    {"id": "cost", "title": "Time and size"},
    {
        "id": "networks",
        "title": "Base, control and most pruned",
        "includes": ["data", "models", "training", "classes", "confusion"],
    },
]


def main(config: Config) -> Path:
    """Runs the study; returns the report's path."""
    config = complete(config)
    dataset = data.load(config.data_set, config.data_dir, download=config.download)
    _check_sizes(config, dataset)
    attacks = threats.attacks(config.max_steps)
    folder = studies.open_run(
        config.results_dir,
        "pruned_benchmark",
        config.run,
        config,
        ignored=("download",),
        # What decides about results besides the settings.
        constants=training.describe(
            {
                "attacks": attacks,
                "white box": threats.white_box(config.max_steps),
                "networks": [networks.NETWORKS[name] for name in config.networks or ()],
                "training": [trainings.MOMENTUM, trainings.FACTOR, trainings.MIN_FILTERS, INITIAL],
                "universal": threats.UNIVERSAL_BATCH,
            }
        ),
    )
    if config.preset == "full" and not config.quick and jax.default_backend() == "cpu":
        print("The full preset is made for a GPU, --preset cpu for this one.", file=sys.stderr)
    study = Study(config, folder, dataset)

    for network in study.config.networks:
        for variant in study.variants(network):
            trainings.make(study, variant)
    crafting.make(study)
    entries = study.stages.remember("classify", lambda _: _entries(study))
    sections = [
        accuracy.section(study),
        accuracy.agreement(study),
        *robustness.sections(study),
        pictures.section(study),
        *transfer.section(study),
        *cost.sections(study),
    ]
    title = f"Pruned networks on {dataset.name}: accuracy, robustness, time and size"
    result = studies.result_header("pruned_benchmark", title, config, config.seed, dataset) | {
        "summary": _summary(study),
        "verdicts": verdicts.verdicts(study),
        "timings": study.stages.seconds,
        "parts": PARTS,
        "recipes": training.describe({"base": trainings.recipe(study)}),
        "models": entries,
        "sections": sections,
    }
    if len(study.stages.commits) > 1:
        result["environment"]["commits_of_stages"] = study.stages.commits
    return studies.finish(folder, result)


def _check_sizes(config: Config, dataset: data.Dataset) -> None:
    """Refuses what would fail after hours: networks that do not take such images, too few images."""
    for name in config.networks or ():
        network = networks.create(name, dataset.num_classes)
        image = jnp.zeros((1, *dataset.image_shape))
        try:
            jax.eval_shape(network.init, jax.random.key(0), image)
        except Exception as error:  # of flax and of jax, of many classes
            raise ValueError(
                f"`networks`: {name} does not take images of {dataset.image_shape}: {error}"
            ) from error
    if config.num_train is not None and config.num_train > len(dataset.train):
        raise ValueError(
            f"`num_train` must be at most the {len(dataset.train)} training images, got "
            f"{config.num_train}."
        )


def _entries(study: Study) -> list[dict[str, Any]]:
    """Base networks, first controls and the most pruned networks as models of the report."""
    found = []
    for network in study.config.networks:
        most = study.pruned(network, study.shown_criterion)[-1]
        words = {
            Variant(network): "trained",
            Variant(network, "control"): "the base, fine-tuned unpruned",
            most: f"the base, pruned and fine-tuned: {most.words}",
        }
        for variant, how in words.items():
            facts = study.facts[variant]
            found.append(
                studies.model_entry(
                    variant.name,
                    study.classifier(variant),
                    study.test.images,
                    study.test.labels,
                    study.dataset.class_names,
                    history=facts["history"],
                    seconds_per_epoch=facts["seconds_per_epoch"],
                    description=f"{networks.NETWORKS[network].words}; {how}",
                )
            )
    return found


def _summary(study: Study) -> list[str]:
    """What came out, in words."""
    config = study.config
    sentences = [
        'A paper (source 003, "Benchmarking Adversarial Robustness of Compressed Deep Learning '
        'Models") trains four networks, prunes 10 to 50 % of their filters, and finds that accuracy '
        "rises and robustness stays. This is that study with a control: networks that were fine-tuned "
        "as the pruned ones were, and not pruned. "
        f"{len(study.train):,} training images, {len(study.test):,} test images, of which "
        f"{len(study.attacked)} are attacked; {config.num_epochs} epochs, then "
        f"{config.fine_tuning_epochs} of fine-tuning."
    ]
    if study.dataset.name == "cifar10_jpeg":
        sentences[0] += (
            " The images are CIFAR-10 encoded anew as JPEG: the source's figures, on the original, can "
            "be a little higher or lower for that."
        )
    elif study.source_data is None:
        sentences[0] += f" The images are {study.dataset.name}, not the source's."
    for network in config.networks:
        most = study.pruned(network, study.shown_criterion)[-1]
        control = Variant(network, "control")
        shares = [_percent(study.right(v)) for v in (Variant(network), control, most)]
        smaller = study.facts[Variant(network)]["bytes"] / study.facts[most]["bytes"]
        name = threats.WHITE_BOX[-1]
        white = [_percent(study.white_box[v][name]) for v in (control, most)]
        sentences.append(
            f"{network}: {shares[0]} of the test images right, its control, fine-tuned without "
            f"pruning, {shares[1]}, without {100 * most.sparsity:g} % of its filters ({most.words}; "
            f"its file {smaller:.1f} times smaller) {shares[2]}; right under {name}, made on each "
            f"itself, the control {white[0]}, the pruned network {white[1]}."
        )
    minutes = sum(study.stages.seconds.values()) / 60
    sentences.append(f"The stages took {minutes:.1f} minutes together.")
    if config.max_steps is None:
        return sentences
    shortened = (
        f"Shortened: no attack has more than {config.max_steps} steps. What is said of attacks holds "
        "for a full run, and figures under attack mean nothing."
    )
    return [shortened, *sentences]


def _percent(outcomes: np.ndarray) -> str:
    """A share of the images with its 95 % interval."""
    rate = rate_of(outcomes)
    share, low, high = (100 * (rate[key] or 0.0) for key in ("rate", "low", "high"))
    return f"{share:.1f} % ({low:.1f}-{high:.1f})"


if __name__ == "__main__":
    studies.run_script(main, Config)
