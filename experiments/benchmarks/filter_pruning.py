"""Compares the time and size of networks without the pruned filters with the dense networks.

    python -m experiments.benchmarks.filter_pruning

Expected time: 2 minutes on 2 cores; --quick (narrow networks) takes half a minute. Expected numbers:
README.md. The same fraction of the filters of every layer is removed (`pruning.prune_filters`, L1), and
the network is rebuilt without them (`pruning.shrink`). The networks are timed in turns on the same
batch, compiled ahead of time, on one device with all available cores (`evaluation.compare_latency`).
Their weights are the initial ones, because time and size are the same for any weights. The files are
real ones in float32, without an optimizer.
"""

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import harness
from jaxrobust import evaluation, models, pruning, studies

_IMAGE = (32, 32, 3)
_NUM_CLASSES = 10
_NARROW: dict[str, dict[str, Any]] = {
    "vgg19": {"widths": (16,) * 16},
    "resnet18": {"widths": (8, 16, 32, 64)},
}
PRESETS = {"quick": {"runs": 6, "batch_size": 8, "sparsities": (0.5,)}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(harness.Settings):
    """Settings.

    Attributes:
      networks: Names in `jaxrobust.models.MODELS`.
      sparsities: The fractions of the filters of every layer to remove.
      multiple_of: The number of filters that stay is rounded up to a multiple of this number.
      batch_size: The number of images in a batch.
      runs: The number of measured rounds.
    """

    networks: tuple[str, ...] = ("vgg19", "resnet18")
    sparsities: tuple[float, ...] = (0.1, 0.3, 0.5)
    multiple_of: int = 8
    batch_size: int = 64
    runs: int = 30
    output: Path = Path("results/benchmarks/filter_pruning.json")


def compare(config: Config, name: str) -> Iterator[harness.Row]:
    """Times a network dense and shrunk to every sparsity, with file sizes; yields a row for each."""
    sizes = _NARROW.get(name, {}) if config.quick else {}
    network = models.create(name, _NUM_CLASSES, **sizes)
    variables = network.init(jax.random.key(0), jnp.zeros((1, *_IMAGE)))
    groups = pruning.channel_groups(network.apply, variables, jnp.zeros((1, *_IMAGE)))
    variants = {0.0: models.Classifier(network.apply, variables, 0.5, 0.25)}
    for sparsity in config.sparsities:
        masks = pruning.prune_filters(
            variables["params"], sparsity, groups, multiple_of=config.multiple_of
        )
        small = pruning.shrink(variables, groups, pruning.kept_filters(masks, groups))
        resized = models.resized(network, small)
        variants[sparsity] = models.Classifier(resized.apply, small, 0.5, 0.25)
    images = np.random.default_rng(0).uniform(size=(config.batch_size, *_IMAGE))
    timed = evaluation.compare_latency(
        {str(sparsity): classifier for sparsity, classifier in variants.items()},
        images.astype(np.float32),
        runs=config.runs,
        reference="0.0",
    )
    dense: harness.Row = {}
    for sparsity, classifier in variants.items():
        own = timed["variants"][str(sparsity)]
        row = {"network": name, "noise_floor_ms": timed["noise_floor_ms"], "sparsity": sparsity}
        row |= {fact: own[fact] for fact in ("median_ms", "flops", "difference")}
        weights = jax.tree.leaves(classifier.variables["params"])
        row |= {"parameters": sum(w.size for w in weights), "bytes": _file_size(classifier)}
        dense = dense or row
        row["speedup"] = dense["median_ms"] / row["median_ms"]
        row["shrinkage"] = dense["bytes"] / row["bytes"]
        yield row


def _file_size(classifier: models.Classifier) -> int:
    with tempfile.TemporaryDirectory() as folder:
        plain = models.Classifier(classifier.apply_fn, classifier.variables)
        return models.save(Path(folder) / "network.jrw", plain, sparse=False)


def main(config: Config) -> None:
    """Compares the networks."""
    studies.check_settings(config, networks=tuple(models.MODELS))
    rows = (row for name in config.networks for row in compare(config, name))
    harness.record(config, "filter_pruning", rows)


if __name__ == "__main__":
    jax.devices()  # initialises jax with one device for all cores, which share a batch
    studies.run_script(main, Config, PRESETS)
