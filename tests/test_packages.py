"""What is installed by an extra is imported where it is needed, and its absence says which extra."""

import ast
import importlib.metadata
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import image_folder
import jax
import numpy as np
import pytest
import report_pages
from flax import nnx

from jaxrobust import (
    attacks,
    attribution,
    data,
    evaluation,
    export,
    models,
    pruning,
    studies,
    training,
)
from jaxrobust.reports import markdown, pictures, write_example, write_report

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# They join other extras, or add to packages that are always there.
JOINED = {"all", "cuda", "test", "docs"}


@dataclass(frozen=True)
class Settings:
    """No options."""

    results_dir: Path = Path("results")
    run: str = "default"


def main(settings):
    raise AssertionError("The script was run.")


def load_digits(tmp_path):
    data.load("digits", image_size=8, cache_dir=tmp_path)


def load_folder(tmp_path):
    data.load("image_folder", tmp_path / "images", cache_dir=tmp_path / "cache")


def fit(tmp_path, **host):
    images, labels = np.zeros((4, 2, 2, 1), np.uint8), np.array([0, 1, 0, 1])
    recipe = training.Recipe(num_epochs=1, batch_size=2)
    network = models.create("mlp", num_classes=2, widths=(2,))
    training.fit(network, training.Data((images, labels)), recipe, host=training.Host(**host))


def show(tmp_path):
    pictures.data_uri(report_pages.IMAGE)


def show_example(tmp_path):
    write_example(tmp_path / "picture.png", report_pages.make_example("cnn"), report_pages.NAMES)


def draw(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(report_pages.make_result()))
    write_report(tmp_path / "result.json")


def start(tmp_path):
    studies.start("tiny", Settings(tmp_path))


def load_facts(tmp_path):
    (tmp_path / "facts.csv").write_text("measure,value\n")
    studies.load_facts(tmp_path)


def save(tmp_path):
    export.save(tmp_path / "model", lambda images: images.mean((1, 2)), (2, 2, 3))


def load(tmp_path):
    (tmp_path / "model").write_bytes(b"")
    export.load(tmp_path / "model")


# package, extra, what is called, what the message says needs it
MISSING = {
    "tfds": ("tensorflow_datasets", "data", load_folder, "Reading a data set"),
    "shards": ("array_record", "data", load_folder, "Reading a data set"),
    "images": ("PIL", "data", load_folder, "Reading images"),
    "digits": ("sklearn", "data", load_digits, "The data set digits"),
    "pictures": ("PIL", "reports", show, "A picture of a report"),
    "example": ("matplotlib", "reports", show_example, "A picture of an attacked image"),
    "charts": ("matplotlib", "reports", draw, "A chart"),
    "prose": ("markdown_it", "reports", draw, "Markdown"),
    "page": ("jinja2", "reports", draw, "A report"),
    "markup": ("markupsafe", "reports", draw, "A report"),
    "study": ("jinja2", "reports", start, "A study's report"),
    "table": ("pandas", "reports", load_facts, "A table of facts"),
    "progress": ("rich", "cli", fit, "A progress bar"),
    "tensorboard": (
        "tensorboardX",
        "tensorboard",
        lambda path: fit(path, tensorboard=True),
        "`tensorboard=True`",
    ),
    "saving": ("flatbuffers", "export", save, "An exported file"),
    "loading": ("flatbuffers", "export", load, "An exported file"),
}


def remove(monkeypatch, package):
    """Makes a package and what is loaded of it unimportable."""
    loaded = [name for name in sys.modules if name.startswith(f"{package}.")]
    for name in (package, *loaded):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("row", MISSING)
def test_a_missing_package_names_its_extra(row, tmp_path, monkeypatch):
    package, extra, call, task = MISSING[row]
    image_folder.make(tmp_path / "images")
    markdown._parser.cache_clear()
    pictures._colours.cache_clear()
    remove(monkeypatch, package)
    command = re.escape(f"pip install 'jaxrobust[{extra}]'")
    message = rf"^{task} needs {package}(\.\w+)*: {command}$"
    with pytest.raises(ModuleNotFoundError, match=message) as raised:
        call(tmp_path)
    assert raised.value.name.split(".")[0] == package


