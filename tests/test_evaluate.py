"""The script that evaluates anybody's classifier, and what it is made of."""

import csv
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import image_folder
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.evaluate import __main__ as evaluate
from jaxrobust import data, evaluation, models, pruning, studies, training
from jaxrobust.evaluation.classification import predictions
from jaxrobust.reports import markdown
from jaxrobust.studies import suite_names, suite_run, words
from jaxrobust.types import Stochastic

ROOT = Path(__file__).resolve().parents[1]
EPSILON = 0.1
SUITE = {
    "PGD, 2 steps": {"name": "PGD", "num_steps": 2},
    "noise": {"name": "RandomNoise", "epsilon": "1/10", "num_steps": 3},
}
MODULE = """
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxrobust.types import Stochastic

def good():
    return lambda x: jnp.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3))], axis=1)

def same(): return lambda x: 2 * good()(x)

def nan(): return lambda x: jnp.full((len(x), 2), jnp.nan)
def flat(): return lambda x: x.mean((1, 2, 3))
def pair(): return lambda x: (x, x)
def broken(): return lambda x: x.reshape(5)
def noisy():
    noise = jax.vmap(lambda key: jax.random.normal(key, (2,)))
    return Stochastic(lambda keys, x: x.mean((1, 2)) @ jnp.ones((x.shape[-1], 2)) + noise(keys), 3)
def nothing(): return None
def numpy(): return lambda x: np.asarray(x).mean((1, 2))
def training():
    class Network(nnx.Module):
        def __init__(self): self.norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
        def __call__(self, x): return self.norm(x).mean((1, 2))
    return Network()
def argument(x): return x
def raises(): return {}["key"]
number = 3
"""
NETS = """
from flax import nnx

class Net(nnx.Module):
    def __init__(self, rngs, width):
        self.conv = nnx.Conv(3, width, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, images):
        return self.head(nnx.relu(self.norm(self.conv(images))).mean((1, 2)))

def make(width): return Net(nnx.Rngs(0), width)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run, models saved from it, a suite, an archive and a module."""
    folder = tmp_path_factory.mktemp("evaluate")
    digits = data.load("digits")
    network = models.create("mlp", widths=(16,))
    order = np.random.default_rng(0).permutation(len(digits.train))[:640]
    train = digits.train.images[order], digits.train.labels[order]
    validation = digits.test.images[:50], digits.test.labels[:50]
    fitted = training.fit(
        network,
        training.Data(train, validation, digits.mean, digits.std),
        training.Recipe(num_epochs=2, schedule=training.Constant(3e-3)),
        run_dir=folder / "run",
        progress=False,
    )
    classifier = models.Classifier(network.apply, fitted.variables, digits.mean, digits.std)
    int8 = dataclasses.replace(classifier, variables=pruning.quantize(fitted.variables))
    names = [f"digit {k}" for k in range(10)]
    models.save(folder / "dense.jrw", classifier, sparse=False)
    models.save(folder / "sparse.jrw", classifier, class_names=names)
    models.save(folder / "int8.jrw", int8)
    (folder / "orbax").mkdir()
    (folder / "orbax" / "_CHECKPOINT_METADATA").write_text("{}")
    (folder / "suite.json").write_text(json.dumps(SUITE))
    (folder / "my_models.py").write_text(MODULE)
    generator = np.random.default_rng(0)
    labels = np.arange(12) % 2
    images = generator.uniform(0, 0.7, (12, 4, 4, 3)) + 0.3 * (labels == 0)[:, None, None, None]
    arrays = {"images": images.astype(np.float32), "labels": labels}
    np.savez(folder / "images.npz", **arrays)
    np.savez(folder / "bytes.npz", **(arrays | {"images": images * 255}))
    np.savez(folder / "high.npz", **(arrays | {"labels": labels + 1}))
    np.savez(folder / "rare.npz", **(arrays | {"labels": np.where(np.arange(12) == 5, 7, labels)}))
    hole = arrays["images"].copy()
    hole[3, 0, 1, 2] = np.nan
    np.savez(folder / "hole.npz", **(arrays | {"images": hole}))
    np.savez(folder / "unlabelled.npz", images=arrays["images"])
    (folder / "text.npz").write_text("no archive")
    return types.SimpleNamespace(folder=folder, fitted=fitted, digits=digits, network=network)


