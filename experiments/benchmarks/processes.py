"""Measures what several processes gain and cost on one machine, and estimates it for up to 1,000.

    python -m experiments.benchmarks.processes

It prints the figures, then the tables of docs/scale.md as Markdown, and writes the figures as JSON.
Linux only: every process is bound to its cores by `taskset`. Expected time: 9 minutes on 2 cores;
--quick, no measurement, takes 2 minutes.

- attack: PGD of simple_cnn by one process with one core, by one process with two cores, and by two
  processes with one core each, in turns. A time is that of the whole command. The verdicts must be the
  same.
- training: steps of resnet_small by one process with one core, and by two processes with one core each
  and twice the batch. One sum of all gradients, and one of a single number, by gloo.
- start, merge: the time until processes are connected, and that of collecting images.

One and two processes are measured, more are estimated from these figures: a GPU computes a step and
sums gradients faster, so put the figures of your own cluster into `attack_seconds` and `sum_seconds`.
"""

import dataclasses
import functools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from experiments.benchmarks import harness
from jaxrobust import evaluation, models, processes, studies, training
from jaxrobust.attacks import PGD
from jaxrobust.training.run import devices

_CORES = {"one core": ("0",), "two cores": ("0,1",), "two processes": ("0", "1")}
_ESTIMATED = (8, 16, 128, 1000)
# The rows of the first table of docs/scale.md: what they say, the part, and its figure.
_MEASURED = (
    ("attack, the whole command", "attack", "total"),
    ("of it the attack, compiled before", "attack", "attack"),
    ("of it compiling", "attack", "compile"),
    ("collecting half of the images", "attack", "merge"),
    ("training, one step", "training", "step"),
    ("one sum of all gradients", "training", "sum of gradients"),
    ("one sum of a single number", "training", "sum of one number"),
)
_IMAGE = (32, 32, 3)
PRESETS = {
    "quick": {"num_images": 64, "num_restarts": 1, "rounds": 1, "num_steps": 2, "batch_size": 4}
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(harness.Settings):
    """Settings.

    Attributes:
      part: The part of the measurement that a process makes; the command starts these processes.
      num_images: The number of attacked images.
      num_restarts: The number of restarts of the attack.
      num_steps: The number of training steps of an epoch; the second of two epochs is timed.
      batch_size: The number of images of a step on each core.
      rounds: The number of runs.
      processes: Used by the processes that the command starts.
    """

    part: Literal["all", "attack", "training"] = "all"
    num_images: int = 300
    num_restarts: int = 5
    num_steps: int = 5
    batch_size: int = 32
    rounds: int = 3
    processes: str | None = None
    output: Path = Path("results/benchmarks/processes.json")


def main(config: Config) -> None:
    """Measures and estimates, or is one of the measured processes."""
    studies.check_settings(config)
    if config.part == "all":
        harness.record(config, "processes", _figures(config))
        rows = json.loads(harness.output(config).read_text(encoding="utf-8"))["rows"]
        print(tables({row["figure"]: row["median"] for row in rows}))
    else:
        part = {"attack": attack, "training": train}[config.part]
        print(json.dumps(part(config)))


def attack(config: Config) -> dict[str, Any]:
    """Attacks, and returns the verdicts, and the seconds of compiling, of the attack and of a merge."""
    network = models.create("simple_cnn", 10)
    # Drawing weights and finding labels are one program each: only the first process keeps programs.
    variables = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, *_IMAGE)))
    classifier = models.Classifier(network.apply, variables, 0.5, 0.25)
    images = np.random.default_rng(0).uniform(size=(config.num_images, *_IMAGE))
    images = images.astype(np.float32)
    labels = np.asarray(jnp.argmax(jax.jit(classifier)(jnp.asarray(images)), axis=-1))
    settings = PGD(8 / 255, 1 / 255, 40, num_restarts=config.num_restarts)
    attacked_by = functools.partial(evaluation.attack_dataset, settings, classifier)
    before = time.perf_counter()
    attacked_by(images[:8], labels[:8], key=jax.random.key(0))
    start = time.perf_counter()
    report = attacked_by(images, labels, key=jax.random.key(0))
    attacked = time.perf_counter()
    processes.gathered(images[: len(images) // 2])
    return {
        "verdicts": report.success.tolist(),
        "compile": start - before,
        "attack": attacked - start,
        "merge": time.perf_counter() - attacked,
    }


def train(config: Config) -> dict[str, Any]:
    """Trains, and returns the seconds of a step, of compiling, and of sums over the processes."""
    sharers = jax.process_count()
    network = models.create("resnet_small", 10)
    random = np.random.default_rng(0)
    size = config.num_steps * config.batch_size * sharers
    examples = random.integers(0, 256, (size, *_IMAGE), np.uint8), random.integers(0, 10, size)
    recipe = training.Recipe(num_epochs=2, batch_size=config.batch_size * sharers)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = processes.by_first(lambda: folder)  # the processes are on one machine
        data = training.Data(examples, mean=0.5, std=0.25)
        fitted = training.fit(network, data, recipe, run_dir=path, progress=False)
        processes.in_any(False)  # until then the folder is needed
    compiling = time.perf_counter() - start - fitted.seconds
    gradients = jax.tree.map(np.asarray, fitted.variables["params"])
    return {
        "step": fitted.timings[-1]["train_seconds"] / config.num_steps,
        "compile": compiling,
        "bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(gradients)),
        "sum of gradients": _seconds_of_sum(gradients),
        "sum of one number": _seconds_of_sum(np.float32(1)),
    }


def _seconds_of_sum(values: Any, runs: int = 20) -> float:
    """Returns the seconds that one sum of arrays over all processes takes, the median of some."""
    if jax.process_count() == 1:
        return 0.0
    sharding = devices.shapes_of(np.float32(0), 1).sharding

    @functools.partial(
        jax.shard_map,
        mesh=sharding.mesh,
        in_specs=PartitionSpec(),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    def summed(tree: Any) -> Any:
        return jax.lax.psum(tree, "data")

    compiled, given = jax.jit(summed), devices.replicated(1)(values)
    seconds = []
    for _ in range(runs + 2):
        start = time.perf_counter()
        jax.block_until_ready(compiled(given))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])


def _run(config: Config, part: str, cores: tuple[str, ...]) -> dict[str, Any]:
    """Runs a part in one process for each set of cores; its answer, and the seconds of it all."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    options = [
        f"--{name.replace('_', '-')}={getattr(config, name)}"
        for name in ("num_images", "num_restarts", "num_steps", "batch_size")
    ]
    module = ["-m", "experiments.benchmarks.processes", f"--part={part}", *options]
    start, started = time.perf_counter(), []
    for rank, bound in enumerate(cores):
        group = [f"--processes=localhost:{port},{len(cores)},{rank}"] if len(cores) > 1 else []
        command = ["taskset", "--cpu-list", bound, sys.executable, *module, *group]
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        started.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        )
    outputs = [process.communicate()[0] for process in started]
    seconds = time.perf_counter() - start
    if any(process.returncode for process in started):
        raise RuntimeError("A process has failed; its own messages are above.")
    return json.loads(outputs[0].splitlines()[-1]) | {"total": seconds}


def _figures(config: Config) -> Iterator[harness.Row]:
    """Measures everything in turns, and yields each figure, then the estimates."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for _ in range(config.rounds):
        for name, cores in _CORES.items():
            found.setdefault(("attack", name), []).append(_run(config, "attack", cores))
            if name != "two cores":
                found.setdefault(("training", name), []).append(_run(config, "training", cores))
    verdicts = [
        run["verdicts"] for (part, _), runs in found.items() for run in runs if part == "attack"
    ]
    differ = max(int(np.not_equal(one, verdicts[0]).sum()) for one in verdicts)
    yield {"figure": f"of {len(verdicts[0])} verdicts, the most that differ", "median": differ}
    # Every figure of every part, then the ratios of whole times.
    medians: dict[str, float] = {}
    for (part, name), runs in found.items():
        for figure in [key for key in runs[0] if key != "verdicts"]:
            row = _row(f"{part}, {name}: {figure}", [run[figure] for run in runs])
            medians[row["figure"]] = row["median"]
            yield row
    two = found["attack", "two processes"]
    for name in ("one core", "two cores"):
        pairs = zip(two, found["attack", name], strict=True)
        ratios = [ours["total"] / other["total"] for ours, other in pairs]
        yield _row(f"attack, two processes / {name}", ratios)
    yield from _estimates(medians)


def _row(figure: str, values: list[float]) -> harness.Row:
    row = {"figure": figure, "median": statistics.median(values), "rounds": len(values)}
    return row | {"low": min(values), "high": max(values)}


def _estimates(values: Mapping[str, float]) -> Iterator[harness.Row]:
    """Yields what the figures say about more processes, each with one core like those."""
    merge = values["attack, two processes: merge"]
    around = (
        values["attack, two processes: total"] - values["attack, two processes: attack"] - merge
    )
    work, size = values["attack, one core: attack"], values["training, two processes: bytes"]
    latency = values["training, two processes: sum of one number"]
    of_two = values["training, two processes: sum of gradients"]
    computed = values["training, two processes: step"] - of_two
    bandwidth = size / max(of_two - latency, 1e-9)
    for number in _ESTIMATED:
        attack = attack_seconds(number, work, around, merge)
        sum_ = sum_seconds(number, size, bandwidth, latency)
        yield {"figure": f"estimate, {number} processes: attack", "median": attack}
        yield {"figure": f"estimate, {number} processes: sum of gradients", "median": sum_}
        share = computed / (computed + sum_)
        yield {"figure": f"estimate, {number} processes: share computing", "median": share}


def tables(values: Mapping[str, float]) -> str:
    """Returns the two tables of docs/scale.md as Markdown.

    Args:
      values: {figure: its median}, as the rows of this benchmark.
    """
    lines = [
        "",
        "| | one process, one core | one process, two cores | two processes, one core each |",
        "|---|---:|---:|---:|",
    ]
    for words, part, figure in _MEASURED:
        found = (values.get(f"{part}, {name}: {figure}", 0.0) for name in _CORES)
        # One process has nobody to exchange anything with.
        only = "merge" in figure or "sum" in figure
        cells = [
            "" if not value or (only and name != "two processes") else _digits(value)
            for name, value in zip(_CORES, found, strict=True)
        ]
        size = values["training, two processes: bytes"] / 1e6
        said = f"{words} ({size:.1f} MB) by gloo" if "gradients" in words else words
        lines.append(f"| {said} | {' | '.join(cells)} |")
    lines += [
        "",
        "| n | | this attack | sum of gradients | share of a step spent computing |",
        "|---:|---|---:|---:|---:|",
    ]
    of_two, step = (
        values[f"training, two processes: {name}"] for name in ("sum of gradients", "step")
    )
    rows = [
        (1, "measured", values["attack, one core: total"], 0.0, 1.0),
        (2, "measured", values["attack, two processes: total"], of_two, 1 - of_two / step),
    ]
    for number in _ESTIMATED:
        attack, sum_, share = (
            values[f"estimate, {number} processes: {name}"]
            for name in ("attack", "sum of gradients", "share computing")
        )
        rows.append((number, "estimated", attack, sum_, share))
    lines += [
        f"| {number:,} | {how} | {attack:.1f} | {sum_:.2f} | {share:.2f} |"
        for number, how, attack, sum_, share in rows
    ]
    return "\n".join(lines)


def _digits(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:#.2g}"


def attack_seconds(number: int, work: float, around: float, merge: float) -> float:
    """Estimates the seconds of an attack whose images are shared by a number of processes.

    Args:
      number: The number of processes.
      work: The seconds of the attack in one process.
      around: The seconds before and after it, which are the same for any number: start and compilation.
      merge: The seconds in which half of all images are collected from two processes.

    Example:
      >>> attack_seconds(1, 100.0, 10.0, 1.0), attack_seconds(100, 100.0, 10.0, 1.0)
      (110.0, 12.98)
    """
    # Each of two processes receives half of the images; each of many receives nearly all of them.
    return around + work / number + 2 * merge * (number - 1) / number


def sum_seconds(number: int, size: float, bandwidth: float, latency: float) -> float:
    """Estimates the seconds of a sum over processes in a ring, by which gloo and NCCL sum large arrays.

    Args:
      number: The number of processes.
      size: The bytes to sum.
      bandwidth: The bytes per second of a sum over two processes.
      latency: The seconds of a sum of one number over two processes.

    Example:
      >>> sum_seconds(1, 100.0, 100.0, 1.0), sum_seconds(2, 100.0, 100.0, 1.0)
      (0.0, 2.0)
    """
    # Each process sends 2 (n - 1) pieces of an n-th of the array, one after the other.
    return (number - 1) * (2 / number * size / bandwidth + latency)


if __name__ == "__main__":
    studies.run_script(main, Config, PRESETS)
