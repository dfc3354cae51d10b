"""Traces functions into programs: equal functions share their equations, and arrays are arguments."""

import collections
import copy
import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxrobust import compilation
from jaxrobust.programs import comparing, derivatives, evaluating
from jaxrobust.programs.steps import PARTS, Nested, Step, StepList

# Calls that are replaced by the steps of the function that they call.
_CALLS = ("closed_call", "core_call", "jit", "pjit")


class Code:
    """The steps of a traced function. Equal programs share one `Code`; it compares by identity.

    Attributes:
      steps: The steps.
      arguments: The shapes and types of the arguments that the function was traced with.
      structure: The tree structure of the result.
      text: A digest of the key, the same in every process.
      kind: A digest of the operations, the same for every batch size.
      has_forms: Whether some operations have a fast form with its own gradient.
      is_narrow: Whether some values have fewer than 32 bits.
      is_plain: Whether the code is evaluated without fast forms.
    """

    def __init__(self, steps: StepList, arguments: tuple, structure: Any, text: str) -> None:
        self.steps, self.arguments, self.structure, self.text = steps, arguments, structure, text
        equations = list(equations_of(steps))
        self.has_forms = any(one.primitive.name in _FORMS for one in equations)
        self.is_narrow = any(
            jnp.issubdtype(v.aval.dtype, jnp.floating) and v.aval.dtype.itemsize < 4
            for one in equations
            for v in one.outvars
            if hasattr(v.aval, "dtype")
        )
        self.kind = comparing.text_of(tuple(one.primitive.name for one in equations))
        self.is_plain = self.kind in _distrusted

    def as_plain(self) -> "Code":
        """Returns a copy that is evaluated without fast forms."""
        plain = copy.copy(self)
        plain.is_plain = True
        return plain

    def __repr__(self) -> str:
        return f"Code({self.text})"


# The operations whose fast forms have their own gradients, which `guarding` therefore checks.
_FORMS = ("conv_general_dilated", "reduce_window_max", "reduce_window_sum")
_distrusted: set[str] = set()


def equations_of(steps: StepList) -> Iterator[Any]:
    """Yields all equations of steps, with those inside calls, loops and choices."""
    for step in steps.steps:
        if isinstance(step.what, StepList):
            yield from equations_of(step.what)
        elif isinstance(step.what, Nested):
            yield step.what.equation
            for part in step.what.parts:
                yield from equations_of(part)
        elif not isinstance(step.what, derivatives.Rule):
            yield step.what


def distrust(code: Code) -> None:
    """Turns fast forms off for all programs with these operations that are traced from now on."""
    _distrusted.add(code.kind)
    for key in [key for key, known in _codes.items() if known.kind == code.kind]:
        _codes.pop(key, None)
    _traced.clear()


# The codes by their keys, for as long as a Program or a compiled function refers to them.
_codes: "weakref.WeakValueDictionary[tuple, Code]" = weakref.WeakValueDictionary()


@jax.tree_util.register_pytree_node_class
class Program:
    """A traced function: a callable pytree whose leaves are the arrays that the function closed over.

    It accepts only arguments of the shapes and types with which it was traced.

    Attributes:
      code: The steps, which equal programs share.
      arrays: The arrays that the function closed over.
    """

    def __init__(self, code: Code, arrays: Sequence[Any]) -> None:
        self.code, self.arrays = code, tuple(arrays)

    def tree_flatten(self) -> tuple[tuple, Code]:
        """Returns the arrays as leaves, and the code as the static part."""
        return self.arrays, self.code

    @classmethod
    def tree_unflatten(cls, code: Code, arrays: Sequence[Any]) -> "Program":
        """Makes a program from its leaves and its static part."""
        return cls(code, arrays)

    def __call__(self, *arguments: Any) -> Any:
        """Computes the result of the function.

        Raises:
          TypeError: The arguments have other shapes or types than those of the trace.
        """
        leaves = jax.tree.leaves(arguments)
        given = tuple((jnp.shape(leaf), _type(leaf)) for leaf in leaves)
        if given != self.code.arguments:
            raise TypeError(
                f"The program was traced for {self.code.arguments} and is called with {given}."
            )
        results = evaluating.evaluate(
            self.code.steps, iter(self.arrays), leaves, plain=self.code.is_plain
        )
        return jax.tree.unflatten(self.code.structure, results)

    @property
    def results(self) -> Any:
        """The shapes and types of the result."""
        outputs = self.code.steps.outputs
        shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in outputs]
        return jax.tree.unflatten(self.code.structure, shapes)


