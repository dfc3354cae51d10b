"""When two traced functions are one program: their equations, without names and arrays.

A key is made of primitives, parameters, types and literals, with variables counted in the order in
which they appear. Derivative rules of one's own are part of it (`derivatives.py`): two functions that
differ in their backward pass alone are two programs. What cannot be compared, a callback for example,
is equal to nothing but itself.
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

# Names, and what jax remembers of where a function comes from, change nothing that is computed.
_NAMES = ("name", "debug_info")
# Of calls with derivatives of their own: Python functions, in whose place the traced rule stands.
_FUNCTIONS = ("jvp_jaxpr_fun", "jvp_jaxpr_thunk", "fwd_jaxpr_thunk", "bwd", "out_trees")


class Incomparable:
    """Stands for a value that cannot be compared: it equals no other, and prints as its type."""

    def __init__(self, value: Any) -> None:
        self._word = f"<{type(value).__module__}.{type(value).__qualname__}>"

    def __repr__(self) -> str:
        return self._word


def text_of(key: tuple) -> str:
    """A key in 16 hexadecimal digits that are the same in every process."""
    words = re.sub(r"0x[0-9a-f]+", "", repr(key))  # where something lay in memory
    return hashlib.sha256(words.encode()).hexdigest()[:16]


class Numbers:
    """Variables by the order in which they appear."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}

    def of(self, atoms: Sequence[Any]) -> tuple:
        """Numbers of variables, with their types where they are new, and literals as they are."""
        return tuple(map(self._one, atoms))

    def _one(self, atom: Any) -> tuple:
        if isinstance(atom, core.Literal):
            return "literal", str(atom.aval), np.asarray(atom.val).tobytes()
        if atom not in self._numbers:
            self._numbers[atom] = len(self._numbers)
            return self._numbers[atom], str(atom.aval)
        return (self._numbers[atom],)


def key_of(jaxpr: Any, *, with_rules: bool = True) -> tuple:
    """The key of a jaxpr: hashable, equal for equal ones. Arrays inside are compared by their values.

    Args:
      jaxpr: `jax.extend.core.Jaxpr`; its own constants are arguments.
      with_rules: Whether derivative rules are compared.
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
    """Settings of jax when an equation was traced, as far as they change what is computed."""
    words = ("compute_type", "threefry_partitionable", "xla_metadata")
    return tuple(_comparable(getattr(equation.ctx, word, None), False) for word in words)


def parameters(equation: Any, without: Sequence[str] = (), *, with_rules: bool = True) -> tuple:
    """An equation's parameters, but for some, in a form that compares by what they say."""
    params, is_custom = equation.params, equation.primitive.name in CUSTOM
    left_out = (*_NAMES, *without, *(_FUNCTIONS if is_custom else ()))
    words = sorted(set(params) - set(left_out))
    found: list[Any] = [(word, _comparable(params[word], with_rules)) for word in words]
    if is_custom and with_rules:
        found.append(("rule", _rule_key(equation)))
    return tuple(found)


def _rule_key(equation: Any) -> Any:
    """Of a rule that stays a Python function: inside a loop, say."""
    known = derivatives.known_rule(equation)
    if known is not None:
        return known
    try:
        rule, arrays = derivatives.rule_of(equation)
    except Exception as error:  # a rule that raises is the user's own business, until it is needed
        return Incomparable(error)
    return rule_key(rule), tuple(map(content, arrays))


def rule_key(rule: derivatives.Rule) -> tuple:
    """The key of a traced rule, whose arrays are arguments."""
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
        return "float", value.hex()  # of which NaN equals NaN, and 0.0 not -0.0
    if value is None or isinstance(value, bool | int | str | bytes | type | enum.Enum | np.dtype):
        return type(value).__qualname__, value
    try:
        hash(value)
    except TypeError:
        return Incomparable(value)
    # What compares by where it lies, a callback say, is equal to itself alone.
    return value


def content(value: Any) -> Any:
    """What an array is compared by: type, shape and a digest of its numbers."""
    if isinstance(value, jax.core.Tracer):
        return Incomparable(value)
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    return str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).hexdigest()
