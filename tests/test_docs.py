"""The pages of docs/: their code runs, their links lead somewhere, and the site is built of them."""

import fnmatch
import importlib
import itertools
import json
import re
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from markdown_it import MarkdownIt

import jaxrobust
from jaxrobust import attacks, models

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
PAGES = sorted(DOCS.rglob("*.md")) + NOTEBOOKS
NAMED = {str(page.relative_to(DOCS).with_suffix("")): page for page in PAGES}


def text_of(page):
    """A page as Markdown, which a notebook is with its cells of code as blocks."""
    if page.suffix == ".md":
        return page.read_text("utf-8")
    cells = json.loads(page.read_text("utf-8"))["cells"]
    sources = [("".join(cell["source"]), cell["cell_type"]) for cell in cells]
    return "\n\n".join(s if kind == "markdown" else f"```python\n{s}\n```" for s, kind in sources)


TEXTS = {page: text_of(page) for page in (ROOT / "README.md", ROOT / "CHANGELOG.md", *PAGES)}
# Pages whose blocks run one after the other, given a small classifier and its images.
RUN_HERE = (
    *("index", "attacks", "attribution", "trust", "getting_started"),
    *("notebooks/attack_your_own_network", "notebooks/prune_a_network"),
)
RUN_ELSEWHERE = (
    *("certificates", "compression", "extending", "pruning", "studies", "training"),
    "your_model",
)
INTERNAL = {"__version__", "checks", "files", "ops", "packages"}


def ids(pages):
    return [str(page.relative_to(ROOT)) for page in pages]


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", TEXTS[page], flags=re.S | re.M)


def given():
    """A network that has learned nothing, but knows a bright image from a dark one."""
    random = np.random.default_rng(0)
    network = models.create("simple_cnn", num_classes=3, widths=(4, 4, 4), hidden_width=8)
    images = random.uniform(size=(6, 16, 16, 3)).astype(np.float32)
    variables = network.init(jax.random.key(0), images[:1])
    classifier = models.Classifier(network.apply, variables, np.full(3, 0.5), np.full(3, 0.25))
    labels = np.asarray(classifier(images)).argmax(axis=1)
    labels[0] = (labels[0] + 1) % 3  # one is wrong from the start
    return {"classifier": classifier, "logits_fn": classifier, "images": images, "labels": labels}


@pytest.mark.parametrize("name", RUN_HERE)
def test_the_blocks_of_a_page_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")  # notebooks show figures
    scope = given() if NAMED[name] not in NOTEBOOKS else {}
    for code in blocks(NAMED[name]):
        exec(compile(code, f"docs/{name}", "exec"), scope)
    check = {"attacks": _attacks, "attribution": _attribution, "trust": _trust}
    check |= {"getting_started": _getting_started, "notebooks/prune_a_network": _prune}
    check |= {"notebooks/attack_your_own_network": _attack_your_own}
    if name in check:
        check[name](types.SimpleNamespace(**scope), tmp_path)


def _attacks(left, folder):
    assert left.closest.attack.norm == "linf" and left.universal.perturbation.shape == (16, 16, 3)
    assert [point["epsilon"] for point in left.curve["points"]] == left.epsilons
    assert left.report.num_queries.max() <= 201
    table = re.findall(r"^\| ((?:`[\w.]+`)) \|", TEXTS[DOCS / "attacks.md"], flags=re.M)
    assert set(attacks.ATTACKS) == {name.strip("`") for name in table if "." not in name}


def _attribution(left, folder):
    assert left.maps.shape == left.grad_cam.shape == left.early.shape == (6, 16, 16)
    table = re.findall(r"^\| `(\w+)` \| (.+?) \|", TEXTS[DOCS / "attribution.md"], flags=re.M)
    assert [name for name, _ in table] == list(left.attribution.METHODS)
    assert {n for n, shown in table if shown == "signed"} == {
        name for name, method in left.attribution.METHODS.items() if method.is_signed
    }


def _trust(left, folder):
    assert left.summary["clean_accuracy"] == {**left.suite.clean_accuracy}
    assert left.checks["n"] == left.right.sum() == 5
    assert left.detected.shape == left.known.success.shape == (3,)  # the other half is held out


def _getting_started(left, folder):
    assert left.before.mean() > 0.8 and left.after.mean() > 0.7
    assert left.report.success.mean() > 0
    assert left.suite.robust_accuracy["rate"] < left.suite.clean_accuracy["rate"]
    assert 0.79 < left.pruning.sparsity_of(left.tuned.variables["params"]) < 0.81
    assert (folder / "digits-80-int8.jrw").stat().st_size < (
        folder / "digits-80.jrw"
    ).stat().st_size


