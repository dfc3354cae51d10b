"""A run: its folder, claimed for its settings; its stages, its facts, and its report."""

import dataclasses
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrobust import attacks, evaluation, files, packages, reports, training
from jaxrobust.attacks import Attack
from jaxrobust.reports import markdown
from jaxrobust.reports.reading import FORMAT, check_result
from jaxrobust.studies import terminal, words
from jaxrobust.studies.facts import Facts
from jaxrobust.studies.results import commit, configuration, data_entry, environment
from jaxrobust.studies.stages import Stages, plain
from jaxrobust.types import Progress

_ANOTHER = "--run NAME"

# What shows that a run's folder holds something that was computed.
_KEPT = (
    *("*/checkpoints/*", "*/*/checkpoints/*", "stages/*.json", "adversarial/*.npz"),
    "suite/*.npz*",
)


def _compare_inputs(path: Path, fingerprints: str, clean_logits: np.ndarray | None) -> None:
    if not path.exists():
        return
    try:
        with np.load(path, allow_pickle=False) as archive:
            kept = {name: archive[name] for name in archive}
        before, now = json.loads(str(kept["fingerprints"])), json.loads(fingerprints)
    except Exception as error:  # zip, numpy and json have errors of many classes
        raise ValueError(f"{path} cannot be read; delete {path.parent} to start anew.") from error
    differ = [name for name in now.keys() | before.keys() if now.get(name) != before.get(name)]
    logits = kept.get("clean_logits")
    if clean_logits is not None and not (
        logits is not None
        and logits.shape == clean_logits.shape
        and np.allclose(logits, clean_logits, 1e-3, 1e-3, equal_nan=True)
    ):
        differ.append("answers of the model")
    if differ:
        raise ValueError(
            f"{path.parent} holds a run of other inputs: {', '.join(sorted(differ))} differ. Name "
            f"another run ({_ANOTHER}), or delete this folder to start anew."
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One run of a study.

    Attributes:
      experiment: Its name.
      settings: A dataclass with the fields `seed`, `run` and `results_dir`.
      folder: results/<experiment>/<run>.
      stages: What is announced, timed and resumed.
      facts: What was measured.
    """

    experiment: str
    settings: Any
    folder: Path
    stages: Stages
    facts: Facts = dataclasses.field(default_factory=Facts)

    @property
    def key(self) -> jax.Array:
        """A PRNG key of the run's seed."""
        return jax.random.key(self.settings.seed)

    def fit(
        self,
        stage: str,
        folder: str,
        network: Any,
        given: training.Data,
        recipe: training.Recipe,
        **options: Any,
    ) -> training.FitResult:
        """Trains a network as a stage, whose seconds are those of all processes that trained it.

        Args:
          stage: What the stage is called.
          folder: Of the training, below that of the run; a training that is in it is gone on with.
          network: As `training.fit` takes it, like what follows.
          given: The images.
          recipe: How it is trained.
          **options: Further arguments.
        """
        with self.stages(stage):
            path = self.folder / folder
            fitted = training.fit(network, given, recipe, run_dir=path, **options)
        self.stages.count_resumed(stage, fitted.seconds)
        return fitted

    def attack(
        self,
        stage: str,
        attack: Attack,
        classifier: Any,
        images: np.ndarray,
        labels: np.ndarray,
        targets: Any = None,
    ) -> evaluation.AttackReport:
        """Attacks images as a stage; the report is kept in a file, and read back from then on.

        Args:
          stage: What the stage is called.
          attack: As `evaluation.attack_dataset` takes it, like what follows.
          classifier: A pytree: where its arrays, the images or the attack differ, so does the file.
            What else decides about its answers (a defence, its strength) should be in the stage's name.
          images: [N, H, W, C].
          labels: int [N].
          targets: Of a targeted attack.

        Raises:
          TypeError: A classifier without arrays.
        """
        # A label rounds and leaves out, and weights may have been trained anew.
        facts = json.dumps(attacks.to_dict(attack), sort_keys=True).encode()
        leaves = [_bytes(leaf) for leaf in jax.tree.leaves(classifier) if not callable(leaf)]
        if not leaves:
            raise TypeError(
                "`classifier` must be a pytree of arrays, such as a models.Classifier: a function does "
                "not show that its weights have changed, and the attack of the old ones would be read."
            )
        digest = zlib.crc32(b"".join([facts, images.tobytes(), *leaves]))
        path = self.folder / "adversarial" / f"{plain(stage)}-{digest:08x}.npz"
        note = path.with_suffix(".json")
        if path.exists() and note.exists():
            report = evaluation.load_attack(path)
            # Neither is part of the file's name.
            aimed = targets is None or bool(np.all(report.targets == np.asarray(targets)))
            if np.array_equal(report.labels, labels) and aimed:
                self.stages.count_earlier(**json.loads(note.read_text(encoding="utf-8")))
                return report
        with self.stages(stage) as progress:
            report = evaluation.attack_dataset(
                attack,
                classifier,
                images,
                labels,
                key=self.key,
                targets=targets,
                execution=evaluation.Execution(progress=progress),
            )
        evaluation.save_attack(path, report)
        seconds = self.stages.seconds[stage]
        files.write_json(note, {"name": stage, "seconds": seconds, "commit": commit()})
        return report

    def measure(self, stage: str, compute: Callable[[Facts, Progress], None]) -> None:
        """A stage whose record is facts, which are added to those of the run.

        Args:
          stage: What the stage is called.
          compute: Takes the facts to add to, and a progress callback (what is under way, done, total).

        Raises:
          ValueError: As `Stages.remember`; facts that are there already.
        """

        def record(progress: Progress) -> list[dict[str, Any]]:
            facts = Facts()
            compute(facts, progress)
            return [vars(fact) | {"outcomes": _kept(fact.outcomes)} for fact in facts]

        for kept in self.stages.remember(stage, record):
            outcomes = kept.pop("outcomes")
            if isinstance(outcomes, str):
                outcomes = np.frombuffer(bytes.fromhex(outcomes), "<f8")
            self.facts.add(kept.pop("measure"), kept.pop("keys"), outcomes=outcomes, **kept)

    def finish(
        self,
        title: str,
        dataset: Any,
        template: Path,
        *,
        recipes: Mapping[str, Any] | None = None,
        printed: Sequence[str] = (),
        **names: Any,
    ) -> Path:
        """Renders the study's words, writes facts, result.json and the report, prints the summary.

        Args:
          title: Of the report.
          dataset: A `jaxrobust.data.Dataset`, or a dict that is the part "data" of result.json itself.
          template: The study's words, for `studies.words.render`.
          recipes: How each network was trained, for whoever reads result.json.
          printed: Ids of sections whose tables are printed above the summary.
          **names: What the template can name, beside `facts`, `settings` and `minutes`, what all stages
            took together.

        Returns:
          The report's path.
        """
        # Facts first: a template that is wrong loses nothing.
        self.facts.save(self.folder)
        minutes = sum(self.stages.seconds.values()) / 60
        given = {"settings": self.settings, "minutes": minutes} | names
        summary, found = words.render(template, self.facts, given)
        result = {
            "format": FORMAT,
            "experiment": self.experiment,
            "title": title,
            "config": configuration(self.settings),
            "seed": self.settings.seed,
            "environment": environment(),
            "data": dataset if isinstance(dataset, dict) else data_entry(dataset),
            "timings": self.stages.seconds,
            "summary": summary,
            "blocks": found,
        }
        if recipes is not None:
            result["recipes"] = recipes
        if len(self.stages.commits) > 1:
            result["environment"]["commits_of_stages"] = self.stages.commits
        # Checked before it takes an earlier one's place.
        check_result(json.loads(json.dumps(result)))
        files.write_json(self.folder / "result.json", result)
        path = reports.write_report(self.folder / "result.json")
        said = [markdown.plain(paragraph) for paragraph in summary]
        print("\n".join([*terminal.section_lines(found, printed), *said, f"Report: {path}"]))
        return path


def _kept(outcomes: np.ndarray | None) -> Any:
    """Outcomes for JSON: a list of bools, or the bytes of floats, which may be infinite."""
    if outcomes is None or outcomes.dtype == bool:
        return None if outcomes is None else outcomes.tolist()
    return outcomes.astype("<f8").tobytes().hex()


def _bytes(leaf: Any) -> bytes:
    """The bytes of an array or a PRNG key."""
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def start(
    experiment: str,
    settings: Any,
    *,
    inputs: Mapping[str, Any] | None = None,
    clean_logits: np.ndarray | None = None,
    ignored: Sequence[str] = (),
    also: Mapping[str, Any] | None = None,
) -> Run:
    """Claims the folder of a run for its settings, and goes on with what is in it.

    Args:
      experiment: Its name.
      settings: A dataclass with the fields `seed`, `run`, a plain name, and `results_dir`.
      inputs: Fingerprints of what the run is of, by name. Where they differ, the names are said.
      clean_logits: float32 [N, K], what the run's model answers. They are kept, and tell models apart
        of which nothing else is seen; not to the last digit, because machines round differently.
      ignored: Names of settings that change nothing that is computed and kept.
      also: What else decides about the results, by name, as JSON values.

    Raises:
      ModuleNotFoundError: What draws the report at the end is not installed.
      ValueError: A run's name that would lead elsewhere, a folder in which another process is at work,
        or one that holds results of other settings, other inputs or another model.
    """
    # Looked for now, and not at the end of hours.
    with packages.extra("reports", "A study's report"):
        import jinja2  # noqa: F401
    if not settings.run or Path(settings.run).name != settings.run:
        raise ValueError(f"`run` must be a plain name, got {settings.run!r}.")
    folder = settings.results_dir / experiment / settings.run
    files.hold(folder)
    environment()  # reads the commit now, before the tree can change under the run
    # A folder is in use once anything in it was computed from its settings.
    in_use = (folder / "result.json").exists() or any(
        next(folder.glob(kept), None) for kept in _KEPT
    )
    described = {k: v for k, v in configuration(settings).items() if k not in ignored}
    described |= also or {}
    path = folder / "inputs.npz"
    fingerprints = json.dumps(dict(inputs or {}), sort_keys=True)
    # What was given besides the settings must be what the run began with.
    if in_use:
        _compare_inputs(path, fingerprints, clean_logits)
    try:
        files.claim(folder, described, in_use=in_use, ignored=ignored)
    except ValueError as error:
        raise ValueError(f"{error} On the command line: {_ANOTHER}.") from None
    # Kept for the comparison, once the settings have been claimed.
    if not in_use and (inputs is not None or clean_logits is not None):
        arrays: dict[str, Any] = {"fingerprints": fingerprints}
        if clean_logits is not None:
            arrays["clean_logits"] = clean_logits
        with files.replace(path) as partial:
            np.savez(partial, **arrays)
    return Run(experiment, settings, folder, Stages(folder))
