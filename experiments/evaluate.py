"""Attacks a classifier with a suite of attacks, and says whether the result can be trusted.

    python -m experiments.evaluate --model runs/cnn --data digits --epsilon 8/255
    python -m experiments.evaluate --model my_package.my_module:load --data images.npz --suite plus

The model is a run folder of `jaxrobust.training.fit`, a file of `jaxrobust.models.save`, or
module:function: a Python function without arguments that returns a function from images [B, H, W, C] in
[0, 1] to logits [B, K]. (A file of a network that is not the library's names such a function too, and
it is called: evaluate no file of a stranger.) The data are `digits`, `sports10`, `cifar10`, `cifar100`,
`cifar10_jpeg` (data/README.md says what to place in --data-dir), a folder <split>/<class>/<image> (the
split is test, valid or val), or an .npz with `images` and `labels`.

Expected time: 2 to 3 minutes on 2 cores for a very small network (`simple_cnn` with widths of 8) and
200 digits of which 56 withstand, a minute of it for the sanity checks; more in proportion to the
network's arithmetic and to the images that withstand: 5,000 queries and some 3,000 gradients each.
--quick (20 images, 20 steps) takes under a minute, most of it compiling and the sanity checks, which
keep their 100 steps. A run that was killed goes on with the same command and has lost half a minute at
most; --save-images, --num-shown, --num-lanes, --curve and --no-diagnostics may differ then, or be
asked for later: nothing is attacked again.

Expected numbers: of a network trained on clean images next to nothing is left at 8/255. Where much is
left, the sanity checks say whether that may be an attack that failed; they are made with every run.

Source: Croce and Hein 2020, https://arxiv.org/abs/2003.01690 (AutoAttack); Carlini et al. 2019,
https://arxiv.org/abs/1902.06705 (the checks).
"""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxrobust import checks, evaluation, files, programs, studies, training
from jaxrobust.reports import BANNERS
from jaxrobust.reports.formatting import rate_words
from jaxrobust.studies import suite_run, suites
from jaxrobust.types import Attack, LogitsFn, Stochastic

