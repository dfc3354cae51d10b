"""A run of a study: its folder, which is reserved for its settings, its stages, facts and report."""

import dataclasses
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrobust import attacks, evaluation, files, packages, processes, reports, training
from jaxrobust.attacks import Attack
from jaxrobust.reports import markdown
from jaxrobust.reports.reading import FORMAT, check_result
from jaxrobust.studies import terminal, words
from jaxrobust.studies.facts import Facts
from jaxrobust.studies.results import commit, configuration, data_entry, environment
from jaxrobust.studies.stages import Stages, plain
from jaxrobust.types import Progress

_ANOTHER = "--run NAME"

# If one of these files exists, the run's folder holds something that was computed.
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
            f"{path.parent} holds a run with other inputs: {', '.join(sorted(differ))} differ. Name "
            f"another run ({_ANOTHER}), or delete this folder to start anew."
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One run of a study.

    Attributes:
      experiment: The name of the experiment.
      settings: A dataclass with the fields `seed`, `run` and `results_dir`.
      folder: The run's folder, results/<experiment>/<run>.
      stages: The stages of the run.
      facts: The facts that were measured.
    """

    experiment: str
    settings: Any
    folder: Path
    stages: Stages
    facts: Facts = dataclasses.field(default_factory=Facts)

    @property
    def key(self) -> jax.Array:
        """A PRNG key made from the run's seed."""
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
        """Trains a network as a stage, whose seconds include those of earlier processes.

        Args:
          stage: The stage's name.
          folder: The folder of the training, relative to the run's folder. A training that was stopped
            there is resumed.
          network: The network, as `training.fit` takes it.
          given: The images, as `training.fit` takes them.
          recipe: How the network is trained.
          **options: Further arguments of `training.fit`.

        Returns:
          The result of `training.fit`.
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
        """Attacks images as a stage; the report is saved in a file, and later calls read this file.

        Args:
          stage: The stage's name.
          attack: The attack, as `evaluation.attack_dataset` takes it.
          classifier: A pytree of arrays. If its arrays, the images or the attack differ, another file
            is used. Anything else that changes the classifier's answers (such as a defence and its
            strength) should be in the stage's name.
          images: [N, H, W, C].
          labels: int [N].
          targets: The targets of a targeted attack, as `evaluation.attack_dataset` takes them.

        Returns:
          The report of the attack.

        Raises:
          TypeError: The classifier has no arrays.
        """
        # The file's name depends on all settings of the attack, and on the weights, which may change.
        facts = json.dumps(attacks.to_dict(attack), sort_keys=True).encode()
        leaves = [_bytes(leaf) for leaf in jax.tree.leaves(classifier) if not callable(leaf)]
        if not leaves:
            raise TypeError(
                "`classifier` must be a pytree of arrays, such as a models.Classifier: a function does "
                "not show whether its weights have changed, so an attack on old weights could be read."
            )
        digest = zlib.crc32(b"".join([facts, images.tobytes(), *leaves]))
        path = self.folder / "adversarial" / f"{plain(stage)}-{digest:08x}.npz"
        note = path.with_suffix(".json")
        earlier = processes.by_first(lambda: _earlier(path, note, attack, labels, targets))
        if earlier is not None:
            self.stages.count_earlier(**earlier)
            return evaluation.load_attack(path, type(attack))
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

        def save() -> None:
            evaluation.save_attack(path, report)
            seconds = self.stages.seconds[stage]
            files.write_json(note, {"name": stage, "seconds": seconds, "commit": commit()})

        processes.by_first(save)
        return report

    def measure(self, stage: str, compute: Callable[[Facts, Progress], None]) -> None:
        """Measures facts as a stage, and adds them to the facts of the run.

        Args:
          stage: The stage's name.
          compute: Takes the `Facts` to add to, and a progress callback (name of the work, done, total).

        Raises:
          ValueError: The run has already used the name, the saved result cannot be read, or the run
            already has one of the facts.
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
        """Writes the facts, result.json and the report, and prints the summary.

        Args:
          title: The title of the report.
          dataset: A `jaxrobust.data.Dataset`, or a dict with the part "data" of result.json.
          template: The file with the study's words, as `studies.words.render` takes it.
          recipes: How each network was trained, for result.json.
          printed: The ids of sections whose tables are printed above the summary.
          **names: Values that the template can use, besides `facts` and `settings`.

        Returns:
          The path of the report.
        """
        path = self.folder / "report.html"
        if not processes.is_first():
            return path
        # The facts are saved first, so that an error in the template loses nothing.
        self.facts.save(self.folder)
        given = {"settings": self.settings} | names
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
        if set(self.stages.commits) - {commit()}:
            result["environment"]["commits_of_stages"] = self.stages.commits
        # The result is checked before it replaces an earlier one.
        check_result(json.loads(json.dumps(result)))
        files.write_json(self.folder / "result.json", result)
        reports.write_report(self.folder / "result.json")
        said = [markdown.plain(paragraph) for paragraph in summary]
        print("\n".join([*terminal.section_lines(found, printed), *said, f"Report: {path}"]))
        return path


