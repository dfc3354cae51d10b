"""Problem A: accuracy with its certainty, confusions, and what the answers rest on."""

import functools
import itertools
from collections import Counter
from typing import Any

import jax
import numpy as np

from experiments.sports10 import folds
from experiments.sports10.config import OURS
from experiments.sports10.networks import SUBJECTS
from experiments.sports10.study import Study, estimate
from jaxrobust import evaluation, studies
from jaxrobust.evaluation.classification import softmax
from jaxrobust.studies import blocks

PART = "a"
_CHOICE = (
    " The recipe of photo_cnn was chosen on folds of the same photographs, its last steps (five "
    "trainings, answered at several sizes) on those of seed 0, so its figure here may be a little "
    "too high. When these steps were taken, the test photographs that the recipe before them has "
    "right were known (42 to 45 of 50)."
)


def model_entries(study: Study) -> list[dict[str, Any]]:
    """Every network of the first seed as the report shows it, with the accuracy of all seeds."""
    return [
        study.stages.remember(f"evaluate {name}", functools.partial(_model_entry, study, name))
        for name in study.config.models
    ]


def _model_entry(study: Study, name: str, _: Any) -> dict[str, Any]:
    fitted, test = study.trained(name, study.config.seed), study.test(name)
    entry = studies.model_entry(
        name,
        study.base(name),
        test.images,
        test.labels,
        study.class_names,
        params=fitted.variables["params"],
        history=fitted.history,
        seconds_per_epoch=fitted.seconds_per_epoch,
        description=_description(study, name),
    )
    accuracies = [
        evaluation.evaluate(
            study.classifier(name, study.trained(name, seed).variables), test.images, test.labels
        )["accuracy"]
        for seed in study.seeds_of(name)
    ]
    seeds = zip(study.seeds_of(name), accuracies, strict=True)
    return entry | {"seeds": [{"seed": seed, "accuracy": accuracy} for seed, accuracy in seeds]}


def _description(study: Study, name: str) -> str:
    """What the network takes, how it was trained, and where it comes from."""
    recipe: Any = study.recipe(name)
    subject = SUBJECTS[name]
    words = [f"{subject.image_size}x{subject.image_size} pixels", f"{recipe.num_epochs} epochs"]
    optimizer = type(recipe.optimizer).__name__
    words.append(f"{optimizer}, learning rate {recipe.schedule.learning_rate:g}")
    if recipe.objective.label_smoothing:
        words.append(f"label smoothing {recipe.objective.label_smoothing:g}")
    if recipe.averaging:
        words.append(f"the weights' moving average (decay {recipe.averaging.decay:g})")
    return f"{', '.join(words)}; {subject.source}"


