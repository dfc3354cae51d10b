"""The README keeps its promises to a stranger."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

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
    assert len(codes) == 2
    scope = {
        "logits_fn": lambda x: jnp.stack([x.sum((1, 2, 3)), jnp.full(len(x), 8.0)], axis=1),
        "images": jnp.full((2, 4, 4, 1), 0.52),
        "labels": jnp.array([0, 0]),
    }
    for code in codes:
        exec(code, scope)
    assert scope["result"].success.all()
    assert scope["evaluation"].success_rate(scope["report"])["count"] == 2


def test_files_that_the_readme_names_exist():
    for name in re.findall(r"\b(?:docs|data|experiments)/[\w/]+\.(?:md|py)\b", README):
        assert (ROOT / name).exists(), name
    for module in re.findall(r"python -m (experiments[\w.]+)", README):
        assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module


def test_attack_of_the_architecture_document_runs_as_written():
    text = (ROOT / "docs" / "architecture.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    scope = {"__name__": "example"}
    exec(code, scope)
    logits_fn = lambda x: jnp.stack([x.sum((1, 2, 3)), jnp.full(len(x), 8.0)], axis=1)  # noqa: E731
    images = jnp.full((2, 4, 4, 1), 0.52)
    result = scope["MIFGSM"]()(jax.random.key(0), logits_fn, images, jnp.array([0, 0]))
    assert result.success.all()
    assert float(abs(result.images - images).max()) <= 8 / 255 + 1e-6