def test_a_script_says_it_in_one_line(monkeypatch, capsys):
    remove(monkeypatch, "tyro")
    with pytest.raises(SystemExit) as stopped:
        studies.run_script(main, Settings)
    assert stopped.value.code == 2
    line = "error: A command line needs tyro: pip install 'jaxrobust[cli]'\n"
    assert capsys.readouterr().err == line


def distributions(requirements: list[str]) -> set[str]:
    found = set()
    for requirement in requirements:
        name, parts = re.fullmatch(r"([\w-]+)(?:\[([\w,]+)\])?.*", requirement).groups()
        if name == "jaxrobust":
            found |= {one for part in parts.split(",") for one in distributions(EXTRAS[part])}
        else:
            found.add(name.lower().replace("_", "-"))
    return found


OPTIONAL = distributions(EXTRAS["all"])
OWNERS = {
    package: {name.lower().replace("_", "-") for name in names}
    for package, names in importlib.metadata.packages_distributions().items()
}


def test_networks_of_ones_own_need_no_extra(tmp_path, monkeypatch):
    """Only rich may be there, which flax requires."""
    for package, owners in OWNERS.items():
        if owners & OPTIONAL and package != "rich":
            remove(monkeypatch, package)
    net = nnx.Sequential(
        nnx.Conv(3, 8, (3, 3), rngs=nnx.Rngs(0)), nnx.relu, lambda x: x.mean((1, 2))
    )
    net.eval()
    images = np.random.default_rng(0).random((4, 6, 6, 3), np.float32)
    labels = np.asarray(net(images).argmax(-1))
    fooled = evaluation.attack_dataset(
        attacks.PGD(0.3, 0.1, 3),
        net,
        images,
        labels,
        key=jax.random.key(0),
        execution=evaluation.Execution(4),
    )
    assert evaluation.success_rate(fooled)["n"] == 4
    assert evaluation.evaluate(net, images, labels)["accuracy"]["count"] == 4
    assert attribution.grad_cam(net, images, labels).shape == (4, 6, 6)
    masks = pruning.global_magnitude(net, 0.5)
    assert pruning.sparsity_of(pruning.apply_masks(net, masks)) == pytest.approx(0.5, abs=0.02)
    network = models.create("mlp", num_classes=2, widths=(2,))
    bytes_of = np.repeat(np.uint8([0, 255]), 4).reshape(8, 1, 1, 1)
    fitted = training.fit(
        network,
        training.Data((bytes_of, np.repeat([0, 1], 4))),
        training.Recipe(num_epochs=1, batch_size=4),
        run_dir=tmp_path / "run",
    )
    models.save(tmp_path / "model.jrw", models.Classifier(network.apply, fitted.variables))
    assert models.load(tmp_path / "model.jrw").classifier(
        np.ones((1, 1, 1, 1), np.float32)
    ).shape == (1, 2)


def imported(tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0], node


def extras_of(tree: ast.AST) -> dict[ast.stmt, str]:
    """The statements in blocks of `packages.extra`, and the extra of each."""
    found = {}
    for node in ast.walk(tree):
        match node:
            case ast.With(items=[ast.withitem(ast.Call(ast.Attribute(_, "extra"), [name, _]))]):
                found |= dict.fromkeys(node.body, ast.literal_eval(name))
    return found


def test_every_import_of_an_extra_says_which():
    """And what is imported outside of such blocks is installed with the package."""
    seen = set()
    for path in sorted((ROOT / "jaxrobust").rglob("*.py")):
        tree = ast.parse(path.read_text())
        guarded = extras_of(tree)
        for package, statement in imported(tree):
            owners = OWNERS.get(package, set())
            if statement in guarded:
                extra = guarded[statement]
                assert owners & distributions(EXTRAS[extra]), f"{path}: {package} in {extra}"
                seen.add((extra, package))
            else:
                assert not owners & OPTIONAL, f"{path} imports {package} in no block"
    named = {(extra, package) for package, extra, *_ in MISSING.values()}
    assert seen == {*named, ("cli", "tyro")}


def test_extras_have_all_that_there_is():
    parts = set(EXTRAS) - JOINED
    assert {one for part in parts for one in distributions(EXTRAS[part])} == OPTIONAL
    assert distributions(EXTRAS["test"]) > OPTIONAL
    required = {"jax", "numpy", "flax", "optax", "orbax-checkpoint"}
    assert distributions(PROJECT["dependencies"]) == required
