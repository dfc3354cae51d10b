"""A script whose processes disagree, one call after the other; then Ctrl-C ends one before the other.

python tests/disagreeing.py --folder FOLDER --leaves RANK --processes HOST:PORT,NUMBER,INDEX
"""

import dataclasses
import json
import time
from pathlib import Path

import jax

from jaxrobust import evaluation, processes, studies
from jaxrobust.attacks import FGSM
from jaxrobust.studies import cluster


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings.

    Attributes:
      folder: Where to write what the processes are told, and to make runs.
      leaves: The process that ends first.
      processes: All of them.
    """

    folder: Path
    leaves: int = 0
    processes: str | None = None


@dataclasses.dataclass(frozen=True)
class Study:
    """Settings of a run."""

    results_dir: Path
    epsilon: float = 0.1
    seed: int = 0
    run: str = "default"


def calls(folder, rank):
    """{name: a call in which the processes disagree}; in the last one they agree."""
    from verdicts import classifier, examples

    of, own = classifier(), folder / str(rank)
    images, labels = examples(8)

    def attack(epsilon=0.1, seed=0, path=None):
        execution = evaluation.Execution(8, path=path)
        given = classifier(seed), images, labels
        return evaluation.attack_dataset(
            FGSM(epsilon), *given, key=jax.random.key(0), execution=execution
        )

    def start(epsilon, place, **inputs):
        return studies.start("study", Study(place, epsilon), inputs=inputs)

    def stage():
        run = start(0.1, folder)
        reports = [run.attack("fgsm", FGSM(0.1), of, images, labels) for _ in range(2)]
        assert reports[0].success.tolist() == reports[1].success.tolist()

    return {
        "settings": lambda: start(0.1 + rank, folder),
        "inputs": lambda: start(0.1, folder, weights=rank),
        "results": lambda: start(0.1, own),
        "attack": lambda: attack(0.1 + rank / 10),
        "weights": lambda: attack(seed=rank),
        "state": lambda: attack(path=own / "state.npz"),
        "images": lambda: evaluation.logits(of, images[rank:]),
        "calls": lambda: evaluation.logits(of, images) if rank else processes.in_any(True),
        "none": lambda: (stage(), attack(path=folder / "state.npz")),
    }


def main(settings: Settings) -> None:
    """Writes what each call raises, and ends as by Ctrl-C."""
    rank, told = jax.process_index(), {}
    for name, call in calls(settings.folder, rank).items():
        try:
            call()
        except ValueError as error:
            told[name] = str(error)
    (settings.folder / f"told{rank}.json").write_text(json.dumps(told))
    assert processes.gathered(jax.numpy.float32(rank)[None]).tolist() == [[0], [1]]
    processes.end()
    if rank != settings.leaves:
        time.sleep(3.5)
    raise KeyboardInterrupt


if __name__ == "__main__":
    cluster._SILENCE = 4
    processes._UNTIL_SEEN = 0.2
    # Not as __main__, because the errors of a test's own functions are not those of the package.
    from disagreeing import Settings as Options
    from disagreeing import main as run

    studies.run_script(run, Options)
