"""When two traced functions are one program: their equations, without names and arrays.

A key is made of primitives, parameters, types and literals, with variables counted in the order in
which they appear. Rules of one's own for derivatives are traced, and their equations are part of the
key: two functions that differ in their backward pass alone are two programs. What cannot be compared, a
callback for example, is equal to nothing but itself.
"""

import enum
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.extend import core

import jaxrobust

# Names, and what jax remembers of where a function comes from, change nothing that is computed.
_NAMES = ("name", "debug_info")
# Of calls with derivatives of their own: functions, which `_rule` traces.
_RULES = ("jvp_jaxpr_fun", "jvp_jaxpr_thunk", "fwd_jaxpr_thunk", "bwd", "out_trees")
_CUSTOM = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")
CALLS = ("jit", "pjit")
_LIBRARIES = tuple(
    f"{Path(file).resolve().parent}{os.sep}" for file in (jax.__file__, jaxrobust.__file__)
)


class Incomparable:
    """Stands for what cannot be compared: equal to no other, and a word to those who only read."""

    def __init__(self, value: Any) -> None:
        self._word = f"<{type(value).__module__}.{type(value).__qualname__}>"

    def __repr__(self) -> str:
        return self._word


def key_of(jaxpr: Any, *, with_rules: bool = True) -> tuple:
    """The key of a jaxpr whose constants are arguments: hashable, equal for equal programs.

    Args:
      jaxpr: `jax.extend.core.Jaxpr`. Constants of calls inside it (`nested_constants`) are arguments
        too; those of any other part are compared by their values.
      with_rules: Whether derivatives are compared, once: not those of derivatives.
    """
    numbers: dict[Any, int] = {}

    def variable(atom: Any) -> tuple:
        if isinstance(atom, core.Literal):
            return ("literal", str(atom.aval), np.asarray(atom.val).tobytes())
        if atom not in numbers:
            numbers[atom] = len(numbers)
            return (numbers[atom], str(atom.aval))
        return (numbers[atom],)

    start = tuple(variable(v) for v in (*jaxpr.constvars, *jaxpr.invars))
    equations = tuple(
        (
            equation.primitive.name,
            tuple(variable(v) for v in equation.invars),
            _parameters(equation, with_rules),
            tuple(variable(v) for v in equation.outvars),
        )
        for equation in jaxpr.eqns
    )
    return start, equations, tuple(variable(v) for v in jaxpr.outvars)


def text_of(key: tuple) -> str:
    """A key in 16 hexadecimal digits that are the same in every process."""
    words = re.sub(r"0x[0-9a-f]+", "", repr(key))  # where something lay in memory
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def nested_constants(jaxpr: Any) -> list[Any]:
    """Arrays that calls inside a jaxpr close over, in the order in which they are evaluated."""
    found: list[Any] = []
    for equation in jaxpr.eqns:
        if equation.primitive.name in CALLS:
            called = equation.params["jaxpr"]
            found += [*called.consts, *nested_constants(called.jaxpr)]
    return found


def is_call_with_constants(equation: Any) -> bool:
    """Whether an equation calls a program that closes over arrays, itself or in a call of its own."""
    if equation.primitive.name not in CALLS:
        return False
    called = equation.params["jaxpr"]
    return bool(called.consts or nested_constants(called.jaxpr))


def _parameters(equation: Any, with_rules: bool) -> tuple:
    params, name = equation.params, equation.primitive.name
    left_out = _NAMES + (_RULES if name in _CUSTOM else ())
    found: list[tuple] = []
    for word in sorted(set(params) - set(left_out)):
        if name in CALLS and word == "jaxpr":
            called = params[word]  # its constants are arguments
            inner = key_of(called.jaxpr, with_rules=with_rules)
            found.append((word, len(called.consts), inner))
        else:
            found.append((word, _comparable(params[word], with_rules)))
    if name in _CUSTOM and with_rules:
        found.append(("rule", _rule(equation)))
    return tuple(found)


def _comparable(value: Any, with_rules: bool) -> Any:
    """The value in a form that compares by what it says."""
    if isinstance(value, core.ClosedJaxpr):
        inner = key_of(value.jaxpr, with_rules=with_rules)
        return inner, tuple(_array(constant) for constant in value.consts)
    if isinstance(value, core.Jaxpr):
        return key_of(value, with_rules=with_rules)
    if isinstance(value, jax.Array | np.ndarray):
        return _array(value)
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


def _array(value: Any) -> Any:
    if isinstance(value, jax.core.Tracer):
        return Incomparable(value)
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    return str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).hexdigest()


def _rule(equation: Any) -> Any:
    """What a call with a derivative of its own does where it is differentiated."""
    known = _from_library(equation)
    if known is not None:
        return known

    def call(*arguments: Any) -> Any:
        return bind(equation, arguments)

    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in equation.invars]
    traced: Callable[..., Any]
    if equation.primitive.name == "custom_jvp_call":
        # A constant has the tangent that jax gives to constants, and integers have none.
        floating = [jax.numpy.issubdtype(shape.dtype, jax.numpy.inexact) for shape in shapes]

        def traced(arguments: Sequence[Any], tangents: Sequence[Any]) -> Any:
            def of_floats(*floats: Any) -> Any:
                left = iter(floats)
                pairs = zip(arguments, floating, strict=True)
                return call(*(next(left) if is_float else other for other, is_float in pairs))

            pairs = zip(arguments, floating, strict=True)
            return jax.jvp(of_floats, [value for value, is_float in pairs if is_float], tangents)

        others = [s for s, is_float in zip(shapes, floating, strict=True) if is_float]
    else:

        def traced(arguments: Sequence[Any], cotangents: Sequence[Any]) -> Any:
            return jax.vjp(call, *arguments)[1](cotangents)

        others = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in equation.outvars]
    try:
        closed = jax.make_jaxpr(traced)(shapes, others)
    except Exception as error:  # a rule that raises is the user's own business, until it is needed
        return Incomparable(error)
    inner = nested_constants(closed.jaxpr)
    rule = key_of(closed.jaxpr, with_rules=False)
    return rule, tuple(_array(constant) for constant in (*closed.consts, *inner))


def _from_library(equation: Any) -> str | None:
    """The name of a function of jax or of this package, whose rule is always the same; else None."""
    info = getattr(equation.params["call_jaxpr"].jaxpr, "debug_info", None)
    # "relu at /folder/of/jax/_src/nn/functions.py:99"
    name, _, place = str(getattr(info, "func_src_info", "")).partition(" at ")
    path = place.rpartition(":")[0]
    for folder in _LIBRARIES:
        if path.startswith(folder):
            return f"{name} of {path[len(folder) :]}"
    return None


def bind(equation: Any, arguments: Sequence[Any]) -> list[Any]:
    """An equation's results, computed or traced."""
    params = equation.primitive.get_bind_params(equation.params)
    # Releases of jax before 0.10 give functions apart from parameters.
    functions, params = params if isinstance(params, tuple) else ((), params)
    results = equation.primitive.bind(*functions, *arguments, **params)
    return list(results) if equation.primitive.multiple_results else [results]
