"""Traces custom derivative rules (`jax.custom_jvp` and `jax.custom_vjp`) into equations.

In a program that jax has traced, such a rule is still a Python function: it reads its closure when it
is called, and keeps the closure alive. Here it becomes equations and arrays, like the rest of the
program.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

import jaxrobust
from jaxrobust.ops import Activation

CUSTOM = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")
# Rules from these folders never change. Code that makes rules from users' functions is not in them.
_FOLDERS = tuple(
    f"{Path(file).resolve().parent}{os.sep}{inside}"
    for file, inside in ((jax.__file__, f"_src{os.sep}nn{os.sep}"), (jaxrobust.__file__, ""))
)


@dataclasses.dataclass(frozen=True, eq=False)
class Rule:
    """A call with a custom derivative.

    Attributes:
      primal: The equations of the call itself.
      parts: For a custom_vjp, the forward pass (arguments -> results and residuals) and the backward
        pass (residuals and cotangents -> cotangents). For a custom_jvp, one part (arguments and
        tangents -> results and tangents). The arrays that a part closes over are its first arguments.
      counts: The number of these arrays, for each part.
      floating: Whether each argument has a derivative.
      smooth: Whether each result has a derivative.
    """

    primal: core.ClosedJaxpr
    parts: tuple[core.ClosedJaxpr, ...]
    counts: tuple[int, ...]
    floating: tuple[bool, ...]
    smooth: tuple[bool, ...]


def bind(equation: Any, arguments: Sequence[Any]) -> list[Any]:
    """Returns an equation's results for given arguments, which may be traced."""
    params = equation.primitive.get_bind_params(equation.params)
    # Releases of jax before 0.10 return functions and parameters separately.
    functions, params = params if isinstance(params, tuple) else ((), params)
    results = equation.primitive.bind(*functions, *arguments, **params)
    return list(results) if equation.primitive.multiple_results else [results]


def rule_of(equation: Any) -> tuple[Rule, list[Any]]:
    """Traces the rule of a custom call, but no derivatives of the rule itself.

    Args:
      equation: An equation whose primitive is one of CUSTOM.

    Returns:
      (the rule, the arrays that its parts close over).

    Raises:
      Exception: The user's rule raised it.
      NotImplementedError: The rule uses `symbolic_zeros`.
    """
    if equation.params.get("symbolic_zeros"):
        raise NotImplementedError(
            "A rule with `symbolic_zeros` asks what is differentiated, which is not known here."
        )
    shapes = [_shape(variable) for variable in equation.invars]
    # The first arguments are what the function closes over; they have no derivative.
    constants = equation.params.get("num_consts", 0)
    floating = tuple(
        index >= constants and _is_floating(shape) for index, shape in enumerate(shapes)
    )
    results = [_shape(variable) for variable in equation.outvars]
    floats = [shape for shape, is_float in zip(shapes, floating, strict=True) if is_float]
    smooth = tuple(map(_is_floating, results))

    def split(arguments: Sequence[Any]) -> tuple[Callable[..., list], list]:
        pairs = list(zip(arguments, floating, strict=True))

        def of_floats(*values: Any) -> list[Any]:
            left = iter(values)
            return bind(equation, [next(left) if is_float else other for other, is_float in pairs])

        return of_floats, [value for value, is_float in pairs if is_float]

    def with_tangents(arguments: Sequence[Any], tangents: Sequence[Any]) -> Any:
        function, values = split(arguments)
        found, moved = jax.jvp(function, values, list(tangents))
        return found, [one for one, is_smooth in zip(moved, smooth, strict=True) if is_smooth]

    def there(*arguments: Any) -> Any:
        function, values = split(arguments)
        return jax.vjp(function, *values)

    if equation.primitive.name == "custom_jvp_call":
        traced = [jax.make_jaxpr(with_tangents)(shapes, floats)]
    else:
        forward, (_, pull_back) = jax.make_jaxpr(there, return_shape=True)(*shapes)
        residuals, structure = jax.tree.flatten(pull_back)

        def back(residuals: Sequence[Any], cotangents: list[Any]) -> Any:
            left = iter(cotangents)
            filled = [
                next(left) if is_smooth else _nothing(shape)
                for shape, is_smooth in zip(results, smooth, strict=True)
            ]
            return jax.tree.unflatten(structure, residuals)(filled)

        of_results = [one for one, is_smooth in zip(results, smooth, strict=True) if is_smooth]
        traced = [forward, jax.make_jaxpr(back)(residuals, of_results)]
    primal = _plain(equation.params["call_jaxpr"])
    parts, counts = tuple(map(_plain, traced)), tuple(len(part.consts) for part in traced)
    arrays = [array for part in traced for array in part.consts]
    return Rule(primal, parts, counts, floating, smooth), arrays


def _is_floating(shape: jax.ShapeDtypeStruct) -> bool:
    return bool(jnp.issubdtype(shape.dtype, jnp.inexact))


def _nothing(shape: Any) -> np.ndarray:
    """Makes the tangent of an array that has no derivative."""
    return np.zeros(shape.shape, jax.dtypes.float0)