def trace(function: Callable[..., Any], *examples: Any) -> Program:
    """Traces a function anew: nothing is taken from an earlier trace.

    Args:
      function: Any pure function of arrays, which may be a closure or a bound method.
      *examples: Arguments to trace with; only their shapes and types matter.

    Returns:
      The program. Functions with equal equations give programs with the same `code`, so they share
      compiled code; the arrays that they close over may differ.

    Example:
      >>> weights = {"w": jnp.ones(3)}
      >>> before = trace(lambda x: x @ weights["w"], jnp.ones((1, 3)))
      >>> weights["w"] = 2 * jnp.ones(3)
      >>> now = trace(lambda x: x @ weights["w"], jnp.ones((1, 3)))
      >>> before.code is now.code, now(jnp.ones((1, 3))).tolist()
      (True, [6.0])
    """
    # A new lambda each time: for a known function, jax would reuse its trace and the old closure.
    closed, result = jax.make_jaxpr(lambda *arguments: function(*arguments), return_shape=True)(
        *examples
    )
    code, arrays = _code(closed, 0, jax.tree.structure(result))
    return Program(code, arrays)


def trace_settled(function: Any, *examples: Any) -> Program:
    """Traces a callable pytree of which only the leaves may change, so that jax may reuse a trace.

    Args:
      function: A callable pytree of arrays.
      *examples: Arguments to trace with, as in `trace`.

    Returns:
      The program, whose first arrays are the leaves.
    """
    leaves = jax.tree.leaves(function)
    traced = _apply.trace(function, *examples)
    found = _traced.get(traced.jaxpr.jaxpr)
    if found is None:
        structure = jax.tree.structure(traced.out_info)
        found = _traced[traced.jaxpr.jaxpr] = _code(traced.jaxpr, len(leaves), structure)
    code, arrays = found
    return Program(code, [*map(held, leaves), *arrays])


_apply = jax.jit(lambda function, *arguments: function(*arguments))
_traced: "weakref.WeakKeyDictionary[Any, tuple[Code, list]]" = weakref.WeakKeyDictionary()