@pytest.fixture(autouse=True)
def here(place, monkeypatch):
    monkeypatch.chdir(place.folder)
    monkeypatch.syspath_prepend(place.folder)


@pytest.fixture
def checked(monkeypatch):
    """Sanity checks that cost nothing, and the arguments that they were called with."""
    calls = []

    def sanity(logits_fn, images, labels, epsilon, *, key, norm, execution):
        calls.append((len(images), epsilon, norm))
        checks = [
            {"name": "unbounded attack", "passed": False, "detail": "12 % stand."},
            {"name": "black box", "passed": None, "detail": "Not in l1."},
            {"name": "more steps", "passed": True, "detail": "They help."},
        ]
        found = {"norm": norm, "epsilon": epsilon, "n": len(images), "checks": checks}
        return found | {"verdict": "gradient masking", "reason": "Because 12 % stand."}

    monkeypatch.setattr(evaluation, "sanity", sanity)
    return calls


def settings_of(tmp_path, **changes):
    settings = {
        "model": "run",
        "data": "digits",
        "suite": "suite.json",
        "epsilon": "1/10",
        "num_images": 16,
        "num_shown": 2,
        "diagnostics": False,
        "results_dir": tmp_path,
    }
    return evaluate.Settings(**(settings | changes))


def result_of(tmp_path, run="default"):
    return json.loads((tmp_path / "evaluate" / run / "result.json").read_text())


def record_of(tmp_path, stage="suite", run="default"):
    """What a stage kept."""
    kept = (tmp_path / "evaluate" / run / "stages").glob("*.json")
    (found,) = [one for one in map(json.loads, map(Path.read_text, kept)) if one["stage"] == stage]
    return found["result"]


def section_of(result, identifier, kind):
    """The blocks of one kind below a heading; [] without it."""
    found, inside = [], False
    for block in result["blocks"]:
        if block["kind"] == "heading":
            inside = block["id"] == identifier
        elif inside and block["kind"] == kind:
            found.append(block)
    return found