def _earlier(
    path: Path, note: Path, attack: Attack, labels: Any, targets: Any
) -> dict[str, Any] | None:
    """Returns the note about the saved report of an attack; None without one of these labels."""
    if not (path.exists() and note.exists()):
        return None
    report = evaluation.load_attack(path, type(attack))
    # The file's name depends neither on the targets nor on the labels.
    aimed = targets is None or bool(np.all(report.targets == np.asarray(targets)))
    if not (np.array_equal(report.labels, labels) and aimed):
        return None
    found: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
    return found


def _kept(outcomes: np.ndarray | None) -> Any:
    """Converts outcomes for JSON: bools to a list, floats to their bytes (they may be infinite)."""
    if outcomes is None or outcomes.dtype == bool:
        return None if outcomes is None else outcomes.tolist()
    return outcomes.astype("<f8").tobytes().hex()


def _bytes(leaf: Any) -> bytes:
    """Returns the bytes of an array or a PRNG key."""
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
    """Reserves the folder of a run for its settings, or resumes the run that is in the folder.

    Args:
      experiment: The name of the experiment.
      settings: A dataclass with the fields `seed`, `run` (a plain name) and `results_dir`.
      inputs: {name: fingerprint} of the run's inputs. The error message names those that differ.
      clean_logits: float32 [N, K], the answers of the run's model. They are saved and compared too,
        because not all models show their weights. The comparison has a tolerance, because machines
        round differently.
      ignored: The names of settings that do not change any saved result.
      also: {name: JSON value} of anything else that determines the results.

    Returns:
      The run.

    Raises:
      ModuleNotFoundError: A package for drawing the report is not installed.
      ValueError: The run's name is not a plain name, another process is using the folder, or the folder
        holds results of other settings, other inputs or another model. Or the processes of
        `jax.distributed` differ in these, or do not see the same folder.
    """
    # A missing package should be found now, not after hours of computing.
    with packages.extra("reports", "A study's report"):
        import jinja2  # noqa: F401
    if not settings.run or Path(settings.run).name != settings.run:
        raise ValueError(f"`run` must be a plain name, got {settings.run!r}.")
    folder = settings.results_dir / experiment / settings.run
    environment()  # reads the commit now, before the tree can change under the run
    _check_processes(experiment, settings, inputs, also)
    described = {k: v for k, v in configuration(settings).items() if k not in ignored}
    described |= also or {}
    fingerprints = json.dumps(dict(inputs or {}), sort_keys=True)
    processes.by_first(lambda: _reserve(folder, described, fingerprints, clean_logits, ignored))
    if not processes.share(folder):
        raise ValueError(f"`results_dir` must be a folder that all processes see, got {folder}.")
    return Run(experiment, settings, folder, Stages(folder))


def _check_processes(
    experiment: str,
    settings: Any,
    inputs: Mapping[str, Any] | None,
    also: Mapping[str, Any] | None,
) -> None:
    """Raises unless all processes make the same run, by the same code."""
    known = environment()
    unlike = processes.different(
        configuration(settings)
        | {"run": [experiment, settings.run], "other settings": dict(also or {})}
        | {"data, labels or model": dict(inputs or {})}
        | {"version of the code": [known[name] for name in ("jaxrobust", "commit", "jax")]}
    )
    if unlike:
        raise ValueError(
            "All processes must run the same command with the same code, data and model; they differ "
            f"in {', '.join(unlike)}."
        )


def _reserve(
    folder: Path,
    described: Mapping[str, Any],
    fingerprints: str,
    clean_logits: np.ndarray | None,
    ignored: Sequence[str],
) -> None:
    """Reserves the folder, or checks that it belongs to these settings and inputs."""
    files.hold(folder)
    # A folder is in use as soon as it holds anything that was computed from its settings.
    in_use = (folder / "result.json").exists() or any(
        next(folder.glob(kept), None) for kept in _KEPT
    )
    path = folder / "inputs.npz"
    # A resumed run must have the inputs that it began with.
    if in_use:
        _compare_inputs(path, fingerprints, clean_logits)
    try:
        files.claim(folder, described, in_use=in_use, ignored=ignored)
    except ValueError as error:
        raise ValueError(f"{error} On the command line: {_ANOTHER}.") from None
    # The inputs are saved for this comparison, once the folder is reserved.
    if not in_use and (fingerprints != "{}" or clean_logits is not None):
        arrays: dict[str, Any] = {"fingerprints": fingerprints}
        if clean_logits is not None:
            arrays["clean_logits"] = clean_logits
        with files.replace(path) as partial:
            np.savez(partial, **arrays)
