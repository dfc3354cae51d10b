"""How many images a second PGD attacks on networks that users wrote, against torchattacks.

    python -m experiments.benchmarks.any_network --peer-python PEER/bin/python

Expected time: 12 minutes on 2 cores with `--rounds 2`, 4 minutes with `--num-steps 10` besides; the
full run takes half an hour. Expected numbers: README.md.

PEER is a virtual environment with torch and torchattacks; this one needs equinox and dm-haiku besides:
    python3 -m venv PEER && PEER/bin/pip install torch torchattacks

Weights come from the peer, exactly; both sides must agree on the logits to 1e-4 of the largest before
anything is timed. The sides take turns, so drift of the machine meets all. Compilation is reported
apart. With JAXROBUST_PLAIN=1 the same networks are evaluated as they are, with JAXROBUST_ONEDNN=1 by
another library's convolutions.
"""

import dataclasses
from pathlib import Path
from typing import Any

from experiments.benchmarks import users_networks as users
from experiments.benchmarks.attack_throughput import Config as Throughput
from experiments.benchmarks.attack_throughput import Network, compare, of_the_library, say
from jaxrobust import compilation, files, studies


@dataclasses.dataclass(frozen=True)
class Config(Throughput):
    """Settings of the benchmark: those of attack_throughput, and a rehearsal.

    Attributes:
      peer_python: Python of an environment with torch and torchattacks.
      rounds: How often each side runs; the medians are compared.
      num_steps: Of PGD.
      num_threads: That PyTorch may use.
      quick: One round of 2 steps: a rehearsal, not a measurement.
      output: Where the JSON goes.
    """

    rounds: int = 5
    quick: bool = False
    output: Path = Path("results/benchmarks/any_network.json")


# (PyTorch's network, batch, ours by the names of their rows).
CASES: tuple[tuple[str, int, dict[str, Network]], ...] = (
    ("resnet20", 96, {"resnet20 of jax.lax": users.in_lax}),
    (
        "resnet_small",
        64,
        {
            "resnet_small of the library": of_the_library,
            "resnet_small in linen": users.in_linen,
            "resnet_small in nnx": users.in_nnx,
            "resnet_small in equinox": users.in_equinox,
        },
    ),
    ("vgg", 64, {"vgg in haiku": users.in_haiku}),
    ("mobilenet_v2", 32, {"mobilenet_v2 in nnx": users.in_nnx}),
)


def main(config: Config) -> None:
    """Compares all networks and prints a line for each; a case is written as soon as it is measured."""
    if config.quick:
        config = dataclasses.replace(config, rounds=1, num_steps=2)
    document: dict[str, Any] = {
        "environment": studies.environment(),
        "compiler_options": compilation.compiler_options(),
        "fast_forms": compilation.has_fast_forms(),
        "onednn": compilation.with_onednn(),
        "quick": config.quick,
        "rows": [],
    }
    for name, batch_size, networks in CASES:
        rows = compare(config, name, batch_size, networks, num_steps=config.num_steps)
        for row in rows:
            say(row, config.rounds)
        document["rows"] += rows
        files.write_json(config.output, document)
    print(f"Written to {config.output}.")


if __name__ == "__main__":
    studies.run_script(main, Config)
