"""Problem C: is there a lottery ticket? One-shot, iterative, rewound and random masks compared."""

import dataclasses
from typing import Any

import jax
import numpy as np

from experiments.sports10.study import Study, masked, percent, points, rate_of, right
from jaxrobust import evaluation, models, pruning, training
from jaxrobust.studies import blocks

PART = "c"
NETWORK = "simple_cnn"  # the one of which report B claims it, and small enough to train often
ROUNDS = 2

TICKET = "iterative, rewound to the first weights (lottery ticket)"
OTHER_WEIGHTS = "the ticket's mask, other first weights"
RANDOM = "random mask, trained from the first weights"
ONE_SHOT = "one-shot mask, trained from the first weights"


def section(study: Study) -> list[dict[str, Any]]:
    """The comparison, where the network is part of the run."""
    if NETWORK not in study.config.models:
        return []
    return [study.stages.remember("lottery tickets", lambda progress: _compare(study, progress))]


def _compare(study: Study, progress: Any) -> dict[str, Any]:
    rows, split = study.fold_rows()[0][0], study.held_out(NETWORK, 0)
    seed, sparsity = study.config.seed, study.config.sparsities[-1]
    recipe = dataclasses.replace(study.recipe(NETWORK), seed=seed)
    dense = study.trained_on_fold(NETWORK, 0).variables
    network = models.create(NETWORK, len(study.class_names))

    def initial(seed: int) -> Any:
        return training.initial_variables(network, split.images.shape[1:], seed)

    def retrain(words: str, variables: Any, masks: Any, settings: Any) -> Any:
        return study.fit(
            NETWORK,
            words,
            settings,
            rows=rows,
            variables=masked(variables, masks),
            masks=masks,
        ).variables

    tuning = dataclasses.replace(study.fine_tuning(NETWORK), seed=seed)
    found: dict[str, tuple[str, Any]] = {}
    one_shot = pruning.global_magnitude(dense["params"], sparsity)
    found["one-shot, fine-tuned"] = (
        f"{tuning.num_epochs} epochs",
        study.prune(NETWORK, dense, sparsity, "fold 0", seed=seed, rows=rows)[2],
    )
    progress(1, 6)
    schedule = pruning.geometric_schedule(sparsity, 1 if study.config.quick else ROUNDS)
    variables, masks = dense, None
    for i, level in enumerate(schedule):
        masks = pruning.global_magnitude(variables["params"], level, masks=masks)
        variables = retrain(f"{NETWORK} iterative, round {i}", variables, masks, tuning)
    found["iterative, fine-tuned"] = (f"{len(schedule)} x {tuning.num_epochs} epochs", variables)
    progress(2, 6)
    variables, masks = dense, None
    for i, level in enumerate(schedule):
        masks = pruning.global_magnitude(variables["params"], level, masks=masks)
        variables = retrain(f"{NETWORK} rewound, round {i}", initial(seed), masks, recipe)
    found[TICKET] = (
        f"{len(schedule)} x {recipe.num_epochs} epochs",
        variables,
    )
    progress(3, 6)
    found[OTHER_WEIGHTS] = (
        f"{recipe.num_epochs} epochs",
        retrain(
            f"{NETWORK} ticket, other weights",
            initial(seed + 1),
            masks,
            recipe,
        ),
    )
    progress(4, 6)
    random_masks = pruning.random(jax.random.key(seed), dense["params"], sparsity)
    found[RANDOM] = (
        f"{recipe.num_epochs} epochs",
        retrain(f"{NETWORK} random mask", initial(seed), random_masks, recipe),
    )
    progress(5, 6)
    found[ONE_SHOT] = (
        f"{recipe.num_epochs} epochs",
        retrain(f"{NETWORK} one-shot mask", initial(seed), one_shot, recipe),
    )
    answers = {
        name: right(study.classifier(NETWORK, variables), split)
        for name, (_, variables) in found.items()
    }
    base = right(study.classifier(NETWORK, dense), split)
    table: list[list[Any]] = [["dense", f"{recipe.num_epochs} epochs", rate_of(base), None, None]]
    for row in _compared(answers, base):
        table.append([row[0], found[row[0]][0], rate_of(answers[row[0]]), *row[1:]])
    others = {name: answers[name] for name in (OTHER_WEIGHTS, RANDOM, ONE_SHOT)}
    gap = blocks.column("Difference", unit="points", decimals=1)
    p_value = blocks.column("p", decimals=3)
    return blocks.section(
        "tickets",
        f"Lottery tickets of {NETWORK} at {percent(sparsity)} sparsity",
        [
            blocks.table(
                ["Network", "Training after pruning", "Held-out accuracy", gap, p_value],
                table,
                f"Trained on one fold's {len(rows)} photographs and counted on its {len(split)} "
                "others. Differences to the dense network, paired, with 95 % intervals; McNemar's p "
                "with Holm's correction. One seed. No difference found is no proof of equality.",
                title="Against the dense network",
            ),
            blocks.table(
                ["The ticket against", gap, p_value],
                _compared(others, answers[TICKET], turned=True),
                "Positive: the ticket is better. Its rounds have trained "
                f"{len(schedule)} times as long together as the others.",
                title="Against what a ticket must beat",
            ),
        ],
        part=PART,
        text=[
            "Report B calls a network at 50 % sparsity a lottery ticket because it has two "
            "photographs of 50 more than one at 20 %. A ticket in the sense of Frankle and Carbin "
            "is a mask whose weights, set back to their first values, train to the dense network's "
            "accuracy where other first weights and other masks do not. That is what these rows "
            "compare; whether pruning by itself helps is answered by the folds in the section on "
            "sparsity."
        ],
    )


def _compared(
    answers: dict[str, np.ndarray], base: np.ndarray, turned: bool = False
) -> list[list[Any]]:
    """[name, its difference to the base (turned: the base's to it), p] of each."""
    tests = [evaluation.mcnemar(answer, base)["p_value"] for answer in answers.values()]
    return [
        [name, points(evaluation.paired_difference(*((base, a) if turned else (a, base)))), p]
        for (name, a), p in zip(answers.items(), evaluation.holm(tests), strict=True)
    ]
