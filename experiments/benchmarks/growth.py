"""Measures how the cost of attacks grows, and says what grows faster than linearly.

    python -m experiments.benchmarks.growth

Expected time: 12 minutes on 2 cores; --quick takes one. Each point is measured in a process of its own,
and a run that was stopped continues with the points that are left. Along each axis, one quantity grows
and everything else stays as it is: a small network (12,000 parameters), PGD with 10 steps, 64 images of
16x16 pixels, 10 classes, 128 lanes. Of each point the JSON file has the time of a first call, which
compiles, and of a second one; the number of programs that each call has compiled; and the peak memory
of the second call. An exponent is the slope of a line through the upper half of the points, both axes
logarithmic: 1 is linear growth. A chart is written beside the JSON file.

Another row is a grid of 8 epsilons and 4 pruned variants of simple_cnn, PGD with 20 steps on 50
images: its time, divided by the time of its gradient evaluations alone. Expected numbers:
docs/performance.md.
"""

import concurrent.futures
import dataclasses
import functools
import json
import math
import multiprocessing
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import harness
from jaxrobust import (
    compilation,
    evaluation,
    files,
    losses,
    models,
    programs,
    pruning,
    reports,
    studies,
)
from jaxrobust.attacks import APGD, PGD
from jaxrobust.evaluation import Execution
from jaxrobust.reports import blocks

