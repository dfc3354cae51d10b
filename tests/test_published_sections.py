"""The sections that studies publish exist in the templates of their reports."""

import importlib
import re
from pathlib import Path

import pytest

STUDIES = ("cifar_mlp", "pruned_benchmark", "robust_compression", "sports10")
EXPERIMENTS = Path(__file__).parents[1] / "experiments"
# {#name} behind a heading; an expression in it stands for any name.
ID = re.compile(r"^#{1,2} .*\{#(\S+|.*\}\}\S*)\}$", re.MULTILINE)
EXPRESSION = re.compile(r"\{\{.*?\}\}")


def ids_of(study: str) -> list[re.Pattern[str]]:
    """Returns patterns of the ids of all sections in the templates of a study."""
    found = []
    for template in (EXPERIMENTS / study).glob("*.j2"):
        for name in ID.findall(template.read_text("utf-8")):
            parts = [re.escape(part) for part in EXPRESSION.split(name)]
            found.append(re.compile("[a-z0-9-]+".join(parts)))
    return found


@pytest.mark.parametrize("study", STUDIES)
def test_published_sections_exist(study):
    module = importlib.import_module(f"experiments.{study}.__main__")
    # An id that is an expression alone would match every name: here it stands for one of a list.
    ids = [one for one in ids_of(study) if one.pattern != "[a-z0-9-]+"]
    listed = (
        {ablation.section for ablation in module.claims.ABLATIONS} if study == "cifar_mlp" else ()
    )
    missing = [
        name
        for name in module.PUBLISHED
        if name not in listed and not any(one.fullmatch(name) for one in ids)
    ]
    assert len(module.PUBLISHED) == len(set(module.PUBLISHED)) > 5 and not missing
