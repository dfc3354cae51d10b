"""A process of its own that trains and prints the histories: what tests with several devices start.

python tests/trained.py [coordinator's address, number of processes, this one's number] folder devices
"""

import dataclasses
import json
import signal
import sys
from pathlib import Path

import jax
import numpy as np


def main(folder: Path, num_devices: int) -> None:
    """Trains, fine-tunes and saves; with several processes, also what they must agree on."""
    result = trained(CONFIG, ATTACK, num_devices=num_devices, run_dir=folder / "pgd")
    # What comes back is this process's own.
    here = {jax.local_devices()[0]}
    for leaf in jax.tree.leaves((result.state, result.best_variables)):
        assert leaf.devices() == here
    tuned = trained(CONFIG, variables=result.best_variables, run_dir=folder / "tuned")
    save_variables(folder / "model", result.variables, {})
    saved, _ = load_variables(folder / "model")
    jax.tree.map(np.testing.assert_array_equal, saved, result.variables)
    compilation.loops_are_fast = lambda: True
    free = trained(CONFIG, FreeReplays(0.05, 3), num_devices=num_devices, run_dir=folder / "free")
    sparse = trained(
        CONFIG, ATTACK, compression=RigL(kept=0.5), num_devices=num_devices, run_dir=folder / "rigl"
    )
    assert sparse.final["kept_weights"] == round(0.5 * sparse.final["weights"])
    assert jax.tree.leaves(sparse.masks)[0].devices() == here
    histories = [list(run.history) for run in (result, free, tuned, sparse)]
    said = disagreements(folder) if jax.process_count() > 1 else []
    print(json.dumps({"devices": jax.device_count(), "histories": histories, "said": said}))


def disagreements(folder: Path) -> list[str]:
    """What each process is told where they are not called alike, or one of them is interrupted."""
    rank = jax.process_index()
    compilation.loops_are_fast = lambda: False

    def refused(error: type[BaseException], config=CONFIG, **options) -> str:
        try:
            trained(config, ATTACK, **options)
        except error as raised:
            return str(raised)
        raise AssertionError("not refused")

    other = dataclasses.replace(CONFIG, seed=rank)
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
        compiled = compile_all(*arguments)
        batch = compiled.train_batches
        return compiled._replace(train_batches=told)

    steps: list = []
    batch = None
    compile_all, programs.compile_programs = programs.compile_programs, compile_programs
    # In the first of several epochs, and in the only one, after which there is nothing to go on with.
    said.append(refused(KeyboardInterrupt, run_dir=folder / "interrupted"))
    steps.clear()
    only = dataclasses.replace(CONFIG, num_epochs=1)
    said.append(refused(KeyboardInterrupt, only, run_dir=folder / "only"))
    programs.compile_programs = compile_all
    resumed = trained(CONFIG, ATTACK, run_dir=folder / "interrupted")
    said.append(str(len(resumed.history)))
    return said


if __name__ == "__main__":
    *group, run_dir, devices = sys.argv[1:]
    if group:
        jax.distributed.initialize(group[0], int(group[1]), int(group[2]))

    from test_training_methods import CONFIG, trained

    from jaxrobust import compilation
    from jaxrobust.attacks import PGD
    from jaxrobust.training import FreeReplays, RigL, load_variables, programs, save_variables

    ATTACK = PGD(0.05, 0.02, num_steps=2)
    main(Path(run_dir), int(devices))