def fast(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function use the fast forms of its operations.

    Args:
      function: A pure function of any pytrees. Arguments other than arrays are static.

    Returns:
      A function with the same arguments and results.

    Example:
      >>> fast(lambda images, scale: images * scale)(jnp.ones(2), 3).tolist()
      [3.0, 3.0]
    """

    def call(*arguments: Any, **options: Any) -> Any:
        if not compilation.has_fast_forms():
            return function(*arguments, **options)
        leaves, structure = jax.tree.flatten((arguments, options))
        places = [at for at, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray)]

        def of_arrays(*arrays: Any) -> Any:
            filled = list(leaves)
            for place, array in zip(places, arrays, strict=True):
                filled[place] = array
            arguments, options = jax.tree.unflatten(structure, filled)
            return function(*arguments, **options)

        arrays = [leaves[place] for place in places]
        return trace(of_arrays, *arrays)(*arrays)

    return call


def _code(closed: Any, num_leaves: int, structure: Any) -> tuple[Code, list[Any]]:
    """Returns the shared code and this program's arrays, without the first `num_leaves` of them."""
    arrays = list[Any]()
    leaves, inputs = closed.jaxpr.invars[:num_leaves], closed.jaxpr.invars[num_leaves:]
    steps, key = read(closed.jaxpr, [*leaves, *closed.consts], arrays, num_leaves)
    arguments = tuple((tuple(variable.aval.shape), variable.aval.dtype) for variable in inputs)
    key = (structure, arguments, key)
    code = _codes.get(key)
    if code is None:
        code = _codes[key] = Code(steps, arguments, structure, comparing.text_of(key))
    return code, [held(array) for array in arrays[num_leaves:]]


def read(
    jaxpr: Any, constants: Sequence[Any], arrays: list[Any], num_leaves: int = 0
) -> tuple[StepList, tuple]:
    """Returns the steps of a jaxpr and their key, and appends its arrays to the list.

    The first `num_leaves` arguments of the jaxpr count as arrays, before its own constants.
    """
    before = len(arrays)
    arrays += constants
    numbers, steps, keys = comparing.Numbers(), [], []
    variables = [*jaxpr.invars[:num_leaves], *jaxpr.constvars]
    inputs = jaxpr.invars[num_leaves:]
    start = numbers.of((*variables, *inputs))
    uses = collections.Counter(v for v in jaxpr.outvars if not isinstance(v, core.Literal))
    for equation in jaxpr.eqns:
        what, key = _read_equation(equation, arrays)
        uses.update(v for v in equation.invars if not isinstance(v, core.Literal))
        scope = _scope(equation.source_info.name_stack)
        steps.append(Step(what, equation.invars, equation.outvars, scope, equation.ctx))
        # The names of layers are part of the key, because callers look layers up by name.
        key = (key, scope, comparing.context(equation))
        keys.append((numbers.of(equation.invars), key, numbers.of(equation.outvars)))
    num_arrays = len(arrays) - before
    read = StepList(variables, inputs, steps, jaxpr.outvars, dict(uses), num_arrays)
    return read, (start, tuple(keys), numbers.of(jaxpr.outvars))


def _read_equation(equation: Any, arrays: list[Any]) -> tuple[Any, tuple]:
    name, params = equation.primitive.name, equation.params
    if name in _CALLS:
        steps, key = read(*_opened(params.get("jaxpr", params.get("call_jaxpr"))), arrays)
        return steps._replace(name=str(params.get("name", ""))), key
    if name in derivatives.CUSTOM and derivatives.known_rule(equation) is None:
        try:
            rule, closed_over = derivatives.rule_of(equation)
        except Exception:  # the equation is kept as it is, and equals no other
            return equation, (name, comparing.parameters(equation))
        arrays += closed_over
        primal = comparing.parameters(equation, with_rules=False)
        return rule, (name, primal, comparing.rule_key(rule))
    if name in PARTS:
        inside = [params[word] for word in PARTS[name]]
        inside = [one for part in inside for one in (part if isinstance(part, tuple) else (part,))]
        parts, keys = zip(*(read(*_opened(one), arrays) for one in inside), strict=True)
        return Nested(equation, parts), (name, comparing.parameters(equation, PARTS[name]), keys)
    return equation, (name, comparing.parameters(equation))


def _scope(stack: Any) -> str:
    """Returns the names of the modules and named scopes around an equation.

    Names that do not tell layers apart are left out: those of transformations, of einsums, and of
    equinox's classes.
    """
    names = [entry.name for entry in stack.stack if type(entry).__name__ == "Scope"]
    is_layer = re.compile(r"(?!eqx\.)[\w./-]+")
    return "/".join(name for name in names if is_layer.fullmatch(name))


def _opened(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """Returns the jaxpr and the arrays of a jaxpr that may be closed."""
    return getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())


def _type(value: Any) -> Any:
    """Returns the dtype of an array, a PRNG key or a number."""
    return value.dtype if hasattr(value, "dtype") else jnp.result_type(value)


def held(array: Any) -> Any:
    """Copies an array of numpy to the device, because it may be written to; a number is kept."""
    if isinstance(array, jax.Array | int | float | complex):
        return array
    return jnp.array(np.asarray(array))


def inside(what: Any) -> tuple[StepList, list[Any]] | None:
    """Returns what a custom call computes, as (steps, their arrays); None for anything else."""
    if isinstance(what, derivatives.Rule):
        closed = what.primal
    elif getattr(what, "primitive", None) is not None and what.primitive.name in derivatives.CUSTOM:
        params = what.params
        closed = params["call_jaxpr"] if "call_jaxpr" in params else params["fun_jaxpr"]
    else:
        return None
    arrays = list[Any]()
    return read(*_opened(closed), arrays)[0], arrays
