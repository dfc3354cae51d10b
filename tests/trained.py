"""A process of its own that trains and prints the histories: what tests with several devices start.

python tests/trained.py [coordinator's address, number of processes, this one's number] folder devices
"""

import dataclasses
import json
import signal
import sys
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np

from jaxrobust import compilation
from jaxrobust.attacks import PGD
from jaxrobust.training import (
    Constant,
    Data,
    FreeReplays,
    Host,
    Recipe,
    RigL,
    fit,
)
from jaxrobust.training.run import compiled_steps


class Hidden(nn.Module):
    """Two dense layers."""

    @nn.compact
    def __call__(self, images, train=False):
        features = nn.relu(nn.Dense(16)(images.reshape(len(images), -1)))
        return nn.Dense(3)(nn.BatchNorm(use_running_average=not train)(features))


def examples(count, seed):
    """Three classes: which of three columns of pixels is the brightest."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    images = random.integers(60, 120, (count, 3, 3, 1))
    images[np.arange(count), :, labels] += 60
    return images.astype(np.uint8), labels


DATA = Data(examples(96, 0), examples(30, 1), mean=0.4, std=0.2)
CLEAN = Recipe(num_epochs=6, batch_size=16, schedule=Constant(0.05))
ATTACKED = dataclasses.replace(CLEAN, adversary=PGD(0.05, 0.02, num_steps=2))
FREE = dataclasses.replace(CLEAN, adversary=FreeReplays(0.05, 3))
SPARSE = dataclasses.replace(ATTACKED, compression=RigL(kept=0.5))


def trained(recipe, num_devices=1, **options):
    return fit(Hidden(), DATA, recipe, host=Host(num_devices), progress=False, **options)


def main(folder: Path, num_devices: int) -> None:
    """Trains, fine-tunes and saves; with several processes, also what they must agree on."""
    result = trained(ATTACKED, num_devices, run_dir=folder / "pgd")
    # What comes back is this process's own.
    here = {jax.local_devices()[0]}
    for leaf in jax.tree.leaves((result.state, result.best_variables)):
        assert leaf.devices() == here
    tuned = trained(CLEAN, variables=result.best_variables, run_dir=folder / "tuned")
    compilation.loops_are_fast = lambda: True
    free = trained(FREE, num_devices, run_dir=folder / "free")
    sparse = trained(SPARSE, num_devices, run_dir=folder / "rigl")
    assert sparse.final["kept_weights"] == round(0.5 * sparse.final["weights"])
    assert jax.tree.leaves(sparse.masks)[0].devices() == here
    histories = [list(run.history) for run in (result, free, tuned, sparse)]
    said = disagreements(folder) if jax.process_count() > 1 else []
    print(json.dumps({"devices": jax.device_count(), "histories": histories, "said": said}))


def disagreements(folder: Path) -> list[str]:
    """What each process is told where they are not called alike, or one of them is interrupted."""
    rank = jax.process_index()
    compilation.loops_are_fast = lambda: False

    def refused(error: type[BaseException], recipe=ATTACKED, **options) -> str:
        try:
            trained(recipe, **options)
        except error as raised:
            return str(raised)
        raise AssertionError("not refused")

    other = dataclasses.replace(ATTACKED, seed=rank)
    said = [refused(ValueError, other, run_dir=folder / "seeds")]
    said.append(refused(ValueError, run_dir=folder / f"own-{rank}"))
    said.append(refused(ValueError, run_dir=folder / "tuned"))

    def told(*arguments):
        if rank == 1 and not steps:
            signal.raise_signal(signal.SIGINT)
        steps.append(arguments)
        return batch(*arguments)

    def compile_programs(*arguments):
        nonlocal batch
        programs = compile_all(*arguments)
        batch = programs.train_batches
        return programs._replace(train_batches=told)

    steps: list = []
    batch = None
    compile_all, compiled_steps.compile_programs = compiled_steps.compile_programs, compile_programs
    # In the first of several epochs, and in the only one, after which there is nothing to go on with.
    said.append(refused(KeyboardInterrupt, run_dir=folder / "interrupted"))
    steps.clear()
    only = dataclasses.replace(ATTACKED, num_epochs=1)
    said.append(refused(KeyboardInterrupt, only, run_dir=folder / "only"))
    compiled_steps.compile_programs = compile_all
    resumed = trained(ATTACKED, run_dir=folder / "interrupted")
    said.append(str(len(resumed.history)))
    return said


if __name__ == "__main__":
    *group, run_dir, devices = sys.argv[1:]
    if group:
        jax.distributed.initialize(group[0], int(group[1]), int(group[2]))
    # Not as __main__: the settings of a run name its network by the module that it is in.
    from trained import main as run

    run(Path(run_dir), int(devices))
