"""Makes and trains the networks of the study, and prunes them during fine-tuning."""

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from jaxrobust import models, pruning, training
from jaxrobust.types import Progress

# As in the source: SGD with learning rate 0.1, momentum 0.9 (Nesterov) and batches of 128, where the
# rate falls to a tenth after each milestone; pruning by NNCF's exponential schedule, which begins at
# 10 % in the first epoch of fine-tuning. By default NNCF leaves out the first convolution, those with a
# stride, and all layers that share channels with one of them, and it keeps a multiple of 8 filters
# (nncf/common/pruning/node_selector.py and utils.py of NNCF 2.4). Each epoch of fine-tuning is a
# separate training under the masks of that epoch, so momentum starts anew; the controls do the same
# with masks that remove nothing.
MOMENTUM, FACTOR = 0.9, 0.1  # the factor is that of the learning rate at a milestone
INITIAL = 0.1  # the sparsity of the first epoch of fine-tuning, the source's pruning_init
MIN_FILTERS = 1  # so that narrow layers also lose nearly the requested share
CONSTANTS = (MOMENTUM, FACTOR, MIN_FILTERS, INITIAL)


@dataclasses.dataclass(frozen=True)
class Network:
    """A base network: a name in `jaxrobust.models.MODELS`, and sizes that differ from the published."""

    family: str  # in MODELS; the source's figures of this family are shown beside
    sizes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    words: str = "as published, for 32x32 pixels"  # a description for readers

    def create(self, num_classes: int) -> nn.Module:
        """Returns the network without weights."""
        return models.create(self.family, num_classes, **self.sizes)


class Labelled(NamedTuple):
    """The label of a criterion for removing filters, and the criterion if the library lacks it."""

    label: str
    own: pruning.Criterion | None = None


def described(own: pruning.Criterion) -> Any:
    """Returns the form of a criterion in a run's settings: its source code and non-default fields."""
    scores = inspect.getsource(own.score) if inspect.isfunction(own.score) else own.score
    if own == pruning.Criterion(own.score):
        return scores
    return {"score": scores, "needs": own.needs, "normalises": own.normalises}


# (network without the removed filters, its variables, the record of its training)
TrainedNetwork = tuple[nn.Module, Any, dict[str, Any]]


def shapes(network: nn.Module, image: Any) -> Any:
    """Returns the shapes of a network's weights for images [1, H, W, C], without making the weights."""
    return jax.eval_shape(network.init, jax.random.key(0), image)


@functools.cache
def num_parameters(family: str, num_classes: int) -> int:
    """Returns the number of parameters of a network of the source, for 32x32 pixels."""
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    found = shapes(models.create(family, num_classes), image)
    return sum(leaf.size for leaf in jax.tree.leaves(found["params"]))


def recipe(settings: Any, num_train: int, **changes: Any) -> training.Recipe:
    """Returns the source's recipe."""
    source = training.Recipe(
        batch_size=min(settings.batch_size, num_train),
        optimizer=training.SGD(momentum=MOMENTUM, nesterov=True, weight_decay=0.0),
        schedule=training.Constant(settings.learning_rate),
        seed=settings.seed,
    )
    return dataclasses.replace(source, **changes)


def unpruned(groups: pruning.ChannelGroups, settings: Any) -> list[str]:
    """Returns the groups of channels that are not pruned."""
    first = () if settings.prune_first_conv else groups.first_layers
    strided = () if settings.prune_downsample_convs else groups.downsampling_layers
    return [*first, *strided]


def schedule(sparsity: float, num_epochs: int, pruning_epochs: int) -> list[float]:
    """Returns the sparsity of every epoch of fine-tuning."""
    if pruning_epochs == 1:
        return [sparsity] * num_epochs
    rising = pruning.exponential_schedule(sparsity, pruning_epochs, INITIAL)
    return [*rising, *[sparsity] * (num_epochs - pruning_epochs)]


def train(settings: Any, images: training.Data, network: nn.Module, folder: Path) -> TrainedNetwork:
    """Trains a base network; checkpoints go into `folder` while it is under way."""
    milestones = settings.milestones or (settings.num_epochs,)  # at the end, so without effect
    rate = training.Steps(settings.learning_rate, milestones, FACTOR)
    way = recipe(settings, len(images.train[1]), num_epochs=settings.num_epochs, schedule=rate)
    fitted = training.fit(network, images, way, run_dir=folder)
    kept = {"history": list(fitted.history), "seconds_per_epoch": fitted.seconds_per_epoch}
    return network, fitted.variables, kept


def fine_tune(
    settings: Any,
    images: training.Data,
    network: nn.Module,
    folder: Path,
    variables: Any,
    variant: Any,
    criterion: Labelled | None,
    progress: Progress,
) -> TrainedNetwork:
    """Fine-tunes a base network from `variables` and prunes it; without a criterion it is a control."""
    num_epochs, sparsities = settings.fine_tuning_epochs, [0.0] * settings.fine_tuning_epochs
    if criterion is not None:  # a control keeps all filters, whatever their scores
        sparsities = schedule(variant.sparsity, num_epochs, settings.pruning_epochs)
    image = jax.ShapeDtypeStruct((1, *images.train[0].shape[1:]), np.float32)
    groups = pruning.channel_groups(network.apply, shapes(network, image), image)
    budget: dict[str, Any] = {"min_filters": MIN_FILTERS, "multiple_of": settings.multiple_of}
    budget["exclude"] = unpruned(groups, settings)
    key = jax.random.fold_in(jax.random.key(settings.seed), 1)
    scored = pruning.CRITERIA["l1"]
    if criterion is not None:
        scored = criterion.own or pruning.CRITERIA[variant.kind]
    seed = key if scored.needs == "key" else None
    keep, history = None, []
    for epoch, sparsity in enumerate(sparsities):
        scores = pruning.filter_scores(variables["params"], groups, scored, key=seed, keep=keep)
        keep = pruning.keep_filters(scores, sparsity, previous=keep, **budget)
        masks = pruning.filter_masks(variables["params"], groups, keep)
        passed = sum(milestone <= epoch for milestone in settings.fine_tuning_milestones)
        way = recipe(
            settings,
            len(images.train[1]),
            num_epochs=1,
            schedule=training.Constant(settings.learning_rate * FACTOR**passed),
            # The same order of the images for all pruned networks and the first control.
            seed=1000 * (settings.seed + 1 + (variant.number or 0)) + epoch,
        )
        more = {"variables": variables, "masks": masks, "progress": False}
        fitted = training.fit(network, images, way, run_dir=folder / f"epoch-{epoch}", **more)
        variables = fitted.variables
        history.append(dict(fitted.history[0]) | {"epoch": epoch + 1, "sparsity": sparsity})
        progress(f"epoch {epoch + 1}", epoch + 1, num_epochs)
    assert keep is not None  # there is at least one epoch
    small = pruning.shrink(variables, groups, keep)
    # The share of the channels that is left, where coupled channels count once.
    left = sum(map(len, keep.values())) / sum(groups.sizes.values())
    kept = {"history": history, "seconds_per_epoch": fitted.seconds_per_epoch, "kept": left}
    # A control has the same network object as the base, so both share compiled programs.
    shrunk = network if criterion is None else models.resized(network, small)
    return shrunk, small, kept | {"masked": variables}
