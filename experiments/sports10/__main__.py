"""Sports-10 photographs: everything that two course reports measured, done again with care.

    python -m experiments.sports10 --data-dir DIR
    python -m experiments.sports10 --data-dir DIR --quick

DIR holds train/<class>/*.jpg and valid/<class>/*.jpg (data/README.md). Five networks are trained,
three of them cross-validated (problem A); attacked and defended (problem B); pruned, fine-tuned,
quantised and timed (problem C). Resumable: killed or stopped with Ctrl-C, the same command goes on with
the stage that it had not finished. --quick shrinks everything to see that it runs.

Expected time on 2 cores: about 85 minutes; --quick just under 2.

Expected numbers: docs/coverage.md names each table of the two reports and where it is here.

Source: the two Sports-10 reports that the project reproduces, A (mlp, cnn; 58 and 82 % of 50
photographs) and B (simple_cnn, resnet_small; 68 and 72 %). Both choose the epoch or the learning rate
by the test images. Here they decide nothing: they are drawn beside the training curve, and the weights
are those of the last epoch, or their moving average. The recipe of our own network was chosen by
held-out training photographs (networks.py).
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from experiments.sports10 import (
    classification,
    compression,
    defences,
    folds,
    latency,
    layers,
    maps,
    pruned,
    published,
    robustness,
    tickets,
    verdicts,
)
from experiments.sports10.config import EPSILONS, Config, quick
from experiments.sports10.networks import FINE_TUNING, SUBJECTS
from experiments.sports10.study import Study
from jaxrobust import checks, data, evaluation, studies, training

# What decides about results besides the settings: a run that was made with others is not gone on with.
CONSTANTS = {
    "epsilons": EPSILONS,
    "curve": robustness.CURVE,
    "folds": [folds.EPSILON, folds.NUM_STEPS, folds.CONTROL],
    "defences": [
        *(defences.SMALL, defences.ADVERSARIAL_SHARE, defences.NOISE_SHARE),
        *(defences.SIGMA, defences.RADII, defences.COPIES),
    ],
    "ticket rounds": tickets.ROUNDS,
}

PARTS = [
    {
        "id": "a",
        "title": "Problem A: classification and explanation",
        "includes": ["data", "models", "training", "confusion", "classes", "explanations"],
    },
    {
        "id": "b",
        "title": "Problem B: attacks and defences",
        "includes": ["attacks", "sanity", "curves", "transfer", "gallery"],
    },
    {"id": "c", "title": "Problem C: compression"},
]


def main(config: Config) -> Path:
    """Runs the study; returns the report's path."""
    if config.quick:
        config = quick(config)
    dataset = data.load("sports10", config.data_dir, 32, skip_damaged=config.skip_damaged)
    checks.one_of("target", config.target, dataset.class_names)  # --target chooses another
    recipes = training.describe({**SUBJECTS, "fine-tuning": FINE_TUNING})
    folder = studies.open_run(
        config.results_dir, "sports10", config.run, config, recipes=recipes, constants=CONSTANTS
    )
    study = Study(config, folder, dataset)

    for name in config.models:
        for seed in study.seeds_of(name):
            study.trained(name, seed)
    entries = classification.model_entries(study)
    explanations = [
        found
        for name in config.models
        for found in study.stages.remember(
            f"explain {name}", functools.partial(_explain, study, name)
        )
    ]
    sections = [*classification.sections(study, entries), maps.section(study)]
    attacks = robustness.typed(study)
    sections += robustness.sections(study)
    sections += published.section(study)
    sections += defences.sections(study)
    sections += [*compression.sections(study), layers.section(study), latency.section(study)]
    sections += pruned.sections(study)
    sections += tickets.section(study)

    title = f"Sports-10: {dataset.num_classes} classes, classified, attacked and compressed"
    used = study.dataset(config.models[0])
    result = studies.result_header("sports10", title, config, config.seed, used) | {
        "summary": _summary(study, entries, attacks["attacks"]),
        "verdicts": verdicts.verdicts(study),
        "timings": study.stages.seconds,
        "parts": PARTS,
        "recipes": recipes,
        "models": entries,
        "explanations": explanations,
        "sections": sections,
        **attacks,
    }
    if len(study.stages.commits) > 1:
        result["environment"]["commits_of_stages"] = study.stages.commits
    return studies.finish(folder, result)


def _explain(study: Study, name: str, _: Any) -> list[dict[str, Any]]:
    """Three classes, each with an image that the model has right and one that it has wrong."""
    test = study.test(name)
    answers = evaluation.logits(study.base(name), test.images).argmax(axis=1)
    return studies.explanations(
        study.base(name),
        test.images,
        test.labels,
        studies.right_and_wrong(answers, test.labels, num_classes=3),
        model=name,
        class_names=study.class_names,
    )


def _summary(
    study: Study, entries: list[dict[str, Any]], attacks: list[dict[str, Any]]
) -> list[str]:
    """What came out, in words."""
    sentences = [
        "Two course reports of 2025 trained networks on these photographs, attacked and pruned them: "
        "report A an MLP (mlp) and a CNN (cnn), report B a SimpleCNN (simple_cnn) and a small ResNet "
        "(resnet_small). This is everything that they measured, measured again, with photo_cnn "
        "besides, a network of ours for larger images."
    ]
    for entry in entries:
        name, accuracy = entry["name"], entry["evaluation"]["accuracy"]
        text = (
            f"{name} has {accuracy['count']} of the {accuracy['n']} test photographs right "
            f"({100 * accuracy['rate']:.0f} %, 95 % interval {100 * accuracy['low']:.0f} to "
            f"{100 * accuracy['high']:.0f} %)"
        )
        rates = [row["accuracy"]["rate"] for row in entry["seeds"]]
        if len(rates) > 1:
            text += (
                f"; over {len(rates)} seeds {100 * np.mean(rates):.1f} % on average, standard "
                f"deviation {100 * np.std(rates, ddof=1):.1f} points"
            )
        parts = []
        for attack in attacks:
            if attack["model"] == name:
                won, aim = attack["success"], attack.get("target")
                parts.append(
                    f"{attack['name']}{f' to {aim}' if aim else ''} {won['count']} of {won['n']}"
                )
        sentences.append(
            f"{text}. At epsilon {study.config.epsilon:g} attacks succeed on: {', '.join(parts)}."
        )
    minutes = sum(study.stages.seconds.values()) / 60
    sentences.append(
        "The weights are those of the last epoch, of photo_cnn their moving average. The curves "
        "called validation are of the test photographs and decided nothing. The stages took "
        f"{minutes:.0f} minutes together."
    )
    return sentences


if __name__ == "__main__":
    studies.run_script(main, Config)
