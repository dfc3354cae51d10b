"""Derivative rules of one's own, traced: what `jax.custom_jvp` and `jax.custom_vjp` do, as equations.

In a traced program such a rule is a Python function, which sees what it closes over when it is called,
and keeps it alive. Traced, it is equations and arrays as everything else.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

import jaxrobust

CUSTOM = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")
# Whose rules are always the same. What makes rules of users' functions is none of it.
_FOLDERS = tuple(
    f"{Path(file).resolve().parent}{os.sep}{inside}"
    for file, inside in ((jax.__file__, f"_src{os.sep}nn{os.sep}"), (jaxrobust.__file__, ""))
)


@dataclasses.dataclass(frozen=True, eq=False)
class Rule:
    """A call with a derivative of its own.

    Attributes:
      primal: The call's own equations.
      parts: Of custom_vjp the way there (arguments -> results and residuals) and the way back
        (residuals and cotangents -> cotangents); of custom_jvp the one that makes results and tangents
        of arguments and tangents. Arrays that the rule closes over come before these arguments.
      counts: How many such arrays each part has.
      floating: Which arguments have a derivative.
      num_results: Of the call.
    """

    primal: core.ClosedJaxpr
    parts: tuple[core.ClosedJaxpr, ...]
    counts: tuple[int, ...]
    floating: tuple[bool, ...]
    num_results: int


def bind(equation: Any, arguments: Sequence[Any]) -> list[Any]:
    """An equation's results, computed or traced."""
    params = equation.primitive.get_bind_params(equation.params)
    # Releases of jax before 0.10 give functions apart from parameters.
    functions, params = params if isinstance(params, tuple) else ((), params)
    results = equation.primitive.bind(*functions, *arguments, **params)
    return list(results) if equation.primitive.multiple_results else [results]


def rule_of(equation: Any) -> tuple[Rule, list[Any]]:
    """Traces the rule of a custom call, once: derivatives of derivatives are not looked at.

    Args:
      equation: Whose primitive is one of CUSTOM.

    Returns:
      (the rule, the arrays that its parts close over).

    Raises:
      Exception: What the user's rule raises, or a call that has results without a derivative.
    """
    shapes = [_shape(variable) for variable in equation.invars]
    # What the function closes over comes first, and has no derivative.
    constants = equation.params.get("num_consts", 0)
    floating = tuple(
        index >= constants and jnp.issubdtype(shape.dtype, jnp.inexact)
        for index, shape in enumerate(shapes)
    )
    results = [_shape(variable) for variable in equation.outvars]
    if not all(jnp.issubdtype(shape.dtype, jnp.inexact) for shape in results):
        raise TypeError("A call with a derivative of its own that returns integers.")
    floats = [shape for shape, is_float in zip(shapes, floating, strict=True) if is_float]

    def split(arguments: Sequence[Any]) -> tuple[Callable[..., list], list]:
        pairs = list(zip(arguments, floating, strict=True))

        def of_floats(*values: Any) -> list[Any]:
            left = iter(values)
            return bind(equation, [next(left) if is_float else other for other, is_float in pairs])

        return of_floats, [value for value, is_float in pairs if is_float]

    def with_tangents(arguments: Sequence[Any], tangents: Sequence[Any]) -> Any:
        function, values = split(arguments)
        return jax.jvp(function, values, list(tangents))

    def there(*arguments: Any) -> Any:
        function, values = split(arguments)
        return jax.vjp(function, *values)

    if equation.primitive.name == "custom_jvp_call":
        traced = [jax.make_jaxpr(with_tangents)(shapes, floats)]
    else:
        forward, (_, pull_back) = jax.make_jaxpr(there, return_shape=True)(*shapes)
        residuals, structure = jax.tree.flatten(pull_back)

        def back(residuals: Sequence[Any], cotangents: list[Any]) -> Any:
            return jax.tree.unflatten(structure, residuals)(cotangents)

        traced = [forward, jax.make_jaxpr(back)(residuals, results)]
    primal = _plain(equation.params["call_jaxpr"])
    parts, counts = tuple(map(_plain, traced)), tuple(len(part.consts) for part in traced)
    arrays = [array for part in traced for array in part.consts]
    return Rule(primal, parts, counts, floating, len(results)), arrays


