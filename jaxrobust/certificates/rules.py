"""A classifier's program as a short list of steps that bounds can be computed for.

The classifier is traced at one image. Calls are inlined, of operations with a form for each platform
the plain one is taken, and everything that does not depend on the image is computed: weights are folded
with their BatchNorm, say. What is left are affine steps and a few that are not. Larger operations are
taken apart: a maximum over a window is a tournament of maxima of two.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrobust import programs
from jaxrobust.certificates.steps import Operand, Program, Reference, Step
from jaxrobust.types import Array, LogitsFn


def trace(logits_fn: LogitsFn, image: jax.ShapeDtypeStruct) -> Program:
    """The program of a classifier, for one image.

    Args:
      logits_fn: Images [1, H, W, C] -> logits [1, K]. Its arrays may be traced.
      image: float32 [1, H, W, C], of which only shape and type matter.

    Returns:
      Program.

    Raises:
      NotImplementedError: An operation without a rule; the message names it and its layer.
    """
    program = programs.as_argument(logits_fn, image)
    builder = _Builder()
    start = builder.add(Step("input", (), _same, image))
    (logits,) = builder.run(program.code.steps, iter(program.arrays), [start], "")
    result = program.results
    if not isinstance(logits, Reference):
        constant = jnp.asarray(logits)
        logits = start
        function = functools.partial(_constant, constant=constant)
        builder.add(Step("increasing", (start,), function, result, mixes=True))
    elif logits.position != len(builder.steps) - 1:
        builder.add(Step("increasing", (logits,), _same, result))
    return tuple(builder.steps)


def _same(value: Array) -> Array:
    return value


def _constant(value: Array, constant: Array) -> Array:
    return constant + 0 * jnp.sum(value)


# Their results depend on their operands as they are: no coefficient is negative.
_INCREASING = (
    "add",
    "add_any",
    "broadcast_in_dim",
    "concatenate",
    "copy",
    "copy_p",
    "dynamic_slice",
    "expand_dims",
    "gather",
    "optimization_barrier",
    "pad",
    "reshape",
    "rev",
    "select_n",
    "sharding_constraint",
    "slice",
    "split",
    "squeeze",
    "stack",
    "tile",
    "transpose",
    "unstack",
)
_SUMS = ("cumsum", "reduce_sum", "reduce_window_sum")
_CONTRACTIONS = ("conv_general_dilated", "dot_general")
_CURVES = {
    "exp": "convex",
    "expm1": "convex",
    "log": "concave",
    "log1p": "concave",
    "sqrt": "concave",
    "erf": "sigmoid",
    "logistic": "sigmoid",
    "tanh": "sigmoid",
}
# Less than any value, and finite: times the coefficient 0 that it has in every bound, it is 0.
_LOWEST = -1e30


class _Builder:
    """The steps so far."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def add(self, step: Step) -> Reference:
        self.steps.append(step)
        return Reference(len(self.steps) - 1)

    def result(self, value: Operand) -> jax.ShapeDtypeStruct:
        if isinstance(value, Reference):
            return self.steps[value.position].result
        return jax.ShapeDtypeStruct(jnp.shape(value), jnp.result_type(value))

    def make(
        self, kind: str, function: Callable[..., Array], operands: Sequence[Any], layer: str
    ) -> Reference:
        """A step whose result has the shape that the function gives it."""
        result = jax.eval_shape(function, *(self.result(operand) for operand in operands))
        return self.add(Step(kind, tuple(operands), function, result, layer))

    def run(
        self, steps: programs.Steps, arrays: Iterator[Any], arguments: Sequence[Any], layer: str
    ) -> list:
        """Adds the steps of a traced function; returns its results."""

        def results(step: Any, operands: list[Any]) -> Sequence[Any]:
            inside = "/".join(name for name in (layer, step.names) if name)
            return self.results(step.what, arrays, operands, inside)

        return programs.walk(steps, arrays, arguments, results)

    def results(
        self, what: Any, arrays: Iterator[Any], operands: list[Any], layer: str
    ) -> Sequence[Any]:
        """Of a step: what programs stand in it is put in its place."""
        if isinstance(what, programs.Steps):
            return self.run(what, arrays, operands, layer)
        is_known = not any(isinstance(operand, Reference) for operand in operands)
        if isinstance(what, programs.Nested):
            chosen = _chosen(what)
            if chosen is None and not is_known:
                raise _unsupported(what.equation, layer)
            parts = [list(islice(arrays, part.num_arrays)) for part in what.parts]
            if chosen is None:
                return programs.nested(what, parts, operands)
            operands = operands[1:] if what.equation.primitive.name == "cond" else operands
            return self.run(what.parts[chosen], iter(parts[chosen]), operands, layer)
        if (inside := programs.inside(what)) is not None:
            # Of a derivative no bound is needed, nor what it closes over.
            list(islice(arrays, sum(getattr(what, "counts", ()))))
            steps, closed_over = inside
            return self.run(steps, iter(closed_over), operands, layer)
        return _evaluate(what, operands) if is_known else self.rule(what, operands, layer)

    def rule(self, equation: Any, operands: list[Any], layer: str) -> Sequence[Any]:
        """The steps of one operation, of which an operand depends on the image."""
        name, params = equation.primitive.name, equation.params
        known = [not isinstance(operand, Reference) for operand in operands]
        first_only = known.count(False) == 1 and not known[0]
        unknown = tuple(operand for operand in operands if isinstance(operand, Reference))

        def step(kind: str, index: int = 0, **more: Any) -> Reference:
            function = functools.partial(_apply, equation, operands, index)
            aval = equation.outvars[index].aval
            result = jax.ShapeDtypeStruct(aval.shape, aval.dtype)
            return self.add(Step(kind, unknown, function, result, layer, **more))

        def two(kind: str) -> Reference:
            function = {"max": jnp.maximum, "min": jnp.minimum, "product": jnp.multiply}[kind]
            return self.make(kind, function, operands, layer)

        if name in _INCREASING and not (name == "select_n" and not known[0]):
            if name in ("gather", "dynamic_slice") and not first_only:
                raise _unsupported(equation, layer, "whose indices depend on the image")
            adds = name in ("add", "add_any")
            more = {"mixes": adds and len(unknown) == 2, "num_terms": 1 + adds}
            more["num_uses"] = _repetitions(equation)
            return [step("increasing", index, **more) for index in range(len(equation.outvars))]
        if name == "stop_gradient":
            return operands  # bounds are of values
        if name == "convert_element_type":
            if params["new_dtype"] != self.result(operands[0]).dtype:
                raise _unsupported(equation, layer, f"to {np.dtype(params['new_dtype']).name}")
            return operands
        if name in _SUMS:
            terms = _terms(equation)
            uses = 1 if name == "reduce_sum" else terms
            return [step("sum", num_terms=terms, num_uses=uses, mixes=True)]
        if name in _CONTRACTIONS and len(unknown) == 1:
            magnitudes = [
                jnp.abs(o) if is_known else o for o, is_known in zip(operands, known, strict=True)
            ]
            absolute = functools.partial(_apply, equation, magnitudes, 0)
            counts = {
                "num_terms": _terms(equation),
                "num_uses": _uses(equation, known.index(False)),
            }
            return [step("contraction", absolute=absolute, mixes=True, **counts)]
        if name == "neg" or (name == "sub" and len(unknown) == 1):
            return [step("scale")]
        if name == "sub":
            return [step("difference", mixes=True)]
        if name == "div" and first_only:
            return [step("scale")]
        if name == "mul":
            if len(unknown) == 1:
                return [step("scale")]
            return [self.square(operands[0], layer) if len({*unknown}) == 1 else two("product")]
        if name == "square":
            return [self.square(operands[0], layer)]
        if name == "integer_pow" and params["y"] > 0:
            return [self.power(operands[0], params["y"], layer)]
        if name in ("max", "min"):
            # As softmax guards itself; a line through infinity would be NaN.
            neutral = -np.inf if name == "max" else np.inf
            if any(
                is_known and not isinstance(operand, jax.core.Tracer) and np.all(operand == neutral)
                for operand, is_known in zip(operands, known, strict=True)
            ):
                return list(unknown)
            return [two(name)]
        if name == "clamp" and not known[1] and known[0] and known[2]:
            above = self.make("max", jnp.maximum, (operands[1], operands[0]), layer)
            return [self.make("min", jnp.minimum, (above, operands[2]), layer)]
        if name == "abs":
            negative = self.make("scale", jnp.negative, operands, layer)
            return [self.make("max", jnp.maximum, (operands[0], negative), layer)]
        if name == "reduce_max":
            return [self.largest(operands[0], params["axes"], layer)]
        if name == "reduce_window_max" and set(params["base_dilation"]) == {1}:
            return [self.largest_of_windows(operands[0], params, equation.outvars[0].aval, layer)]
        if name in _CURVES:
            return [step(_CURVES[name])]
        if name == "erfc":
            inner = self.make("sigmoid", lax.erf, operands, layer)
            return [self.make("scale", _one_less, (inner,), layer)]
        raise _unsupported(equation, layer)

    def square(self, operand: Operand, layer: str) -> Reference:
        return self.make("square", jnp.square, (operand,), layer)

    def power(self, operand: Operand, exponent: int, layer: str) -> Operand:
        if exponent == 1:
            return operand
        if exponent % 2 == 0:
            return self.square(self.power(operand, exponent // 2, layer), layer)
        rest = self.power(operand, exponent - 1, layer)
        return self.make("product", jnp.multiply, (operand, rest), layer)

    def largest(self, value: Operand, axes: Sequence[int], layer: str) -> Operand:
        """The maximum over axes: of both halves of an axis, until one is left."""
        for axis in axes:
            while (size := self.result(value).shape[axis]) > 1:
                half = size // 2

                def part(
                    start: int, stop: int, value: Operand = value, axis: int = axis
                ) -> Operand:
                    cut = functools.partial(
                        lax.slice_in_dim, start_index=start, limit_index=stop, axis=axis
                    )
                    return self.make("increasing", cut, (value,), layer)

                halves = (part(0, half), part(half, 2 * half))
                winners = self.make("max", jnp.maximum, halves, layer)
                if size % 2:
                    join = functools.partial(_join, axis=axis)
                    winners = self.make("increasing", join, (winners, part(size - 1, size)), layer)
                value = winners
        squeeze = functools.partial(lax.squeeze, dimensions=tuple(axes))
        return self.make("increasing", squeeze, (value,), layer)

    def largest_of_windows(self, value: Operand, params: Any, result: Any, layer: str) -> Operand:
        """The maximum of each window: of the values at the window's first place, its second, ..."""
        padding = [(low, high, 0) for low, high in params["padding"]]
        if any(low or high for low, high, _ in padding):
            pad = functools.partial(_pad, config=padding)
            value = self.make("increasing", pad, (value,), layer)
        strides = params["window_strides"]
        entries = []
        for place in np.ndindex(*params["window_dimensions"]):
            starts = [at * step for at, step in zip(place, params["window_dilation"], strict=True)]
            stops = [
                start + (size - 1) * stride + 1
                for start, size, stride in zip(starts, result.shape, strides, strict=True)
            ]
            cut = functools.partial(
                lax.slice, start_indices=starts, limit_indices=stops, strides=strides
            )
            entries.append(self.make("increasing", cut, (value,), layer))
        while len(entries) > 1:
            pairs = zip(entries[::2], entries[1::2], strict=False)
            winners = [self.make("max", jnp.maximum, pair, layer) for pair in pairs]
            entries = winners + entries[2 * len(winners) :]
        return entries[0]


def _chosen(nested: programs.Nested) -> int | None:
    """Which program stands in the place of a checkpoint, or of a choice by the platform."""
    name, params = nested.equation.primitive.name, nested.equation.params
    if name == "cond" and params.get("branches_platforms") is not None:
        plain = [platforms is None for platforms in params["branches_platforms"]]
        return plain.index(True) if any(plain) else len(plain) - 1
    return None if name in ("cond", "scan", "while") else 0


def _apply(equation: Any, operands: list[Any], index: int, *values: Array) -> Array:
    """One result of an operation, its operands that depend on the image replaced by values."""
    left = iter(values)
    filled = [next(left) if isinstance(operand, Reference) else operand for operand in operands]
    return _evaluate(equation, filled)[index]


def _evaluate(equation: Any, operands: list[Any]) -> Sequence[Any]:
    params = equation.params
    if equation.primitive.name in _CONTRACTIONS:
        # A GPU's default has 10 bits of 23: not what a bound should be computed with.
        params = {**params, "precision": (lax.Precision.HIGHEST, lax.Precision.HIGHEST)}
    results = equation.primitive.bind(*operands, **params)
    return results if equation.primitive.multiple_results else [results]


def _one_less(value: Array) -> Array:
    return 1 - value


def _join(first: Array, second: Array, axis: int) -> Array:
    return lax.concatenate([first, second], axis)


def _pad(value: Array, config: list[tuple[int, int, int]]) -> Array:
    return lax.pad(value, jnp.asarray(_LOWEST, value.dtype), config)


def _terms(equation: Any) -> int:
    """Of how many terms an element of the result is the sum, at most."""
    params, shape = equation.params, equation.invars[0].aval.shape
    if equation.primitive.name == "dot_general":
        return math.prod(shape[axis] for axis in params["dimension_numbers"][0][0])
    if equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        return math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]
    if equation.primitive.name == "reduce_window_sum":
        return math.prod(params["window_dimensions"])
    axes = params["axes"] if "axes" in params else (params["axis"],)
    return math.prod(shape[axis] for axis in axes)


def _uses(equation: Any, unknown: int) -> int:
    """Of a contraction: in how many elements of the result one of the operand is, at most."""
    params, size = equation.params, math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == "dot_general":
        contracted, batch = (axes[1 - unknown] for axes in params["dimension_numbers"])
        shape = equation.invars[1 - unknown].aval.shape
        return math.prod(n for axis, n in enumerate(shape) if axis not in (*contracted, *batch))
    if unknown == 0:
        kernel = equation.invars[1].aval.shape
        return min(size, math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[1]])
    return size


def _repetitions(equation: Any) -> int:
    """How often an element is copied by an operation that copies, at most."""
    size = math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == "gather":
        return size
    if equation.primitive.name in ("broadcast_in_dim", "tile"):
        return max(1, size // max(1, math.prod(equation.invars[0].aval.shape)))
    return 1


def _unsupported(equation: Any, layer: str, which: str = "") -> NotImplementedError:
    where = f"in {layer}" if layer else "outside any named layer"
    return NotImplementedError(
        f"`logits_fn` has the operation {equation.primitive.name!r}{' ' * bool(which)}{which} {where}, "
        "for which there are no bounds here (docs/certificates.md lists what there is)."
    )
