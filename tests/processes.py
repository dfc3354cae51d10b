"""Scripts of this folder as processes of their own, with other devices, alone or by jax.distributed."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

_TESTS = Path(__file__).resolve().parent


def answers(
    script: str, *arguments: Any, num_devices: int = 1, num_processes: int = 1
) -> list[Any]:
    """The JSON that each process prints last.

    Several are given, before `arguments`, the coordinator's address, their number and their rank: to
    be passed to `jax.distributed.initialize`.
    """
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": f"{_TESTS.parent}{os.pathsep}{_TESTS}",
    }
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = []
    try:
        for rank in range(num_processes):
            group = [address, num_processes, rank] if num_processes > 1 else []
            processes.append(
                subprocess.Popen(
                    [sys.executable, str(_TESTS / script), *map(str, [*group, *arguments])],
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        return [_answer(process) for process in processes]
    finally:
        for process in processes:
            process.kill()


def _answer(process: subprocess.Popen) -> Any:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.strip().splitlines()[-1])