def facts_of(tmp_path, measure, run="default", **keys):
    """{(its other keys): (count, n)} of the shares with these keys."""
    with (tmp_path / "evaluate" / run / "facts.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["measure"] == measure]
    rows = [row for row in rows if all(row[name] == value for name, value in keys.items())]
    others = ("after", "epsilon", "attacked")
    return {
        tuple(row.get(name, "") for name in others): (int(row["count"]), int(row["n"]))
        for row in rows
    }


def test_a_run_of_ours_from_weights_to_report(place, tmp_path, checked, capsys, monkeypatch):
    settings = settings_of(tmp_path, diagnostics=True, save_images=True, curve=("0", "1/10"))
    report = evaluate.main(settings).read_text()
    said = capsys.readouterr().out
    result, suite = result_of(tmp_path), record_of(tmp_path)
    assert checked == [(16, 0.1, "linf")]
    assert [attack["name"] for attack in suite["attacks"]] == list(SUITE)
    left = suite["robust_accuracy"]["count"]
    assert left + sum(a["fooled"] for a in suite["attacks"]) == suite["clean_accuracy"]["count"]
    assert 0 < left < suite["clean_accuracy"]["count"]  # else the checks below say nothing
    (notice,) = section_of(result, "suites", "notice")
    (bars,) = section_of(result, "suites", "intervals")
    table, checks = section_of(result, "suites", "table")
    assert "do not trust the robust accuracy" in notice["text"] and notice["tone"] == "doubtful"
    assert "do not trust the robust accuracy" in report
    assert [row[3] for row in table["rows"]] == [
        suite["clean_accuracy"],
        *(attack["robust_accuracy"] for attack in suite["attacks"]),
    ]
    assert [group["name"] for group in bars["groups"]] == ["no attack", *SUITE]
    assert checks["rows"][0][0] == "unbounded attack"
    assert "do not trust" in said
    words = " ".join(said.split())
    assert "unbounded attack ✗ failed 12 % stand." in words
    assert f"no attack – – {100 * suite['clean_accuracy']['rate']:.0f} %" in words
    (model,) = section_of(result, "models", "table")
    assert model["rows"][0][1] == 3072 * 16 + 3 * 16 + 16 * 10 + 10
    (chart,) = section_of(result, "curves", "chart")
    assert chart["title"] == "PGD, 2 steps alone, linf: an upper bound"
    curve, point = chart["series"]
    assert curve["y"][0] == suite["clean_accuracy"]["rate"] > curve["y"][1]
    assert point["name"] == "run, suite.json, linf 0.1" and point["scatter"]
    assert point["y"] == [suite["robust_accuracy"]["rate"]] and point["x"] == [EPSILON]
    (pictures,) = section_of(result, "fooled", "pictures")
    assert len(pictures["rows"]) == 2
    assert pictures["rows"][0]["text"] in [f"fooled by {name}" for name in SUITE]
    # What was measured is there for whoever goes on with it.
    right = suite["clean_accuracy"]["count"]
    found = facts_of(tmp_path, "robust accuracy", model="run", epsilon="")
    first, second = SUITE
    assert (
        found[second, "", ""] == found["", "", ""] == (left, 16) and found[first, "", ""][0] < right
    )
    assert facts_of(tmp_path, "accuracy", model="run")["", "", "False"] == (right, 16)
    at = facts_of(tmp_path, "robust accuracy", model="run", attack="PGD, 2 steps")
    assert at["", "0.0", ""] == (right, 16)

    kept = np.load(tmp_path / "evaluate" / "default" / "adversarial" / "suite.npz")
    assert suite["fooled_by"] == kept["fooled_by"].tolist()
    pixels = place.digits.test.images[kept["indices"]] / np.float32(255)
    np.testing.assert_array_equal(kept["clean_images"], pixels)
    assert 0.05 < abs(kept["images"] - pixels).max() <= EPSILON + 1e-6
    wrong = predictions(evaluation.logits(studies.load_model("run").classifier, kept["images"]))
    np.testing.assert_array_equal(wrong != kept["labels"], kept["fooled_by"] != -1)

    # Once more: nothing is computed again, and nothing changes but the time that was looked at.
    monkeypatch.setattr(suite_run.evaluation, "attack_suite", None)
    evaluate.main(settings)
    again = result_of(tmp_path)
    assert {**again, "timings": 0} == {**result, "timings": 0} and len(checked) == 1


def test_a_run_of_an_earlier_release_is_drawn_without_attacking(tmp_path, checked, monkeypatch):
    """Its settings are recognised, and its records read by the names that they had."""
    settings = settings_of(tmp_path, suite="fgsm", diagnostics=True, curve=("1/20", "1/10"))
    evaluate.main(settings)
    first, folder = result_of(tmp_path), tmp_path / "evaluate" / "default"
    suite = {"type": "jaxrobust.attacks.projected_gradient.FGSM", "epsilon": 0.1}
    suite |= {"norm": "linf", "targeted": False}
    before = {"model": "run", "data": "digits", "suite": {"FGSM": suite}, "epsilon": "1/10"}
    before |= {"norm": "linf", "num_images": 16, "search_type": "float32", "weights": "last"}
    before |= {"data_dir": None, "image_size": None, "seed": 0, "quick": False}
    assert json.loads((folder / "settings.json").read_text()) == before
    stages = {json.loads(path.read_text())["stage"]: path for path in folder.glob("stages/*.json")}
    curve = "curve over epsilon at 1/20, 1/10"
    assert stages.keys() == {"suite", "2 adversarial images", "sanity checks", curve}
    stages["2 adversarial images"].unlink()  # it kept a grid of pictures, under another name
    monkeypatch.setattr(evaluation.seats.lanes, "compiled_advance", None)
    evaluate.main(settings)
    assert result_of(tmp_path)["blocks"] == first["blocks"] and len(checked) == 1


def test_a_killed_run_goes_on_and_refuses_other_settings(tmp_path, monkeypatch, capsys):
    tell, told = suite_run._Clock.__call__, []

    def killed(clock, name, done, total):
        tell(clock, name, done, total)
        told.append((name, done))
        if name == "noise" and 0 < done < total:
            raise KeyboardInterrupt

    monkeypatch.setattr(suite_run._Clock, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate.main(settings_of(tmp_path / "parts"))
    assert told[-1][0] == "noise"  # with lanes under way
    assert "noise: interrupted after " in capsys.readouterr().err
    folder = tmp_path / "parts" / "evaluate" / "default"
    kept = {path.name for path in (folder / "suite").iterdir()}
    assert kept == {"0_PGD__2_steps.npz", "1_noise.npz", "seconds.json"}
    with np.load(folder / "suite" / "1_noise.npz") as state:
        assert (state["lane/row"] >= 0).any()
    monkeypatch.setattr(suite_run._Clock, "__call__", tell)
    spent = json.loads((folder / "suite" / "seconds.json").read_text())
    with pytest.raises(ValueError, match="epsilon was 1/10, is now 1/5"):
        evaluate.main(settings_of(tmp_path / "parts", epsilon="1/5", suite="pgd"))
    with pytest.raises(ValueError, match="weights was last, is now best"):
        evaluate.main(settings_of(tmp_path / "parts", weights="best"))

    evaluate.main(settings_of(tmp_path / "parts"))
    evaluate.main(settings_of(tmp_path / "whole"))
    parts, whole = (record_of(tmp_path / name) for name in ("parts", "whole"))
    assert parts["attacks"][0]["seconds"] >= round(spent["PGD, 2 steps"], 3) > 0
    for suite in (parts, whole):
        for attack in suite["attacks"]:
            del attack["seconds"]
    assert parts == whole


def test_the_command_line_evaluates_a_python_function(place, tmp_path):
    options = ["--suite", "fgsm", "--epsilon", "0.2", "--no-diagnostics", "--quick"]
    options += ["--data", "images.npz", "--results-dir", str(tmp_path)]
    command = [sys.executable, "-m", "experiments.evaluate", *options, "--model"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "my_models:good"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "FGSM" in done.stdout and "No sanity checks were made." in done.stdout
    result = result_of(tmp_path)
    assert result["data"]["num_train"] is None
    titles = [column["title"] for column in section_of(result, "models", "table")[0]["columns"]]
    assert "Accuracy" in titles and "Parameters" not in titles  # a function does not show them
    assert record_of(tmp_path)["robust_accuracy"]["count"] < 12

    refused = subprocess.run(
        [*command, "my_models:nan"], env=environment, capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1 and "NaN for every clean image" in refused.stderr


@pytest.mark.parametrize("model", ["run", "my_models:good", "my_models:noisy"])
def test_a_description_attacks_nothing(model, place, tmp_path, capsys):
    assert evaluate.main(settings_of(tmp_path, model=model, describe=True)) is None
    said = capsys.readouterr().out
    assert "FLOPs" in said and "total" in said
    assert not list(tmp_path.iterdir())
    if model == "run":
        # With BatchNorm's statistics and the normalisation.
        assert f"{3072 * 16 + 3 * 16 + 16 * 10 + 10 + 2 * 16 + 6:,}" in said


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"epsilon": "-0.1"}, "`epsilon` must be a finite number above 0"),
        ({"epsilon": "8/0"}, "fraction like 8/255, got '8/0'"),
        ({"epsilon": "8"}, "`epsilon` must be at most 1 .*got 8; did you mean 8/255?"),
        ({"suite": "deepfool"}, "keeps to an epsilon, got 'deepfool': DeepFool looks for the"),
        ({"curve": ("0.1", "x")}, "`curve` must be a number"),
        ({"num_images": 0}, "`num_images` must be at least 1"),
        ({"suite": "best"}, "`suite` must be one of standard, plus, rand, fgsm"),
        ({"suite": "none.json"}, "`suite` must be an existing file"),
        ({"model": "none"}, "`model` must be the folder of a training run"),
        ({"model": "my_models.py"}, "is not a file of"),
        ({"model": "."}, "is not the folder of a run of"),
        ({"model": "orbax"}, "as training.save_variables of earlier releases wrote: read its"),
        ({"model": "run", "data": "images.npz"}, "'run' raises an error for images of shape"),
        ({"model": "no_module:f"}, "cannot be imported: ModuleNotFoundError"),
        ({"model": "my_models:f"}, "the module 'my_models' has no 'f'"),
        ({"model": "my_models:number"}, "must be a function, got int"),
        ({"model": "my_models:nothing"}, "must return a function from images to logits"),
        ({"model": "my_models:argument"}, "missing 1 required positional argument"),
        ({"model": "my_models:raises"}, r"raised KeyError: 'key' \(my_models.py, line"),
        ({"model": "my_models:flat"}, "must return \\[B, K\\]"),
        ({"model": "my_models:pair"}, r"must return an array of logits \[B, K\], got tuple"),
        ({"model": "my_models:broken"}, r"shape \(4, 4, 3\): TypeError.*my_models.py"),
        ({"model": "my_models:numpy"}, "cannot be evaluated: .* must be written in jax.numpy"),
        ({"model": "my_models:training"}, r"cannot be evaluated: .* call `model.eval\(\)` first"),
        ({"model": "my_models:nan"}, "NaN for every clean image"),
        ({"data": "bytes.npz"}, r"`images` must lie in \[0, 1\]"),
        ({"data": "high.npz"}, "`labels` must lie in 0 .. 1 for 2 classes, got values in 1 .. 2"),
        ({"data": "rare.npz", "num_images": 2}, "`labels` must lie in 0 .. 1 .* in 0 .. 7"),
        ({"data": "hole.npz"}, r"`images` must be finite .* got nan at \(3, 0, 1, 2\)"),
        ({"data": "unlabelled.npz"}, "must hold `images` and `labels`, got images"),
        ({"data": "text.npz"}, "is not an .npz file of arrays"),
        ({"data": "none.npz"}, "`data` must be an existing file"),
        ({"data": "none"}, "`data` must be one of"),
    ],
)
def test_wrong_input_is_named_before_anything_is_attacked(changes, message, tmp_path):
    settings = {"model": "my_models:good", "data": "images.npz"} | changes
    with pytest.raises((ValueError, TypeError, OSError), match=message) as caught:
        evaluate.main(settings_of(tmp_path, **settings))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "evaluate").exists()


