"""What an accelerator does in eight minutes: attacks, training and AutoAttack, against PyTorch.

    python -m experiments.benchmarks.accelerator --data-dir DATA
    python -m experiments.benchmarks.accelerator --quick

Expected time: 8 minutes on one GPU, compilation included: nothing is begun that would take longer, as
far as that can be told beforehand; the same command goes on with what is left, and makes again what
one side failed in. --quick takes 5 minutes on 2 cores: small batches of a small network, which show
that everything runs and measure nothing. Expected numbers: none has been measured yet.

It needs this tree, jax, torch, and of wheels those of WHEELS; nothing is fetched. DATA holds
cifar10-jpeg.tar.xz or what it unpacks to, for the network that AutoAttack is made on; without it,
images are noise and the network is not trained, so that AutoAttack has next to nothing to do.

Both sides have the same weights, images, steps, type and TF32 setting, channels last, on the same
device, and take turns: `--precision tf32` (the default) or bfloat16 or float32. PyTorch runs eagerly
and by torch.compile. `share` is that of a large matrix product's rate in the same type: the network's
FLOPs (`programs.describe`), once forward and once backward for each step.

Sources: PGD, https://arxiv.org/abs/1706.06083; AutoAttack, https://arxiv.org/abs/2003.01690.
"""

import dataclasses
import functools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import attack_throughput, auto_attack, users_networks, worker
from experiments.benchmarks.parity import export
from jaxrobust import compilation, data, evaluation, files, models, programs, studies, training
from jaxrobust.attacks import APGD, PGD
from jaxrobust.studies import suites
from jaxrobust.types import LogitsFn

