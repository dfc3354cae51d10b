"""A suite of attacks as a script runs it: shown as it goes, its seconds kept over kills."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrobust import evaluation, files
from jaxrobust.evaluation import SuiteReport
from jaxrobust.evaluation.classification import softmax
from jaxrobust.reports import formatting
from jaxrobust.studies import blocks
from jaxrobust.studies.progress import Progress
from jaxrobust.types import Attack, LogitsFn

_SAVE_EVERY = 5.0  # seconds


def run_suite(
    suite: Mapping[str, Attack],
    logits_fn: LogitsFn,
    images: Any,
    labels: Any,
    *,
    key: jax.Array,
    folder: Path,
    num_lanes: int = 128,
    search_type: str = "float32",
) -> tuple[SuiteReport, dict[str, float]]:
    """Runs a suite, from where an earlier process was killed, and says on stderr how far it is.

    Args:
      suite: {name: attack}, as `evaluation.attack_suite` takes it, like the arguments after it.
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K].
      images: [N, H, W, C].
      labels: int [N].
      key: A PRNG key.
      folder: That keeps the state.
      num_lanes: Images at a time.
      search_type: "float32" or "bfloat16".

    Returns:
      (report, seconds that each attack took in all processes together).
    """
    clock = _Clock(folder / "seconds.json")
    try:
        report = evaluation.attack_suite(
            suite,
            logits_fn,
            images,
            labels,
            key=key,
            num_lanes=num_lanes,
            search_type=search_type,
            folder=folder,
            progress=clock,
        )
    except BaseException:
        clock.stop("interrupted after ")
        raise
    clock.stop()
    earlier = clock.earlier
    return report, {n: round(earlier.get(n, 0.0) + report.seconds[n], 3) for n in suite}


def table_lines(summary: Mapping[str, Any]) -> list[str]:
    """A suite as lines for a terminal: attack, what it left standing, what it fooled, its seconds.

    Args:
      summary: A SUITE of docs/result_format.md.
    """
    size = formatting.sample_size(summary["clean_accuracy"])
    rows = [["attack", f"robust accuracy, {size} (95 %)", "fooled", "seconds"]]
    rows.append(["no attack", _rate(summary["clean_accuracy"]), "", ""])
    for attack in summary["attacks"]:
        seconds = formatting.seconds(attack["seconds"])
        left = _rate(attack["robust_accuracy"])
        rows.append([attack["name"], left, str(attack["fooled"]), seconds])
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), row[1].ljust(widths[1])])
        + "".join(f"  {cell.rjust(width)}" for cell, width in zip(row[2:], widths[2:], strict=True))
        for row in rows
    ]
    return [line.replace("\N{NO-BREAK SPACE}", " ").rstrip() for line in lines]


def check_lines(diagnostics: Mapping[str, Any]) -> list[str]:
    """What `evaluation.diagnostics.sanity` found, as lines for a terminal."""
    marks = {True: "passed", False: "FAILED", None: "-"}
    checks = diagnostics["checks"]
    width = max((len(check["name"]) for check in checks), default=0)
    return [
        f"{marks[check['passed']]:6}  {check['name']:{width}}  {check['detail']}".rstrip()
        for check in checks
    ]


def suite_pictures(
    report: SuiteReport, rows: list[int], indices: Any, class_names: list[str]
) -> dict[str, Any]:
    """Images before and after they were fooled (docs/result_format.md, BLOCK pictures).

    Args:
      report: Of the suite.
      rows: Which of its images.
      indices: int [N], how the images are called.
      class_names: K names.
    """
    attacks = list(report.suite)
    before, after = softmax(report.clean_logits), softmax(report.logits)

    def said(probabilities: np.ndarray) -> str:
        best = int(probabilities.argmax())
        return f"{class_names[best]} ({formatting.confidence(float(probabilities[best]))})"

    lines, by = [], []
    for row in rows:
        clean, found = report.clean_images[row], report.images[row]
        tiles = [
            blocks.tile(clean, text=said(before[row])),
            blocks.tile(found, text=said(after[row])),
            blocks.tile(found, style="difference", against=clean),
        ]
        lines.append((f"{class_names[int(report.labels[row])]}, image {indices[row]}", tiles))
        fooled = int(report.fooled_by[row])
        by.append(f"fooled by {attacks[fooled]}" if fooled >= 0 else "not fooled")
    block = blocks.pictures(
        lines,
        "Below the images what the model says, and how confidently. The difference is amplified by the "
        "stated factor, so that its largest value fills the range around grey; grey is unchanged.",
        columns=("clean", "adversarial", "difference"),
    )
    for line, text in zip(block["rows"], by, strict=True):
        line["text"] = text
    return block


def _rate(rate: Mapping[str, Any]) -> str:
    interval = formatting.rate_interval(dict(rate), with_size=False)
    return f"{formatting.rate_value(dict(rate)):>7} {interval}"


class _Clock:
    """Shows each attack's progress, and keeps what time it took on the disk."""

    def __init__(self, path: Path) -> None:
        self._path, self._spent = path, dict[str, float]()
        self._last = self._saved = time.monotonic()
        self._name, self._display = "", Progress("")
        try:
            self.earlier = {k: float(v) for k, v in json.loads(path.read_text("utf-8")).items()}
        except (OSError, ValueError, AttributeError):
            self.earlier = {}  # of the time alone: no figure depends on it

    def __call__(self, name: str, done: int, total: int) -> None:
        now = time.monotonic()
        if name != self._name:
            self.stop()
            self._name, self._display = name, Progress(f"  {name}")
        self._spent[name] = self._spent.get(name, 0.0) + now - self._last
        self._last = now
        if now - self._saved > _SAVE_EVERY:
            self._save()
        self._display(done, total)

    def stop(self, how: str = "") -> None:
        """Says that the attack under way has come to its end, or how else it stopped."""
        if self._name:
            self._display.close(f"{how}{self._spent[self._name]:.1f} s")
            self._save()
        self._name = ""

    def _save(self) -> None:
        self._saved = time.monotonic()
        names = {*self.earlier, *self._spent}
        sums = {name: self.earlier.get(name, 0.0) + self._spent.get(name, 0.0) for name in names}
        files.write_json(self._path, sums)
