"""The experiment scripts as a user runs them."""

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

import numpy as np
import pytest
from conftest import OWN_XLA_FLAGS
from PIL import Image

from experiments.train.config import Config, Method
from experiments.train.methods import prepare
from experiments.train.options import Options, recipe
from jaxrobust.attacks import PGD
from jaxrobust.training import MART, NFGSM, TRADES, CrossEntropy, FreeReplays, KLAscent

ROOT = Path(__file__).resolve().parents[1]
CLASSES = ["basketball", "golf", "tennis"]
# Sections of networks that take too long for a test.
LARGER_RUNS = {"compress-cnn", "compress-resnet-small", "compress-photo-cnn"}


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


@pytest.mark.slow(55)
def test_quickstart_quick(tmp_path):
    # Compiled as for its users.
    done = run("quickstart", "--quick", "--results-dir", tmp_path, XLA_FLAGS=OWN_XLA_FLAGS)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "quickstart" / "default"
    result = json.loads((folder / "result.json").read_text())
    assert [model["name"] for model in result["models"]] == ["standard", "robust"]
    assert len(result["attacks"]) == 4 and len(result["gallery"]) == 12
    assert "Report:" in done.stdout and (folder / "report.html").stat().st_size > 10_000

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
    assert "run the same command again" in out + err

    again = run("sports10", *options, "--results-dir", tmp_path / "parts")
    assert again.returncode == 0, again.stderr
    results = [
        json.loads((tmp_path / name / "sports10" / "default" / "result.json").read_text())
        for name in ("whole", "parts")
    ]
    for section in ("attacks", "transfer", "explanations", "gallery", "curves"):
        assert results[0][section] == results[1][section], section
    assert [row["seed"] for row in results[1]["models"][0]["seeds"]] == [0, 1]
    assert {attack["model"] for attack in results[1]["attacks"]} == set(models)
    assert {attack.get("target") for attack in results[1]["attacks"]} == {None, "basketball"}
    for first, second in zip(*(result["sections"] for result in results), strict=True):
        if first["id"] != "latency":  # whose figures are times
            assert first == second, first["id"]
    report = (parts / "report.html").read_text()
    assert "over 2 seeds" in report

    # Once more: nothing is computed again, nothing changes.
    stages = {path: path.stat().st_mtime_ns for path in parts.glob("stages/*.json")}
    done = run("sports10", *options, "--results-dir", tmp_path / "parts")
    assert done.returncode == 0, done.stderr
    assert stages == {path: path.stat().st_mtime_ns for path in parts.glob("stages/*.json")}
    covered = (ROOT / "docs" / "coverage.md").read_text().split("\n# What source")[0]
    for anchor in set(re.findall(r"`#([a-z0-9-]+)`", covered)) - LARGER_RUNS:
        assert f'id="{anchor}"' in report, anchor


@pytest.mark.parametrize(
    "options, message",
    [
        (["--data-dir", "no/such/folder"], "`data_dir` must be an existing folder"),
        (["--models", "vgg"], "`models` must be different names out of"),
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
    options += ["--attack-milestones", 5, 9, "--attack-epsilons", 0.01, 0.02, 0.03]
    options += ["--attack-steps", 1, 2, 7, "--no-diagnostics", "--results-dir", tmp_path]
    done = run("train", *options)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "train" / "default"
    result = json.loads((folder / "result.json").read_text())
    names = ["simple_cnn, standard", "simple_cnn, pgd"]
    assert [model["name"] for model in result["models"]] == names
    assert [suite["model"] for suite in result["suites"]] == names
    assert result["models"][1]["num_parameters"] < 30_000  # --widths
    (table,) = result["sections"][0]["blocks"]
    assert [row[0] for row in table["rows"]] == names
    for row, suite in zip(table["rows"], result["suites"], strict=True):
        assert row[2] == suite["robust_accuracy"] and row[2]["n"] == 20
    assert "network, method" in done.stdout and "Report:" in done.stdout
    stages = result["recipes"]["simple_cnn, pgd"]["adversary"]["stages"]  # the first and the last
    assert [(first, made["epsilon"], made["num_steps"]) for first, made in stages] == [
        (1, 0.01, 1),
        (2, 0.03, 2),
    ]
    again = run("train", *options)
    assert again.returncode == 0 and "Trained before" in again.stderr + again.stdout
    assert json.loads((folder / "result.json").read_text())["suites"] == result["suites"]
    # What it saved is a model for experiments.evaluate.
    saved = folder / "models" / "simple_cnn-pgd.jrw"
    options = ["--data", "digits", "--suite", "fgsm", "--quick", "--no-diagnostics"]
    judged = run("evaluate", "--model", saved, *options, "--results-dir", tmp_path)
    assert judged.returncode == 0, judged.stderr


@pytest.mark.parametrize("method", get_args(Method))
def test_what_each_method_trains_with(method):
    config = Config(methods=(method,), training=Options(num_epochs=8))
    attack, settings = prepare(config, method)
    kinds = {"trades": KLAscent, "n_fgsm": NFGSM, "free": FreeReplays}
    assert isinstance(attack, {"standard": type(None)}.get(method, kinds.get(method, PGD)))
    assert getattr(attack, "epsilon", 8 / 255) == 8 / 255
    objective = recipe(settings, method, attack).objective
    assert isinstance(objective, {"trades": TRADES, "mart": MART}.get(method, CrossEntropy))
    assert settings.num_epochs == (1 if method == "free" else 8)  # ten replays of each batch
    if method in ("pgd", "trades", "mart"):
        staged = dataclasses.replace(config, attack_milestones=(3,), attack_steps=(2, 5))
        (first, one), (second, other) = prepare(staged, method)[0].stages
        assert (first, one.num_steps, second, other.num_steps) == (1, 2, 4, 5)
        assert type(one) is type(attack) and other.step_size == pytest.approx(4 / 255)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--models", "vgg"], "`models` must be one of"),
        (["--methods", "pgd", "pgd"], "`methods` must be at least one and no name twice"),
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
        (["--num-validation", 2000], "`num_validation` must be less than the 1437 training images"),
        (["--data", "cifar10_jpeg"], "needs `data_dir`"),
        (
            ["--attack-milestones", 5, "--attack-epsilons", "2/255"],
            "`attack_epsilons` must be none or 2, one more than `attack_milestones`",
        ),
        (["--attack-milestones", 5], "need `attack_epsilons` or `attack_steps`"),
        (["--attack-epsilons", "2/255"], "need `attack_epsilons` or `attack_steps`"),
        (
            ["--methods", "free", "--attack-milestones", 5, "--attack-steps", 2, 4],
            "are of the methods pgd, trades and mart",
        ),
        (
            ["--attack-milestones", 5, 30, "--attack-steps", 2, 4, 6],
            "`attack_milestones` must ascend and be at least 1 and below the 30 epochs",
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
