"""Imports point down only, and importing the package stays cheap."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import nightly
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "jaxrobust"
# docs/architecture.md draws this: a layer may import those below it, and none beside it.
LAYERS = [
    {"studies"},
    {"reports"},
    {"evaluation", "export", "training"},
    {"attacks", "attribution", "certificates", "data", "defenses", "models", "pruning"},
    {"programs"},
    {"ops"},
    {"norms", "losses"},
    {"types", "checks", "compilation", "files", "packages", "processes", "_version"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# Heavy or optional packages and the only places that may import them.
ALLOWED = {
    "tensorflow_datasets": {"data"},
    "array_record": {"data"},
    "PIL": {"data", "reports"},
    "matplotlib": {"reports"},
    "jinja2": {"reports", "studies"},
    "markupsafe": {"reports", "studies"},
    "pandas": {"studies"},
    "markdown_it": {"reports"},
    "orbax": {"training"},
    "optax": {"training"},
    "sklearn": {"data"},
    "scipy": {"defenses", "evaluation", "studies"},
    "flax": {"models", "training"},
    "rich": {"training"},
    "tyro": {"studies"},
    "tensorboardX": {"training"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names.add(node.module)
            if node.module == "jaxrobust":
                names |= {f"jaxrobust.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    here = part(path)
    if here == "__init__":
        return
    for name in imported(path):
        root, *rest = name.split(".")
        if root == "jaxrobust" and rest and rest[0] in LEVEL and rest[0] != here:
            assert LEVEL[rest[0]] > LEVEL[here] or {here, rest[0]} <= LAYERS[-1], (
                f"{path.name} in {here} imports {name}, which is not below it"
            )
        if root == "experiments":
            raise AssertionError(f"{path.name} imports an experiment")
        if root in ALLOWED:
            assert here in ALLOWED[root], f"{path.name} in {here} imports {root}"


def test_every_part_has_its_layer():
    assert {part(path) for path in FILES} - {"__init__"} <= set(LEVEL)


def test_no_experiment_is_imported_by_another():
    experiments = PACKAGE.parent / "experiments"
    for path in experiments.rglob("*.py"):
        own = "experiments." + path.relative_to(experiments).parts[0]
        for name in imported(path):
            assert not name.startswith("experiments") or f"{name}.".startswith(f"{own}."), path


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after the statement."""
    code = f"import sys; {statement}; print(' '.join({{m.split('.')[0] for m in sys.modules}}))"
    return set(subprocess.check_output([sys.executable, "-c", code], text=True).split())


def test_importing_loads_nothing_but_jax_and_numpy():
    extra = loaded_by("import jaxrobust") - loaded_by("import jax")
    assert extra == {"jaxrobust"}


def test_attacking_ones_own_model_loads_nothing_else():
    statement = "import jax.numpy as jnp, jax, jaxrobust.attacks as a; "
    statement += "a.FGSM()(jax.random.key(0), lambda x: x.mean((1, 2)), jnp.ones((1,4,4,3)), "
    statement += "jnp.array([0]))"
    assert not set(ALLOWED) & loaded_by(statement)


def test_all_names_resolve():
    import jaxrobust

    for name in jaxrobust.__all__:
        assert getattr(jaxrobust, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'attack'"):
        jaxrobust.attack  # noqa: B018


def own_lines(node: ast.FunctionDef) -> int:
    """Of a function, without its docstring and without those of functions inside."""
    lines = node.end_lineno - node.lineno + 1
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef) and ast.get_docstring(inner):
            text = inner.body[0]
            lines -= text.end_lineno - text.lineno + 1
    return lines


def num_parameters(node: ast.FunctionDef) -> int:
    arguments = node.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return len([one for one in named if one.arg not in ("self", "cls")])


# Rooms in which no function takes options by `**`; elsewhere they are names that a caller chooses:
# keys of facts, sizes of a network.
WITHOUT_OPTIONS = ("attacks", "certificates", "defenses", "evaluation", "pruning", "training")
# A state under way is kept on the disk by the names of its fields: APGD's stays flat.
MANY_FIELDS = {"auto_pgd.py": "State"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_functions_are_short_and_say_at_their_turns_what_happens(path):
    text = path.read_text()
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert own_lines(node) <= 80, node.name
            assert num_parameters(node) <= 8, node.name
            assert node.args.kwarg is None or part(path) not in WITHOUT_OPTIONS, node.name
            if own_lines(node) > 30:
                inside = lines[node.lineno - 1 : node.end_lineno]
                said = any(re.match(r"\s*# (?!type:|noqa|fmt:)\w", line) for line in inside)
                assert said, node.name
        if isinstance(node, ast.ClassDef) and MANY_FIELDS.get(path.name) != node.name:
            fields = [one for one in node.body if isinstance(one, ast.AnnAssign)]
            assert len(fields) <= 12, node.name


def test_what_is_nightly_is_there():
    """A test that is renamed would be fast again, and a table's rows all of them nightly."""
    for name in (*nightly.NIGHTLY, *nightly.FAST_ROWS):
        file, _, test = name.partition("::")
        stem = re.split(r"[\[*]", test)[0]
        assert f"def {stem}" in (ROOT / "tests" / file).read_text(), name