def _plain(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """The same without rules, and with its constants as its first arguments.

    What a rule does is not differentiated by a rule again; and the Python functions of rules would keep
    alive what they close over.
    """

    def run(constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        return _evaluate(closed.jaxpr, constants, arguments)

    shapes = [jax.typeof(constant) for constant in closed.consts]
    plain = jax.make_jaxpr(run)(
        [jax.ShapeDtypeStruct(shape.shape, shape.dtype) for shape in shapes],
        [_shape(variable) for variable in closed.jaxpr.invars],
    )
    return plain


def _evaluate(jaxpr: Any, constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    values = dict(zip(jaxpr.constvars, constants, strict=True))
    values |= dict(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        with equation.ctx.manager:
            if equation.primitive.name in CUSTOM:
                called = equation.params["call_jaxpr"]
                results = _evaluate(called.jaxpr, called.consts, operands)
            else:
                results = bind(equation, operands)
        values |= dict(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _shape(variable: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(variable.aval.shape, variable.aval.dtype)


def call(rule: Rule, arrays: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    """The call with its rule.

    Args:
      rule: What it does.
      arrays: That its parts close over.
      arguments: Of the call.
    """
    floating, num_results = rule.floating, rule.num_results
    first, *others = (core.jaxpr_as_fun(part) for part in rule.parts)
    own, count = core.jaxpr_as_fun(rule.primal), rule.counts[0]

    def primal(arrays: list[Any], arguments: list[Any]) -> list[Any]:
        return list(own(*arguments))

    if len(rule.parts) == 1:
        with_tangents = jax.custom_jvp(primal)

        @with_tangents.defjvp
        def of_both(primals: Any, tangents: Any) -> tuple[list[Any], list[Any]]:
            (arrays, arguments), (_, moved) = primals, tangents
            floats = [one for one, is_float in zip(moved, floating, strict=True) if is_float]
            results = first(*arrays, *arguments, *floats)
            return list(results[:num_results]), list(results[num_results:])

        return list(with_tangents(list(arrays), list(arguments)))

    with_rule = jax.custom_vjp(primal)

    def forward(arrays: list[Any], arguments: list[Any]) -> tuple[list[Any], Any]:
        results = first(*arrays[:count], *arguments)
        return list(results[:num_results]), (arrays[count:], list(results[num_results:]))

    def backward(saved: Any, cotangents: list[Any]) -> tuple[None, list[Any]]:
        arrays, residuals = saved
        found = iter(others[0](*arrays, *residuals, *cotangents))
        return None, [next(found) if is_float else None for is_float in floating]

    with_rule.defvjp(forward, backward)
    return list(with_rule(list(arrays), list(arguments)))


def library_rule(equation: Any) -> str | None:
    """The name of the rule where it belongs to jax' own layers or to this package; else None."""
    wrapped = equation.params.get("bwd", equation.params.get("jvp_jaxpr_fun"))
    for function in _functions(wrapped, depth=4):
        while not hasattr(function, "__code__") and hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        code = getattr(function, "__code__", None)
        if code is None or "linear_util" in code.co_filename:
            continue
        for folder in _FOLDERS:
            if code.co_filename.startswith(folder):
                return f"{function.__module__}.{function.__qualname__}"
    return None


def _functions(value: Any, depth: int) -> list[Any]:
    """The innermost functions behind jax' own wrappers of a rule, of which little is known."""
    function = getattr(value, "f", value)
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    inner = [one for one in cells if type(one).__name__ == "WrappedFun" or callable(one)]
    is_jax = "interpreters" in str(getattr(function, "__module__", ""))
    is_rule = getattr(function, "__qualname__", "") == "custom_jvp.defjvps.<locals>.jvp"
    if depth and inner and (is_jax or is_rule):
        return [found for one in inner for found in _functions(one, depth - 1)]
    return [function]
