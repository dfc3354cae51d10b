"""The experiment scripts as a user runs them."""

import csv
import dataclasses
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import coverage_page
import numpy as np
import pytest
from conftest import OWN_XLA_FLAGS
from PIL import Image

from experiments.quickstart import __main__ as quickstart
from experiments.train import __main__ as train
from experiments.train.methods import recipe
from experiments.train.settings import Method, Options, Settings
from jaxrobust import evaluation, studies, training
from jaxrobust.attacks import PGD
from jaxrobust.reports import evaluations
from jaxrobust.studies import words
from jaxrobust.training import MART, NFGSM, TRADES, CrossEntropy, FreeReplays, KLAscent

ROOT = Path(__file__).resolve().parents[1]
CLASSES = ["basketball", "golf", "tennis"]
# Sections of networks that take too long for a test.
LARGER_RUNS = {"recipes", "compress-cnn", "compress-resnet-small", "compress-photo-cnn"}
# What settings.json held before studies had facts; of --quick, and with --suite fgsm.
BEFORE = {
    "quickstart": {
        "epsilon": 0.15,
        "num_epochs": 2,
        "num_steps": 10,
        "train_steps": 3,
        "num_checked": 10,
        "num_shown": 6,
        "seed": 0,
        "quick": True,
    },
    "train": {
        "models": ["simple_cnn"],
        "methods": ["standard", "pgd"],
        "data": "digits",
        "data_dir": None,
        "widths": [],
        "training": {
            "num_epochs": 2,
            "batch_size": 128,
            "optimizer": "sgd",
            "learning_rate": 0.1,
            "weight_decay": 0.0005,
            "decayed_weights": "all",
            "momentum": 0.9,
            "nesterov": True,
            "gradient_clip": None,
            "schedule": "cosine",
            "warmup_epochs": 0,
            "milestones": [],
            "factor": None,
            "patience": 3,
            "label_smoothing": 0.0,
            "natural_weight": 0.0,
            "beta": None,
            "attack_warmup_epochs": 0,
            "awp_gamma": 0.0,
            "awp_warmup_epochs": 0,
            "ema_decay": None,
            "precision": "float32",
            "monitor": "validation_accuracy",
            "early_stopping_patience": None,
            "seed": 0,
        },
        "epsilon": "8/255",
        "norm": "linf",
        "train_steps": 2,
        "attack_milestones": [],
        "attack_epsilons": [],
        "attack_steps": [],
        "num_train": 1000,
        "num_validation": 100,
        "weights": "best",
        "suite": {
            "FGSM": {
                "type": "jaxrobust.attacks.projected_gradient.FGSM",
                "epsilon": 8 / 255,
                "norm": "linf",
                "targeted": False,
            }
        },
        "num_images": 20,
        "diagnostics": True,
        "quick": True,
    },
}


def command(module: str, *options: object) -> list[str]:
    return [sys.executable, "-m", f"experiments.{module}", *map(str, options)]


def run(module: str, *options: object, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(module, *options),
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


def by_section(path: Path) -> dict[str, list[dict]]:
    """The blocks of a result.json by the heading that they stand under."""
    found, current = {}, "summary"
    for block in json.loads(path.read_text(encoding="utf-8"))["blocks"]:
        current = block["id"] if block["kind"] == "heading" else current
        found.setdefault(current, []).append(block)
    return found


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """Three classes of noisy colours: small enough to train on in a moment."""
    folder = tmp_path_factory.mktemp("photographs")
    generator = np.random.default_rng(0)
    for split, count in (("train", 14), ("valid", 4)):
        for k, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 120, (40, 40, 3))
                pixels[..., k] += 100
                path = folder / split / name / f"{i}.jpg"
                Image.fromarray(pixels.astype(np.uint8)).save(path, quality=95)
    return folder


def section_of(result: dict, identifier: str, kind: str) -> list[dict]:
    """The blocks of one kind below a heading."""
    found, inside = [], False
    for block in result["blocks"]:
        if block["kind"] == "heading":
            inside = block["id"] == identifier
        elif inside and block["kind"] == kind:
            found.append(block)
    return found


