"""A process of another Python that answers lines of JSON: PyTorch's side of a benchmark."""

import json
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_ROOT = Path(__file__).resolve().parents[2]


class Worker:
    """Runs a module of this project in an environment without it.

    Args:
      python: Of that environment.
      module: Which answers each line that it is sent with one of its own.
    """

    def __init__(self, python: Path, module: str) -> None:
        if not python.is_file():
            raise FileNotFoundError(f"`peer_python` must be a Python, got {str(python)!r}.")
        self._python = python
        self._process = subprocess.Popen(
            # Not resolved: a virtual environment's Python is a link, and the link says which.
            [str(python.absolute()), "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
            env={**os.environ, "OMP_PROC_BIND": "close", "PYTHONPATH": str(_ROOT)},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()  # it keeps nothing
        self._process.wait()

    def ask(self, message: Any) -> dict[str, Any]:
        """Sends a message and waits for the answer.

        Raises:
          RuntimeError: The process ended instead.
        """
        to_peer, from_peer = self._process.stdin, self._process.stdout
        assert to_peer is not None and from_peer is not None  # both are pipes
        to_peer.write(json.dumps(message) + "\n")
        to_peer.flush()
        answer = from_peer.readline()
        if not answer:
            raise RuntimeError(f"{self._python} stopped; its own words are above.")
        return json.loads(answer)
