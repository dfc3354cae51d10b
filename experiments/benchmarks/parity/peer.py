"""A PyTorch process that attacks one network: started when it is first asked."""

import json
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_ROOT = Path(__file__).resolve().parents[3]


class Peer:
    """Talks to experiments/benchmarks/parity/torch_worker.py.

    Args:
      python: Of an environment with torch, torchattacks, adversarial-robustness-toolbox and foolbox.
      network: The .npz file of the network.
      num_threads: That PyTorch may use.

    Raises:
      FileNotFoundError: There is no such Python.
    """

    def __init__(self, python: Path, network: Path, num_threads: int) -> None:
        if not python.is_file():
            raise FileNotFoundError(f"`peer_python` must be a Python, got {str(python)!r}.")
        self._python, self._network, self._num_threads = python, network, num_threads
        self._process: subprocess.Popen[str] | None = None
        self._hello: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.kill()  # it may be at work for hours, and keeps nothing
            self._process.wait()

    def hello(self) -> dict[str, Any]:
        """Versions, and how far its logits are from ours.

        Raises:
          RuntimeError: The two networks differ.
        """
        if self._process is None:
            self._process = subprocess.Popen(
                # Not resolved: a virtual environment's Python is a link, and the link says which.
                [str(self._python.absolute()), "-m", "experiments.benchmarks.parity.torch_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=_ROOT,
                env={**os.environ, "OMP_PROC_BIND": "close", "PYTHONPATH": str(_ROOT)},
            )
            path = str(self._network.resolve())
            self._hello = self._exchange({"network": path, "num_threads": self._num_threads})
            if "error" in self._hello:
                raise RuntimeError(f"{self._network.name}: {self._hello['error']}")
        return self._hello

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Runs one attack (torch_worker.py): its verdicts, or {"error": ...}."""
        self.hello()
        return self._exchange(request)

    def _exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(message) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._python} stopped; its own words are above.")
        return json.loads(answer)
