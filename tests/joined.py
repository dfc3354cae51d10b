"""A script that several processes run together; tests start it and kill one of them.

python tests/joined.py --folder FOLDER --processes HOST:PORT,NUMBER,INDEX [--dies RANK]
"""

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

import jax

from jaxrobust import checks, evaluation, studies
from jaxrobust.attacks import PGD
from jaxrobust.evaluation import queue
from jaxrobust.studies import cluster, ctrl_c

ATTACK = PGD(0.03, 0.001, 100, num_restarts=3)
KEY = 3


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings.

    Attributes:
      folder: Where to keep the state of the attack.
      processes: All of them.
      dies: The process that kills itself, in the middle.
      fails: The process that raises an error.
    """

    folder: Path
    processes: str | None = None
    dies: int | None = None
    fails: int | None = None


def attacked(path=None, progress=None):
    from verdicts import classifier, examples

    images, labels = examples(30)
    execution = evaluation.Execution(8, path=path, progress=progress)
    of = classifier(), images, labels
    report = evaluation.attack_dataset(ATTACK, *of, key=jax.random.key(KEY), execution=execution)
    return {"images": report.images.tolist(), "queries": report.num_queries.tolist()}


def main(settings: Settings) -> None:
    """Attacks, and prints what was found."""
    told = []
    rank = jax.process_index()
    if rank == settings.fails:
        checks.integer("fails", rank, minimum=2)

    def progress(_, done, total):
        ctrl_c.check()
        told.append(total)
        # The state has been saved some times; those who live find out in the middle, too.
        if rank == settings.dies and done > total / 2:
            os.kill(os.getpid(), signal.SIGKILL)

    found = attacked(settings.folder / "state.npz", progress)
    (settings.folder / f"asked{rank}.json").write_text(json.dumps(max(told, default=0)))
    print(json.dumps(found))


if __name__ == "__main__":
    cluster._SILENCE = 4
    queue._SAVE_EVERY = 0.0
    # Not as __main__, because tests import the same.
    from joined import Settings as Options
    from joined import main as run

    studies.run_script(run, Options)
    sys.exit(0)
