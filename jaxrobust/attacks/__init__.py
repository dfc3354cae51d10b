"""Attacks on any function from images to logits.

An attack is called with a key, the function, and images with their labels::

    result = PGD(epsilon=8 / 255, step_size=2 / 255, num_steps=40)(key, logits_fn, images, labels)

Attacks are frozen dataclasses: they compare, hash, and serialise by `to_dict` and `from_dict`.
"""

import dataclasses
from typing import Any

import numpy as np

from jaxrobust import checks
from jaxrobust.attacks.attack import Attack
from jaxrobust.attacks.auto_pgd import APGD
from jaxrobust.attacks.carlini_wagner import CarliniWagner
from jaxrobust.attacks.carlini_wagner_linf import CarliniWagnerLinf
from jaxrobust.attacks.deepfool import DeepFool
from jaxrobust.attacks.fab import FAB
from jaxrobust.attacks.momentum import MIFGSM
from jaxrobust.attacks.projected_gradient import BIM, FGSM, PGD
from jaxrobust.attacks.random_noise import RandomNoise
from jaxrobust.attacks.square import Square
from jaxrobust.types import AttackResult

ATTACKS: dict[str, type] = {
    attack.__name__: attack
    for attack in (
        *(FGSM, BIM, MIFGSM, PGD, APGD, FAB, Square),
        *(CarliniWagner, CarliniWagnerLinf, DeepFool, RandomNoise),
    )
}
"""The attacks by name, as `to_dict` writes them and `from_dict` reads them."""


def to_dict(attack: Attack) -> dict[str, Any]:
    """Describes an attack as a dict that JSON can hold.

    Args:
      attack: Any attack.

    Returns:
      {"name": the name of its class, and each hyper-parameter with its value}. Arrays become lists.

    Example:
      >>> to_dict(FGSM(epsilon=0.5))
      {'name': 'FGSM', 'epsilon': 0.5, 'norm': 'linf', 'targeted': False}
    """
    # Every attack is a dataclass, of which its base class says nothing.
    fields = {
        field.name: getattr(attack, field.name)
        for field in dataclasses.fields(attack)  # type: ignore[arg-type]
    }
    return {"name": type(attack).__name__, **{k: _plain(v) for k, v in fields.items()}}


def _plain(value: Any) -> Any:
    """The value for JSON: numpy's and jax's numbers as Python's, arrays and tuples as lists."""
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value


def from_dict(description: dict[str, Any], *own: type[Attack]) -> Attack:
    """Makes an attack from its description.

    Args:
      description: {"name": one of `ATTACKS`, or the name of one of `own`, and hyper-parameters with
        their values}, as `to_dict` returns it. What is left out has its default.
      *own: Classes of your own attacks.

    Returns:
      The attack.

    Raises:
      ValueError: The name is unknown, or a value is out of range.
      TypeError: The attack does not have one of the hyper-parameters.

    Example:
      >>> from_dict({"name": "FGSM", "epsilon": 0.5}) == FGSM(epsilon=0.5)
      True
    """
    fields = dict(description)
    name = fields.pop("name", None)
    known: dict[str, Any] = {**ATTACKS, **{one.__name__: one for one in own}}
    checks.one_of("name", name, tuple(known))
    allowed = [field.name for field in dataclasses.fields(known[name])]
    for field in fields:
        if field not in allowed:
            raise TypeError(f"{name} has no `{field}`; it has {', '.join(allowed)}.")
    # A list holds one value for each image.
    arrays = {k: np.asarray(v, np.float32) if isinstance(v, list) else v for k, v in fields.items()}
    attack: Attack = known[name](**arrays)
    return attack


__all__ = [
    "APGD",
    "ATTACKS",
    "BIM",
    "FAB",
    "FGSM",
    "MIFGSM",
    "PGD",
    "Attack",
    "AttackResult",
    "CarliniWagner",
    "CarliniWagnerLinf",
    "DeepFool",
    "RandomNoise",
    "Square",
    "from_dict",
    "to_dict",
]
