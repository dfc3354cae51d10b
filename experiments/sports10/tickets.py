"""Problem C: is there a lottery ticket? One-shot, iterative, rewound and random masks compared."""

import dataclasses
from typing import Any

import jax
import numpy as np

from experiments.sports10.study import Study, percent
from jaxrobust import evaluation, models, pruning
from jaxrobust.evaluation.classification import predictions
from jaxrobust.studies import blocks

PART = "c"
NETWORK = "simple_cnn"  # the one of which report B claims it, and small enough to train often
ROUNDS = 2


def section(study: Study) -> list[dict[str, Any]]:
    """The comparison, where the network is part of the run."""
    if NETWORK not in study.compressed:
        return []
    return [study.stages.remember("lottery tickets", lambda progress: _compare(study, progress))]


def _compare(study: Study, progress: Any) -> dict[str, Any]:
    rows, held_out = study.fold_rows()[0]
    dataset, config = study.dataset(NETWORK), study.recipe(NETWORK)
    seed = study.config.seed
    sparsity = study.config.sparsities[-1]
    train = dataset.train
    images, labels = train.images[held_out], train.labels[held_out]
    recipe = dataclasses.replace(config, seed=seed)
    dense = study.fit(NETWORK, f"train {NETWORK}, fold 0", recipe, rows=rows).variables
    network = models.create(NETWORK, dataset.num_classes)
    shape = (1, *train.images.shape[1:])
    # As `training.fit` draws them, so that a rewound network starts where the dense one did.
    initial = network.init(
        jax.random.split(jax.random.key(seed), 3)[0], np.zeros(shape, np.float32)
    )

    def right(variables: Any) -> np.ndarray:
        logits = evaluation.logits(study.classifier(NETWORK, variables), images)
        return predictions(logits) == labels

    def retrain(words: str, variables: Any, masks: Any, settings: Any) -> Any:
        cut = dict(variables) | {"params": pruning.apply_masks(variables["params"], masks)}
        return study.fit(NETWORK, words, settings, rows=rows, variables=cut, masks=masks).variables

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
        variables = retrain(f"{NETWORK} rewound, round {i}", initial, masks, recipe)
    found["iterative, rewound to the first weights (lottery ticket)"] = (
        f"{len(schedule)} x {recipe.num_epochs} epochs",
        variables,
    )
    progress(3, 6)
    found["the ticket's mask, other first weights"] = (
        f"{recipe.num_epochs} epochs",
        retrain(
            f"{NETWORK} ticket, other weights",
            network.init(jax.random.key(seed + 1), np.zeros(shape, np.float32)),
            masks,
            recipe,
        ),
    )
    progress(4, 6)
    random_masks = pruning.random(jax.random.key(seed), dense["params"], sparsity)
    found["random mask, trained from the first weights"] = (
        f"{recipe.num_epochs} epochs",
        retrain(f"{NETWORK} random mask", initial, random_masks, recipe),
    )
    progress(5, 6)
    found["one-shot mask, trained from the first weights"] = (
        f"{recipe.num_epochs} epochs",
        retrain(f"{NETWORK} one-shot mask", initial, one_shot, recipe),
    )
    base = right(dense)
    answers = {name: right(variables) for name, (_, variables) in found.items()}
    tests = evaluation.holm(
        [evaluation.mcnemar(answer, base)["p_value"] for answer in answers.values()]
    )
    table: list[list[Any]] = [["dense", f"{recipe.num_epochs} epochs", _rate(base), None, None]]
    for (name, answer), p_value in zip(answers.items(), tests, strict=True):
        gap = evaluation.paired_difference(answer, base)
        points = blocks.estimate(gap["difference"], gap["low"], gap["high"], 100)
        table.append([name, found[name][0], _rate(answer), points, p_value])
    return blocks.section(
        "tickets",
        f"Lottery tickets of {NETWORK} at {percent(sparsity)} sparsity",
        [
            blocks.table(
                [
                    "Network",
                    "Training after pruning",
                    "Held-out accuracy",
                    blocks.column("Against dense", unit="points", decimals=1),
                    blocks.column("p", decimals=3),
                ],
                table,
                f"Trained on one fold's {len(rows)} photographs and counted on its {len(labels)} "
                "others; paired differences with 95 % intervals, McNemar's p with Holm's "
                "correction. One seed.",
            )
        ],
        part=PART,
        text=[
            "Report B calls a network at 50 % sparsity a lottery ticket because it has two "
            "photographs of 50 more than one at 20 %. A ticket in the sense of Frankle and Carbin "
            "is a mask whose weights, set back to their first values, train to the dense network's "
            "accuracy where other first weights do not. That is what these rows compare; whether "
            "pruning by itself helps is answered by the folds in the section on sparsity."
        ],
    )


def _rate(right: np.ndarray) -> evaluation.Rate:
    return evaluation.rate(int(right.sum()), len(right))