def _attack_your_own(left, folder):
    assert left.suite.clean_accuracy["rate"] > 0.9
    assert 0 < left.suite.robust_accuracy["rate"] < left.suite.clean_accuracy["rate"]
    assert left.checks["verdict"] == "sound"
    assert left.rates[0, 0] > 0.9 > left.rates[-1, 0] and left.after.shape == (6, 16, 16)


def _prune(left, folder):
    assert left.right(left.dense).mean() > 0.9 and left.right(left.pruned[0.8]).mean() > 0.9
    assert left.right(left.halved).mean() > 0.8
    sizes = [(folder / f"{name}.jrw").stat().st_size for name in ("80-percent", "dense")]
    assert 3 * sizes[0] < sizes[1]


@pytest.mark.parametrize("page", NOTEBOOKS, ids=ids(NOTEBOOKS))
def test_notebooks_are_kept_with_what_they_print_and_draw(page):
    cells = [c for c in json.loads(page.read_text("utf-8"))["cells"] if c["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert page.stat().st_size < 200_000


def test_every_page_with_code_is_run_by_a_test():
    with_code = {name for name, page in NAMED.items() if blocks(page)}
    assert with_code == {*RUN_HERE, *RUN_ELSEWHERE}
    tests = [path.read_text("utf-8") for path in Path(__file__).parent.glob("test_*.py")]
    for name in RUN_ELSEWHERE:
        assert any(f'"docs" / "{name}.md"' in text for text in tests), name


def anchors(text):
    """As GitHub and the site make them of headings."""
    tokens = MarkdownIt().parse(text)
    found = []
    for opening, inline in itertools.pairwise(tokens):
        if opening.type == "heading_open":
            words = "".join(child.content for child in inline.children)
            found.append(re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", TEXTS, ids=ids(TEXTS))
def test_links_lead_to_files_and_headings_that_exist(page):
    tokens = MarkdownIt("commonmark").enable("table").parse(TEXTS[page])
    links = [
        child.attrs["href" if child.type == "link_open" else "src"]
        for token in tokens
        for child in token.children or ()
        if child.type in ("link_open", "image")
    ]
    for link in links:
        if re.match(r"https?:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert page.parent == ROOT or target.is_relative_to(DOCS), f"{link} leaves the site"
        assert not anchor or anchor in anchors(TEXTS[target]), link
    for name in re.findall(r"\b(?:docs|data|experiments|tests)/[\w/]+\.(?:md|py)\b", TEXTS[page]):
        assert (ROOT / name).exists(), name


def test_every_page_is_in_the_navigation():
    reached, waiting = set(), [DOCS / "index.md"]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        for tree in re.findall(r"^```{toctree}\n(.*?)^```", TEXTS[page], flags=re.S | re.M):
            for line in tree.splitlines():
                if line and not line.startswith(":"):
                    name = re.sub(r".*<(.+)>", r"\1", line)  # Title <name>
                    found = fnmatch.filter(NAMED, str((page.parent / name).relative_to(DOCS)))
                    assert found, f"{line} of {page}"
                    waiting += [NAMED[one] for one in found]
    assert reached == set(PAGES)


@pytest.mark.parametrize("name", sorted(set(jaxrobust.__all__) - INTERNAL))
def test_every_package_has_a_page_with_all_that_is_public(name):
    text = TEXTS[DOCS / "api" / f"{name}.md"]
    package = importlib.import_module(f"jaxrobust.{name}")
    shown = re.findall(r"^\.\. automodule:: jaxrobust\.([\w.]+)$", text, flags=re.M)
    inside = [
        n for n in getattr(package, "__all__", ()) if isinstance(vars(package)[n], types.ModuleType)
    ]
    assert shown == [name, *(f"{name}.{module}" for module in inside)]


def test_names_of_the_library_that_pages_mention_exist():
    packages = "|".join(sorted(set(jaxrobust.__all__) - INTERNAL - {"data"}))
    wrong = []
    for page, text in TEXTS.items():
        text = text.partition("## What became of earlier names")[0]
        if page.name == "CHANGELOG.md":
            continue  # says what is gone
        for package, name in re.findall(rf"`(?:jaxrobust\.)?({packages})\.(\w+)\b", text):
            if not hasattr(importlib.import_module(f"jaxrobust.{package}"), name):
                wrong.append((page.name, f"{package}.{name}"))
    assert not wrong


def test_the_site_is_built_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", tmp_path / "trees"]
    built = subprocess.run([*command, DOCS, tmp_path / "site"], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    for name in set(jaxrobust.__all__) - INTERNAL:
        package = importlib.import_module(f"jaxrobust.{name}")
        html = (tmp_path / "site" / "api" / f"{name}.html").read_text("utf-8")
        for public in getattr(package, "__all__", ()):
            kind = "module-" if isinstance(vars(package)[public], types.ModuleType) else ""
            assert f'id="{kind}jaxrobust.{name}.{public}"' in html, f"{name}.{public}"
