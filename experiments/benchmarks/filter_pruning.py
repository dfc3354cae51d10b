"""How much faster and smaller networks are whose filters have been taken out, against the dense ones.

    python -m experiments.benchmarks.filter_pruning

Expected time: 2 minutes on 2 cores; with --quick (narrow networks, few runs: a rehearsal, not a
measurement) half a minute. Expected numbers: README.md.

Every layer loses the same share of its filters (`pruning.prune_filters`, L1) and the network is rebuilt
without them (`pruning.shrink`). Dense and shrunk networks take turns on the same batch, compiled ahead
of time, on one device with all the cores that this process may use (`evaluation.compare_latency`).
Their weights are the initial ones: time and size are the same for any. Files are real ones, float32
weights and statistics, no optimizer.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.parity.peers import num_cores
from jaxrobust import checks, evaluation, files, models, pruning, studies

_IMAGE = (32, 32, 3)
_NUM_CLASSES = 10
_NARROW: dict[str, dict[str, Any]] = {
    "vgg19": {"widths": (16,) * 16},
    "resnet18": {"widths": (8, 16, 32, 64)},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      networks: Names in `jaxrobust.models.MODELS`.
      sparsities: Fractions of the filters of every layer to remove.
      multiple_of: The filters that stay are rounded up to a multiple of this.
      batch_size: Images in a batch.
      runs: Measured rounds.
      output: Where the JSON goes.
      quick: Narrow networks, few runs: to see that everything runs.
    """

    networks: tuple[str, ...] = ("vgg19", "resnet18")
    sparsities: tuple[float, ...] = (0.1, 0.3, 0.5)
    multiple_of: int = 8
    batch_size: int = 64
    runs: int = 30
    output: Path = Path("results/benchmarks/filter_pruning.json")
    quick: bool = False


def main(config: Config) -> None:
    """Times the networks and prints a line for each."""
    for name in ("multiple_of", "batch_size", "runs"):
        checks.integer(name, getattr(config, name), minimum=1)
    for name in config.networks:
        checks.one_of("networks", name, tuple(models.MODELS))
    if config.quick:
        config = dataclasses.replace(config, runs=6, batch_size=8, sparsities=(0.5,))
    rows = []
    for name in config.networks:
        rows.append(compare(config, name))
        for line in describe(rows[-1]):
            print(line, flush=True)
    output = config.output
    output = output.with_stem(f"{output.stem}_quick") if config.quick else output
    document = {
        "config": studies.configuration(config),
        "environment": studies.environment() | {"num_cores": num_cores()},
        "rows": rows,
    }
    files.write_json(output, document)
    print(f"Written to {output}.")


def compare(config: Config, name: str) -> dict[str, Any]:
    """Times a network dense and shrunk to every sparsity, and weighs their files."""
    sizes = _NARROW.get(name, {}) if config.quick else {}
    network = models.create(name, _NUM_CLASSES, **sizes)
    variables = network.init(jax.random.key(0), jnp.zeros((1, *_IMAGE)))
    groups = pruning.channel_groups(network.apply, variables, jnp.zeros((1, *_IMAGE)))
    variants = {0.0: (network, variables)}
    for sparsity in config.sparsities:
        masks = pruning.prune_filters(
            variables["params"], sparsity, groups, multiple_of=config.multiple_of
        )
        small = pruning.shrink(variables, groups, pruning.kept_filters(masks, groups))
        variants[sparsity] = (models.resized(network, small), small)
    images = np.random.default_rng(0).uniform(size=(config.batch_size, *_IMAGE))
    timed = evaluation.compare_latency(
        {str(s): models.Classifier(n.apply, v, 0.5, 0.25) for s, (n, v) in variants.items()},
        images.astype(np.float32),
        runs=config.runs,
        reference="0.0",
    )
    return {
        "network": name,
        "noise_floor_ms": timed["noise_floor_ms"],
        "variants": [
            {
                "sparsity": sparsity,
                "parameters": sum(leaf.size for leaf in jax.tree.leaves(v["params"])),
                "bytes": _file_size(n, v),
                "median_ms": timed["variants"][str(sparsity)]["median_ms"],
                "flops": timed["variants"][str(sparsity)]["flops"],
                "difference": timed["variants"][str(sparsity)]["difference"],
            }
            for sparsity, (n, v) in variants.items()
        ],
    }


def _file_size(network: Any, variables: Any) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.jrw"
        return models.save(path, models.Classifier(network.apply, variables), sparse=False)


def describe(row: dict[str, Any]) -> list[str]:
    """A line for every sparsity."""
    dense = row["variants"][0]
    return [
        f"{row['network']}, {100 * entry['sparsity']:g} % of the filters removed: "
        f"{entry['median_ms']:.1f} ms, {dense['median_ms'] / entry['median_ms']:.2f} times as fast as "
        f"dense (noise floor {row['noise_floor_ms']:.1f} ms); file {entry['bytes'] / 1e6:.1f} MB, "
        f"{dense['bytes'] / entry['bytes']:.2f} times smaller"
        for entry in row["variants"]
    ]


if __name__ == "__main__":
    import tyro

    # Not `studies.run_script`, which makes a device of every core: here all cores share a batch.
    main(tyro.cli(Config, description=__doc__))