def test_saved_models_answer_as_the_trained_one(place):
    images = place.digits.test.images[:20]
    expected = {
        name: evaluation.logits(
            models.Classifier(place.network.apply, variables, place.digits.mean, place.digits.std),
            images,
        )
        for name, variables in (
            ("last", place.fitted.variables),
            ("best", place.fitted.best_variables),
        )
    }
    for name, weights in (
        ("run", "last"),
        ("run", "best"),
        ("dense.jrw", "last"),
        ("sparse.jrw", "last"),
    ):
        found = evaluation.logits(studies.load_model(name, weights).classifier, images)
        np.testing.assert_array_equal(found, expected[weights])
    int8 = evaluation.logits(studies.load_model("int8.jrw").classifier, images)
    assert 0 < abs(int8 - expected["last"]).max() < 0.2


def test_classes_are_called_as_the_saved_model_says_where_the_data_do_not(place, tmp_path):
    digits = place.digits.test
    np.savez(tmp_path / "digits.npz", images=digits.images[:20], labels=digits.labels[:20])
    settings = {"suite": "fgsm", "data": str(tmp_path / "digits.npz"), "model": "sparse.jrw"}
    evaluate.main(settings_of(tmp_path, **settings))
    result = result_of(tmp_path)
    assert result["data"]["class_names"] == [f"digit {k}" for k in range(10)]
    # Names of the data come first, and a model without names changes nothing.
    evaluate.main(settings_of(tmp_path, **settings | {"data": "digits", "run": "named"}))
    named = result_of(tmp_path, "named")
    assert named["data"]["class_names"] == list(place.digits.class_names)
    evaluate.main(settings_of(tmp_path, **settings | {"model": "dense.jrw", "run": "numbers"}))
    numbers = result_of(tmp_path, "numbers")
    assert numbers["data"]["class_names"] == [str(k) for k in range(10)]


