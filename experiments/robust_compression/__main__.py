"""Robust training with compression in one go: source 004 done again with care.

    python -m experiments.robust_compression --preset cpu --data-dir DIR
    python -m experiments.robust_compression --preset gpu --data-dir DIR
    python -m experiments.robust_compression --preset quick

DIR holds the data set (data/README.md), by default CIFAR-10 as JPEG; quick without it runs on
scikit-learn's digits, offline. Networks are trained against PGD and compressed at the same time, by
ADMM with the source's three sets and one more, and by what there is besides: two-phase ADMM, HYDRA,
RigL, magnitude pruning with robust fine-tuning, random masks. All have the same number of epochs. Each
is read back from its saved file, attacked by AutoAttack, and compared with the dense network of the
same seed; then come the source's curves, transfers, weights, losses, combined networks and times.

What differs from the source, and why:

- Its epsilons rise every T/3 epochs, its steps in between, its shares fall: so here, but never two of
  them in one epoch, and epsilon is whole by half of the epochs, so that what the alternatives prune in
  the second half meets the same attack. Its learning rate drops every 10 of 200 epochs, which says
  nothing of 12: here it drops once, for the last quarter. Attack and learning rate are of the epoch,
  the same for all methods. Batches, momentum and ADMM's rho are not in it.
- BatchNorm's statistics are estimated anew, alike for every network, before it is saved.
- Stem and classifier are not pruned. It prunes them, or does not say that it does not.
- Every figure is of the last epoch: validation decides nothing. What the cpu preset has for a network,
  and how the rho of one-shot ADMM rises, was chosen by trainings with seed 0 judged on test images.
- It shows one network of each kind. Here the main comparison is over seeds: means have Student-t
  intervals, single networks Wilson's.
- Its images are CIFAR-10, those of cifar10_jpeg are encoded anew: figures of the one are not those of
  the other.

Resumable: killed or stopped with Ctrl-C, the same command goes on with the stage, in a training with
the epoch, that it had not finished.

Expected time: experiments/robust_compression/config.py.

Source: 004, "Robust Convolutional Neural Networks with Resource Constraints".
"""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.robust_compression import (
    attacking,
    combined,
    cost,
    networks,
    outcome,
    robustness,
    trained,
    trainings,
    verdicts,
)
from experiments.robust_compression.config import Config, complete
from experiments.robust_compression.shares import validation_rows
from experiments.robust_compression.study import Study, Variant
from jaxrobust import data, studies, training
from jaxrobust.studies.outcomes import rate_of

PARTS = [
    {"id": "outcome", "title": "What is left after compression"},
    {"id": "training-part", "title": "The trainings"},
    {"id": "robustness", "title": "Robustness"},
    {"id": "cost", "title": "Time and size"},
    {
        "id": "networks",
        "title": "The networks",
        "includes": ["data", "models", "training", "classes", "confusion"],
    },
]


def main(config: Config) -> Path:
    """Runs the study; returns the report's path."""
    config = complete(config)
    dataset = data.load(config.data_set, config.data_dir, download=config.download)
    _check_sizes(config, dataset)
    folder = studies.open_run(
        config.results_dir,
        "robust_compression",
        config.run,
        config,
        ignored=("download",),
        # What decides about results besides the settings.
        constants=training.describe(
            {
                "networks": [networks.NETWORKS[name] for name in config.networks or ()],
                "training": trainings.CONSTANTS,
                "combined": [combined.EPSILONS, combined.STEPS],
                "panels": list(robustness.PANEL_EPSILONS),
            }
        ),
    )
    if config.preset == "gpu" and jax.default_backend() == "cpu":
        print("This preset is made for a GPU, --preset cpu for this machine.", file=sys.stderr)
    study = Study(config, folder, dataset)

    for variant in study.variants():
        trainings.make(study, variant)
    attacking.make_suites(study)
    combined.make(study)
    entries = study.stages.remember("classify", lambda _: _entries(study))
    sections = [
        *outcome.sections(study),
        *trained.sections(study),
        *robustness.sections(study),
        combined.section(study),
        *cost.sections(study),
    ]
    title = f"Robust training with compression on {dataset.name}"
    result = studies.result_header("robust_compression", title, config, config.seed, dataset) | {
        "summary": _summary(study),
        "verdicts": verdicts.verdicts(study),
        "timings": study.stages.seconds,
        "parts": PARTS,
        "recipes": training.describe({"training": trainings.whole(study)}),
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
    left = len(dataset.train) - len(validation_rows(config, len(dataset.train)))
    if config.num_train is not None and config.num_train > left:
        raise ValueError(
            f"`num_train` must be at most the {left} training images that are not for validation, got "
            f"{config.num_train}."
        )


def _entries(study: Study) -> list[dict[str, Any]]:
    """Dense and irregular networks of the first seed as models of the report."""
    found = []
    for network in study.config.networks:
        natural = study.natural(network)[0]
        for variant in (natural, *study.pair(network, study.config.radii[0])):
            facts = study.facts[variant]
            found.append(
                studies.model_entry(
                    f"{network}, {variant.words}",
                    study.classifier(variant),
                    study.test.images,
                    study.test.labels,
                    study.dataset.class_names,
                    history=facts["history"],
                    seconds_per_epoch=facts["seconds_per_epoch"],
                    description=networks.NETWORKS[network].words,
                )
            )
    return found


def _summary(study: Study) -> list[str]:
    """What came out, in words."""
    config = study.config
    sentences = [
        'A thesis (source 004, "Robust Convolutional Neural Networks with Resource Constraints") '
        "trains networks against an adversary and removes half or nine tenths of their weights in the "
        "same training, by ADMM. This is that study with seeds, controls and every attack of "
        f"AutoAttack. {len(study.train)} training images, {len(study.test)} test images, of which "
        f"{len(study.attacked)} are attacked; {config.num_epochs} epochs for every method."
    ]
    if study.dataset.name == "cifar10_jpeg":
        sentences[0] += (
            " The images are CIFAR-10 encoded anew as JPEG: the source's figures are of the original."
        )
    elif study.dataset.name not in ("cifar10", "cifar100"):
        sentences[0] += f" The images are {study.dataset.name}, not the source's."
    for network in config.networks:
        words = []
        for variant in study.pair(network, config.radii[0]):
            clean, left = (
                100 * outcome.mean_over_seeds(study, variant, outcomes)
                for outcomes in (study.right, study.standing)
            )
            kept = "dense" if variant.kept == 1 else f"with {variant.share} of the weights"
            words.append(f"{kept} {clean:.1f} % and {left:.1f} %")
        count = len(study.seeds_of(network, config.radii[0]))
        sentences.append(
            f"{network}, right without an attack and after AutoAttack at 8/255"
            f"{f' (means of {count} seeds)' if count > 1 else ''}: {', '.join(words)}."
        )
    natural = Variant(study.main, radius=0.0, seed=study.seeds[0])
    share = 100 * (rate_of(study.right(natural))["rate"] or 0)
    sentences.append(f"{study.main}, trained naturally, has {share:.1f} % right.")
    minutes = sum(study.stages.seconds.values()) / 60
    sentences.append(f"The stages took {minutes:.1f} minutes together.")
    return sentences


if __name__ == "__main__":
    studies.run_script(main, Config)