WHEELS = (
    "flax",
    "optax",
    "orbax-checkpoint",
    "chex",
    "torchattacks",
    "tyro",
    "equinox",
    "dm-haiku",
)
_MEAN, _STD, _EPSILON = attack_throughput.MEAN, attack_throughput.STD, 8 / 255
_IMAGES_OF_AN_EPOCH = 50_000
_PEERS = ("torch", "torch.compile")


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      data_dir: Folder of cifar10-jpeg.tar.xz or of what it unpacks to.
      precision: float32, tf32 or bfloat16, on both sides.
      minutes: After which nothing new is begun.
      rounds: How often each side runs; the medians are compared.
      peer_python: Python of an environment with torch and torchattacks; by default this one.
      output: Where the JSON goes, with the precision in its name, and where a run that was cut off is
        continued from.
      quick: A small network, small batches, few steps: a rehearsal, not a measurement.
    """

    data_dir: Path | None = None
    precision: Literal["float32", "tf32", "bfloat16"] = "tf32"
    minutes: float = 8.0
    rounds: int = 3
    peer_python: Path = Path(sys.executable)
    output: Path = Path("results/benchmarks/accelerator.json")
    quick: bool = False


@dataclasses.dataclass(frozen=True)
class Case:
    """A network and what is done with it.

    Attributes:
      name: Of the network, on both sides.
      side: Of the images, in pixels.
      batch_size: Images at a time.
      attacks: (name, steps).
      build: (name, PyTorch's weights) -> logits_fn.
    """

    name: str
    side: int
    batch_size: int
    attacks: tuple[tuple[str, int], ...]
    build: attack_throughput.Network = attack_throughput.of_the_library


_FIRST = Case("resnet18", 32, 1024, (("PGD", 40), ("APGD", 100)))
_OTHERS = (
    Case("wide_resnet", 32, 512, (("PGD", 40),)),
    Case("resnet50", 224, 128, (("PGD", 40),), users_networks.resnet50),
)
_QUICK = Case("resnet_small", 32, 8, (("PGD", 2), ("APGD", 3)))
Row = dict[str, Any]


def main(config: Config) -> None:
    """Measures what is not there yet, in the order of its worth, and prints the table."""
    run = Run(config)
    case = _QUICK if config.quick else _FIRST
    with (
        tempfile.TemporaryDirectory() as folder,
        worker.Worker(config.peer_python, "experiments.benchmarks.accelerator_worker") as peer,
    ):
        sides = functools.partial(Sides, config, Path(folder), peer)
        run.attacks(case, sides)
        run.stage("training", 60, lambda: _training(config, case, peer))
        run.stage("AutoAttack", 150, lambda: _auto_attack(config, case, Path(folder), peer))
        for other in () if config.quick else _OTHERS:
            run.attacks(other, sides)
    print("\n".join(table(run.document)))
    if run.left:
        print(f"No time was left for {', '.join(run.left)}: run the same command again.")
    print(f"Written to {run.output}.")


class Run:
    """What has been measured, and how much time is left."""

    def __init__(self, config: Config) -> None:
        # Two libraries share the device's memory; jax would take most of it at its start.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        if config.precision == "tf32":
            jax.config.update("jax_default_matmul_precision", "tensorfloat32")
        elif config.precision == "float32":
            jax.config.update("jax_default_matmul_precision", "float32")
        ending = f"_{config.precision}" + ("_quick" if config.quick else "")
        self.output = config.output.with_stem(config.output.stem + ending)
        settings = {"precision": config.precision, "quick": config.quick}
        self.document: dict[str, Any] = {
            "settings": settings,
            "environment": studies.environment(),
            "device": str(jax.devices()[0].device_kind),
            "matrix_rate": auto_attack.matrix_rate(
                jnp.bfloat16 if config.precision == "bfloat16" else jnp.float32
            ),
            "stages": {},
        }
        if self.output.exists():
            before = json.loads(self.output.read_text())
            if before["settings"] == settings and before["device"] == self.document["device"]:
                self.document["stages"] = {
                    name: row
                    for name, row in before["stages"].items()
                    if not any("error" in row.get(side, {}) for side in _PEERS)
                }
        self._deadline = time.monotonic() + 60 * config.minutes
        self.left: list[str] = []

    def stage(self, name: str, seconds: float, measure: Callable[[], Row]) -> None:
        """Measures unless it is there, or takes longer than there is time for; writes what it finds."""
        if name in self.document["stages"]:
            return
        if time.monotonic() + seconds > self._deadline:
            self.left.append(name)
            return
        print(f"{name} ...", flush=True)
        start = time.monotonic()
        row = measure()
        row["wall_seconds"] = time.monotonic() - start
        self.document["stages"][name] = row
        files.write_json(self.output, self.document)

    def attacks(self, case: Case, sides: Callable[[Case], "Sides"]) -> None:
        """The attacks of a case, whose network is built when it is first needed."""
        both = functools.cache(lambda: sides(case))
        for attack, num_steps in case.attacks:
            name = f"{case.name}, {attack}-{num_steps}"
            self.stage(name, 45, lambda a=attack, n=num_steps: both().attack(a, n))  # type: ignore[misc]


class Sides:
    """One network with the same weights on both sides."""

    def __init__(self, config: Config, folder: Path, peer: worker.Worker, case: Case) -> None:
        self.config, self.case, self.peer = config, case, peer
        path = folder / f"{case.name}.npz"
        _ask(
            peer,
            do="network",
            name=case.name,
            batch_size=case.batch_size,
            side=case.side,
            precision=config.precision,
            path=str(path),
            mean=_MEAN,
            std=_STD,
        )
        with np.load(path) as file:
            arrays = dict(file)
        weights = {k[8:]: v for k, v in arrays.items() if k.startswith("weights/")}
        exact = case.build(case.name, weights)
        self.images, self.labels = jnp.asarray(arrays["images"]), jnp.asarray(arrays["labels"])
        few = self.images[:32]
        logits = np.asarray(jax.jit(exact)(few))  # type: ignore[arg-type]
        difference = np.abs(logits - arrays["logits"]).max() / np.abs(arrays["logits"]).max()
        if difference > (1e-4 if config.precision == "float32" else 0.05):
            raise RuntimeError(f"{case.name}: the two sides' logits differ by {difference:.2g}.")
        self.logits_fn = narrowed(exact) if config.precision == "bfloat16" else exact
        self.flops = programs.describe(exact, few[:1]).flops

    def attack(self, name: str, num_steps: int) -> Row:
        """An attack on the batch: ours, PyTorch's eagerly, PyTorch's compiled."""
        kinds: dict[str, Any] = {
            "PGD": PGD(_EPSILON, _EPSILON / 4, num_steps, keep="last"),
            "APGD": APGD(_EPSILON, num_iterations=num_steps),
        }
        attack, seconds = kinds[name], []
        for _ in range(self.config.rounds + 1):
            start = time.perf_counter()
            result = attack(jax.random.key(0), self.logits_fn, self.images, self.labels)
            jax.block_until_ready(result)
            seconds.append(time.perf_counter() - start)
        first, *seconds = seconds
        return {
            "images": self.case.batch_size,
            "jaxrobust": {
                "seconds": seconds,
                "first_call_seconds": first,
                "robust": int((~np.asarray(result.success)).sum()),
                "memory": _peak_memory(),
            },
            **self._theirs(name, num_steps),
            # A gradient costs a forward pass and about as much again.
            "flops": 2.0 * num_steps * self.flops * self.case.batch_size,
        }

    def _theirs(self, name: str, num_steps: int) -> dict[str, Any]:
        found = {}
        for compiled in (False, True):
            ask = functools.partial(
                _ask,
                self.peer,
                do="attack",
                attack=name,
                compiled=compiled,
                epsilon=_EPSILON,
                batch_size=self.case.batch_size,
            )
            first = ask(num_steps=1, rounds=1)  # allocates, chooses kernels, compiles
            answer = ask(num_steps=num_steps, rounds=self.config.rounds)
            answer["first_call_seconds"] = sum(first.get("seconds", []))
            found["torch.compile" if compiled else "torch"] = answer
        return found


def narrowed(logits_fn: LogitsFn) -> LogitsFn:
    """The classifier with weights and images in bfloat16."""
    weights = jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(jnp.bfloat16), logits_fn)
    return jax.tree_util.Partial(_in_bfloat16, weights)


def _in_bfloat16(logits_fn: Any, images: Any) -> Any:
    return logits_fn(images.astype(jnp.bfloat16)).astype(jnp.float32)


def _ask(peer: worker.Worker, **message: Any) -> dict[str, Any]:
    answer = peer.ask(message)
    if "error" in answer and message["do"] == "network":
        raise RuntimeError(f"PyTorch's side has no network: {answer['error']}")
    if "error" in answer:
        print(f"  PyTorch's side: {answer['error']}", flush=True)
    return answer


def _peak_memory() -> int | None:
    """Bytes, since the process began; None where the device does not say."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


class Training:
    """Our steps of PGD training."""

    def __init__(self, config: Config, case: Case, pgd_steps: int) -> None:
        network: Any = models.create(case.name)
        recipe = training.Recipe(
            optimizer=training.SGD(nesterov=True, weight_decay=5e-4),
            schedule=training.Constant(0.1),
            adversary=PGD(_EPSILON, _EPSILON / 4, pgd_steps, random_start=False),
            precision="bfloat16" if config.precision == "bfloat16" else "float32",
        )
        variables = network.init(jax.random.key(0), jnp.zeros((1, case.side, case.side, 3)))
        self.state = training.create_state(variables, recipe)
        step = functools.partial(
            training.train_step,
            network=training.Network(network, _MEAN, _STD),
            recipe=recipe,
            steps_per_epoch=1,
        )
        self._step = compilation.jit(step, donate_argnums=0)

    def step(self, images: Any, labels: Any, index: int) -> float:
        """Seconds of a step."""
        start = time.perf_counter()
        self.state, metrics = self._step(self.state, (images, labels), jax.random.key(index))
        jax.block_until_ready(metrics)
        return time.perf_counter() - start


def _training(config: Config, case: Case, peer: worker.Worker) -> Row:
    """Steps of PGD-10 training on one batch; an epoch is as many as 50,000 images have batches."""
    num_steps, pgd_steps = (3, 2) if config.quick else (10, 10)
    ours = Training(config, case, pgd_steps)
    images = jax.random.uniform(jax.random.key(1), (case.batch_size, case.side, case.side, 3))
    labels = jnp.arange(case.batch_size) % 10
    first, *seconds = [ours.step(images, labels, index) for index in range(num_steps + 1)]
    found: Row = {
        "images": case.batch_size,
        "pgd_steps": pgd_steps,
        "jaxrobust": {"seconds": seconds, "first_call_seconds": first, "memory": _peak_memory()},
    }
    for compiled in (False, True):
        answer = _ask(
            peer,
            do="train",
            name=case.name,
            compiled=compiled,
            precision=config.precision,
            batch_size=case.batch_size,
            side=case.side,
            num_steps=num_steps + 1,
            pgd_steps=pgd_steps,
            epsilon=_EPSILON,
            mean=_MEAN,
            std=_STD,
        )
        if "seconds" in answer:
            answer["first_call_seconds"], *answer["seconds"] = answer["seconds"]
        found["torch.compile" if compiled else "torch"] = answer
    for side in ("jaxrobust", "torch", "torch.compile"):
        if "seconds" in found[side]:
            step = statistics.median(found[side]["seconds"])
            found[side]["epoch_seconds"] = step * _IMAGES_OF_AN_EPOCH / case.batch_size
    return found


def _auto_attack(config: Config, case: Case, folder: Path, peer: worker.Worker) -> Row:
    """AutoAttack on 1,000 images of a network that was trained under PGD for a minute."""
    num_images, size = (8, 8) if config.quick else (1000, 1000)
    ours = Training(config, case, 2 if config.quick else 7)
    dataset = None
    if config.data_dir is not None:
        dataset = data.load("cifar10_jpeg", data_dir=config.data_dir)
        draw = np.random.default_rng(0)
        until, index = time.monotonic() + (10 if config.quick else 60), 0
        while time.monotonic() < until:
            rows = np.sort(draw.choice(len(dataset.train), case.batch_size, replace=False))
            ours.step(dataset.train.images[rows], dataset.train.labels[rows], index)
            index += 1
        images: Any = dataset.test.images[:num_images].astype(np.float32) / 255
        labels: Any = np.asarray(dataset.test.labels[:num_images])
    else:
        images = np.random.default_rng(0).random((num_images, 32, 32, 3), np.float32)
        labels = np.arange(num_images) % 10
    state = ours.state
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    exact = models.Classifier(
        models.create(case.name).apply, variables, np.array(_MEAN), np.array(_STD)
    )
    if dataset is None:  # so that there is something to attack
        labels = evaluation.logits(exact, images).argmax(1)
    suite = evaluation.auto_attack_suite(_EPSILON)
    if config.quick:
        suite = suites.shortened(suite, 3)
    search = "bfloat16" if config.precision == "bfloat16" else "float32"
    start = time.perf_counter()
    report = evaluation.attack_suite(
        suite, exact, images, labels, key=jax.random.key(0), num_lanes=size, search_type=search
    )
    seconds = time.perf_counter() - start
    path = folder / "trained.npz"
    arrays: dict[str, Any] = {
        f"weights/{k}": v for k, v in export.to_torch(case.name, variables).items()
    }
    np.savez(path, images=images.transpose(0, 3, 1, 2), labels=labels, **arrays)
    _ask(
        peer,
        do="network",
        name=case.name,
        side=32,
        precision=config.precision,
        weights=str(path),
        mean=_MEAN,
        std=_STD,
    )
    theirs: dict[str, Any] = {"left_out": "not part of --quick"}
    if not config.quick:
        theirs = _ask(
            peer,
            do="attack",
            attack="AutoAttack",
            compiled=False,
            epsilon=_EPSILON,
            num_steps=0,
            batch_size=size,
            rounds=1,
        )
    return {
        "images": num_images,
        "trained_on": "noise" if dataset is None else "cifar10_jpeg",
        "clean": int((report.clean_logits.argmax(1) == report.labels).sum()),
        "jaxrobust": {
            "seconds": [seconds],
            "robust": int(report.robust.sum()),
            "memory": _peak_memory(),
        },
        "torch": theirs,
    }


def _cell(value: float | None, form: str) -> str:
    """A number, or a dash as wide."""
    return "-".rjust(int(form.partition(".")[0])) if value is None else format(value, form)


def table(document: dict[str, Any]) -> list[str]:
    """All stages, a line each."""
    rate = document["matrix_rate"]
    lines = [
        f"{document['device']}, {document['settings']['precision']}, matrix product "
        f"{rate / 1e12:.3g} TFLOP/s",
        f"{'':26s} {'images/s':>9s} {'eager':>9s} {'compiled':>9s} {'ratio':>6s} {'ratio':>6s} "
        f"{'share':>6s} {'GiB':>6s} {'first s':>6s}",
    ]
    for name, row in document["stages"].items():
        speeds = {
            side: row["images"] / statistics.median(row[side]["seconds"])
            for side in ("jaxrobust", *_PEERS)
            if row.get(side, {}).get("seconds")
        }
        ours, memory = speeds["jaxrobust"], row["jaxrobust"]["memory"]
        share = row["flops"] / row["images"] * ours / rate if "flops" in row else None
        cells = [
            f"{name:26s} {ours:9.1f}",
            *(_cell(speeds.get(side), "9.1f") for side in _PEERS),
            *(_cell(ours / speeds[side] if side in speeds else None, "6.2f") for side in _PEERS),
            _cell(share, "6.1%"),
            _cell(None if memory is None else memory / 2**30, "6.2f"),
            _cell(row["jaxrobust"].get("first_call_seconds"), "6.1f"),
        ]
        lines.append(" ".join(cells))
        if "epoch_seconds" in row["jaxrobust"]:
            lines.append(
                f"{'':26s} an epoch of 50,000 images: {row['jaxrobust']['epoch_seconds']:.1f} s"
            )
    return lines


if __name__ == "__main__":
    studies.run_script(main, Config)
