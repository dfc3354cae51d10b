"""What the experiment scripts share: a command line, stages that are timed, and a model's entry."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax

from jaxrobust.evaluation.classification import evaluate
from jaxrobust.evaluation.results import FORMAT, configuration, environment
from jaxrobust.types import LogitsFn

Config = TypeVar("Config")


def run_script(main: Callable[[Config], Any], config_type: type[Config]) -> None:
    """Reads the configuration from the command line and runs `main` with it.

    What a user can put right (a wrong setting, a missing folder) is one line on stderr and exit code
    2; Ctrl-C is exit code 130; anything else keeps its traceback.

    Args:
      main: Takes the configuration.
      config_type: A frozen dataclass; its fields become options, its docstring their help.
    """
    # Imported here: the library itself needs no command line.
    import tyro

    config = tyro.cli(config_type, description=sys.modules[main.__module__].__doc__)
    try:
        main(config)
    except KeyboardInterrupt as interrupt:
        print(f"\n{interrupt or 'Interrupted. To go on, run the same command again.'}", flush=True)
        sys.exit(130)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


class Stages:
    """Stages of a long run: each is announced, timed and remembered.

    Attributes:
      seconds: {stage: seconds}, for result.json.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """Announces a stage and times what runs inside; yields a progress callback for it."""
        on_terminal = sys.stderr.isatty()
        print(f"{name} ...", file=sys.stderr, end="" if on_terminal else "\n", flush=True)

        def progress(done: int, total: int) -> None:
            if on_terminal:
                print(f"\r\033[K{name}: {done}/{total}", file=sys.stderr, end="", flush=True)

        start = time.perf_counter()
        yield progress
        self.seconds[name] = time.perf_counter() - start
        before = "\r\033[K" if on_terminal else ""
        print(f"{before}{name}: {self.seconds[name]:.1f} s", file=sys.stderr, flush=True)


def model_entry(
    name: str,
    logits_fn: LogitsFn,
    images: Any,
    labels: Any,
    class_names: Sequence[str],
    *,
    params: Any,
    history: Sequence[dict[str, Any]] = (),
    seconds_per_epoch: float | None = None,
    description: str | None = None,
) -> dict[str, Any]:
    """A model as it goes into result.json (docs/result_format.md, MODEL).

    Args:
      name: Of the model.
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K].
      images: Of the test split, uint8 [N, H, W, C].
      labels: int [N].
      class_names: K names.
      params: Its parameters, which are counted.
      history: One row per epoch, of training.
      seconds_per_epoch: Of training.
      description: A sentence on how it was trained.
    """
    entry: dict[str, Any] = {
        "name": name,
        "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "training": {"seconds_per_epoch": seconds_per_epoch, "epochs": [dict(r) for r in history]},
        "evaluation": evaluate(logits_fn, images, labels, class_names),
    }
    if description is not None:
        entry["description"] = description
    return entry


def result_header(
    experiment: str, title: str, config: Any, seed: int, dataset: Any
) -> dict[str, Any]:
    """The part of result.json that every experiment has.

    Args:
      experiment: Its name.
      title: Of the report.
      config: The configuration dataclass.
      seed: The run's seed.
      dataset: A `jaxrobust.data.Dataset`.
    """
    return {
        "format": FORMAT,
        "experiment": experiment,
        "title": title,
        "config": configuration(config),
        "seed": seed,
        "environment": environment(),
        "data": {
            "name": dataset.name,
            "class_names": list(dataset.class_names),
            "num_train": len(dataset.train),
            "num_test": len(dataset.test),
            "image_shape": list(dataset.image_shape),
            "skipped_files": [f"{file}: {reason}" for file, reason in dataset.skipped_files],
        },
    }


def run_folder(results_dir: Path, experiment: str, run: str) -> Path:
    """results/<experiment>/<run>.

    Raises:
      ValueError: A run's name that would lead elsewhere.
    """
    if not run or Path(run).name != run:
        raise ValueError(f"`run` must be a plain name, got {run!r}.")
    return results_dir / experiment / run