def facts_of(folder: Path, measure: str) -> list[dict]:
    with (folder / "facts.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["measure"] == measure]


@pytest.mark.slow(55)
def test_quickstart_quick(tmp_path):
    # Compiled as for its users.
    done = run("quickstart", "--quick", "--results-dir", tmp_path, XLA_FLAGS=OWN_XLA_FLAGS)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "quickstart" / "default"
    result = json.loads((folder / "result.json").read_text())
    networks, attacks = ["standard", "robust"], ["FGSM", "PGD"]
    expected = {
        ("key-figures", "table"): 1,
        ("models", "table"): 1,
        ("training", "chart"): 4,  # loss and accuracy of each
        ("confusion", "heat"): 2,
        ("classes", "table"): 1,
        ("attacks", "table"): 1,
        ("attacks", "intervals"): 2,  # robust accuracy and success
        ("sanity", "table"): 2,
        ("curves", "chart"): 1,
        ("transfer", "heat"): 1,
        ("gallery", "pictures"): 2,
        ("records", "table"): 4,
    }
    blocks = {place: section_of(result, *place) for place in expected}
    assert {place: len(found) for place, found in blocks.items()} == expected
    assert [row[0] for row in blocks["models", "table"][0]["rows"]] == networks
    rows = [row[0] for row in blocks["attacks", "table"][0]["rows"]]
    assert rows == [name for name in networks for _ in attacks]
    assert sum(len(block["rows"]) for block in blocks["gallery", "pictures"]) == 12
    (heat,) = blocks["transfer", "heat"]
    assert heat["rows"] == heat["columns"] == networks
    attacked = {(row["network"], row["attack"]) for row in facts_of(folder, "success")}
    assert attacked == {(network, attack) for network in networks for attack in attacks}
    for network, said in zip(networks, result["summary"], strict=False):
        assert said.startswith(f"The {network} network has ")
    assert "Report:" in done.stdout and (folder / "report.html").stat().st_size > 10_000
    assert Image.open(folder / "picture.png").size == (900, 220)

    again = run("quickstart", "--quick", "--epsilon", 0.2, "--results-dir", tmp_path)
    assert again.returncode == 2
    assert "a run of other settings: epsilon was 0.15, is now 0.2" in again.stderr
    assert json.loads((folder / "result.json").read_text()) == result


@pytest.mark.slow(250)
def test_sports10_quick_stopped_and_continued(tmp_path, photographs):
    """Ctrl-C in mid-training, then the same command: the end is that of an unbroken run."""
    models = ["mlp", "simple_cnn"]
    options = ["--data-dir", photographs, "--quick", "--models", *models]
    whole = run("sports10", *options, "--results-dir", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr

    stopped = subprocess.Popen(
        command("sports10", *options, "--results-dir", tmp_path / "parts"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that run in the background have SIGINT ignored, and children inherit that.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    parts = tmp_path / "parts" / "sports10" / "default"
    log = parts / "training" / "train-mlp-seed-0" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text()) and time.monotonic() < deadline:
        assert stopped.poll() is None, stopped.stderr.read()
        time.sleep(0.02)
    stopped.send_signal(signal.SIGINT)
    out, err = stopped.communicate(timeout=120)
    assert stopped.returncode == 130, err
    assert re.search("the same command (again|goes on)", out + err)  # in a training, or at its end

    again = run("sports10", *options, "--results-dir", tmp_path / "parts")
    assert again.returncode == 0, again.stderr
    folders = [tmp_path / name / "sports10" / "default" for name in ("whole", "parts")]
    whole, continued = (by_section(folder / "result.json") for folder in folders)
    # Times differ from run to run.
    assert whole.keys() == continued.keys()
    for section in whole.keys() - {"summary", "models", "latency"}:
        assert whole[section] == continued[section], section
    with (parts / "facts.csv").open(encoding="utf-8", newline="") as file:
        facts = list(csv.DictReader(file))
    accuracies = {
        (f["network"], f["seed"]) for f in facts if f["measure"] == "accuracy" and f["seed"]
    }
    assert accuracies == {(model, seed) for model in models for seed in "01"}
    attacked = {(f["network"], f["targeted"]) for f in facts if f["measure"] == "success"}
    assert attacked == {(model, targeted) for model in models for targeted in ("False", "True")}
    report = (parts / "report.html").read_text()
    assert "over 2 seeds" in report

    # Once more: nothing is computed again, nothing changes.
    stages = {path: path.stat().st_mtime_ns for path in parts.glob("stages/*.json")}
    done = run("sports10", *options, "--results-dir", tmp_path / "parts")
    assert done.returncode == 0, done.stderr
    assert stages == {path: path.stat().st_mtime_ns for path in parts.glob("stages/*.json")}
    for anchor in coverage_page.named("sports10") - LARGER_RUNS:
        assert f'id="{anchor}"' in report, anchor


@pytest.mark.parametrize(
    "options, message",
    [
        (["--data-dir", "no/such/folder"], "`data_dir` must be an existing folder"),
        (["--models", "vgg"], "`models` must be one of"),
        (["--target", "chess"], "`target` must be one of ('basketball', 'golf', 'tennis')"),
        (["--num-steps", 0], "`num_steps` must be at least 1, got 0"),
        (["--run", "../else"], "`run` must be a plain name"),
    ],
)
def test_sports10_errors_are_one_line(options, message, photographs, tmp_path):
    if "--data-dir" not in options:
        options = ["--data-dir", photographs, *options]
    done = run("sports10", *options, "--results-dir", tmp_path)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "sports10").exists()


def test_help_explains_the_script():
    done = run("sports10", "--help")
    assert done.returncode == 0 and "--num-seeds" in done.stdout and os.linesep in done.stdout


@pytest.mark.slow
def test_train_by_several_methods(tmp_path):
    options = ["--methods", "standard", "pgd", "--widths", 4, 4, 4, "--suite", "fgsm", "--quick"]
    options += ["--attack-milestones", 1, "--attack-epsilons", 0.01, 0.03, "--attack-steps", 1, 2]
    options += ["--no-diagnostics", "--results-dir", tmp_path]
    done = run("train", *options)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "train" / "default"
    result = json.loads((folder / "result.json").read_text())
    names = ["simple_cnn, standard", "simple_cnn, pgd"]
    (table,) = section_of(result, "models", "table")
    assert [row[0] for row in table["rows"]] == names
    assert table["rows"][1][1] < 30_000  # --widths
    (table,) = section_of(result, "results", "table")
    assert [row[0] for row in table["rows"]] == names
    suites = section_of(result, "suites", "table")
    assert [suite["title"] for suite in suites] == [
        f"{name}: FGSM, linf 8/255"
        for name in names  # FGSM has no steps to cut
    ]
    for row, suite in zip(table["rows"], suites, strict=True):
        assert row[2] == suite["rows"][-1][3] and row[2]["n"] == 20
    assert len(section_of(result, "training", "chart")) == 4
    assert len(section_of(result, "confusion", "heat")) == 2
    assert len(section_of(result, "classes", "table")) == 1
    methods = [row["method"] for row in facts_of(folder, "best epoch")]
    assert methods == ["standard", "pgd"]
    assert "Network, method" in done.stdout and "Report:" in done.stdout
    stages = result["recipes"]["simple_cnn, pgd"]["adversary"]["stages"]
    assert [(first, made["epsilon"], made["num_steps"]) for first, made in stages] == [
        (1, 0.01, 1),
        (2, 0.03, 2),
    ]
    again = run("train", *options)
    assert again.returncode == 0 and "The run is already finished" in again.stderr + again.stdout
    assert json.loads((folder / "result.json").read_text())["blocks"] == result["blocks"]
    # What it saved is a model for experiments.evaluate.
    saved = folder / "models" / "simple_cnn-pgd.jrw"
    options = ["--data", "digits", "--suite", "fgsm", "--quick", "--no-diagnostics"]
    judged = run("evaluate", "--model", saved, *options, "--results-dir", tmp_path)
    assert judged.returncode == 0, judged.stderr


@pytest.mark.parametrize("method", get_args(Method))
def test_what_each_method_trains_with(method):
    settings = Settings(methods=(method,), training=Options(num_epochs=8))
    made = recipe(settings, method)
    kinds = {"trades": KLAscent, "n_fgsm": NFGSM, "free": FreeReplays}
    assert isinstance(made.adversary, {"standard": type(None)}.get(method, kinds.get(method, PGD)))
    assert getattr(made.adversary, "epsilon", 8 / 255) == 8 / 255
    assert isinstance(made.objective, {"trades": TRADES, "mart": MART}.get(method, CrossEntropy))
    assert made.num_epochs == (1 if method == "free" else 8)  # ten replays of each batch
    judge = made.validation.attack
    assert (
        judge is None if method == "standard" else (judge.epsilon, judge.num_steps) == (8 / 255, 10)
    )
    if method in ("pgd", "trades", "mart"):
        staged = dataclasses.replace(settings, attack_milestones=(3,), attack_steps=(2, 5))
        (first, one), (second, other) = recipe(staged, method).adversary.stages
        assert (first, one.num_steps, second, other.num_steps) == (1, 2, 4, 5)
        assert type(one) is type(made.adversary) and other.step_size == pytest.approx(4 / 255)


def test_options_of_training_become_a_recipe():
    options = Options(
        num_epochs=4,
        optimizer="adam",
        schedule="plateau",
        factor=0.25,
        beta=2.0,
        attack_warmup_epochs=2,
        awp_gamma=0.01,
        ema_decay=0.9,
        natural_weight=0.5,
        label_smoothing=0.1,
    )
    made = recipe(Settings(training=options), "pgd")
    assert isinstance(made.optimizer, training.Adam) and made.averaging == training.EMA(0.9)
    assert made.schedule == training.Plateau(0.1, 0.25, 3, 1)
    assert made.adversary.gamma == 0.01 and made.adversary.adversary.warmup_epochs == 2
    assert made.objective == CrossEntropy(0.5, 0.1)
    # A share of the clean loss is for methods that have one, and so is a divergence.
    assert recipe(Settings(training=options), "standard").objective == CrossEntropy(0.0, 0.1)
    assert recipe(Settings(training=options), "trades").objective == TRADES(2.0, 0.1)
    assert recipe(Settings(), "mart").objective == MART(5.0)
    steps = Options(schedule="step", milestones=(10, 20), optimizer="adamw")
    made = recipe(Settings(training=steps), "standard")
    assert made.schedule == training.Steps(0.1, (10, 20), 0.1, 1)
    assert isinstance(made.optimizer, training.AdamW)


@pytest.mark.parametrize("module", [quickstart, train])
def test_a_run_of_an_earlier_release_goes_on(module, tmp_path, monkeypatch):
    """Its settings.json, word for word, is recognised."""
    name = module.__name__.split(".")[1]
    folder = tmp_path / name / "default"
    (folder / "stages").mkdir(parents=True)
    (folder / "stages" / "any.json").touch()
    (folder / "settings.json").write_text(json.dumps(BEFORE[name]))

    def reached(*_):
        raise RuntimeError("it would train")

    monkeypatch.setattr(module, "_trained", reached)
    settings = {"quick": True, "results_dir": tmp_path} | module.PRESETS["quick"]
    settings |= {"suite": "fgsm"} if name == "train" else {}
    with pytest.raises(RuntimeError, match="it would train"):
        module.main(module.Settings(**settings))
    with pytest.raises(ValueError, match="epsilon was .*, is now 0.2"):
        module.main(module.Settings(**settings, epsilon="0.2" if name == "train" else 0.2))


def test_names_of_stages_stay():
    assert train.Variant("resnet18", "n_fgsm").name == "resnet18, n_fgsm"


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("overfitted", [None, 7])
def test_what_came_of_a_training_is_said(checked, overfitted, tmp_path):
    facts, variant = studies.Facts(), train.Variant("mlp", "pgd")
    facts.add_rate("accuracy", variant, evaluation.rate(3, 4))
    facts.add_rate("robust accuracy", variant, evaluation.rate(1, 4))
    facts.add("epoch of catastrophic overfitting", variant, value=overfitted)
    template = Path(train.__file__).with_name("report.md.j2").read_text()
    (tmp_path / "summary.md.j2").write_text(template.split("# Results")[0])
    suite = {"label": "PGD", "diagnostics": {"verdict": "suspicious"}}
    names = {"suites": [suite], "evaluations": evaluations}
    names |= {"settings": Settings(diagnostics=checked), "outcomes": [(variant, {}, suite)]}
    (sentence, _), _ = words.render(tmp_path / "summary.md.j2", facts, names)
    said = "Catastrophic overfitting in epoch 7. " if overfitted else ""
    said += "mlp, pgd: 75.0 % (30.1 to 95.4, n = 4) of the test images right, and 25.0 % "
    said += "(4.6 to 69.9, n = 4) under PGD."
    said += " Suspicious: take the robust accuracy for an upper bound." if checked else ""
    assert sentence.replace("\N{NO-BREAK SPACE}", " ") == said
    names |= {"suites": [], "outcomes": [(variant, {}, None)]}
    (sentence, _), _ = words.render(tmp_path / "summary.md.j2", facts, names)
    assert sentence.endswith("of the test images right.")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--models", "vgg"], "`models` must be one of"),
        (["--methods", "pgd", "pgd"], "`methods` must have at least one value and none twice"),
        (["--methods", "n_fgsm", "--norm", "l2"], "`norm` must be 'linf' for n_fgsm"),
        (["--epsilon", "8"], "`epsilon` must be a finite number"),
        (["--training.milestones", 3], "`training.milestones` and the schedule"),
        (["--training.learning-rate", 0], "`learning_rate` must be a finite number above 0"),
        (["--training.factor", 0], "`training.factor` must be a finite number above 0"),
        (["--training.beta", 0], "`training.beta` must be a finite number above 0"),
        (
            ["--training.attack-warmup-epochs", 40],
            "`training.attack_warmup_epochs` must be at most",
        ),
        (
            ["--methods", "mart", "--training.label-smoothing", 0.1],
            "`training.label_smoothing` must be 0 for mart",
        ),
        (["--models", "mlp", "vgg19", "--widths", 8], "`widths` must have 16 entries"),
        (["--suite", "strong"], "`suite` must be one of"),
        (
            ["--num-validation", 2000],
            "`num_validation` must be less than 1437, the number of training images",
        ),
        (["--data", "cifar10_jpeg"], "needs `data_dir`"),
        (
            ["--attack-milestones", 5, "--attack-epsilons", "2/255"],
            "`attack_epsilons` must be empty or have 2 values, one more than `attack_milestones`",
        ),
        (["--attack-milestones", 5], "together with `attack_epsilons` or `attack_steps`"),
        (["--attack-epsilons", "2/255"], "together with `attack_epsilons` or `attack_steps`"),
        (
            ["--methods", "free", "--attack-milestones", 5, "--attack-steps", 2, 4],
            "needs one of the methods pgd, trades and mart",
        ),
        (
            ["--attack-milestones", 5, 30, "--attack-steps", 2, 4, 6],
            "`attack_milestones` must ascend from at least 1 to less than 30",
        ),
        (
            ["--attack-milestones", 5, "--attack-epsilons", 2, 3],
            "`attack_epsilons` must be a finite number",
        ),
    ],
)
def test_train_errors_are_one_line(options, message, tmp_path):
    done = run("train", *options, "--results-dir", tmp_path)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "train").exists()