PRESETS: dict[str, dict[str, Any]] = {"quick": {}}
_FASTER = 1.1  # an exponent above this is faster than linear
_MEASURES = {"seconds": "Time", "memory": "Memory", "compiled": "Compiled programs"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """Attacks on images that are noise.

    Attributes:
      images: The number of images.
      steps: The number of steps of PGD.
      epsilons: The number of epsilons, one after the other.
      variants: The number of pruned variants of the network, one after the other.
      side: The side of the images in pixels.
      classes: The number of classes, for APGD on the targeted DLR loss, which sorts them; 0 means 10
        classes and PGD.
      width: The factor of the network's widths.
      in_one_batch: Whether the images are one batch, instead of a data set on lanes.
    """

    images: int = 64
    steps: int = 10
    epsilons: int = 1
    variants: int = 1
    side: int = 16
    classes: int = 0
    width: int = 1
    in_one_batch: bool = False


@dataclasses.dataclass(frozen=True)
class Axis:
    """A quantity that grows: its values, those of --quick, and the work of each value."""

    values: Sequence[int]
    quick: Sequence[int]
    work: Callable[[int], Work]


AXES = {
    "images": Axis(
        (100, 1000, 3000, 10_000, 30_000, 100_000),
        (100, 400),
        lambda value: Work(images=value, steps=2),
    ),
    "batch": Axis(
        (32, 128, 512, 2048), (32, 64), lambda value: Work(images=value, in_one_batch=True)
    ),
    "steps": Axis((10, 30, 100, 300, 1000), (3, 6), lambda value: Work(steps=value)),
    "epsilons": Axis((1, 2, 4, 8, 16, 32), (1, 2), lambda value: Work(epsilons=value)),
    "variants": Axis((1, 2, 4, 8, 16, 32), (1, 2), lambda value: Work(variants=value)),
    "pixels": Axis((8, 16, 32, 64, 128), (8, 16), lambda value: Work(side=value)),
    "classes": Axis((10, 100, 1000, 10_000), (10, 100), lambda value: Work(classes=value)),
    "parameters": Axis((1, 2, 4, 8, 16), (1, 2), lambda value: Work(width=value)),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(harness.Settings):
    """Settings.

    Attributes:
      axes: The axes to measure; "grid" is the row of the grid.
    """

    axes: tuple[str, ...] = (*AXES, "grid")
    output: Path = Path("results/benchmarks/growth.json")


def pruned(network: Any, variables: Any, count: int) -> list[models.Classifier]:
    """Returns variants of a network without some of its smallest weights, up to half of them."""
    found = []
    for sparsity in np.linspace(0, 0.5, count):
        masks = pruning.layerwise_magnitude(variables["params"], float(sparsity))
        params = pruning.apply_masks(variables["params"], masks)
        found.append(models.Classifier(network.apply, variables | {"params": params}, 0.5, 0.25))
    return found


def measure(work: Work) -> harness.Row:
    """Measures one point in a process that does nothing else."""
    # Without `keep_memory`: the memory that a point needs is measured, not what the process keeps.
    compilation.use_every_core()
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    # The network, its variants and the images.
    widths = tuple(work.width * width for width in (8, 8, 16, 16, 32))
    network = models.create("cnn", work.classes or 10, widths=widths)
    shape = work.side, work.side, 3
    variables = network.init(jax.random.key(0), jnp.zeros((1, *shape)))
    variants = pruned(network, variables, work.variants)
    attack: Any = PGD(0.03, 0.01, work.steps)
    if work.classes:
        attack = APGD(0.03, "targeted_dlr", num_iterations=work.steps)
    base = _memory("VmRSS")
    images = np.random.default_rng(0).random((work.images, *shape), np.float32)
    labels = np.arange(work.images) % (work.classes or 10)
    key = jax.random.key(0)

    def run() -> None:
        for variant in variants:
            for epsilon in np.linspace(0.01, 0.05, work.epsilons):
                swept = dataclasses.replace(attack, epsilon=float(epsilon))
                if work.in_one_batch:
                    jax.block_until_ready(swept(key, variant, images, labels))
                else:
                    evaluation.attack_dataset(
                        swept, variant, images, labels, key=key, execution=Execution(128)
                    )

    # A first call, which compiles, and a second one.
    before = len(compiled)
    first = harness.clocked(run)
    programs_of_first = len(compiled) - before
    _forget_peak()
    again = harness.clocked(run)
    peak = _memory("VmHWM")
    memory = None if base is None or peak is None else max(peak - base, 0)
    return {
        "seconds": again["seconds"],
        "first_call_seconds": first["seconds"],
        "compiled": programs_of_first,
        "compiled_again": len(compiled) - before - programs_of_first,
        "memory": memory if again["memory"] is None else again["memory"],
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        "pixels": work.side**2,
    }


def _memory(name: str) -> int | None:
    """Reads a figure of this process's memory in bytes; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), None)


def _forget_peak() -> None:
    """Makes VmHWM the peak of what follows."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return


def measure_grid(num_epsilons: int, num_variants: int, num_steps: int) -> harness.Row:
    """Times attacks with every epsilon on every variant, in turns with their gradients alone."""
    jax.devices()  # one device for all cores, which share a batch
    network = models.create("simple_cnn")
    images = jax.random.uniform(jax.random.key(1), (50, 32, 32, 3))
    variables = network.init(jax.random.key(0), images)
    labels = jnp.arange(50, dtype=jnp.int32) % 10
    seconds: dict[str, list[float]] = {"grid": [], "gradients": []}
    num_gradients = 0
    for variant in pruned(network, variables, num_variants):
        function = programs.as_argument(variant, images)
        for epsilon in np.linspace(0.01, 0.05, num_epsilons):
            attack = PGD(float(epsilon), 0.01, num_steps)
            run = functools.partial(attack, jax.random.key(0), variant, images, labels)
            gradients = functools.partial(_gradients, function, images, labels, num_steps)
            if not num_gradients:  # compile
                jax.block_until_ready((run(), gradients()))
            attacked = harness.clocked(run, lambda found: {"count": int(found.num_gradients[0])})
            num_gradients += attacked["count"]
            seconds["grid"].append(attacked["seconds"])
            seconds["gradients"].append(harness.clocked(gradients)["seconds"])
    whole, alone = sum(seconds["grid"]), sum(seconds["gradients"])
    return {
        "seconds": whole,
        "gradient_seconds": alone,
        "num_gradients": num_gradients,
        "ratio": whole / alone,
    }


def _gradients(function: Any, images: Any, labels: Any, count: int) -> Any:
    found = images
    for _ in range(count):
        found = _gradient(function, images, labels)
    return found


@functools.partial(compilation.jit, exact_types=True)
def _gradient(function: Any, images: Any, labels: Any) -> Any:
    def loss(points: Any) -> Any:
        return jnp.sum(jax.vmap(losses.cross_entropy)(function(points), labels))

    return jax.grad(loss)(images)


def exponent(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Returns the slope of log y over log x through the upper half of the points; None without one."""
    pairs = [(math.log(a), math.log(b)) for a, b in zip(x, y, strict=True) if a > 0 and b > 0]
    pairs = pairs[(len(pairs) - 1) // 2 :]
    return statistics.linear_regression(*zip(*pairs, strict=True)).slope if len(pairs) > 1 else None


def _exponents(axis: str, points: Sequence[harness.Row]) -> harness.Row:
    """Makes the row of an axis's exponents, and names the measures that grow faster than linearly."""
    x = [point["x"] for point in points]
    found = {name: exponent(x, [point[name] or 0 for point in points]) for name in _MEASURES}
    faster = [name for name, value in found.items() if value is not None and value > _FASTER]
    return {"axis": axis, "exponent": found, "faster": ", ".join(faster)}


def _parts(config: Config) -> Iterator[tuple[str, int, Callable[[], harness.Row]]]:
    """Yields (axis, value, function that measures it) of all points that were asked for."""
    for axis in config.axes:
        if axis == "grid":
            cells = (2, 2, 3) if config.quick else (8, 4, 20)
            yield axis, math.prod(cells), functools.partial(measure_grid, *cells)
            continue
        for value in AXES[axis].quick if config.quick else AXES[axis].values:
            yield axis, value, functools.partial(measure, AXES[axis].work(value))


def _rows(config: Config) -> Iterator[harness.Row]:
    """Yields the points of an earlier run, then those that are left, then the exponents."""
    found = [row for row in harness.earlier_rows(config, ("axes",)) if "exponent" not in row]
    yield from found
    for axis, value, compute in _parts(config):
        if any((row["axis"], row["value"]) == (axis, value) for row in found):
            continue
        # A process of its own has compiled nothing, and its memory is that of this point.
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
            row = pool.submit(compute).result()
        found.append({"axis": axis, "value": value, "x": row.get(axis, value)} | row)
        yield found[-1]
    for axis in AXES:
        points = [row for row in found if row["axis"] == axis]
        if len(points) > 1:
            yield _exponents(axis, sorted(points, key=lambda point: point["x"]))


def draw(config: Config, rows: Sequence[harness.Row]) -> Path:
    """Draws time and memory of all axes, in multiples of their first points; returns the HTML file."""
    # A chart of each measure, with a line for each axis.
    charts = []
    for name, title in _MEASURES.items():
        lines = []
        for axis in AXES:
            points = [row for row in rows if row["axis"] == axis and row.get(name)]
            points.sort(key=lambda point: point["x"])
            x, y = ([point[fact] / points[0][fact] for point in points] for fact in ("x", name))
            lines.append(blocks.line(axis, x, y))
        x_axis = blocks.axis("quantity, in multiples of the first point", log=True)
        y_axis = blocks.axis("measure, likewise", log=True)
        charts.append(blocks.chart(title, x_axis, y_axis, lines))
    summary = [
        f"Exponents of {row['axis']}: "
        + ", ".join(f"{fact} {value:.2f}" for fact, value in row["exponent"].items() if value)
        for row in rows
        if "exponent" in row
    ]
    # The rest is what every result.json has.
    result = {
        "format": 2,
        "experiment": "growth",
        "title": "How the cost of attacks grows",
        "summary": summary,
        "config": studies.configuration(config),
        "seed": 0,
        "environment": studies.environment(),
        "timings": {},
        "data": {
            "name": "noise",
            "class_names": [],
            "num_train": None,
            "num_test": 0,
            "image_shape": [16, 16, 3],
        },
        "blocks": charts,
    }
    path = harness.output(config).with_suffix(".chart.json")
    files.write_json(path, result)
    return reports.write_report(path, harness.output(config).with_suffix(".html"))


def main(config: Config) -> None:
    """Measures all axes."""
    studies.check_settings(config, axes=(*AXES, "grid"))
    # On a GPU the processes share the memory, of which jax would take most at its start.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    harness.record(config, "growth", _rows(config))
    rows = json.loads(harness.output(config).read_text(encoding="utf-8"))["rows"]
    for row in rows:
        if row.get("faster"):
            print(f"Faster than linear, {row['axis']}: {row['faster']}.")
    print(f"Drawn in {draw(config, rows)}.")


if __name__ == "__main__":
    studies.run_script(main, Config, PRESETS)