def _plain(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """Removes users' rules from a jaxpr, and makes its constants its first arguments.

    The Python functions of rules would keep their closures alive. The rules are not needed, because
    `call` refuses to differentiate a rule.
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
            if equation.primitive.name in CUSTOM and known_rule(equation) is None:
                called = equation.params["call_jaxpr"]
                results = _evaluate(called.jaxpr, called.consts, operands)
            else:
                results = bind(equation, operands)
        values |= dict(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _shape(variable: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(variable.aval.shape, variable.aval.dtype)


def call(rule: Rule, arrays: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    """Computes a call with a custom derivative.

    Args:
      rule: The call and its rule.
      arrays: The arrays that the rule's parts close over.
      arguments: The arguments of the call.
    """
    floating, smooth, num_results = rule.floating, rule.smooth, len(rule.smooth)
    first, *others = (core.jaxpr_as_fun(part) for part in rule.parts)
    own, count = core.jaxpr_as_fun(rule.primal), rule.counts[0]

    def primal(arrays: list[Any], arguments: list[Any]) -> list[Any]:
        return list(own(*arguments))

    # A rule with one part is a custom_jvp; a rule with two parts is a custom_vjp, below.
    if len(rule.parts) == 1:
        with_tangents = jax.custom_jvp(primal)

        @with_tangents.defjvp
        def of_both(primals: Any, tangents: Any) -> tuple[list[Any], list[Any]]:
            (arrays, arguments), (_, moved) = primals, tangents
            floats = [one for one, is_float in zip(moved, floating, strict=True) if is_float]
            # The derivative of the rule itself is not known, so `_once` refuses it.
            found = first(*_once(arrays), *_once(arguments), *floats)
            results, moved = found[:num_results], iter(found[num_results:])
            return list(results), [
                next(moved) if is_smooth else _nothing(result)
                for result, is_smooth in zip(results, smooth, strict=True)
            ]

        return list(with_tangents(list(arrays), list(arguments)))

    with_rule = jax.custom_vjp(primal)

    def forward(arrays: list[Any], arguments: list[Any]) -> tuple[list[Any], Any]:
        # The first arrays are those of the forward pass; the others are saved for the backward pass.
        results = first(*_once(arrays[:count]), *_once(arguments))
        return list(results[:num_results]), (arrays[count:], list(results[num_results:]))

    def backward(saved: Any, cotangents: list[Any]) -> tuple[None, list[Any]]:
        arrays, residuals = saved
        # The traced backward pass only takes cotangents of results that have a derivative.
        wanted = [one for one, is_smooth in zip(cotangents, smooth, strict=True) if is_smooth]
        found = iter(others[0](*_once(arrays), *_once(residuals), *_once(wanted)))
        return None, [next(found) if is_float else None for is_float in floating]

    with_rule.defvjp(forward, backward)
    return list(with_rule(list(arrays), list(arguments)))


def _once(values: Sequence[Any]) -> list[Any]:
    """Returns the same values, but makes it an error to differentiate them."""
    return [_undifferentiated(value) if _is_floating(value) else value for value in values]


@jax.custom_jvp
def _undifferentiated(value: Any) -> Any:
    return value


@_undifferentiated.defjvp
def _refuse(primals: Any, tangents: Any) -> Any:
    raise NotImplementedError(
        "The second derivative of a function with a custom derivative (jax.custom_vjp, "
        "jax.custom_jvp) is not known here; differentiate the function itself."
    )


def known_rule(equation: Any) -> str | None:
    """Returns the name of a rule of jax's own layers or of this package; None for other rules."""
    source = equation.params["call_jaxpr"].jaxpr.debug_info.func_src_info or ""
    if not source.partition(" at ")[2].startswith(_FOLDERS):
        return None
    wrapped = equation.params.get("bwd", equation.params.get("jvp_jaxpr_fun"))
    names = []
    for function in _functions(wrapped, depth=4):
        while not hasattr(function, "__code__") and hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        code = getattr(function, "__code__", None)
        if code is None or "linear_util" in code.co_filename:
            continue
        if not code.co_filename.startswith(_FOLDERS):
            return None
        names.append(f"{function.__module__}.{function.__qualname__}")
    return f"{source.partition(' at ')[0]}: {', '.join(names)}" if names else None


def activation_of(equation: Any) -> Activation:
    """Returns "relu" or "relu6" if a custom call is that function of `jax.nn`, else None."""
    name = known_rule(equation)
    for known in ("relu", "relu6"):
        if name is not None and name.startswith(f"{known}: jax._src.nn.functions."):
            return known
    return None


def rules_of(function: Any) -> list[Any]:
    """Returns the functions that define the derivative of a `jax.custom_jvp` or `jax.custom_vjp`."""
    rules = [getattr(function, word, None) for word in ("fwd", "bwd", "jvp", "vmap_rule")]
    return [one for rule in rules if rule is not None for one in _of_arguments(rule) or [rule]]


def _of_arguments(function: Any) -> list[Any]:
    """Returns the rules, one for each argument, that `defjvps` has joined into one function."""
    if getattr(function, "__qualname__", "") != "custom_jvp.defjvps.<locals>.jvp":
        return []
    cells = dict(zip(function.__code__.co_freevars, function.__closure__, strict=True))
    return [rule for rule in cells["jvps"].cell_contents if rule is not None]


def _functions(value: Any, depth: int) -> list[Any]:
    """Returns the innermost functions inside jax's wrappers of a rule, which are not documented."""
    function = getattr(value, "f", value)
    if rules := _of_arguments(function):
        return rules
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    inner = [one for one in cells if type(one).__name__ == "WrappedFun" or callable(one)]
    if depth and inner and "interpreters" in str(getattr(function, "__module__", "")):
        return [found for one in inner for found in _functions(one, depth - 1)]
    return [function]
