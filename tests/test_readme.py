"""The README keeps its promises to a stranger."""

import csv
import dataclasses
import re
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust
from experiments.evaluate import __main__ as evaluate
from jaxrobust import attacks, data, evaluation, models, training

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def section(title: str) -> str:
    sections = re.split(r"^## ", README, flags=re.M)[1:]
    return next(text for text in sections if text.startswith(f"{title}\n"))


@pytest.mark.parametrize("title", ["Quickstart", "Tests"])
def test_section_has_one_block_of_one_command(title):
    blocks = re.findall(r"```bash\n(.*?)```", section(title), flags=re.S)
    assert len(blocks) == 1
    assert len(blocks[0].strip().splitlines()) == 1


def test_attack_examples_run():
    codes = re.findall(r"```python\n(.*?)```", section("Attack your own model"), flags=re.S)
    assert len(codes) == 4
    own = {}
    exec(codes.pop(0), own)
    assert own["logits_fn"](jnp.full((2, 4, 4, 3), 0.52)).shape == (2, 10)
    scope = {
        "logits_fn": lambda x: jnp.stack([x.sum((1, 2, 3)), jnp.full(len(x), 8.0)], axis=1),
        "images": jnp.full((2, 4, 4, 1), 0.52),
        "labels": jnp.array([0, 0]),
    }
    for code in codes:
        exec(code, scope)
    assert scope["result"].success.all()
    assert scope["evaluation"].success_rate(scope["report"])["count"] == 2


def test_suite_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", section("How robust is my model?"), flags=re.S)
    scope = {
        "evaluation": evaluation,
        "jax": jax,
        "logits_fn": lambda x: jnp.stack([x.sum((1, 2, 3)), jnp.full(len(x), 8.0)], axis=1),
        "images": jnp.full((2, 4, 4, 1), 0.52),
        "labels": jnp.array([0, 0]),
    }
    exec(code, scope)
    assert scope["summary"]["robust_accuracy"]["count"] == 0


@pytest.mark.slow
def test_pruning_and_defending_example_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", section("Prune, quantise, defend"), flags=re.S)
    monkeypatch.chdir(tmp_path)
    photos = data.load("digits")
    train = data.Split(photos.train.images[:64], photos.train.labels[:64], photos.train.files[:64])
    network = models.create("cnn", widths=(8, 8, 8, 8, 8))
    variables = network.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    scope = {
        "photos": dataclasses.replace(photos, train=train),
        "network": network,
        "fitted": types.SimpleNamespace(variables=variables),
        "classifier": models.Classifier(network.apply, variables),
        "models": models,
        "training": training,
        "evaluation": evaluation,
        "jax": jax,
        "attack": attacks.FGSM(0.1),
        "images": photos.test.images[:2] / np.float32(255),
        "labels": photos.test.labels[:2],
    }
    exec(code, scope)
    assert round(scope["pruning"].sparsity_of(scope["tuned"].variables["params"]), 3) == 0.8
    dense, sparse = (tmp_path / "cnn-80.jrw").stat(), (tmp_path / "cnn-80-int8.jrw").stat()
    assert sparse.st_size < dense.st_size
    settings = {"model": "cnn-80-int8.jrw", "data": "digits", "suite": "fgsm", "quick": True}
    settings |= {"num_images": 20, "diagnostics": False, "results_dir": tmp_path}
    evaluate.main(evaluate.Settings(**settings))
    with (tmp_path / "evaluate" / "default" / "facts.csv").open() as file:
        (accuracy, *_) = [row for row in csv.DictReader(file) if row["measure"] == "accuracy"]
    assert accuracy["n"] == "20"


def test_robust_training_example_is_a_call_of_fit():
    (code,) = re.findall(r"```python\n(.*?)```", section("Train robustly"), flags=re.S)
    called = []

    def fit(network, data, recipe):
        assert isinstance(network, models.ResNet)
        called.append((len(data.train[1]), len(data.validation[1])))
        small = models.create("mlp", widths=(8,))
        short = dataclasses.replace(recipe, num_epochs=1)
        return training.fit(small, data, short, progress=False)

    exec(
        code,
        {
            "data": types.SimpleNamespace(
                load=lambda *_, **__: data.load("digits", image_size=8), augment=data.augment
            ),
            "models": models,
            "training": types.SimpleNamespace(**{**vars(training), "fit": fit}),
        },
    )
    assert called == [(437, 1000)]


def test_files_that_the_readme_names_exist():
    for name in re.findall(r"\b(?:docs|data|experiments)/[\w/]+\.(?:md|py)\b", README):
        assert (ROOT / name).exists(), name
    for module in re.findall(r"python -m (experiments[\w.]+)", README):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_files_that_are_linked_to_exist(name):
    text = (ROOT / name).read_text()
    for target in re.findall(r"\]\(([\w./-]+)\)|\b((?:docs|jaxrobust|tests)/[\w./-]*\w)", text):
        assert (ROOT / "".join(target)).exists(), target


def test_the_version_is_the_same_wherever_it_stands():
    version = re.escape(jaxrobust.__version__)
    assert re.search(rf"^version: {version}$", (ROOT / "CITATION.cff").read_text(), flags=re.M)
    (newest, *_) = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    assert newest == jaxrobust.__version__
