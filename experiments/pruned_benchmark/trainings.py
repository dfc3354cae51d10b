"""Base networks, their pruned and fine-tuned versions, and controls that only lack the pruning.

The source's way: SGD with learning rate 0.1, momentum 0.9 (Nesterov) and batches of 128, the rate a
tenth after each milestone; pruning by NNCF's exponential schedule, from 10 % in the first epoch of
fine-tuning on. An epoch of fine-tuning is a training of its own under the masks of that epoch, so that
momentum starts anew with each; the controls do the same with masks that remove nothing.
"""

import dataclasses
import shutil
from typing import Any

import jax
import numpy as np

from experiments.pruned_benchmark import networks
from experiments.pruned_benchmark.config import INITIAL
from experiments.pruned_benchmark.study import Study, Variant
from jaxrobust import evaluation, models, pruning, training
from jaxrobust.studies.outcomes import pack, right_ones

MOMENTUM, FACTOR = 0.9, 0.1  # the factor is of the learning rate, at a milestone
MIN_FILTERS = (
    1  # so that narrow layers too lose the share that is asked for, as near as whole filters allow
)
COMPARED = 64  # images on which the masked and the shrunk network are held against each other


def make(study: Study, variant: Variant) -> dict[str, Any]:
    """Trains a network, saves it as a file, and says what it is; once.

    Returns:
      {"right": of all test images, packed, "parameters", "bytes" of its file, "history",
      "seconds_per_epoch"}, and of all but base networks {"difference": the largest of masked and
      shrunk logits, "kept": share of the channels, coupled ones counted once}.
    """
    train = _base if variant.kind == "base" else _fine_tuned
    facts = study.stages.remember(
        f"train {variant.name}", lambda progress: train(study, variant, progress)
    )
    if not study.path(variant).is_file():
        raise ValueError(
            f"{study.path(variant)} is missing; delete {study.folder} to start anew, or put it back."
        )
    study.facts[variant] = facts
    return facts


def recipe(study: Study, **changes: Any) -> training.Recipe:
    """The source's way of training."""
    config = study.config
    source = training.Recipe(
        batch_size=min(config.batch_size, len(study.train)),
        optimizer=training.SGD(momentum=MOMENTUM, nesterov=True, weight_decay=0.0),
        schedule=training.Constant(config.learning_rate),
        seed=config.seed,
    )
    return dataclasses.replace(source, **changes)


def _data(study: Study) -> training.Data:
    train = study.train.images, study.train.labels
    return training.Data(train, mean=study.dataset.mean, std=study.dataset.std)


def schedule(sparsity: float, num_epochs: int, pruning_epochs: int) -> tuple[float, ...]:
    """The sparsity of every epoch of fine-tuning."""
    if pruning_epochs == 1:
        return (sparsity,) * num_epochs
    rising = pruning.exponential_schedule(sparsity, pruning_epochs, INITIAL)
    return (*rising, *(sparsity,) * (num_epochs - pruning_epochs))


def _base(study: Study, variant: Variant, _: Any) -> dict[str, Any]:
    network = study.network(variant.network)
    config = study.config
    rate: Any = training.Constant(config.learning_rate)
    if config.milestones:
        rate = training.Steps(config.learning_rate, config.milestones, FACTOR)
    folder = study.folder / "training" / variant.stem
    fitted = training.fit(
        network,
        _data(study),
        recipe(study, num_epochs=config.num_epochs, schedule=rate),
        run_dir=folder,
    )
    facts = _facts(study, variant, fitted.variables, {})
    shutil.rmtree(folder, ignore_errors=True)
    return facts | {
        "history": list(fitted.history),
        "seconds_per_epoch": fitted.seconds_per_epoch,
    }


def _fine_tuned(study: Study, variant: Variant, progress: Any) -> dict[str, Any]:
    config, groups = study.config, study.groups(variant.network)
    network = study.network(variant.network)
    variables = study.classifier(Variant(variant.network)).variables
    sparsities = (0.0,) * config.fine_tuning_epochs  # of a control
    if variant.kind != "control":
        sparsities = schedule(variant.sparsity, config.fine_tuning_epochs, config.pruning_epochs)
    masks, history, folder = None, [], study.folder / "training" / variant.stem
    key = jax.random.fold_in(study.key, 1)
    for epoch, sparsity in enumerate(sparsities):
        # A control keeps all filters, whatever they score.
        criterion = "l1" if variant.kind == "control" else variant.kind
        masks = pruning.prune_filters(
            variables["params"],
            sparsity,
            groups,
            masks=masks,
            criterion=criterion,
            key=key if criterion == "random" else None,
            min_filters=MIN_FILTERS,
        )
        passed = sum(milestone <= epoch for milestone in config.fine_tuning_milestones)
        fitted = training.fit(
            network,
            _data(study),
            recipe(
                study,
                num_epochs=1,
                schedule=training.Constant(config.learning_rate * FACTOR**passed),
                # The same order for all pruned networks and the first control.
                seed=1000 * (config.seed + 1 + variant.number) + epoch,
            ),
            run_dir=folder / f"epoch-{epoch}",
            variables=variables,
            masks=masks,
            progress=False,
        )
        variables = fitted.variables
        history.append(dict(fitted.history[0]) | {"epoch": epoch + 1, "sparsity": sparsity})
        progress(epoch + 1, len(sparsities))
    assert masks is not None  # there is at least one epoch
    keep = pruning.kept_filters(masks, groups)
    small = pruning.shrink(variables, groups, keep)
    # A control is the base network itself, by its name too: what is compiled for it serves both.
    is_control = variant.kind == "control"
    widths = {} if is_control else networks.widths(models.resized(network, small))
    facts = _facts(study, variant, small, widths)
    images = study.test.images[:COMPARED]
    masked = evaluation.logits(study.as_classifier(network, variables), images)
    shrunk = evaluation.logits(study.classifier(variant), images)
    shutil.rmtree(folder, ignore_errors=True)
    return facts | {
        "history": history,
        "seconds_per_epoch": fitted.seconds_per_epoch,
        "difference": float(np.abs(masked - shrunk).max()),
        "kept": sum(map(len, keep.values())) / sum(groups.sizes.values()),
    }


def _facts(study: Study, variant: Variant, variables: Any, widths: Any) -> dict[str, Any]:
    """Saves a network, and says what it has right."""
    size = study.save(variant, variables, widths)
    classifier = study.classifier(variant)
    right = right_ones(classifier, study.test.images, study.test.labels)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return {"right": pack(right), "parameters": count, "bytes": size}
