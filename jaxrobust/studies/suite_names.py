"""Suites of attacks by the names that a command line gives them."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from jaxrobust import attacks, checks, evaluation
from jaxrobust.attacks import Attack
from jaxrobust.evaluation.attack_report import epsilon_label
from jaxrobust.evaluation.auto_attack import VERSIONS

# Attacks within a given epsilon; the others look for the smallest perturbation of any size.
SINGLE = {
    name.lower(): name
    for name, attack in attacks.ATTACKS.items()
    if "epsilon" in {field.name for field in dataclasses.fields(attack)}
}


def number(name: str, text: str) -> float:
    """Reads a number from a command line, such as "0.03" or "8/255".

    Args:
      name: The argument's name, for the message.
      text: The number or the fraction.

    Raises:
      ValueError: `text` is neither a number nor a fraction, or it is not finite.

    Example:
      >>> number("epsilon", "8/255") == 8 / 255
      True
    """
    above, slash, below = text.partition("/")
    try:
        value = float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError):
        raise ValueError(
            f"`{name}` must be a number like 0.03 or a fraction like 8/255, got {text!r}."
        ) from None
    checks.number(name, value)
    return value


def epsilon(name: str, text: str, *, largest: float = 1.0, least: float | None = None) -> float:
    """Reads the radius of a ball, in pixel units, from a command line.

    Args:
      name: The argument's name, for the message.
      text: The number or the fraction.
      largest: The largest radius: 1, which is black to white, or infinity for other norms than linf.
      least: The smallest radius. None: it must be above 0.

    Raises:
      ValueError: It is no number, or out of range.
    """
    value = number(name, text)
    if 1 < value <= 255 and largest == 1:
        raise ValueError(
            f"`{name}` must be at most 1 (1 is black to white), got {text}; did you mean {text}/255 "
            f"({value / 255:.4g})?"
        )
    if least is None:
        checks.number(name, value, above=0.0, maximum=largest)
    else:
        checks.number(name, value, minimum=least, maximum=largest)
    return value


def make_suite(name: str, epsilon: float, norm: str, num_classes: int) -> dict[str, Attack]:
    """Makes the attacks of a suite, all within one ball.

    Args:
      name: "standard", "plus" or "rand" for AutoAttack; the name of one attack in small letters, which
        then has its default settings and a step size in proportion to epsilon; or the path of a JSON
        file. The file holds an object from the attacks' names in tables to their descriptions, as
        `jaxrobust.attacks.from_dict` takes them: {"PGD, 100 steps": {"name": "PGD", "num_steps": 100}}.
        A description may leave out epsilon, norm and step size.
      epsilon: The radius in pixel units, above 0.
      norm: "linf", "l2" or "l1".
      num_classes: K.

    Returns:
      {name: attack}, in the order of the suite.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: The name is unknown, or the file does not describe attacks within this ball.

    Example:
      >>> make_suite("pgd", 0.1, "l2", 10)["PGD"].norm
      'l2'
    """
    checks.number("epsilon", epsilon, above=0.0)
    if name in VERSIONS:
        return evaluation.auto_attack_suite(epsilon, norm, name, num_classes)
    if name in SINGLE:
        return {SINGLE[name]: _attack({"name": SINGLE[name]}, epsilon, norm)}
    _check_has_epsilon("suite", name)
    path = Path(name).expanduser()
    if path.suffix != ".json":
        known = ", ".join((*VERSIONS, *SINGLE))
        raise ValueError(f"`suite` must be one of {known}, or the path of a .json, got {name!r}.")
    if not path.is_file():
        raise FileNotFoundError(f"`suite` must be an existing file, got {name!r}.")
    try:
        described = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except ValueError as error:
        raise ValueError(f"{name}: this is not valid JSON: {error}") from error
    if not isinstance(described, dict) or not described:
        raise ValueError(f"{name} must hold an object of at least one attack by name.")
    suite = {}
    for title, entry in described.items():
        try:
            suite[title] = _attack(entry, epsilon, norm)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}, {title!r}: {error}") from error
    return suite


def labelled(
    name: str, epsilon: float, norm: str, num_classes: int, max_steps: int | None = None
) -> tuple[dict[str, Attack], str]:
    """Makes a suite and its name in tables.

    Args:
      name: The suite's name or file, as `make_suite` takes it.
      epsilon: The radius in pixel units.
      norm: "linf", "l2" or "l1".
      num_classes: K.
      max_steps: The most steps of an attack, as in `shortened`. If this changes the suite, its name
        says so.

    Returns:
      (the suite, its name).

    Example:
      >>> labelled("standard", 8 / 255, "linf", 10)[1], labelled("pgd", 0.5, "l2", 10, 2)[1]
      ('AutoAttack (standard), linf 8/255', 'PGD, l2 0.5, shortened')
    """
    whole = make_suite(name, epsilon, norm, num_classes)
    suite = {title: shortened(attack, max_steps) for title, attack in whole.items()}
    known = f"AutoAttack ({name})" if name in VERSIONS else SINGLE.get(name) or Path(name).name
    return suite, f"{known}, {norm} {epsilon_label(epsilon)}" + ", shortened" * (suite != whole)


def shortened(attack: Any, max_steps: int | None) -> Any:
    """Limits the steps of an attack or universal perturbation from each start; None sets no limit."""
    if max_steps is None:
        return attack
    if isinstance(attack, evaluation.UniversalPerturbation):
        attack = dataclasses.replace(attack, inner=shortened(attack.inner, max_steps))
    steps = {"num_steps", "num_iterations", "num_searches", "max_passes"}
    fields = steps & {field.name for field in dataclasses.fields(attack)}
    fewer = {name: min(getattr(attack, name), max_steps) for name in fields}
    return dataclasses.replace(attack, **fewer)


def _attack(entry: Any, epsilon: float, norm: str) -> Attack:
    """Makes an attack from its description in a file, and fills in what the description leaves out."""
    if not isinstance(entry, dict):
        raise ValueError(f'it must be an object like {{"name": "PGD"}}, got {entry!r}.')
    _check_has_epsilon("name", entry.get("name"))
    checks.one_of("name", entry.get("name"), tuple(SINGLE.values()))
    kind: Any = attacks.ATTACKS[entry["name"]]
    entry = dict(entry)
    for field in ("epsilon", "step_size"):
        if isinstance(entry.get(field), str):
            entry[field] = number(field, entry[field])
    if _is_close(entry.get("epsilon"), epsilon):
        entry["epsilon"] = epsilon
    for field, value in (("epsilon", epsilon), ("norm", norm)):
        if entry.setdefault(field, value) != value:
            raise ValueError(
                f"`{field}` must be that of the suite, {value!r}, or be left out, "
                f"got {entry[field]!r}."
            )
    fields = {field.name for field in dataclasses.fields(kind)}
    if "step_size" in fields and "step_size" not in entry:
        entry["step_size"] = kind.step_size * epsilon / kind.epsilon
    attack = attacks.from_dict(entry)
    if attack.targeted:
        raise ValueError("`targeted` must be false: a suite is of untargeted attacks.")
    return attack


def _check_has_epsilon(argument: str, name: Any) -> None:
    """Raises ValueError if `name` is an attack without an epsilon, which cannot be in a suite."""
    for known in attacks.ATTACKS:
        if known.lower() not in SINGLE and str(name).lower() == known.lower():
            raise ValueError(
                f"`{argument}` must name an attack that keeps to an epsilon, got {name!r}: {known} "
                "looks for the smallest perturbation of any size "
                "(`evaluation.curve_from_norms` makes a curve from its results)."
            )


def _is_close(value: Any, epsilon: float) -> bool:
    """Says whether a value is epsilon up to rounding, as 0.03137 is 8/255."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isclose(value, epsilon, rel_tol=1e-4)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns an object's entries; raises ValueError if a repeated name would hide an attack."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} appears twice.")
    return found
