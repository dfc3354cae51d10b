"""Compares the images per second of PGD with torchattacks, on the same network in the same run.

    python -m experiments.benchmarks.attack_throughput --peer-python PEER/bin/python
    python -m experiments.benchmarks.attack_throughput --peer-python PEER/bin/python --networks users

Expected time: 3 minutes on 2 cores; --quick takes one. Expected numbers: at least 1.5 times the
throughput of torchattacks on simple_cnn (batch 128) and 0.95 times on resnet_small (batch 64). The
logits of both sides must agree to 1e-4 of the largest. experiments/benchmarks/README.md says what PEER
is and how the time is measured.

--networks users takes 12 minutes with `--rounds 2`, and 4 minutes if also `--num-steps 10` is given; it
needs equinox and dm-haiku. Expected numbers: README.md. --networks large needs them too, and takes 10
minutes with `--rounds 3`; it has no expected numbers yet. With JAXROBUST_PLAIN=1 networks are evaluated
unchanged; with JAXROBUST_ONEDNN=0 XLA computes their convolutions instead of oneDNN.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import harness, network_files
from jaxrobust import compilation, models, studies
from jaxrobust.attacks import PGD
from jaxrobust.types import LogitsFn

PRESETS = {"quick": {"rounds": 1, "num_steps": 2}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(harness.PeerSettings):
    """Settings of the benchmark.

    Attributes:
      networks: library, for two networks of this library; users, for networks as users write them in
        jax.lax, linen, nnx, equinox and haiku; or large, for resnet18 of this library, MobileNetV2,
        and ResNet-50 and ViT-S/16 on images of 224x224 pixels. The JSON file of the last two has
        their name in its own.
      num_steps: The number of steps of PGD, at most 10 for images of 224x224 pixels.
    """

    networks: Literal["library", "users", "large"] = "library"
    rounds: int = 9
    num_steps: int = 40
    output: Path = Path("results/benchmarks/attack_throughput.json")


def of_the_library(name: str, weights: network_files.Arrays) -> LogitsFn:
    """Returns the library's own network of this name with PyTorch's weights."""
    mean, std = np.array(harness.IMAGENET_MEAN), np.array(harness.IMAGENET_STD)
    variables = network_files.from_torch(name, weights)
    return models.Classifier(models.create(name).apply, variables, mean, std)


@dataclasses.dataclass(frozen=True)
class Case:
    """A network of PyTorch, and how it is attacked.

    Attributes:
      name: The network's name in torch_networks.py.
      batch_size: The number of images.
      builds: The functions that build ours, by framework.
      side: The side of the images in pixels.
      most_steps: The largest number of steps, for a network that takes seconds for each.
    """

    name: str
    batch_size: int
    builds: Mapping[str, network_files.Build]
    side: int = 32
    most_steps: int = 1000


def cases(networks: str) -> list[Case]:
    """Returns the networks that are compared."""
    ours: dict[str, network_files.Build] = {"jaxrobust": of_the_library}
    if networks == "library":
        return [Case("simple_cnn", 128, ours), Case("resnet_small", 64, ours)]
    from experiments.benchmarks import users_networks as users  # needs packages of its own

    if networks == "large":
        return [
            Case("resnet18", 32, ours),
            Case("mobilenet_v2", 32, {"nnx": users.in_nnx}),
            Case("resnet50", 4, {"jax.lax": users.of_arrays}, 224, 10),
            Case("vit_small", 4, {"linen": users.vit_in_linen}, 224, 10),
        ]
    modules = {"linen": users.in_linen, "nnx": users.in_nnx, "equinox": users.in_equinox}
    return [
        Case("resnet20", 96, {"jax.lax": users.in_lax}),
        Case("resnet_small", 64, ours | modules),
        Case("vgg", 64, {"haiku": users.in_haiku}),
        Case("mobilenet_v2", 32, {"nnx": users.in_nnx}),
    ]


def ours(attack: Any, logits_fn: LogitsFn, images: Any, labels: Any) -> harness.Row:
    """Times our attack on a batch."""

    def facts(result: Any) -> harness.Row:
        fooled = np.asarray(result.success)
        return {"success": float(fooled.mean()), "robust": int((~fooled).sum())}

    return harness.clocked(lambda: attack(jax.random.key(0), logits_fn, images, labels), facts)


def theirs(ask: harness.Ask, request: harness.Row, compiled: bool = False) -> harness.Row:
    """Times an attack of a PyTorch library (torch_worker.py) on the batch."""
    run = ask("attack", compiled=compiled, **request)
    facts = {"success": float(np.mean(run["fooled"])), "robust": sum(run["robust"])}
    return {"seconds": run["seconds"], "memory": run["memory"], **facts}


def race(
    ask: harness.Ask,
    functions: Mapping[str, LogitsFn],
    batch: tuple[Any, Any],
    attack: Any,
    request: harness.Row,
    rounds: int,
    peers: Sequence[str] = ("torchattacks",),
) -> dict[str, list[harness.Row]]:
    """Attacks a batch in turns with PyTorch (eagerly, or as "torch.compile") and our functions."""
    sides: dict[str, harness.Side] = {
        peer: functools.partial(theirs, ask, request, compiled=peer == "torch.compile")
        for peer in peers
    }
    for name, logits_fn in functions.items():
        sides[name] = functools.partial(ours, attack, logits_fn, *batch)
    return harness.turns(sides, rounds)


def compare(config: Config, case: Case) -> Iterator[harness.Row]:
    """Times our networks with PyTorch's weights, in turns with PyTorch; yields a row for each."""
    num_steps = min(config.num_steps, case.most_steps)
    attack = PGD(epsilon=8 / 255, step_size=2 / 255, num_steps=num_steps, keep="last")
    settings = {"eps": attack.epsilon, "alpha": attack.step_size, "steps": attack.num_steps}
    request = {"library": "torchattacks", "attacks": [("PGD", settings)]}
    with harness.peer(config.peer_python) as ask:
        layout: dict[str, Any] = {"num_threads": config.num_threads, "channels_last": True}
        if case.side > 32:  # fewer of the large images give BatchNorm's statistics
            layout |= {"side": case.side, "statistics_batch": 8}
        drawn = network_files.draw(ask, case.name, case.batch_size, **layout)
        batch = jnp.asarray(drawn.images), jnp.asarray(drawn.labels)
        runs = race(ask, drawn.build(case.builds), batch, attack, request, config.rounds)
    for framework in case.builds:
        row = {"network": case.name, "framework": framework, "batch_size": case.batch_size}
        pair = {"jaxrobust": runs[framework], "torchattacks": runs["torchattacks"]}
        yield row | {"num_steps": num_steps, "side": case.side} | harness.compared(pair)


def main(config: Config) -> None:
    """Compares all networks."""
    studies.check_settings(config)
    if config.networks != "library":
        stem = f"{config.output.stem}_{config.networks}"
        config = dataclasses.replace(config, output=config.output.with_stem(stem))
    harness.record(
        config,
        "attack_throughput",
        (row for case in cases(config.networks) for row in compare(config, case)),
        peer_versions=harness.versions(config.peer_python, "torch", "torchattacks"),
        compiler_options=compilation.compiler_options(),
        fast_forms=compilation.has_fast_forms(),
    )


if __name__ == "__main__":
    studies.run_script(main, Config, PRESETS)
