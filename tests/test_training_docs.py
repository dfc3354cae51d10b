"""docs/training.md runs as written, and says what there is."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxrobust import training
from jaxrobust.attacks import PGD

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "training.md").read_text()
TEACHER = jax.tree_util.Partial(jnp.tensordot, jnp.ones(3))
CODES = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)


@pytest.fixture(scope="module")
def scope():
    found = {}
    for code in CODES:
        exec(code, found)
    return found


def test_the_recipe_of_the_page_learns(scope):
    assert scope["fitted"].history[-1]["train_accuracy"] > 0.6
    assert scope["fitted"].history[-1]["epoch"] == 8


def test_a_loop_of_ones_own_learns_too_and_is_short(scope):
    assert scope["sums"]["correct"] / scope["sums"]["count"] > 0.6
    assert int(scope["state"].step) == 8 * scope["steps_per_epoch"]
    assert len(CODES[1].strip().splitlines()) <= 30  # of them 25 without imports and blank lines
    code = [line for line in CODES[1].splitlines() if line and "import" not in line]
    assert len(code) <= 25


def test_the_methods_of_the_page_are_recipes():
    rows = re.findall(r"^\| [^|]+ \| `?([^|`]+)`? \| (`[^|]+) \|$", TEXT, flags=re.M)
    names = vars(training) | {"PGD": PGD, "teacher": TEACHER}
    made = 0
    for objective, adversaries in rows:
        if not re.match(r"[A-Z]\w+\(|any", objective):
            continue
        for adversary in re.findall(r"`([^`]+)`", adversaries):
            given = "CrossEntropy()" if objective == "any" else objective
            chosen = eval(adversary, dict(names))
            training.Recipe(objective=eval(given, dict(names)), adversary=chosen)
            made += 1
    assert made == 11


def test_what_became_of_earlier_names_exists():
    table = TEXT[TEXT.index("## What became of earlier names") :]
    fields = {field.name for field in dataclasses.fields(training.Recipe)}
    for row in re.findall(r"^\| .+ \| (.+) \|$", table, flags=re.M)[1:]:
        for name in re.findall(r"\b([A-Z]\w+)\(", row):
            assert hasattr(training, name), name
        for name in re.findall(r"Recipe\((\w+)=", row):
            assert name in fields, name


def test_a_schedule_of_attacks_is_a_static_recipe_for_each_stage(scope):
    schedule = training.AttackSchedule(((1, PGD(0.01, 0.01, 1)), (3, PGD(0.02, 0.01, 2))))
    recipe = dataclasses.replace(scope["recipe"], num_epochs=4, adversary=schedule)
    step = jax.jit(
        training.train_step, static_argnames=("recipe", "steps_per_epoch"), donate_argnums=0
    )
    state = training.create_state(scope["variables"], recipe)
    network = training.Network(scope["network"], scope["data"].mean, scope["data"].std)
    images, labels = scope["images"][:32], scope["labels"][:32]
    for epoch in range(1, 5):
        state, _ = step(
            state,
            (images, labels),
            jax.random.key(epoch),
            network=network,
            recipe=recipe.at(epoch),
            steps_per_epoch=1,
        )
    assert int(state.step) == 4 and step._cache_size() == 2
    for epoch in (0, 5):
        with pytest.raises(ValueError, match="`epoch` must be at"):
            recipe.at(epoch)