def test_a_saved_nnx_module_is_evaluated_from_the_command_line(tmp_path, monkeypatch):
    (tmp_path / "own_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    import own_nets

    model = own_nets.Net(nnx.Rngs(3), 6)
    names = [f"digit {k}" for k in range(10)]
    path = tmp_path / "net.jrw"
    models.save(path, model, build="own_nets:make", sizes={"width": 6}, class_names=names)
    command = [sys.executable, "-m", "experiments.evaluate", "--model", "net.jrw", "--quick"]
    command += ["--data", "digits", "--suite", "fgsm", "--no-diagnostics", "--results-dir", "."]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    ((name, num_parameters, accuracy, *_),) = section_of(result_of(tmp_path), "models", "table")[0][
        "rows"
    ]
    assert name == "net.jrw"
    assert num_parameters >= 3 * 9 * 6 + 6 + 4 * 6 + 6 * 10 + 10
    model.eval()
    right = predictions(evaluation.logits(model, studies.load_examples("digits", 20).images))
    labels = studies.load_examples("digits", 20).labels
    assert accuracy["count"] == int((right == labels).sum())


def test_moving_averages_are_what_a_run_is_evaluated_by(tmp_path, place):
    recipe = training.Recipe(num_epochs=1, averaging=training.EMA(0.9), batch_size=16)
    train = place.digits.train.images[:32], place.digits.train.labels[:32]
    fitted = training.fit(
        place.network, training.Data(train), recipe, run_dir=tmp_path, progress=False
    )
    loaded, settings = training.load_run(tmp_path)
    assert settings["recipe"]["averaging"]["decay"] == 0.9
    assert jax.tree.structure(loaded) == jax.tree.structure(fitted.variables)
    for mine, theirs in zip(*map(jax.tree.leaves, (loaded, fitted.variables)), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    with pytest.raises(ValueError, match="'last' for a run without validation"):
        training.load_run(tmp_path, "best")
    with pytest.raises(FileNotFoundError, match="must be the folder of a run"):
        training.load_run(tmp_path / "checkpoints")


@pytest.mark.parametrize(
    "text, message",
    [
        ("[]", "must hold an object of at least one attack"),
        ("{", "not valid JSON"),
        ('{"a": {"name": "FGSM"}, "a": {"name": "PGD"}}', "'a' appears twice"),
        ('{"a": {"name": "FSGM"}}', "'a': `name` must be one of"),
        ('{"a": {"name": "FGSM", "steps": 3}}', "FGSM has no `steps`"),
        ('{"a": {"name": "FGSM", "norm": "l2"}}', "`norm` must be that of the suite, 'linf'"),
        ('{"a": {"name": "FGSM", "epsilon": "2/10"}}', "`epsilon` must be that of the suite, 0.1"),
        (
            '{"a": {"name": "CarliniWagner"}}',
            "`name` must name an attack that keeps to an epsilon",
        ),
        ('{"a": {"name": "PGD", "targeted": true}}', "`targeted` must be false"),
        ('{"a": 3}', "must be an object like"),
    ],
)
def test_suites_that_are_none(text, message, tmp_path):
    path = tmp_path / "suite.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        suite_names.make_suite(str(path), 0.1, "linf", 10)


def test_suites_by_name():
    assert suite_names.make_suite("rand", 0.1, "l2", 3) == evaluation.auto_attack_suite(
        0.1, "l2", "rand", 3
    )
    (pgd,) = suite_names.make_suite("pgd", 0.4, "l1", 3).values()
    assert (pgd.epsilon, pgd.norm) == (0.4, "l1") and pgd.step_size == pytest.approx(0.1)
    path = Path("step.json")
    path.write_text(json.dumps({"a": {"name": "PGD", "step_size": "2/255", "epsilon": 0.0313725}}))
    (pgd,) = suite_names.make_suite(str(path), 8 / 255, "linf", 3).values()
    assert (pgd.epsilon, pgd.step_size) == (8 / 255, 2 / 255)
    short, _ = suite_names.labelled("standard", 0.1, "linf", 3, 7)
    assert [attack.num_steps for attack in short.values()] == [7, 8, 14, 7]
    assert short["FAB-T"].num_iterations == 7


def test_the_same_seed_chooses_the_same_images():
    first, again, other = (studies.load_examples("digits", 25, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.indices, again.indices)
    assert (first.indices != other.indices).any() and (np.diff(first.indices) > 0).all()
    assert first.names(12)[8:] == ["8", "9", "10", "11"]
    assert len(studies.load_examples("digits", 10**6).labels) == 360


def test_stochastic_classifiers_and_pytrees_are_counted():
    weights = jnp.ones((3, 2))
    partial = jax.tree_util.Partial(lambda w, x: x.mean((1, 2)) @ w, weights)
    assert studies.num_parameters(partial) == 6
    assert studies.num_parameters(lambda x: x) is None
    noisy = Stochastic(jax.tree_util.Partial(lambda w, k, x: x.mean((1, 2)) @ w, weights), 4)
    assert studies.num_parameters(noisy) == 6
    assert studies.check_classifier(noisy, "noisy", (4, 4, 3)) == 2
    assert studies.check_classifier(partial, "partial", (4, 4, 3)) == 2


def test_other_weights_under_the_same_name_are_another_run(place):
    images, labels = place.digits.test.images[:8] / np.float32(255), place.digits.test.labels[:8]
    classifier = studies.load_model("run").classifier
    first, _ = studies.describe_inputs(classifier, images, labels)
    assert (
        first
        == studies.describe_inputs(studies.load_model("dense.jrw").classifier, images, labels)[0]
    )
    params = jax.tree.map(lambda leaf: leaf * 1.5, classifier.variables["params"])
    variables = {**classifier.variables, "params": params}
    other = models.Classifier(classifier.apply_fn, variables, classifier.mean, classifier.std)
    assert first["weights"] != studies.describe_inputs(other, images, labels)[0]["weights"]


def test_an_edited_function_with_the_same_predictions_is_another_run(tmp_path, monkeypatch):
    """Of a plain function its traced program and its answers are seen."""
    settings = {"data": "images.npz", "suite": "fgsm"}
    evaluate.main(settings_of(tmp_path, model="my_models:good", **settings))
    import my_models

    images = np.load("images.npz")["images"]
    original = my_models.good
    good, same = my_models.good()(images), my_models.same()(images)
    np.testing.assert_array_equal(good.argmax(1), same.argmax(1))
    monkeypatch.setattr(my_models, "good", lambda: lambda x: 2 * _bright(x))
    with pytest.raises(
        ValueError, match="answers of the model, .*program.* differ. .*--run NAME"
    ) as caught:
        evaluate.main(settings_of(tmp_path, model="my_models:good", **settings))
    assert "sha" not in str(caught.value).lower()
    # Its answers may be the same: another backward pass makes it another program.
    monkeypatch.setattr(my_models, "good", lambda: lambda x: _bright(1.0 * x + 0.0 * x))
    with pytest.raises(ValueError, match="other inputs: program differ"):
        evaluate.main(settings_of(tmp_path, model="my_models:good", **settings))
    monkeypatch.setattr(my_models, "good", original)
    evaluate.main(settings_of(tmp_path, model="my_models:good", **settings))
    np.savez("images2.npz", images=images[::-1], labels=np.load("images.npz")["labels"])
    with pytest.raises(ValueError, match="answers of the model, images differ"):
        evaluate.main(
            settings_of(tmp_path, model="my_models:good", **settings | {"data": "images2.npz"})
        )


def _bright(images):
    return jnp.stack([images.mean((1, 2, 3)), 1 - images.mean((1, 2, 3))], axis=1)


def test_what_changes_no_verdict_may_be_asked_for_later(tmp_path, checked, monkeypatch):
    settings = {"model": "my_models:good", "data": "images.npz", "suite": "fgsm", "epsilon": "1/5"}
    evaluate.main(settings_of(tmp_path, **settings))
    assert "No sanity checks were made." in result_of(tmp_path)["summary"]
    first = record_of(tmp_path)
    searched = []
    monkeypatch.setattr(evaluation.seats.lanes, "compiled_advance", searched.append)
    more = {"save_images": True, "num_shown": 1, "num_lanes": 8, "diagnostics": True}
    evaluate.main(settings_of(tmp_path, **settings, **more))
    again = result_of(tmp_path)
    assert not searched and len(checked) == 1
    assert len(section_of(again, "fooled", "pictures")[0]["rows"]) == 1
    assert record_of(tmp_path) == first
    kept = np.load(tmp_path / "evaluate" / "default" / "adversarial" / "suite.npz")
    assert kept["fooled_by"].tolist() == first["fooled_by"]


def test_a_suite_of_a_run_needs_a_folder():
    given = ({}, _bright, np.zeros((1, 4, 4, 1)), np.zeros(1, int))
    with pytest.raises(ValueError, match="`execution.path` must be the folder"):
        suite_run.run_suite(*given, key=jax.random.key(0), execution=evaluation.Execution())
    told = evaluation.Execution(path="suite", progress=print)
    with pytest.raises(ValueError, match="`execution.progress` must be None for `run_suite`"):
        suite_run.run_suite(*given, key=jax.random.key(0), execution=told)


def test_images_of_two_channels_are_attacked_and_not_shown(tmp_path):
    with np.load("images.npz") as archive:
        np.savez("two.npz", images=archive["images"][..., :2], labels=archive["labels"])
    settings = {"model": "my_models:good", "data": "two.npz", "suite": "fgsm", "epsilon": "1/5"}
    evaluate.main(settings_of(tmp_path, **settings))
    assert record_of(tmp_path)["attacks"][0]["fooled"] > 0
    assert not section_of(result_of(tmp_path), "fooled", "pictures")


def test_quick_has_fewer_images_and_steps(tmp_path):
    settings = {"suite": "steps.json", "num_images": evaluate.PRESETS["quick"]["num_images"]}
    Path("steps.json").write_text(
        json.dumps(
            {"short": {"name": "PGD", "num_steps": 2}, "long": {"name": "PGD", "num_steps": 40}}
        )
    )
    evaluate.main(settings_of(tmp_path, quick=True, **settings))
    suite = record_of(tmp_path)
    assert len(suite["labels"]) == 20 and suite["label"].endswith(", shortened")
    assert [attack["parameters"]["num_steps"] for attack in suite["attacks"]] == [2, 20]
    evaluate.main(settings_of(tmp_path, quick=True, run="whole", suite="suite.json"))
    assert "shortened" not in record_of(tmp_path, run="whole")["label"]  # nothing was cut


@pytest.mark.parametrize(
    ("suite", "random", "warned"),
    [("rand", False, True), ("rand", True, False), ("fgsm", True, False)],
)
def test_what_is_doubtful_is_said(suite, random, warned, tmp_path):
    """The suite rand on a classifier that does not answer at random; warnings; NaN in answers."""
    facts = studies.Facts()
    right, robust = evaluation.rate(3, 4), evaluation.rate(1, 4)
    facts.add_rate("accuracy", {"model": "m"}, right, attacked=False)
    facts.add_rate("robust accuracy", {"model": "m"}, robust)
    template = Path(evaluate.__file__).with_name("report.md.j2")
    shown = template.read_text().split("## Key figures")[0]
    (tmp_path / "summary.md.j2").write_text(shown)
    found = {"label": "rand, linf 0.1", "saw_nan": 1, "warnings": ["Probabilities *for* logits."]}
    names = {"model": {"name": "m"}, "suite": found, "checked": None, "answers_at_random": random}
    settings = settings_of(tmp_path, suite=suite)
    summary, _ = words.render(tmp_path / "summary.md.j2", facts, names | {"settings": settings})
    text = "\n".join(map(markdown.plain, summary))
    assert ("The suite rand is meant for classifiers that answer at random" in text) == warned
    assert "Warning: Probabilities *for* logits." in text
    assert "1 image met NaN in an answer of the model." in text
    assert "m has 75.0\N{NO-BREAK SPACE}% (30.1 to 95.4, n\N{NO-BREAK SPACE}=" in text


def test_a_folder_needs_no_train_split(tmp_path):
    place = image_folder.make(tmp_path / "pictures")
    with_train = studies.load_examples(str(place), 10)
    shutil.rmtree(place / "train")
    alone = studies.load_examples(str(place), 10)
    assert alone.num_train is None and alone.class_names == ("Dog", "cat")
    np.testing.assert_array_equal(alone.images, with_train.images)
    np.testing.assert_array_equal(alone.labels, [0, 1])
    assert alone.images.max() <= 1
    (place / "test").rename(place / "tests")
    with pytest.raises(ValueError, match="must hold exactly one of the folders test, valid, val"):
        studies.load_examples(str(place), 10)
