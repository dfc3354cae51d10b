"""Attacks a classifier with a suite of attacks, and checks whether the result can be trusted.

    python -m experiments.evaluate --model runs/cnn --data digits --epsilon 8/255
    python -m experiments.evaluate --model my_package.my_module:load --data images.npz --suite plus

The model is a run folder of `jaxrobust.training.fit`, a file of `jaxrobust.models.save`, or
module:function: a Python function without arguments that returns a function from images [B, H, W, C] in
[0, 1] to logits [B, K]. (The file of a network of another library names such a function too, which is
called: do not evaluate untrusted files.) The data are `digits`, `sports10`, `cifar10`, `cifar100`,
`cifar10_jpeg` (data/README.md says what to put into --data-dir), a folder <split>/<class>/<image> (the
split is test, valid or val), or an .npz with `images` and `labels`.

Expected time: 2 to 3 minutes on 2 cores for a very small network (`simple_cnn` with widths of 8) and
200 digits of which 56 are robust, one minute of it for the sanity checks. The time is proportional to
the arithmetic of the network and to the number of robust images: 5,000 queries and about 3,000
gradients each. --quick (20 images, 20 steps) takes under a minute, most of it for compilation and the
sanity checks, which keep their 100 steps. If a run is killed, the same command resumes it, and at most
half a minute is lost. --save-images, --num-shown, --num-lanes, --curve and --no-diagnostics may be
changed then, or set later: nothing is attacked again.

Expected numbers: a network trained on clean images has a robust accuracy near 0 at 8/255. If the robust
accuracy is high, the sanity checks, which every run makes, say whether an attack may have failed.

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

from jaxrobust import evaluation, files, processes, programs, studies, training
from jaxrobust.evaluation import Execution, Sweep
from jaxrobust.studies import records, suite_names, suite_run
from jaxrobust.types import LogitsFn, Stochastic

# Settings that change no verdict: a run may be resumed, or its report drawn anew, with others.
_VIEWS = ("save_images", "num_shown", "num_lanes", "curve", "diagnostics", "download", "describe")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings.

    Attributes:
      model: A run folder, a saved model, or module:function.
      data: digits, sports10, cifar10, cifar100, cifar10_jpeg, a folder of images, or an .npz with
        images and labels.
      suite: standard, plus, rand, the name of one attack in lower case, or a .json file of attacks.
      epsilon: The radius of the ball in pixel units (1 is black to white), such as 0.03 or 8/255.
      norm: The norm of the ball.
      num_images: The number of test images to attack, which the seed alone chooses.
      curve: Further epsilons, at which the first attack of the suite attacks all images.
      save_images: Save clean and adversarial images in adversarial/suite.npz of the run's folder.
      num_shown: The number of adversarial images in the report.
      diagnostics: Whether to make the sanity checks.
      num_lanes: The number of images that are attacked at a time.
      search_type: The precision of the search; what bfloat16 finds is verified in float32.
      weights: The weights of a run folder: those after the last epoch or after the best epoch.
      data_dir: The folder of a named data set.
      download: Download cifar10 or cifar100 to data_dir if it is missing (170 MB).
      image_size: The side in pixels that images are resized to, for example that of the model's
        training; by default their own size.
      seed: The seed of everything random.
      run: The name of the run; results go to <results_dir>/evaluate/<run>.
      results_dir: The folder of all results.
      quick: 20 images, unless another number is given, and at most 20 steps, to see that all runs.
      describe: Print the layers of the model (shapes, parameters, FLOPs of one image) and stop.
      processes: To run the same command in several processes, which share the images (docs/scale.md):
        auto on SLURM, Kubernetes, Open MPI and TPU pods, or HOST:PORT,NUMBER,INDEX.
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
    processes: str | None = None

    @property
    def radius(self) -> float:
        """Epsilon as a number."""
        return suite_names.number("epsilon", self.epsilon)

    @property
    def epsilons(self) -> list[float]:
        """The epsilons of the curve."""
        return [suite_names.number("curve", text) for text in self.curve]


PRESETS = {"quick": {"num_images": 20}}


def main(settings: Settings) -> Path | None:
    """Runs the evaluation; returns the report's path, or None if there is only a description."""
    _check(settings)
    if settings.describe:
        _describe(settings)
        return None
    run, attacked, examples, names = _opened(settings)
    model = attacked.model
    with run.stages("clean images"):
        entry = studies.model_entry(model, *attacked.target, names)
    records.add_model(run.facts, entry, model=model)
    suite = attacked.record("suite")
    records.add_suite(run.facts, suite, model=model)
    shown = run.stages.remember(
        f"{settings.num_shown} adversarial images",
        lambda _: suite_run.examples(attacked, settings.num_shown),
    )
    if settings.save_images:
        _save_images(run.folder / "adversarial" / "suite.npz", attacked)
    if settings.diagnostics:
        suite["diagnostics"] = attacked.sanity("sanity checks")
    return run.finish(
        f"Robustness of {model}",
        examples.entry(len(names)),
        Path(__file__).with_name("report.md.j2"),
        printed=("suites",),
        model=entry,
        suite=suite,
        checked=suite.get("diagnostics"),
        curves=[_curve(run, attacked, suite)] if settings.epsilons else [],
        pictures=[suite_run.pictures(shown, names)] if shown else [],
        answers_at_random=isinstance(attacked.target[0], Stochastic),
    )