# Settings that change no verdict: a run goes on, or is drawn anew, with others.
_VIEWS = (
    *("save_images", "num_shown", "num_lanes", "curve", "diagnostics", "download"),
    "describe",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      model: A run folder, a saved model, or module:function.
      data: digits, sports10, cifar10, cifar100, cifar10_jpeg, a folder of images, or an .npz with
        images and labels.
      suite: standard, plus, rand, the name of one attack in small letters, or a .json of attacks.
      epsilon: Radius of the ball in pixel units (1 is black to white), as in 0.03 or 8/255.
      norm: Of the ball.
      num_images: How many of the test images; chosen by the seed alone.
      curve: More epsilons, at which the suite's first attack is made on all images.
      save_images: Keep clean and adversarial images in adversarial/suite.npz of the run's folder.
      num_shown: Adversarial images in the report.
      diagnostics: Whether to make the sanity checks.
      num_lanes: Images attacked at a time.
      search_type: The type of the search; what bfloat16 finds is verified in float32.
      weights: Of a run folder: those of the last epoch or of the best.
      data_dir: Where a named data set lies.
      download: Fetch cifar10 or cifar100 into data_dir if it is not there (170 MB).
      image_size: Side of the images of a folder, in pixels; their own by default.
      seed: Of everything random.
      run: Name of the run; results go to <results_dir>/evaluate/<run>.
      results_dir: Where results go.
      quick: At most 20 images and 20 steps, to see that everything runs.
      describe: Print the model's layers (shapes, parameters, FLOPs of one image), and attack nothing.
    """

    model: str
    data: str
    suite: str = "standard"
    epsilon: str = "8/255"
    norm: Literal["linf", "l2", "l1"] = "linf"
    num_images: int = 200
    curve: tuple[str, ...] = ()
    save_images: bool = False
    num_shown: int = 6
    diagnostics: bool = True
    num_lanes: int = 128
    search_type: Literal["float32", "bfloat16"] = "float32"
    weights: Literal["last", "best"] = "last"
    data_dir: Path | None = None
    download: bool = False
    image_size: int | None = None
    seed: int = 0
    run: str = "default"
    results_dir: Path = Path("results")
    quick: bool = False
    describe: bool = False

    @property
    def radius(self) -> float:
        """Epsilon as a number."""
        return suites.number("epsilon", self.epsilon)

    @property
    def epsilons(self) -> list[float]:
        """Those of the curve."""
        return [suites.number("curve", text) for text in self.curve]


def main(config: Config) -> Path | None:
    """Runs the evaluation; returns the report's path, or None if there is only a description."""
    _check(config)
    if config.describe:
        classifier, examples, _ = _loaded(config)
        image = examples.images[:1]
        if isinstance(classifier, Stochastic):
            keys = jax.random.split(jax.random.key(config.seed), 1)
            classifier = functools.partial(classifier.function, keys)
        print(programs.describe(classifier, image))
        return None
    if config.quick:
        config = dataclasses.replace(config, num_images=min(config.num_images, 20))
    task = _task(config)
    stages = studies.Stages(task.folder)
    with stages("clean images"):
        images, labels, names = task.examples.images, task.examples.labels, task.names
        entry = studies.model_entry(task.model, task.classifier, images, labels, names)
    summary, sections = _attacked(task, stages)
    if config.diagnostics:
        summary["diagnostics"] = stages.remember("sanity checks", functools.partial(_sanity, task))
    curves = [_curve(task, stages, summary)] if config.epsilons else []

    print("\n".join(["", *suite_run.table_lines(summary), ""]))
    if config.diagnostics:
        print("\n".join([*suite_run.check_lines(summary["diagnostics"]), ""]))
    title = f"Robustness of {task.model}"
    data = task.examples.entry(len(task.names))
    result = studies.result_header("evaluate", title, config, config.seed, data)
    result |= {
        "summary": _summary(task, summary),
        "timings": stages.seconds,
        "models": [entry],
        "suites": [summary],
        "curves": curves,
        "sections": sections,
    }
    return studies.finish(task.folder, result)


@dataclasses.dataclass(frozen=True, eq=False)
class _Task:
    """What is attacked with what, and where that is kept."""

    config: Config
    classifier: LogitsFn
    suite: dict[str, Attack]
    label: str
    examples: studies.Examples
    names: list[str]
    model: str
    folder: Path

    @property
    def key(self) -> jax.Array:
        return jax.random.key(self.config.seed)


def _check(config: Config) -> None:
    """Refuses what is out of range. Not in `Config`: the command line would frame the words."""
    largest = 1.0 if config.norm == "linf" else math.inf
    for name, text in (("epsilon", config.epsilon), *(("curve", text) for text in config.curve)):
        epsilon = suites.number(name, text)
        if 1 < epsilon <= 255 and largest == 1:
            raise ValueError(
                f"`{name}` must be at most 1 (1 is black to white), got {text}; did you mean "
                f"{text}/255?"
            )
        above = 0.0 if name == "epsilon" else -math.inf
        checks.number(name, epsilon, minimum=0.0, above=above, maximum=largest)
    checks.integer("num_images", config.num_images, minimum=1)
    checks.integer("num_shown", config.num_shown, minimum=0)
    checks.integer("num_lanes", config.num_lanes, minimum=1)


def _loaded(config: Config) -> tuple[LogitsFn, studies.Examples, int]:
    """The classifier, its images, and how many classes it tells apart."""
    examples = studies.load_examples(
        config.data,
        config.num_images,
        config.seed,
        data_dir=config.data_dir,
        image_size=config.image_size,
        download=config.download,
    )
    model = studies.load_model(config.model, config.weights)
    classifier = model.classifier
    num_classes = studies.check_classifier(classifier, config.model, examples.images.shape[1:])
    if not examples.class_names:
        examples = dataclasses.replace(examples, class_names=model.class_names)
    return classifier, examples, num_classes


def _task(config: Config) -> _Task:
    """Loads everything, complains of what does not fit together, and opens the run's folder."""
    classifier, examples, num_classes = _loaded(config)
    examples.check_labels(num_classes)
    suite = whole = suites.make_suite(config.suite, config.radius, config.norm, num_classes)
    if config.quick:
        suite = suites.shortened(whole, 20)
    inputs, clean_logits = studies.describe_inputs(classifier, examples.images, examples.labels)
    folder = studies.open_run(
        config.results_dir,
        "evaluate",
        config.run,
        config,
        suite={name: training.describe(attack) for name, attack in suite.items()},
        inputs=inputs,
        clean_logits=clean_logits,
        ignored=_VIEWS,
    )
    return _Task(
        config=config,
        classifier=classifier,
        suite=suite,
        label=suites.label(config.suite, config.radius, config.norm, shortened=suite != whole),
        examples=examples,
        names=examples.names(num_classes),
        model=Path(config.model).name,
        folder=folder,
    )


def _attacked(task: _Task, stages: studies.Stages) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The suite for result.json, and a section of pictures."""
    kept = task.folder / "adversarial" / "suite.npz"

    @functools.cache  # once for all that wants it; anew, it reads what the attacks have found
    def run() -> tuple[evaluation.SuiteReport, dict[str, float]]:
        return suite_run.run_suite(
            task.suite,
            task.classifier,
            task.examples.images,
            task.examples.labels,
            key=task.key,
            folder=task.folder / "suite",
            num_lanes=task.config.num_lanes,
            search_type=task.config.search_type,
        )

    def summarise(_: Any) -> dict[str, Any]:
        report, seconds = run()
        summary = evaluation.summarise_suite(
            dataclasses.replace(report, seconds=seconds), task.model
        )
        return summary | {"label": task.label, "indices": task.examples.indices.tolist()}

    def draw(_: Any) -> list[dict[str, Any]]:
        report, _ = run()
        shown = studies.spread(report.fooled_by >= 0, task.config.num_shown)
        if not shown or report.images.shape[-1] not in (1, 3):
            return []
        pictures = suite_run.suite_pictures(report, shown, task.examples.indices, task.names)
        return [{"id": "fooled", "title": "Adversarial images", "blocks": [pictures]}]

    summary = stages.remember("suite", summarise)
    stages.count_resumed("suite", sum(attack["seconds"] for attack in summary["attacks"]))
    sections = stages.remember(f"{task.config.num_shown} pictures", draw)
    if task.config.save_images and not kept.exists():
        report, _ = run()
        with files.replace(kept) as file:
            np.savez_compressed(
                file,
                images=report.images,
                clean_images=report.clean_images,
                labels=report.labels,
                indices=task.examples.indices,
                fooled_by=report.fooled_by,
                attacks=np.array(list(task.suite)),
            )
    return summary, sections


def _sanity(task: _Task, progress: Any) -> dict[str, Any]:
    return evaluation.sanity(
        task.classifier,
        task.examples.images,
        task.examples.labels,
        task.config.radius,
        key=jax.random.fold_in(task.key, 1),
        norm=task.config.norm,
        num_lanes=task.config.num_lanes,
        progress=progress,
    )


def _curve(task: _Task, stages: studies.Stages, summary: dict[str, Any]) -> dict[str, Any]:
    """Of the suite's first attack, with what the whole suite leaves at its epsilon."""
    name, attack = next(iter(task.suite.items()))

    def compute(progress: Any) -> dict[str, Any]:
        return evaluation.robustness_curve(
            attack,
            task.classifier,
            task.examples.images,
            task.examples.labels,
            task.config.epsilons,
            key=jax.random.fold_in(task.key, 2),
            model=task.model,
            num_lanes=task.config.num_lanes,
            progress=progress,
        )

    points = ", ".join(task.config.curve)
    curve = stages.remember(f"curve over epsilon at {points}", compute)
    curve["label"] = f"{name} alone, {task.config.norm}: an upper bound"
    curve["suite"] = {
        "label": task.label,
        "epsilon": task.config.radius,
        "robust_accuracy": summary["robust_accuracy"],
    }
    return curve


def _summary(task: _Task, summary: dict[str, Any]) -> list[str]:
    """What came out, in words."""
    config = task.config

    clean, robust = summary["clean_accuracy"], summary["robust_accuracy"]
    paragraphs = [
        f"{summary['model']} has {rate_words(clean)} of {clean['n']} test images right, and "
        f"{rate_words(robust)} under {task.label}."
    ]
    if config.suite == "rand" and not isinstance(task.classifier, Stochastic):
        paragraphs.append(
            "The suite rand is meant for classifiers that answer at random, and this one is no "
            "jaxrobust.types.Stochastic: standard is the stronger suite for it."
        )
    if config.diagnostics:
        diagnostics = summary["diagnostics"]
        paragraphs.append(f"{BANNERS[diagnostics['verdict']]} {diagnostics['reason']}")
    else:
        paragraphs.append("No sanity checks were made.")
    paragraphs += [f"Warning: {sentence}" for sentence in summary.get("warnings", [])]
    if summary["saw_nan"]:
        images = "image" if summary["saw_nan"] == 1 else "images"
        paragraphs.append(f"{summary['saw_nan']} {images} met NaN in an answer of the model.")
    return paragraphs


if __name__ == "__main__":
    studies.run_script(main, Config)