def sections(study: Study, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The sections of this part, in the order of the report."""
    return [
        _photographs(study),
        _certainty(study, entries),
        *_ensembles(study),
        _confusions(entries),
    ]


def _photographs(study: Study) -> dict[str, Any]:
    dataset = study.dataset(study.config.models[0])
    counts = np.bincount(dataset.train.labels, minlength=dataset.num_classes)
    tests = np.bincount(dataset.test.labels, minlength=dataset.num_classes)
    rows = [
        [name, int(count), int(test)]
        for name, count, test in zip(study.class_names, counts, tests, strict=True)
    ]
    least, most = int(counts.argmin()), int(counts.argmax())
    text = (
        f"Of the training photographs {study.class_names[most]} has the most ({counts[most]}) and "
        f"{study.class_names[least]} the fewest ({counts[least]})."
    )
    if (counts[most], counts[least]) == (191, 131):
        text += (
            " Report B says that basketball has 191 and golf 131: the numbers are right, the "
            "classes are not."
        )
    return blocks.section(
        "photographs",
        "Photographs of each class",
        [blocks.table(["Class", "Training", "Test"], rows, folded=True, title="Counts")],
        part=PART,
        text=[text],
    )


def _certainty(study: Study, entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Seeds, folds and paired tests: which differences between networks are real."""
    found = {name: folds.outcomes(study, name) for name in study.folded}
    rows, right = [], {}
    for entry in entries:
        name = entry["name"]
        rates = [row["accuracy"]["rate"] for row in entry["seeds"]]
        held_out: Any = None
        if name in found:
            right[name] = np.array(found[name]["right"]["dense"], bool)
            held_out = evaluation.rate(int(right[name].sum()), len(right[name]))
        rows.append(
            [
                name,
                entry["num_parameters"],
                entry["evaluation"]["accuracy"],
                estimate(np.array(rates)) if len(rates) > 1 else None,
                ", ".join(f"{row['accuracy']['count']}" for row in entry["seeds"]),
                held_out,
            ]
        )
    study.facts["held out"] = {
        name: evaluation.rate(int(values.sum()), len(values)) for name, values in right.items()
    }
    study.facts["tests"] = {entry["name"]: entry["seeds"] for entry in entries}
    pairs = []
    study.facts["pairs"] = []
    names = list(right)
    tests = [
        (a, b, evaluation.mcnemar(right[a], right[b]))
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    ]
    adjusted = evaluation.holm([test["p_value"] for _, _, test in tests]) if tests else []
    for (a, b, test), p_value in zip(tests, adjusted, strict=True):
        gap = evaluation.paired_difference(right[b], right[a])
        better = b if gap["difference"] > 0 else a
        study.facts["pairs"].append({"names": [a, b], "better": better, "p_value": p_value})
        pairs.append(
            [
                f"{b} against {a}",
                blocks.estimate(gap["difference"], gap["low"], gap["high"], 100),
                test["only_b"],
                test["only_a"],
                p_value,
                f"{better} is better" if p_value < 0.05 else "not shown",
            ]
        )
    return blocks.section(
        "certainty",
        "How sure the accuracies are",
        [
            blocks.table(
                [
                    "Network",
                    blocks.column("Parameters", decimals=0),
                    "Test, first seed",
                    blocks.column("Test, mean of seeds", unit="%", decimals=1),
                    "Right of the test set, seed by seed",
                    f"Cross-validation, {study.config.num_folds} folds",
                ],
                rows,
                "One test photograph of 50 is two points, so the interval of one accuracy spans "
                "about 20. The mean of the seeds has a 95 % Student interval: it says how much "
                "training scatters, and not how much other photographs would. Cross-validation "
                "trains on all folds of the training photographs but one and counts that one, so "
                "each photograph once." + (_CHOICE if OURS in study.config.models else ""),
            ),
            blocks.table(
                [
                    "Networks",
                    blocks.column("Difference", unit="points", decimals=1),
                    "Only the first right",
                    "Only the second right",
                    blocks.column("p", decimals=4),
                    "Verdict",
                ],
                pairs,
                "Paired on the held-out photographs of the folds: exact McNemar tests with Holm's "
                "correction for their number, and 95 % intervals of Newcombe. They are of these "
                "trained networks; how much training anew would change is in the seeds above.",
            ),
        ],
        part=PART,
    )


def _ensembles(study: Study) -> list[dict[str, Any]]:
    """Networks that differ in their seed, answering together."""
    name, seeds = study.chosen, study.seeds_of(study.chosen)
    if len(seeds) < 2:
        return []
    test = study.test(name)
    members = [study.classifier(name, study.trained(name, seed).variables) for seed in seeds]
    probabilities = [softmax(evaluation.logits(member, test.images)) for member in members]
    size = sum(leaf.size for leaf in jax.tree.leaves(members[0].variables["params"]))
    rows = []
    for count in range(1, len(seeds) + 1):
        right = [
            int((np.mean(chosen, axis=0).argmax(axis=1) == test.labels).sum())
            for chosen in itertools.combinations(probabilities, count)
        ]
        listed = f"{min(right)} to {max(right)}" if len(right) > 1 else str(right[0])
        rows.append([count, count * size, len(right), np.mean(right) / len(test), listed])
    return [
        blocks.section(
            "ensembles",
            f"{name}: several seeds as one network",
            [
                blocks.table(
                    [
                        blocks.column("Members", decimals=0),
                        blocks.column("Parameters", decimals=0),
                        blocks.column("Choices of members", decimals=0),
                        blocks.column("Accuracy, mean of the choices", unit="%", decimals=1),
                        f"Right of the {len(test)} test photographs",
                    ],
                    rows,
                    "The members' mean probabilities answer; every choice of that many seeds. The "
                    "choices share members, so they scatter less than ensembles trained apart would. "
                    "That ensembles are here at all was decided when the single networks' figures on "
                    "the test photographs were known; they were not cross-validated.",
                )
            ],
            part=PART,
        )
    ]


def _confusions(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The most frequent mistakes of each network."""
    rows = []
    for entry in entries:
        matrix = entry["evaluation"]["confusion_matrix"]
        names = [row["class"] for row in entry["evaluation"]["per_class"]]
        wrong = Counter(
            {
                (names[i], names[j]): count
                for i, counts in enumerate(matrix)
                for j, count in enumerate(counts)
                if i != j and count
            }
        )
        shown = [f"{a} as {b} ({count})" for (a, b), count in wrong.most_common(4)]
        rows.append([entry["name"], sum(wrong.values()), ", ".join(shown)])
    return blocks.section(
        "confusions",
        "The most frequent mistakes",
        [
            blocks.table(
                ["Network", "Wrong", "Most frequent"],
                rows,
                "Of the test photographs; with five of a class, a mistake seen once or twice says "
                "little about the class.",
            )
        ],
        part=PART,
    )