def _check(settings: Settings) -> None:
    """Raises if a setting is out of range.

    This is not done in `Settings`, because the command line would draw a frame around the message.
    """
    largest = 1.0 if settings.norm == "linf" else math.inf
    suite_names.epsilon("epsilon", settings.epsilon, largest=largest)
    for text in settings.curve:
        suite_names.epsilon("curve", text, largest=largest, least=0.0)
    if len({f"{epsilon:.9g}" for epsilon in settings.epsilons}) < len(settings.epsilons):
        raise ValueError(f"`curve` must have different epsilons, got {settings.curve}.")
    studies.check_settings(settings, {"num_shown": 0, "seed": 0})


def _describe(settings: Settings) -> None:
    """Prints the model's layers."""
    classifier, examples, _ = _loaded(settings)
    if isinstance(classifier, Stochastic):
        keys = jax.random.split(jax.random.key(settings.seed), 1)
        classifier = functools.partial(classifier.function, keys)
    print(programs.describe(classifier, examples.images[:1]))


def _loaded(settings: Settings) -> tuple[LogitsFn, studies.Examples, int]:
    """Returns the classifier, the images, and the number of classes."""
    examples = studies.load_examples(
        settings.data,
        settings.num_images,
        settings.seed,
        data_dir=settings.data_dir,
        image_size=settings.image_size,
        download=settings.download,
    )
    model = studies.load_model(settings.model, settings.weights)
    shape = examples.images.shape[1:]
    num_classes = studies.check_classifier(model.classifier, settings.model, shape)
    if not examples.class_names:
        examples = dataclasses.replace(examples, class_names=model.class_names)
    return model.classifier, examples, num_classes


def _opened(
    settings: Settings,
) -> tuple[studies.Run, suite_run.SuiteRun, studies.Examples, list[str]]:
    """Loads everything, raises if the parts do not match, and opens the folder of the run.

    Returns:
      (the run, the suite that attacks, the images, the names of all classes of the model).
    """
    classifier, examples, num_classes = _loaded(settings)
    examples.check_labels(num_classes)
    suite, label = suite_names.labelled(
        *(settings.suite, settings.radius, settings.norm, num_classes),
        max_steps=20 if settings.quick else None,
    )
    target = classifier, examples.images, examples.labels
    inputs, clean_logits = studies.describe_inputs(*target)
    run = studies.start(
        "evaluate",
        settings,
        also={"suite": {name: training.describe(attack) for name, attack in suite.items()}},
        inputs=inputs,
        clean_logits=clean_logits,
        ignored=_VIEWS,
    )
    attacked = suite_run.SuiteRun(
        run,
        suite,
        label,
        Path(settings.model).name,
        target,
        examples.indices,
        Execution(settings.num_lanes, settings.search_type, run.folder / "suite"),
    )
    return run, attacked, examples, examples.names(num_classes)


def _save_images(path: Path, attacked: suite_run.SuiteRun) -> None:
    """Saves clean and adversarial images, unless an earlier process has done so."""
    if processes.by_first(path.exists):
        return
    report, _ = attacked.outcome
    if not processes.is_first():
        return
    with files.replace(path) as file:
        np.savez_compressed(
            file,
            images=report.images,
            clean_images=report.clean_images,
            labels=report.labels,
            indices=attacked.indices,
            fooled_by=report.fooled_by,
            attacks=np.array(list(attacked.suite)),
        )


def _curve(run: studies.Run, attacked: suite_run.SuiteRun, suite: dict[str, Any]) -> dict[str, Any]:
    """Returns the curve of the suite's first attack, with the result of the whole suite as a point."""
    name, attack = next(iter(attacked.suite.items()))
    curve = run.stages.remember(
        f"curve over epsilon at {', '.join(run.settings.curve)}",
        lambda progress: evaluation.robustness_curve(
            attack,
            *attacked.target,
            Sweep(run.settings.epsilons),
            key=jax.random.fold_in(run.key, 2),
            model=attacked.model,
            execution=Execution(attacked.execution.num_lanes, progress=progress),
        ),
    )
    records.add_curve(run.facts, curve, model=attacked.model, attack=name)
    point = {"label": attacked.label, "epsilon": run.settings.radius}
    point |= {"robust_accuracy": suite["robust_accuracy"]}
    return curve | {"label": f"{name} alone, {run.settings.norm}: an upper bound", "suite": point}


if __name__ == "__main__":
    studies.run_script(main, Settings, PRESETS)
