"""Scripts of this folder as processes of their own, with other devices, alone or by jax.distributed."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_TESTS = Path(__file__).resolve().parent
_SECONDS = 300
_DEVICES = "--xla_force_host_platform_device_count"


def answers(
    script: str, *arguments: Any, num_devices: int = 1, num_processes: int = 1
) -> list[Any]:
    """The JSON that each process prints last.

    Several are given, before `arguments`, the coordinator's address, their number and their rank: to
    be passed to `jax.distributed.initialize`.
    """
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}={num_devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": f"{_TESTS.parent}{os.pathsep}{_TESTS}",
    }
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    with tempfile.TemporaryDirectory() as folder:
        written = [Path(folder) / str(rank) for rank in range(num_processes)]
        processes = []
        try:
            for rank, path in enumerate(written):
                group = [address, num_processes, rank] if num_processes > 1 else []
                with path.open("w") as out, path.with_suffix(".err").open("w") as err:
                    command = [sys.executable, _TESTS / script, *group, *arguments]
                    processes.append(
                        subprocess.Popen(
                            list(map(str, command)), env=environment, stdout=out, stderr=err
                        )
                    )
            _wait(processes, written)
            return [json.loads(path.read_text().strip().splitlines()[-1]) for path in written]
        finally:
            for process in processes:
                process.kill()
                process.wait()


def _wait(processes: list[subprocess.Popen], written: list[Path]) -> None:
    """Until all are done; the first that fails is shown, because the others would wait for it."""
    deadline = time.monotonic() + _SECONDS
    while any(process.poll() is None for process in processes):
        if time.monotonic() > deadline or any(process.poll() for process in processes):
            break
        time.sleep(0.1)
    for process, path in zip(processes, written, strict=True):
        if process.poll():
            raise AssertionError(path.with_suffix(".err").read_text()[-3000:])
    assert all(process.poll() == 0 for process in processes), "not done in time"
