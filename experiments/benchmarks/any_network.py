"""How many images a second PGD attacks on networks that users wrote, against torchattacks.

    python -m experiments.benchmarks.any_network --peer-python PEER/bin/python

As attack_throughput, on networks in jax.lax, linen, nnx, equinox and haiku: pip install equinox
dm-haiku. With JAXROBUST_PLAIN=1 they are evaluated as they are, with JAXROBUST_ONEDNN=1 by another
library's convolutions. Expected time: 12 minutes on 2 cores with `--rounds 2`, 4 minutes with
`--num-steps 10` besides, half an hour in full. Expected numbers: README.md.
"""

import dataclasses
from pathlib import Path

from experiments.benchmarks import attack_throughput
from experiments.benchmarks import users_networks as users
from jaxrobust import studies

CASES: tuple[attack_throughput.Case, ...] = (
    ("resnet20", 96, {"jax.lax": users.in_lax}),
    (
        "resnet_small",
        64,
        {
            "jaxrobust": attack_throughput.of_the_library,
            "linen": users.in_linen,
            "nnx": users.in_nnx,
            "equinox": users.in_equinox,
        },
    ),
    ("vgg", 64, {"haiku": users.in_haiku}),
    ("mobilenet_v2", 32, {"nnx": users.in_nnx}),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(attack_throughput.Config):
    """Settings of the benchmark."""

    rounds: int = 5
    output: Path = Path("results/benchmarks/any_network.json")


def main(config: Config) -> None:
    """Compares networks of five frameworks."""
    attack_throughput.measure(config, CASES)


if __name__ == "__main__":
    studies.run_script(main, Config, attack_throughput.PRESETS)
