"""The README keeps its promises to a stranger."""

import re
from pathlib import Path

import pytest
from flax import nnx
from PIL import Image

import jaxrobust

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


def test_it_is_read_in_minutes():
    assert len(README.split()) <= 900


@pytest.mark.slow
def test_the_ten_lines_attack_an_nnx_network(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    assert 10 <= sum(bool(line.strip()) for line in code.splitlines()) <= 13
    scope = {}
    exec(code, scope)
    assert isinstance(scope["net"], nnx.Module)
    # What the comment says, but for what other releases of jax draw.
    said = re.search(r"# {'count': (\d+), 'n': (\d+),", code)
    assert scope["report"].robust_accuracy["n"] == int(said[2])
    assert abs(scope["report"].robust_accuracy["count"] - int(said[1])) <= 5
    assert capsys.readouterr().out.startswith("{'count': ")


def test_the_picture_is_one_that_the_quickstart_writes():
    (name,) = re.findall(r"!\[[^]]+\]\((\S+)\)", README)
    assert (ROOT / name).stat().st_size < 100_000
    assert Image.open(ROOT / name).size == (900, 220)


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
