"""A process of its own that trains and prints the histories: what tests with several devices start.

python tests/trained.py [coordinator's address, number of processes, this one's number] run_dir devices
"""

import json
import sys

import jax

if __name__ == "__main__":
    *group, run_dir, num_devices = sys.argv[1:]
    if group:
        jax.distributed.initialize(group[0], int(group[1]), int(group[2]))

    from test_training_methods import CONFIG, trained

    from jaxrobust import compilation
    from jaxrobust.attacks import PGD
    from jaxrobust.training import FreeReplays

    attack = PGD(0.05, 0.02, num_steps=2)
    result = trained(CONFIG, attack, num_devices=int(num_devices), run_dir=f"{run_dir}/pgd")
    # What comes back is this process's own.
    assert result.variables["params"]["Dense_0"]["kernel"].devices() == {jax.local_devices()[0]}
    compilation.loops_are_fast = lambda: True
    free = trained(
        CONFIG, FreeReplays(0.05, 3), num_devices=int(num_devices), run_dir=f"{run_dir}/free"
    )
    histories = [list(run.history) for run in (result, free)]
    print(json.dumps({"devices": jax.device_count(), "histories": histories}))
