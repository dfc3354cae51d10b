"""Code that all benchmarks share: the peer's process, timing in turns, medians, JSON and a table."""

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxrobust import compilation, files, studies

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Row = dict[str, Any]
Ask = Callable[..., Row]
"""Asks the peer: `ask(do, **settings)` returns its answer, or raises PeerError if the peer failed."""
Side = Callable[[], Row]
"""Runs one side once; returns its "seconds" and other facts by name."""

_ROOT = Path(__file__).resolve().parents[2]
_TABLES = json.loads(Path(__file__).with_name("columns.json").read_text(encoding="utf-8"))
_VERSIONS = """
import importlib.metadata, json, sys
print(json.dumps({name: importlib.metadata.version(name) for name in sys.argv[1:]}))
"""


def peer_device() -> str:
    """The device that PyTorch should use: "cuda" if jax computes on a GPU, else "cpu"."""
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of every benchmark.

    Attributes:
      output: The path of the JSON file; a rehearsal writes another file beside it.
      quick: Make a small rehearsal, to see that everything runs; it is not a measurement.
    """

    output: Path
    quick: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeerSettings(Settings):
    """Settings of a benchmark with a peer.

    Attributes:
      peer_python: The Python of an environment with PyTorch and the libraries to compare with.
      rounds: The number of runs of each side; the medians are compared.
      num_threads: The number of threads of PyTorch; by default the number of available cores.
    """

    peer_python: Path
    rounds: int
    num_threads: int = dataclasses.field(default_factory=compilation.num_cores)


def versions(python: Path, *packages: str) -> dict[str, str]:
    """Returns the versions of packages in the environment of a Python.

    Raises:
      FileNotFoundError: There is no such Python.
      ValueError: The Python does not run, or lacks one of the packages.
    """
    command = [_program(python), "-c", _VERSIONS, *packages]
    try:
        run = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise ValueError(
            f"`peer_python` must be a Python interpreter, got {str(python)!r}: {error}"
        ) from error
    if run.returncode:
        last = (run.stderr.strip().splitlines() or ["it printed no message"])[-1]
        needed = ", ".join(packages)
        raise ValueError(f"`peer_python` must have {needed}, got {str(python)!r}: {last}")
    return json.loads(run.stdout)


def _program(python: Path) -> str:
    if not python.is_file():
        raise FileNotFoundError(f"`peer_python` must be a Python interpreter, got {str(python)!r}.")
    # Not resolved: a virtual environment's Python is a link, whose path identifies the environment.
    return str(python.absolute())


class PeerError(ValueError):
    """A request to the peer failed."""


@contextlib.contextmanager
def peer(python: Path, module: str = "experiments.benchmarks.torch_worker") -> Iterator[Ask]:
    """Runs a module of this project, which answers lines of JSON, in a process of another Python.

    The yielded function raises RuntimeError if the process has ended instead of answering.
    """
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    # Both sides allocate memory in the same way.
    environment = dict(os.environ) | compilation.variables_that_keep_memory()
    environment |= {"OMP_PROC_BIND": "close", "PYTHONPATH": str(_ROOT)}
    command = [_program(python), "-m", module]
    process: Any = subprocess.Popen(command, cwd=_ROOT, env=environment, **pipes)

    def ask(do: str, **settings: Any) -> Row:
        with contextlib.suppress(BrokenPipeError):  # it has ended: there will be no answer
            process.stdin.write(json.dumps({"do": do} | settings) + "\n")
            process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{python} stopped; its own messages are above.")
        found = json.loads(answer)
        if "error" in found:
            raise PeerError(found["error"])
        return found

    try:
        yield ask
    finally:
        process.kill()  # it keeps nothing
        process.wait()


def clocked(compute: Callable[[], Any], facts: Callable[[Any], Row] = lambda result: {}) -> Row:
    """Times a computation until the device has finished it; `facts` of the result are not timed.

    "memory" is the device's peak use in bytes since the process began, or None if it is unknown.
    """
    start = time.perf_counter()
    result = jax.block_until_ready(compute())
    seconds = time.perf_counter() - start
    memory = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {"seconds": seconds, "memory": memory, **facts(result)}


def turns(
    sides: Mapping[str, Side], rounds: int, first: Mapping[str, Side] | None = None
) -> dict[str, list[Row]]:
    """Runs the sides in turns, so that drift of the machine affects all alike.

    Each side has a first call, in which it compiles; `first` may replace this call by another. A side
    whose peer fails takes no more turns. Returns {side: its first call, then one for each round}.
    """
    runs: dict[str, list[Row]] = {name: [] for name in sides}
    for turn in ({**sides, **(first or {})}, *[sides] * rounds):
        for name, side in turn.items():
            if "error" not in (runs[name] or [{}])[-1]:
                try:
                    runs[name].append(side())
                except PeerError as error:
                    runs[name].append({"error": str(error)})
    return runs


def ratio(seconds: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    """Returns the ratio of the median times, and the extremes of the ratio over the rounds."""
    ratios = [own / other for own, other in zip(seconds, reference, strict=True)]
    median = statistics.median(seconds) / statistics.median(reference)
    return {"median": median, "low": min(ratios), "high": max(ratios)}


def compared(runs: Mapping[str, Sequence[Row]], reference: str = "jaxrobust") -> Row:
    """Returns the results of `turns` in the form of the JSON file: {fact: {side: value}}.

    "seconds" are those of all rounds, or of the first call if there are no rounds. "ratio" is the ratio
    to the reference; other facts are those of the last run. A side that failed is only in "error".
    """
    row: Row = {"seconds": {}, "median_seconds": {}, "first_call_seconds": {}, "ratio": {}}
    for side, (first, *rounds) in runs.items():
        rounds = rounds or [first]
        last = rounds[-1]
        for fact, value in last.items():
            if fact != "seconds" and ("error" not in last or fact == "error"):
                row.setdefault(fact, {})[side] = value
        if "error" not in last:
            seconds = row["seconds"][side] = [run["seconds"] for run in rounds]
            row["median_seconds"][side] = statistics.median(seconds)
            row["first_call_seconds"][side] = first["seconds"]
    for side, seconds in row["seconds"].items():
        if side != reference:
            row["ratio"][side] = ratio(seconds, row["seconds"][reference])
    return row


def line(columns: Mapping[str, str], row: Row | None = None) -> str:
    """Formats a row of a table of columns.json, with dashes for missing values, or the headings."""
    cells = []
    for title, path in columns.items():
        value: Any = title if row is None else row
        for key in path.split("/") if row is not None else ():
            value = value.get(key) if isinstance(value, Mapping) else None
        shown = "-" if value is None else f"{value:.4g}" if isinstance(value, float) else value
        cells.append(f"{shown:>{max(len(title), 9)}}")
    return " ".join(cells)


def output(settings: Settings) -> Path:
    """Returns the path of the JSON file."""
    path = settings.output
    return path.with_stem(f"{path.stem}_quick") if settings.quick else path


def earlier_rows(settings: Settings, ignored: Sequence[str] = ()) -> list[Row]:
    """Returns the rows of a run that was stopped; [] if its build or its settings were others.

    Args:
      settings: The settings, which name the JSON file.
      ignored: The names of settings that change no row.
    """
    if not output(settings).exists():
        return []
    before = json.loads(output(settings).read_text(encoding="utf-8"))
    config = studies.configuration(settings)
    kept = config.keys() - set(ignored)
    same = all(before["config"].get(name) == config[name] for name in kept)
    if not same or before["environment"] != _environment():
        return []
    print(
        f"{len(before['rows'])} rows of {output(settings)} are kept; delete it to measure them anew."
    )
    return before["rows"]


def _environment() -> Row:
    return studies.environment() | {"num_cores": compilation.num_cores()}


def record(settings: Settings, table: str, rows: Iterable[Row], **header: Any) -> None:
    """Writes rows as JSON and prints them as soon as they are measured, so a killed run keeps them.

    `table` names columns in columns.json: {heading: path of the value in a row, with slashes between
    keys}. `header` is added to the JSON, beside rows, settings and environment.
    """
    environment = _environment()
    document = {"config": studies.configuration(settings), "environment": environment, **header}
    document["rows"] = []
    columns = _TABLES[table]
    print(", ".join(f"{name} {value}" for name, value in environment.items()))
    print(line(columns), flush=True)
    for row in rows:
        document["rows"].append(row)
        files.write_json(output(settings), document)
        print(line(columns, row), flush=True)
        for side, error in row.get("error", {}).items():
            print(f"  {side} failed: {error}", flush=True)
    print(f"Written to {output(settings)}.")
