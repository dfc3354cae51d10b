"""Attacks a classifier with a suite of attacks, and says whether the result can be trusted.

    python -m experiments.evaluate --model runs/cnn --data digits --epsilon 8/255
    python -m experiments.evaluate --model my_package.my_module:load --data images.npz --suite plus

The model is a run folder of `jaxrobust.training.fit`, a saved model (`save_variables`, `save_sparse`),
or module:function: a Python function without arguments that returns a function from images
[B, H, W, C] in [0, 1] to logits [B, K]. The data are `digits`, `sports10`, a folder
<split>/<class>/<image>, or an .npz with `images` and `labels`.

Expected time: 2 to 3 minutes on 2 cores for a very small network (`simple_cnn` with widths of 8) and
200 digits of which 56 withstand, a minute of it for the sanity checks; more in proportion to the
network's arithmetic and to the images that withstand: 5,000 queries and some 3,000 gradients each.
--quick (20 images, 20 steps) takes under a minute, most of it compiling.

Expected numbers: of a network trained on clean images next to nothing is left at 8/255. Where much is
left, the sanity checks say whether that may be an attack that failed; they are made with every run.

Source: Croce and Hein 2020, https://arxiv.org/abs/2003.01690 (AutoAttack); Carlini et al. 2019,
https://arxiv.org/abs/1902.06705 (the checks).
"""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxrobust import checks, evaluation, files, studies, training
from jaxrobust.evaluation.classification import predictions
from jaxrobust.evaluation.robustness import prepare
from jaxrobust.reports.suites import BANNERS
from jaxrobust.studies import suite_run, suites
from jaxrobust.types import Attack, LogitsFn


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      model: A run folder, a saved model, or module:function.
      data: digits, sports10, a folder of images, or an .npz with images and labels.
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
      image_size: Side of the images of a folder, in pixels; their own by default.
      seed: Of everything random.
      run: Name of the run; results go to <results_dir>/evaluate/<run>.
      results_dir: Where results go.
      quick: At most 20 images and 20 steps, to see that everything runs.
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
    image_size: int | None = None
    seed: int = 0
    run: str = "default"
    results_dir: Path = Path("results")
    quick: bool = False

    @property
    def radius(self) -> float:
        """Epsilon as a number."""
        return suites.number("epsilon", self.epsilon)

    @property
    def epsilons(self) -> list[float]:
        """Those of the curve."""
        return [suites.number("curve", text) for text in self.curve]


def main(config: Config) -> Path:
    """Runs the evaluation; returns the report's path."""
    _check(config)
    if config.quick:
        config = dataclasses.replace(config, num_images=min(config.num_images, 20))
    examples = studies.load_examples(
        config.data,
        config.num_images,
        config.seed,
        data_dir=config.data_dir,
        image_size=config.image_size,
    )
    images, labels = examples.images, examples.labels
    classifier = studies.load_classifier(config.model, config.weights)
    num_classes = studies.check_classifier(classifier, config.model, images.shape[1:])
    suite = suites.make_suite(config.suite, config.radius, config.norm, num_classes)
    if config.quick:
        suite = suites.shortened(suite, 20)
    folder = studies.open_run(
        config.results_dir,
        "evaluate",
        config.run,
        config,
        suite={name: training.describe(attack) for name, attack in suite.items()},
        inputs=_inputs(classifier, images, labels),
    )

    stages, key = studies.Stages(folder), jax.random.key(config.seed)
    model = Path(config.model).name
    names = examples.names(num_classes)
    with stages("clean images"):
        entry = studies.model_entry(model, classifier, images, labels, names, params=())
        entry["num_parameters"] = studies.num_parameters(classifier)

    def attacked(_: Any) -> dict[str, Any]:
        return _attacked(config, classifier, suite, examples, names, model, folder)

    found = stages.remember("suite", attacked)
    summary = found["suite"]
    stages.count_resumed("suite", sum(attack["seconds"] for attack in summary["attacks"]))
    if config.diagnostics:
        summary["diagnostics"] = stages.remember(
            "sanity checks",
            lambda progress: evaluation.sanity(
                classifier,
                images,
                labels,
                config.radius,
                key=jax.random.fold_in(key, 1),
                norm=config.norm,
                num_lanes=config.num_lanes,
                progress=progress,
            ),
        )
    curves = []
    if config.epsilons:
        curve = stages.remember(
            "curve over epsilon",
            lambda progress: evaluation.robustness_curve(
                next(iter(suite.values())),
                classifier,
                images,
                labels,
                config.epsilons,
                key=jax.random.fold_in(key, 2),
                model=model,
                num_lanes=config.num_lanes,
                progress=progress,
            ),
        )
        curves.append(curve)

    print("\n".join(["", *suite_run.table_lines(summary), ""]))
    if config.diagnostics:
        print("\n".join([*suite_run.check_lines(summary["diagnostics"]), ""]))
    title = f"Robustness of {model}"
    result = studies.result_header(
        "evaluate", title, config, config.seed, examples.entry(num_classes)
    )
    result |= {
        "summary": _summary(config, summary),
        "timings": stages.seconds,
        "models": [entry],
        "suites": [summary],
        "curves": curves,
        "sections": found["sections"],
    }
    return studies.finish(folder, result)


