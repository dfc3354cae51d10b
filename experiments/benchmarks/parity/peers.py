"""A PyTorch process that attacks one network: started when it is first asked."""

import json
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax

from experiments.benchmarks import worker

_PACKAGES = ("torch", "torchattacks", "adversarial-robustness-toolbox", "foolbox")
_VERSIONS = """
import importlib.metadata, json, sys
print(json.dumps({name: importlib.metadata.version(name) for name in sys.argv[1:]}))
"""
# Of the logits. A GPU multiplies at reduced precision, on both sides, and not in the same order.
_TOLERANCE = {"cpu": 1e-4, "cuda": 0.05}


def versions(python: Path) -> dict[str, str]:
    """What is installed beside a Python.

    Args:
      python: Of an environment with torch, torchattacks, adversarial-robustness-toolbox and foolbox.

    Raises:
      FileNotFoundError: There is no such Python.
      ValueError: It does not run, or lacks a package.
    """
    if not python.is_file():
        raise FileNotFoundError(f"`peer_python` must be a Python, got {str(python)!r}.")
    try:
        run = subprocess.run(
            [str(python.absolute()), "-c", _VERSIONS, *_PACKAGES], capture_output=True, text=True
        )
    except OSError as error:
        raise ValueError(f"`peer_python` must be a Python, got {str(python)!r}: {error}") from error
    if run.returncode:
        last = (run.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ValueError(
            f"`peer_python` must have {', '.join(_PACKAGES)}, got {str(python)!r}: {last}"
        )
    return json.loads(run.stdout)


def device() -> str:
    """Where PyTorch is to compute: "cuda" where jax computes on a GPU, else "cpu"."""
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def num_cores() -> int:
    """Cores that this process may use: fewer than the machine's if it is bound to some of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Peer:
    """Talks to experiments/benchmarks/parity/torch_worker.py.

    Args:
      python: As `versions` takes it.
      network: The .npz file of the network.
      num_threads: That PyTorch may use.
    """

    def __init__(self, python: Path, network: Path, num_threads: int) -> None:
        self._python, self._network, self._num_threads = python, network, num_threads
        self._worker: worker.Worker | None = None
        self._hello: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._worker is not None:
            self._worker.__exit__(kind, error, trace)

    def hello(self) -> dict[str, Any]:
        """Its device and threads, and how far its logits are from ours.

        Raises:
          ValueError: The two networks differ, or their devices.
        """
        if self._worker is None:
            module = "experiments.benchmarks.parity.torch_worker"
            self._worker = worker.Worker(self._python, module)
            path = str(self._network.resolve())
            self._hello = self._worker.ask(
                {
                    "network": path,
                    "num_threads": self._num_threads,
                    "device": device(),
                    "tolerance": _TOLERANCE[device()],
                }
            )
            if "error" in self._hello:
                raise ValueError(f"{self._network.name}: {self._hello['error']}")
        return self._hello

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Runs one attack (torch_worker.py): its verdicts, or {"error": ...}."""
        self.hello()
        assert self._worker is not None  # since `hello`
        return self._worker.ask(request)
