"""Runs what the sources need a GPU for, the most valuable parts first, within a number of minutes.

    python -m experiments.gpu_plan --data-dir DIR --minutes 12

DIR has CIFAR-10 as JPEG (data/README.md). Each part is a command of its own, printed before it runs. At
the end of the time the running part is stopped as by Ctrl-C, and keeps what it has computed. The same
command continues with what is missing, so several short leases of a GPU add up; they must share the
folder of results. plan.json in this folder says what has finished, and which commands continue the
rest.

Expected time: 75 minutes in all on one H100, in leases of any length. This is an estimate from the
times in docs/results/cifar10.md, which are those of older code; the plan has not been timed. --quick
takes 8 minutes on 2 cores: it runs the smallest form of each part, to see that all of them work.

Sources: 004 (ResNet18 in the place of ResNet34) and 003 (VGG19 and ResNet50).
"""

import contextlib
import dataclasses
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from jaxrobust import checks, files, studies

GRACE = 40.0  # seconds in which a stopped part may write what it has computed
LEAST = 20.0  # seconds: what begins with less would be stopped before it has compiled anything
PRESETS: dict[str, dict[str, Any]] = {"quick": {"quick": True, "minutes": 30.0}}


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the plan.

    Attributes:
      name: Its name, also of its run.
      module: The script.
      arguments: What the script is told, beside data, run and folder of results.
      minutes: The number of minutes that it is expected to take on one H100.
    """

    name: str
    module: str
    arguments: str
    minutes: float


# In the order of value per minute. The first is the row of table 4.2: dense, a half and a tenth of the
# weights after 30 epochs of PGD-10, and AutoAttack on 1,000 images.
PARTS = (
    Part(
        "resnet18-robust",
        "experiments.robust_compression",
        "--preset gpu --networks resnet18",
        25.0,
    ),
    Part(
        "vgg19-filters",
        "experiments.pruned_benchmark",
        "--networks vgg19 --num-attacked 1000",
        20.0,
    ),
    Part(
        "resnet50-filters",
        "experiments.pruned_benchmark",
        "--networks resnet50 --criteria l1 --sparsities 0.1 0.3 0.5 --num-attacked 1000",
        30.0,
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings.

    Attributes:
      data_dir: The folder of CIFAR-10 as JPEG; only --quick can do without it.
      minutes: The number of minutes after which the running part is stopped.
      results_dir: The folder of all results; plan.json is in it.
      quick: Run the smallest form of each part on scikit-learn's digits.
    """

    data_dir: Path | None = None
    minutes: float = 12.0
    results_dir: Path = Path("results")
    quick: bool = False


def command(part: Part, settings: Settings) -> list[str]:
    """Returns the command of a part."""
    wanted = "--quick" if settings.quick else f"{part.arguments} --data cifar10_jpeg"
    place = ["--results-dir", str(settings.results_dir), "--run", f"plan-{part.name}"]
    if settings.data_dir is not None and not settings.quick:
        place = ["--data-dir", str(settings.data_dir), *place]
    return [sys.executable, "-m", part.module, *shlex.split(wanted), *place]


def run(words: list[str], seconds: float) -> str:
    """Runs a command for at most `seconds`; returns "finished", "stopped" or "failed".

    At the end of the time, and if this script itself is interrupted, the command is interrupted too and
    has some seconds to write what it has.
    """
    # In a session of its own, or Ctrl-C in a terminal would interrupt it twice.
    process = subprocess.Popen(words, start_new_session=True)
    try:
        code = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        _stop(process)
        return "stopped"
    except KeyboardInterrupt:
        _stop(process)
        raise
    return "finished" if code == 0 else "failed"


def _stop(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGINT)
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE)
    finally:  # also at a second Ctrl-C, which the process does not see
        process.kill()  # what it has computed is in files
        process.wait()


def read(path: Path) -> dict[str, Any]:
    """Returns what earlier calls wrote to plan.json; {} if there were none."""
    if not path.is_file():
        return {}
    try:
        return {row["command"]: row for row in json.loads(path.read_text(encoding="utf-8"))}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read; delete it to begin anew.") from error


def main(settings: Settings) -> None:
    """Runs the parts that have not finished, in order, until the time has passed."""
    studies.check_settings(settings)
    checks.number("minutes", settings.minutes, above=0.0)
    if settings.data_dir is None and not settings.quick:
        raise ValueError(
            "`data_dir` must be the folder of CIFAR-10 as JPEG, as data/README.md says."
        )
    deadline, path = time.monotonic() + 60 * settings.minutes, settings.results_dir / "plan.json"
    found, rows = read(path), []  # what was found can have rows of other settings, which stay
    for part in PARTS:
        words = command(part, settings)
        row = found.setdefault(shlex.join(words), {"command": shlex.join(words), "seconds": 0.0})
        rows.append(row)
        left, start = deadline - time.monotonic(), time.monotonic()
        if row.get("state") == "finished" or left < LEAST:
            row.setdefault("state", "not begun")
        else:
            print(f"\n{part.name}, of {part.minutes:g} minutes: {row['command']}", flush=True)
            row["state"] = "stopped"  # true if this process is killed
            files.write_json(path, list(found.values()))
            try:
                row["state"] = run(words, left)
            finally:
                row["seconds"] += time.monotonic() - start
                files.write_json(path, list(found.values()))
        print(f"{part.name}: {row['state']} after {row['seconds']:.0f} s", flush=True)
    files.write_json(path, list(found.values()))
    if any(row["state"] != "finished" for row in rows):
        print(f"To go on, run the same command again. {path} has the commands of all parts.")


if __name__ == "__main__":
    studies.run_script(main, Settings, PRESETS)