def _check(config: Config) -> None:
    """Refuses what is out of range. Not in `Config`: the command line would frame the words."""
    largest = 1.0 if config.norm == "linf" else math.inf
    checks.number("epsilon", config.radius, above=0.0, maximum=largest)
    for epsilon in config.epsilons:
        checks.number("curve", epsilon, minimum=0.0, maximum=largest)
    checks.integer("num_images", config.num_images, minimum=1)
    checks.integer("num_shown", config.num_shown, minimum=0)
    checks.integer("num_lanes", config.num_lanes, minimum=1)


def _inputs(classifier: LogitsFn, images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """What the run is of; complains of images, labels and logits that nothing can be made of."""
    clean = prepare(classifier, images, labels)
    return {
        "images": training.describe(images),
        "labels": training.describe(labels),
        "weights": [training.describe(leaf) for leaf in jax.tree.leaves(clean.function)],
        # Of a plain function, whose weights are not seen, this tells two from each other.
        "predictions": training.describe(predictions(clean.clean_logits)),
    }


def _attacked(
    config: Config,
    classifier: LogitsFn,
    suite: dict[str, Attack],
    examples: studies.Examples,
    names: list[str],
    model: str,
    folder: Path,
) -> dict[str, Any]:
    """The suite for result.json, and a section of pictures."""
    report, seconds = suite_run.run_suite(
        suite,
        classifier,
        examples.images,
        examples.labels,
        key=jax.random.key(config.seed),
        folder=folder / "suite",
        num_lanes=config.num_lanes,
        search_type=config.search_type,
    )
    summary = evaluation.summarise_suite(dataclasses.replace(report, seconds=seconds), model)
    summary |= {"label": _label(config), "indices": examples.indices.tolist()}
    if config.save_images:
        with files.replace(folder / "adversarial" / "suite.npz") as file:
            np.savez_compressed(
                file,
                images=report.images,
                clean_images=report.clean_images,
                labels=report.labels,
                indices=examples.indices,
                fooled_by=report.fooled_by,
                attacks=np.array(list(suite)),
            )
    shown = studies.spread(report.fooled_by >= 0, config.num_shown)
    sections = []
    if shown and report.images.shape[-1] in (1, 3):
        pictures = suite_run.suite_pictures(report, shown, examples.indices, names)
        sections.append({"id": "fooled", "title": "Adversarial images", "blocks": [pictures]})
    return {"suite": summary, "sections": sections}


def _label(config: Config) -> str:
    if config.suite in ("standard", "plus", "rand"):
        name = f"AutoAttack ({config.suite})"
    else:
        name = suites.SINGLE.get(config.suite) or Path(config.suite).name
    return f"{name}, {config.norm} {config.epsilon}" + ", shortened" * config.quick


def _summary(config: Config, summary: dict[str, Any]) -> list[str]:
    """What came out, in words."""

    def words(rate: dict[str, Any]) -> str:
        value, low, high = (f"{100 * rate[part]:.1f}" for part in ("rate", "low", "high"))
        return f"{value} % (95 % interval {low} to {high} %)"

    clean, robust = summary["clean_accuracy"], summary["robust_accuracy"]
    paragraphs = [
        f"{summary['model']} has {words(clean)} of {clean['n']} test images right, and "
        f"{words(robust)} under {_label(config)}."
    ]
    if config.diagnostics:
        diagnostics = summary["diagnostics"]
        paragraphs.append(f"{BANNERS[diagnostics['verdict']]} {diagnostics['reason']}")
    else:
        paragraphs.append("No sanity checks were made.")
    if summary["saw_nan"]:
        paragraphs.append(f"{summary['saw_nan']} images met NaN in an answer of the model.")
    return paragraphs


if __name__ == "__main__":
    studies.run_script(main, Config)
