"""Functions as jax traces them: equations that compiled code shares, arrays that are its arguments."""

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxrobust.programs import comparing


class Code:
    """The equations of a traced function. Equal programs share one; it compares by identity.

    Attributes:
      jaxpr: Whose constants, and those of calls inside it, are arguments.
      arguments: Shapes and types of what the function was traced with.
      result: The structure of what it returns.
      text: The key in a few digits, the same in every process.
    """

    def __init__(self, jaxpr: Any, arguments: tuple, result: Any, text: str) -> None:
        self.jaxpr, self.arguments, self.result, self.text = jaxpr, arguments, result, text

    def __repr__(self) -> str:
        return f"Code({self.text})"


# By key, for as long as a Program or a compiled function holds them.
_codes: "weakref.WeakValueDictionary[tuple, Code]" = weakref.WeakValueDictionary()


@jax.tree_util.register_pytree_node_class
class Program:
    """A function as it was when it was traced: a callable pytree, whose leaves are its arrays.

    It takes arguments of the shapes and types that it was traced with, and no others.

    Attributes:
      code: What it has in common with equal programs.
      arrays: What the function closed over.
    """

    def __init__(self, code: Code, arrays: Sequence[Any]) -> None:
        self.code, self.arrays = code, tuple(arrays)

    def tree_flatten(self) -> tuple[tuple, Code]:
        """Arrays are leaves, the code is static."""
        return self.arrays, self.code

    @classmethod
    def tree_unflatten(cls, code: Code, arrays: Sequence[Any]) -> "Program":
        """The inverse."""
        return cls(code, arrays)

    def __call__(self, *arguments: Any) -> Any:
        """What the function returns.

        Raises:
          TypeError: Arguments of other shapes or types than those it was traced with.
        """
        leaves = jax.tree.leaves(arguments)
        given = tuple((jnp.shape(leaf), _type(leaf)) for leaf in leaves)
        if given != self.code.arguments:
            raise TypeError(
                f"The program was traced for {self.code.arguments} and is called with {given}."
            )
        results = _evaluate(self.code.jaxpr, iter(self.arrays), leaves)
        return jax.tree.unflatten(self.code.result, results)

    @property
    def results(self) -> Any:
        """Shapes and types of what it returns."""
        shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in self.code.jaxpr.outvars]
        return jax.tree.unflatten(self.code.result, shapes)


def trace(function: Callable[..., Any], *examples: Any) -> Program:
    """Traces a function, once and now: nothing is taken from an earlier trace.

    Args:
      function: Any pure function of arrays, a closure or a bound method too.
      *examples: What to call it with, of which shapes and types alone matter.

    Returns:
      Program. Two functions whose equations are equal give programs of one `code`, which compiled code
      is kept under; the arrays that the functions close over may differ.

    Example:
      >>> weights = {"w": jnp.ones(3)}
      >>> before = trace(lambda x: x @ weights["w"], jnp.ones((1, 3)))
      >>> weights["w"] = 2 * jnp.ones(3)
      >>> now = trace(lambda x: x @ weights["w"], jnp.ones((1, 3)))
      >>> before.code is now.code, now(jnp.ones((1, 3))).tolist()
      (True, [6.0])
    """
    # A function of its own each time: a trace that jax remembers would not look at the closure again.
    closed, result = jax.make_jaxpr(lambda *arguments: function(*arguments), return_shape=True)(
        *examples
    )
    arrays = [_held(array) for array in (*closed.consts, *comparing.nested_constants(closed.jaxpr))]
    structure = jax.tree.structure(result)
    key = (structure, comparing.key_of(closed.jaxpr))
    code = _codes.get(key)
    if code is None:
        arguments = tuple((tuple(aval.shape), aval.dtype) for aval in closed.in_avals)
        text = comparing.text_of(key)
        code = _codes[key] = Code(_without_arrays(closed.jaxpr), arguments, structure, text)
    return Program(code, arrays)


def _without_arrays(jaxpr: Any) -> Any:
    """The jaxpr, its calls without the arrays that they close over: code keeps no weights alive."""

    def bare(equation: Any) -> Any:
        if not comparing.is_call_with_constants(equation):
            return equation
        inner = _without_arrays(equation.params["jaxpr"].jaxpr)
        return equation.replace(params={**equation.params, "jaxpr": inner})

    return jaxpr.replace(eqns=[bare(equation) for equation in jaxpr.eqns])


def _type(value: Any) -> Any:
    """Its dtype, of keys too."""
    return value.dtype if hasattr(value, "dtype") else jnp.result_type(value)


def _held(array: Any) -> Any:
    """The array as it is now: one of numpy may be written to."""
    return array if isinstance(array, jax.Array) else jnp.array(np.asarray(array))


def _evaluate(jaxpr: Any, arrays: Iterator[Any], arguments: Sequence[Any]) -> list[Any]:
    """The results of a jaxpr; its constants, and those of calls inside it, come one after the other."""
    values: dict[Any, Any] = {variable: next(arrays) for variable in jaxpr.constvars}
    values |= dict(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        stack = str(equation.source_info.name_stack)
        with jax.named_scope(stack) if stack else contextlib.nullcontext(), equation.ctx.manager:
            if isinstance(equation.params.get("jaxpr"), core.Jaxpr) and (
                equation.primitive.name in comparing.CALLS
            ):
                results = _evaluate(equation.params["jaxpr"], arrays, operands)
            else:
                results = comparing.bind(equation, operands)
        values |= dict(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]
