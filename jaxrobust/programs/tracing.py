"""Functions as jax traces them: equations that compiled code shares, arrays that are its arguments."""

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxrobust.programs import comparing, derivatives

_CALLS = ("jit", "pjit")  # put in the place of the call where they close over arrays


class Step(NamedTuple):
    """One equation, or what stands in its place.

    Attributes:
      what: The equation; the steps of a call, in its place; the traced rule of a custom call.
      inputs: Variables and literals of jax.
      outputs: Variables.
      names: Where it stands in the program, "layer/activation" for example.
      context: jax' settings when it was traced.
    """

    what: "Any | Steps | derivatives.Rule"
    inputs: Sequence[Any]
    outputs: Sequence[Any]
    names: str
    context: Any


class Steps(NamedTuple):
    """A traced function, without the arrays that it closes over.

    Attributes:
      constants: Variables that stand for its arrays.
      inputs: Variables.
      steps: In their order.
      outputs: Variables and literals.
    """

    constants: Sequence[Any]
    inputs: Sequence[Any]
    steps: Sequence[Step]
    outputs: Sequence[Any]


class Code:
    """The steps of a traced function. Equal programs share one; it compares by identity.

    Attributes:
      steps: What is computed.
      arguments: Shapes and types of what the function was traced with.
      structure: Of what it returns.
      text: The key in a few digits, the same in every process.
    """

    def __init__(self, steps: Steps, arguments: tuple, structure: Any, text: str) -> None:
        self.steps, self.arguments, self.structure, self.text = steps, arguments, structure, text

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
        results = _evaluate(self.code.steps, iter(self.arrays), leaves)
        return jax.tree.unflatten(self.code.structure, results)

    @property
    def results(self) -> Any:
        """Shapes and types of what it returns."""
        outputs = self.code.steps.outputs
        shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in outputs]
        return jax.tree.unflatten(self.code.structure, shapes)


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
    structure, arrays = jax.tree.structure(result), list[Any]()
    steps, key = _read(closed.jaxpr, closed.consts, arrays)
    key = (structure, key)
    code = _codes.get(key)
    if code is None:
        arguments = tuple((tuple(aval.shape), aval.dtype) for aval in closed.in_avals)
        code = _codes[key] = Code(steps, arguments, structure, comparing.text_of(key))
    return Program(code, [held(array) for array in arrays])


def _read(jaxpr: Any, constants: Sequence[Any], arrays: list[Any]) -> tuple[Steps, tuple]:
    """The steps of a jaxpr and their key; its arrays go to the end of the list."""
    arrays += constants
    numbers, steps, keys = comparing.Numbers(), [], []
    start = numbers.of((*jaxpr.constvars, *jaxpr.invars))
    for equation in jaxpr.eqns:
        what, key = _read_equation(equation, arrays)
        steps.append(
            Step(
                what,
                equation.invars,
                equation.outvars,
                str(equation.source_info.name_stack),
                equation.ctx,
            )
        )
        keys.append((numbers.of(equation.invars), key, numbers.of(equation.outvars)))
    read = Steps(jaxpr.constvars, jaxpr.invars, steps, jaxpr.outvars)
    return read, (start, tuple(keys), numbers.of(jaxpr.outvars))


def _read_equation(equation: Any, arrays: list[Any]) -> tuple[Any, tuple]:
    name = equation.primitive.name
    if name in _CALLS and _has_arrays_or_rules(equation.params["jaxpr"]):
        called = equation.params["jaxpr"]
        return _read(called.jaxpr, called.consts, arrays)
    if name in derivatives.CUSTOM and derivatives.library_rule(equation) is None:
        try:
            rule, closed_over = derivatives.rule_of(equation)
        except Exception:  # it stays what it is, and is equal to nothing
            return equation, (name, comparing.parameters(equation))
        arrays += closed_over
        primal = comparing.parameters(equation, with_rules=False)
        return rule, (name, primal, comparing.rule_key(rule))
    return equation, (name, comparing.parameters(equation))


def _has_arrays_or_rules(called: Any) -> bool:
    """Whether a call closes over arrays or has rules of its own, itself or in a call of its own."""
    if called.consts:
        return True
    return any(
        (
            equation.primitive.name in derivatives.CUSTOM
            and derivatives.library_rule(equation) is None
        )
        or (equation.primitive.name in _CALLS and _has_arrays_or_rules(equation.params["jaxpr"]))
        for equation in called.jaxpr.eqns
    )


def _type(value: Any) -> Any:
    """Its dtype, of keys too."""
    return value.dtype if hasattr(value, "dtype") else jnp.result_type(value)


def held(array: Any) -> Any:
    """The array as it is now, on the device: one of numpy may be written to."""
    return array if isinstance(array, jax.Array) else jnp.array(np.asarray(array))


def _evaluate(steps: Steps, arrays: Iterator[Any], arguments: Sequence[Any]) -> list[Any]:
    """The results of steps, whose arrays come one after the other."""
    values: dict[Any, Any] = {variable: next(arrays) for variable in steps.constants}
    values |= dict(zip(steps.inputs, arguments, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for step in steps.steps:
        operands = [read(atom) for atom in step.inputs]
        scope = jax.named_scope(step.names) if step.names else contextlib.nullcontext()
        with scope, step.context.manager:
            if isinstance(step.what, Steps):
                results = _evaluate(step.what, arrays, operands)
            elif isinstance(step.what, derivatives.Rule):
                of_rule = [next(arrays) for _ in range(sum(step.what.counts))]
                results = derivatives.call(step.what, of_rule, operands)
            else:
                results = derivatives.bind(step.what, operands)
        values |= dict(zip(step.outputs, results, strict=True))
    return [read(atom) for atom in steps.outputs]
