"""Keys that say whether two traced functions have the same equations, apart from names and arrays.

A key is made of primitives, parameters, types and literals. Variables are numbered in the order in
which they appear. Custom derivative rules are part of the key (`derivatives.py`): functions that differ
only in their backward pass are different programs. Anything that cannot be compared, such as a
callback, is equal only to itself.
"""

import enum
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from jaxrobust.programs import derivatives
from jaxrobust.programs.derivatives import CUSTOM

# Names and debugging information do not change what is computed.
_NAMES = ("name", "debug_info")
# Python functions of calls with custom derivatives; the traced rule is compared instead.
_FUNCTIONS = ("jvp_jaxpr_fun", "jvp_jaxpr_thunk", "fwd_jaxpr_thunk", "bwd", "out_trees")


class Incomparable:
    """Stands for a value that cannot be compared. It equals only itself, and prints its type."""

    def __init__(self, value: Any) -> None:
        self._word = f"<{type(value).__module__}.{type(value).__qualname__}>"

    def __repr__(self) -> str:
        return self._word


def text_of(key: tuple) -> str:
    """Returns a digest of a key: 16 hexadecimal digits, which are the same in every process."""
    words = re.sub(r"0x[0-9a-f]+", "", repr(key))  # without addresses in memory
    return hashlib.sha256(words.encode()).hexdigest()[:16]


class Numbers:
    """Numbers variables in the order in which they appear."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}

    def of(self, atoms: Sequence[Any]) -> tuple:
        """Returns the numbers of variables, with the types of new ones, and the values of literals."""
        return tuple(map(self._one, atoms))

    def _one(self, atom: Any) -> tuple:
        if isinstance(atom, core.Literal):
            return "literal", str(atom.aval), np.asarray(atom.val).tobytes()
        if atom not in self._numbers:
            self._numbers[atom] = len(self._numbers)
            return self._numbers[atom], str(atom.aval)
        return (self._numbers[atom],)


def key_of(jaxpr: Any, *, with_rules: bool = True) -> tuple:
    """Returns the key of a jaxpr, which is hashable. Arrays within equations compare by value.

    Args:
      jaxpr: `jax.extend.core.Jaxpr`; its constants are treated as arguments.
      with_rules: Whether derivative rules are part of the key.
    """
    numbers = Numbers()
    start = numbers.of((*jaxpr.constvars, *jaxpr.invars))
    equations = tuple(
        (
            equation.primitive.name,
            numbers.of(equation.invars),
            parameters(equation, with_rules=with_rules),
            context(equation),
            numbers.of(equation.outvars),
        )
        for equation in jaxpr.eqns
    )
    return start, equations, numbers.of(jaxpr.outvars)


def context(equation: Any) -> tuple:
    """Returns the settings of jax under which an equation was traced, if they change the result."""
    words = ("compute_type", "threefry_partitionable", "xla_metadata")
    return tuple(_comparable(getattr(equation.ctx, word, None), False) for word in words)


def parameters(equation: Any, without: Sequence[str] = (), *, with_rules: bool = True) -> tuple:
    """Returns an equation's parameters, without some, in a form that can be compared by value."""
    params, is_custom = equation.params, equation.primitive.name in CUSTOM
    left_out = (*_NAMES, *without, *(_FUNCTIONS if is_custom else ()))
    words = sorted(set(params) - set(left_out))
    found: list[Any] = [(word, _comparable(params[word], with_rules)) for word in words]
    if is_custom and with_rules:
        found.append(("rule", _rule_key(equation)))
    return tuple(found)


def _rule_key(equation: Any) -> Any:
    """Returns the key of a rule that remains a Python function, for example inside a loop."""
    known = derivatives.known_rule(equation)
    if known is not None:
        return known
    try:
        rule, arrays = derivatives.rule_of(equation)
    except Exception as error:  # a rule that raises does not matter until it is needed
        return Incomparable(error)
    return rule_key(rule), tuple(map(content, arrays))


def rule_key(rule: derivatives.Rule) -> tuple:
    """Returns the key of a traced rule, whose arrays are treated as arguments."""
    return tuple(key_of(part.jaxpr, with_rules=False) for part in rule.parts), rule.counts


def _comparable(value: Any, with_rules: bool) -> Any:
    if isinstance(value, core.ClosedJaxpr):
        return key_of(value.jaxpr, with_rules=with_rules), tuple(map(content, value.consts))
    if isinstance(value, core.Jaxpr):
        return key_of(value, with_rules=with_rules)
    if isinstance(value, jax.Array | np.ndarray):
        return content(value)
    if isinstance(value, Mapping):
        words = sorted(value, key=str)
        return tuple((word, _comparable(value[word], with_rules)) for word in words)
    if isinstance(value, tuple | list):
        entries = tuple(_comparable(entry, with_rules) for entry in value)
        return type(value).__qualname__, entries
    if isinstance(value, float):
        return "float", value.hex()  # so that NaN equals NaN, but 0.0 does not equal -0.0
    if value is None or isinstance(value, bool | int | str | bytes | type | enum.Enum | np.dtype):
        return type(value).__qualname__, value
    try:
        hash(value)
    except TypeError:
        return Incomparable(value)
    # An object that compares by identity, such as a callback, is equal only to itself.
    return value


def content(value: Any) -> Any:
    """Returns what an array is compared by: its type, its shape and a digest of its values."""
    if isinstance(value, jax.core.Tracer):
        return Incomparable(value)
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    return str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).hexdigest()
