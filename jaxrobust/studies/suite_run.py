"""Runs a suite of attacks for a script: it shows progress, and survives being killed."""

import dataclasses
import functools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrobust import evaluation, files, processes
from jaxrobust.attacks import Attack
from jaxrobust.evaluation import Execution, SuiteReport
from jaxrobust.evaluation.classification import softmax
from jaxrobust.reports import blocks, evaluations
from jaxrobust.reports.blocks import Block
from jaxrobust.reports.pictures import decode_array, encode_array
from jaxrobust.studies.display import Display
from jaxrobust.studies.galleries import answer_record, spread
from jaxrobust.studies.run import Run
from jaxrobust.types import LogitsFn

_SAVE_EVERY = 5.0  # seconds


def run_suite(
    suite: Mapping[str, Attack],
    logits_fn: LogitsFn,
    images: Any,
    labels: Any,
    *,
    key: jax.Array,
    execution: Execution,
) -> tuple[SuiteReport, dict[str, float]]:
    """Runs a suite, or resumes one that was killed, and shows its progress on stderr.

    The arguments are those of `evaluation.attack_suite`.

    Args:
      suite: {name: attack}.
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K].
      images: [N, H, W, C].
      labels: int [N].
      key: A PRNG key.
      execution: How the suite is run. Its `path` must be the folder for the state of the attacks, and
        its `progress` must not be set.

    Returns:
      (report, {name: the seconds that the attack took in this run and in the runs that it resumes, by
      the first process's clock}).

    Raises:
      ValueError: `execution` has no `path`, or it has `progress`.
    """
    execution.refuse("progress", "run_suite", "It shows its progress by itself.")
    if execution.path is None:
        raise ValueError("`execution.path` must be the folder for the state, got None.")
    clock = _Clock(Path(execution.path) / "seconds.json")
    try:
        report = evaluation.attack_suite(
            suite,
            logits_fn,
            images,
            labels,
            key=key,
            execution=dataclasses.replace(execution, progress=clock),
        )
    except BaseException:
        clock.stop("interrupted after ")
        raise
    clock.stop()
    earlier = clock.earlier
    return report, {n: round(earlier.get(n, 0.0) + report.seconds[n], 3) for n in suite}


@dataclasses.dataclass(frozen=True, eq=False)
class SuiteRun:
    """A suite on one classifier, and the sanity checks of the same ball, as stages of a run.

    Attributes:
      run: The run, which saves the records.
      suite: {name: attack}, all with the same epsilon and the same norm.
      label: The suite's name in tables.
      model: The classifier's name.
      target: (the classifier, the images [N, H, W, C], the labels int [N]).
      indices: int [N], the images' indices in the data set.
      execution: How the suite is run; its `path` is the folder for the state of the attacks.
    """

    run: Run
    suite: Mapping[str, Attack]
    label: str
    model: str
    target: tuple[LogitsFn, np.ndarray, np.ndarray]
    indices: np.ndarray
    execution: Execution

    @functools.cached_property
    def outcome(self) -> tuple[SuiteReport, dict[str, float]]:
        """The result of `run_suite`. If the suite has finished before, it is read from the folder."""
        return run_suite(self.suite, *self.target, key=self.run.key, execution=self.execution)

    def record(self, stage: str) -> dict[str, Any]:
        """Returns the suite's record.

        Args:
          stage: The stage's name.

        Returns:
          The record of `evaluation.summarise_suite`, with the suite's label and the images' indices.
        """

        def summarise(_: Any) -> dict[str, Any]:
            report, seconds = self.outcome
            report = dataclasses.replace(report, seconds=seconds)
            found = evaluation.summarise_suite(report, self.model)
            return found | {"label": self.label, "indices": self.indices.tolist()}

        found: dict[str, Any] = self.run.stages.remember(stage, summarise)
        seconds = sum(attack["seconds"] for attack in found["attacks"])
        self.run.stages.count_resumed(stage, seconds)
        return found

    def sanity(self, stage: str) -> dict[str, Any]:
        """Returns the record of the sanity checks, as `evaluation.sanity` makes it.

        Args:
          stage: The stage's name.
        """
        first: Any = next(iter(self.suite.values()))

        def check(progress: Any) -> dict[str, Any]:
            return evaluation.sanity(
                *self.target,
                first.epsilon,
                key=jax.random.fold_in(self.run.key, 1),
                norm=first.norm,
                execution=Execution(self.execution.num_lanes, progress=progress),
            )

        found: dict[str, Any] = self.run.stages.remember(stage, check)
        return found


