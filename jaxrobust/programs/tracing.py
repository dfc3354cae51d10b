"""Functions as jax traces them: equations that compiled code shares, arrays that are its arguments."""

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

# Calls that are put in their place.
_CALLS = ("closed_call", "core_call", "jit", "pjit")


class Code:
    """The steps of a traced function. Equal programs share one; it compares by identity.

    Attributes:
      steps: What is computed.
      arguments: Shapes and types of what the function was traced with.
      structure: Of what it returns.
      text: The key in a few digits, the same in every process.
      kind: The operations in a few digits, the same for every batch size.
      has_forms: Whether some of them have a fast form with a gradient of its own.
      is_narrow: Whether anything is computed in less than 32 bits.
      is_plain: Whether it is evaluated as it stands, whatever has a fast form.
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
        """The same, evaluated as it stands."""
        plain = copy.copy(self)
        plain.is_plain = True
        return plain

    def __repr__(self) -> str:
        return f"Code({self.text})"


# With gradients of their own: what could go wrong.
_FORMS = ("conv_general_dilated", "reduce_window_max", "reduce_window_sum")
_distrusted: set[str] = set()


def equations_of(steps: StepList) -> Iterator[Any]:
    """All equations of steps, those inside too."""
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
    """Programs with these operations are evaluated as they stand, if they are traced from now on."""
    _distrusted.add(code.kind)
    for key in [key for key, known in _codes.items() if known.kind == code.kind]:
        _codes.pop(key, None)
    _traced.clear()


# By key, for as long as a Program or a compiled function holds them.
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
    code, arrays = _code(closed, 0, jax.tree.structure(result))
    return Program(code, arrays)


def trace_settled(function: Any, *examples: Any) -> Program:
    """`trace` of a callable pytree whose leaves are all that may change: jax remembers its traces.

    Args:
      function: A callable pytree of arrays.
      *examples: As for `trace`.

    Returns:
      Program, whose first arrays are the leaves.
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
    """The same function of any pytrees, computed by the fast forms where there are some.

    Args:
      function: Pure. What it is given besides arrays is static.

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
    """What equal programs share, and the arrays of this one; the first arguments are arrays too."""
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
    """The steps of a jaxpr and their key; its arrays go to the end of the list.

    The first arguments may be arrays too, before its own.
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
        # Equal equations in layers of other names are another program: layers are asked for by name.
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
        except Exception:  # it stays what it is, and is equal to nothing
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
    """Modules and named scopes that an equation stands in.

    Transformations are none of them, nor what jax calls an einsum, nor the classes of equinox, which
    are the same for all layers.
    """
    names = [entry.name for entry in stack.stack if type(entry).__name__ == "Scope"]
    is_layer = re.compile(r"(?!eqx\.)[\w./-]+")
    return "/".join(name for name in names if is_layer.fullmatch(name))


def _opened(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """A jaxpr, closed or not, and its arrays."""
    return getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())


def _type(value: Any) -> Any:
    """Its dtype, of keys too."""
    return value.dtype if hasattr(value, "dtype") else jnp.result_type(value)


def held(array: Any) -> Any:
    """The array as it is now, on the device: one of numpy may be written to. A number stays one."""
    if isinstance(array, jax.Array | int | float | complex):
        return array
    return jnp.array(np.asarray(array))


def inside(what: Any) -> tuple[StepList, list[Any]] | None:
    """Of a custom call what it computes, without its derivative: steps and their arrays; else None."""
    if isinstance(what, derivatives.Rule):
        closed = what.primal
    elif getattr(what, "primitive", None) is not None and what.primitive.name in derivatives.CUSTOM:
        params = what.params
        closed = params["call_jaxpr"] if "call_jaxpr" in params else params["fun_jaxpr"]
    else:
        return None
    arrays = list[Any]()
    return read(*_opened(closed), arrays)[0], arrays