def examples(attacked: SuiteRun, count: int) -> list[dict[str, Any]]:
    """Makes records of images that a suite has fooled, before and after; `pictures` draws them.

    Args:
      attacked: The suite.
      count: The largest number of records.

    Returns:
      The records; none if the images have neither one channel nor three.
    """
    report, _ = attacked.outcome
    if report.images.shape[-1] not in (1, 3):
        return []
    before, after = softmax(report.clean_logits), softmax(report.logits)
    names = list(report.suite)
    return [
        {
            "index": int(attacked.indices[row]),
            "label": int(report.labels[row]),
            "fooled_by": names[int(report.fooled_by[row])],
            **answer_record(before[row]),
            **answer_record(after[row], "adversarial_"),
            "image": encode_array(report.clean_images[row]),
            "adversarial": encode_array(report.images[row]),
        }
        for row in spread(report.fooled_by >= 0, count)
    ]


def pictures(entries: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> Block:
    """Draws images before and after a suite fooled them, and the difference between the two.

    Args:
      entries: Records of `examples`.
      class_names: K names.
    """
    rows = []
    for entry in entries:
        clean, found = decode_array(entry["image"]), decode_array(entry["adversarial"])
        tiles = [
            blocks.tile(clean, text=evaluations.said(entry, "", class_names)),
            blocks.tile(found, text=evaluations.said(entry, "adversarial_", class_names)),
            blocks.tile(found, style="difference", against=clean),
        ]
        label = f"{class_names[entry['label']]}, image {entry['index']}"
        rows.append((label, tiles, f"fooled by {entry['fooled_by']}"))
    return blocks.pictures(
        rows,
        "Below each image stands what the model says, and how confidently. The difference is amplified "
        "by the stated factor, so that its largest value fills the range around grey: grey pixels are "
        "unchanged.",
        columns=("clean", "adversarial", "difference"),
    )


class _Clock:
    """Shows each attack's progress, and saves how long the attack took."""

    def __init__(self, path: Path) -> None:
        self._path, self._spent = path, dict[str, float]()
        self._last = self._saved = time.monotonic()
        self._name, self._display = "", Display("")
        try:
            self.earlier = {k: float(v) for k, v in json.loads(path.read_text("utf-8")).items()}
        except (OSError, ValueError, AttributeError):
            self.earlier = {}  # only the times are lost, on which no result depends

    def __call__(self, name: str, done: int, total: int) -> None:
        now = time.monotonic()
        if name != self._name:
            self.stop()
            self._name, self._display = name, Display(f"  {name}")
        self._spent[name] = self._spent.get(name, 0.0) + now - self._last
        self._last = now
        if now - self._saved > _SAVE_EVERY:
            self._save()
        self._display(name, done, total)

    def stop(self, how: str = "") -> None:
        """Says how long the current attack took; `how` is put before this time."""
        if self._name:
            self._display.close(f"{how}{self._spent[self._name]:.1f} s")
            self._save()
        self._name = ""

    def _save(self) -> None:
        self._saved = time.monotonic()
        names = {*self.earlier, *self._spent}
        sums = {name: self.earlier.get(name, 0.0) + self._spent.get(name, 0.0) for name in names}
        if processes.is_first():
            files.write_json(self._path, sums)
