"""The rules that translate jax's operations, by name.

A rule adds operations for one operation of the network. Larger ones are split: a maximum over a window
becomes a tournament of maxima of two.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrobust.certificates.operations import Operand, Operation, Reference
from jaxrobust.programs.operations import ELEMENTWISE
from jaxrobust.types import Array

# Less than any value, and finite: times the coefficient 0 that it has in every bound, it is 0.
_LOWEST = -1e30
_CONTRACTIONS = ("conv_general_dilated", "dot_general")


def appended(operations: list[Operation], operation: Operation) -> Reference:
    """Appends an operation, and returns a reference to it."""
    operations.append(operation)
    return Reference(len(operations) - 1)


@dataclasses.dataclass(frozen=True)
class Reading:
    """An operation of the network with at least one operand that depends on the image.

    Attributes:
      operations: The operations so far, to which a rule adds.
      equation: The equation of jax.
      operands: References for operands that depend on the image, arrays for the others.
      layer: The layer of the network, for error messages.
    """

    operations: list[Operation]
    equation: Any
    operands: list[Any]
    layer: str

    @property
    def known(self) -> list[bool]:
        """Which operands do not depend on the image."""
        return [not isinstance(operand, Reference) for operand in self.operands]

    @property
    def unknown(self) -> tuple[Reference, ...]:
        """The operands that depend on the image."""
        return tuple(operand for operand in self.operands if isinstance(operand, Reference))

    @property
    def first_only(self) -> bool:
        """Whether only the first operand depends on the image."""
        return len(self.unknown) == 1 and not self.known[0]

    def add(
        self,
        kind: str,
        *,
        index: int = 0,
        absolute: Callable[..., Array] | None = None,
        num_terms: int = 1,
        num_uses: int = 1,
        mixes: bool = False,
    ) -> Reference:
        """Adds the operation itself, with its result at `index`."""
        function = functools.partial(_apply, self.equation, self.operands, index)
        aval = self.equation.outvars[index].aval
        result = jax.ShapeDtypeStruct(aval.shape, aval.dtype)
        counts = (absolute, num_terms, num_uses, mixes)
        added = Operation(kind, self.unknown, function, result, self.layer, *counts)
        return appended(self.operations, added)

    def make(
        self, kind: str, function: Callable[..., Array], *operands: Operand, num_uses: int = 1
    ) -> Reference:
        """Adds another operation, whose result has the shape that the function returns."""
        result = jax.eval_shape(function, *map(self.shape, operands))
        added = Operation(kind, operands, function, result, self.layer, num_uses=num_uses)
        return appended(self.operations, added)

    def stretched(self) -> "Reading":
        """The same operation of operands of one shape: jax repeats those along axes of length 1."""
        if self.equation.primitive.name not in ELEMENTWISE:
            return self
        shape, operands = self.equation.outvars[0].aval.shape, list[Any]()
        for operand in self.operands:
            own = self.shape(operand).shape
            if isinstance(operand, Reference) and own != shape:
                repeat = functools.partial(jnp.broadcast_to, shape=shape)
                uses = math.prod(shape) // max(1, math.prod(own))
                operand = self.make("increasing", repeat, operand, num_uses=uses)
            operands.append(operand)
        return dataclasses.replace(self, operands=operands)

    def shape(self, value: Operand) -> jax.ShapeDtypeStruct:
        """Returns the shape and type of a value."""
        if isinstance(value, Reference):
            return self.operations[value.position].result
        return jax.ShapeDtypeStruct(jnp.shape(value), jnp.result_type(value))


Rule = Callable[[Reading], Sequence[Any] | None]
"""A function from a `Reading` to its results; None if there are no bounds for such operands."""


def _simply(kind: str) -> Rule:
    return lambda found: [found.add(kind)]


def _copied(found: Reading) -> Sequence[Any]:
    uses, results = _repetitions(found.equation), range(len(found.equation.outvars))
    return [found.add("increasing", index=index, num_uses=uses) for index in results]


def _indexed(found: Reading) -> Sequence[Any]:
    if found.first_only:
        return _copied(found)
    raise unsupported(found.equation, found.layer, "whose indices depend on the image")


def _converted(found: Reading) -> Sequence[Any]:
    dtype = found.equation.params["new_dtype"]
    if dtype != found.shape(found.operands[0]).dtype:
        raise unsupported(found.equation, found.layer, f"to {np.dtype(dtype).name}")
    return found.operands


def _subtracted(found: Reading) -> Sequence[Any]:
    if len(found.unknown) == 1:
        return [found.add("scale")]
    return [found.add("difference", mixes=True)]


def _multiplied(found: Reading) -> Sequence[Any]:
    if len(found.unknown) == 1:
        return [found.add("scale")]
    if len({*found.unknown}) == 1:
        return [found.make("square", jnp.square, found.operands[0])]
    return [found.make("product", jnp.multiply, *found.operands)]


def _powered(found: Reading) -> Sequence[Any] | None:
    def power(operand: Operand, exponent: int) -> Operand:
        if exponent == 1:
            return operand
        if exponent % 2 == 0:
            return found.make("square", jnp.square, power(operand, exponent // 2))
        return found.make("product", jnp.multiply, operand, power(operand, exponent - 1))

    exponent = found.equation.params["y"]
    return [power(found.operands[0], exponent)] if exponent > 0 else None


def _summed(found: Reading) -> Sequence[Any]:
    terms, name = _terms(found.equation), found.equation.primitive.name
    uses = 1 if name == "reduce_sum" else terms
    return [found.add("sum", num_terms=terms, num_uses=uses, mixes=True)]


def _contracted(found: Reading) -> Sequence[Any] | None:
    if len(found.unknown) != 1:
        return None
    pairs = zip(found.operands, found.known, strict=True)
    magnitudes = [jnp.abs(operand) if is_known else operand for operand, is_known in pairs]
    absolute = functools.partial(_apply, found.equation, magnitudes, 0)
    terms, uses = _terms(found.equation), _uses(found.equation, found.known.index(False))
    counts = {"num_terms": terms, "num_uses": uses}
    return [found.add("contraction", absolute=absolute, mixes=True, **counts)]


def _extreme(found: Reading, kind: str, function: Callable[..., Array], neutral: float) -> Any:
    # As softmax guards itself; a line through infinity would be NaN.
    if any(
        is_known and not isinstance(operand, jax.core.Tracer) and np.all(operand == neutral)
        for operand, is_known in zip(found.operands, found.known, strict=True)
    ):
        return found.unknown
    return [found.make(kind, function, *found.operands)]


_LARGER = ("max", jnp.maximum, -np.inf)
_SMALLER = ("min", jnp.minimum, np.inf)


def _clamped(found: Reading) -> Sequence[Any] | None:
    if found.known != [True, False, True]:
        return None
    low, value, high = found.operands
    return [found.make("min", jnp.minimum, found.make("max", jnp.maximum, value, low), high)]


def _absolute(found: Reading) -> Sequence[Any]:
    (value,) = found.operands
    return [found.make("max", jnp.maximum, value, found.make("scale", jnp.negative, value))]


def _complement_of_erf(found: Reading) -> Sequence[Any]:
    return [found.make("scale", _one_less, found.make("sigmoid", lax.erf, *found.operands))]


def _largest(found: Reading) -> Sequence[Any]:
    """Returns the maximum over axes, as maxima of the two halves of an axis until one is left."""
    (value,), axes = found.operands, found.equation.params["axes"]

    def part(value: Operand, axis: int, start: int, stop: int) -> Operand:
        cut = functools.partial(lax.slice_in_dim, start_index=start, limit_index=stop, axis=axis)
        return found.make("increasing", cut, value)

    for axis in axes:
        while (size := found.shape(value).shape[axis]) > 1:
            half = size // 2
            halves = (part(value, axis, 0, half), part(value, axis, half, 2 * half))
            winners = found.make("max", jnp.maximum, *halves)
            # Of an odd number one has no opponent, and goes on.
            if size % 2:
                join = functools.partial(_join, axis=axis)
                left = part(value, axis, size - 1, size)
                winners = found.make("increasing", join, winners, left)
            value = winners
    squeeze = functools.partial(lax.squeeze, dimensions=tuple(axes))
    return [found.make("increasing", squeeze, value)]


def _largest_of_windows(found: Reading) -> Sequence[Any] | None:
    """Returns the maximum of each window, over the values at its first position, its second, ..."""
    params, shape = found.equation.params, found.equation.outvars[0].aval.shape
    if set(params["base_dilation"]) != {1}:
        return None
    (value,), strides = found.operands, params["window_strides"]
    padding = [(low, high, 0) for low, high in params["padding"]]
    if any(low or high for low, high, _ in padding):
        value = found.make("increasing", functools.partial(_pad, config=padding), value)
    entries = []
    for place in np.ndindex(*params["window_dimensions"]):
        starts = [at * step for at, step in zip(place, params["window_dilation"], strict=True)]
        stops = [
            start + (size - 1) * stride + 1
            for start, size, stride in zip(starts, shape, strides, strict=True)
        ]
        ends = {"start_indices": starts, "limit_indices": stops, "strides": strides}
        entries.append(found.make("increasing", functools.partial(lax.slice, **ends), value))
    # Then the places meet in pairs, as long as there are two.
    while len(entries) > 1:
        pairs = zip(entries[::2], entries[1::2], strict=False)
        winners = [found.make("max", jnp.maximum, *pair) for pair in pairs]
        entries = winners + entries[2 * len(winners) :]
    return entries


# Their results are their operands as they are, each perhaps more than once.
_COPIES = (
    "broadcast_in_dim",
    "concatenate",
    "copy",
    "copy_p",
    "expand_dims",
    "optimization_barrier",
    "pad",
    "reshape",
    "rev",
    "sharding_constraint",
    "slice",
    "split",
    "squeeze",
    "stack",
    "tile",
    "transpose",
    "unstack",
)

RULES: dict[str, Rule] = {
    **dict.fromkeys(_COPIES, _copied),
    **dict.fromkeys(("dynamic_slice", "gather"), _indexed),
    "select_n": lambda found: _copied(found) if found.known[0] else None,
    "stop_gradient": lambda found: found.operands,  # bounds are of values
    "convert_element_type": _converted,
    **dict.fromkeys(
        ("add", "add_any"),
        lambda found: [found.add("increasing", mixes=len(found.unknown) == 2, num_terms=2)],
    ),
    "sub": _subtracted,
    "neg": _simply("scale"),
    "mul": _multiplied,
    "div": lambda found: [found.add("scale")] if found.first_only else None,
    "square": lambda found: [found.make("square", jnp.square, *found.operands)],
    "integer_pow": _powered,
    **dict.fromkeys(("cumsum", "reduce_sum", "reduce_window_sum"), _summed),
    **dict.fromkeys(_CONTRACTIONS, _contracted),
    "max": lambda found: _extreme(found, *_LARGER),
    "min": lambda found: _extreme(found, *_SMALLER),
    "clamp": _clamped,
    "abs": _absolute,
    "reduce_max": _largest,
    "reduce_window_max": _largest_of_windows,
    **dict.fromkeys(("exp", "expm1"), _simply("convex")),
    **dict.fromkeys(("log", "log1p", "sqrt"), _simply("concave")),
    **dict.fromkeys(("erf", "logistic", "tanh"), _simply("sigmoid")),
    "erfc": _complement_of_erf,
}
"""The rules by the name of jax's operation."""


def _apply(equation: Any, operands: list[Any], index: int, *values: Array) -> Array:
    """Returns one result of an operation, with values for the operands that depend on the image."""
    left = iter(values)
    filled = [next(left) if isinstance(operand, Reference) else operand for operand in operands]
    return evaluate(equation, filled)[index]


def evaluate(equation: Any, operands: list[Any]) -> Sequence[Any]:
    """Returns the results of an operation whose operands are known."""
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
    """Returns the largest number of terms whose sum an element of the result is."""
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
    """Returns the largest number of results of a contraction that use an element of its operand."""
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
    """Returns how often, at most, an operation that copies repeats an element."""
    size = math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == "gather":
        return size
    if equation.primitive.name in ("broadcast_in_dim", "tile"):
        return max(1, size // max(1, math.prod(equation.invars[0].aval.shape)))
    return 1


def unsupported(equation: Any, layer: str, which: str = "") -> NotImplementedError:
    """Returns the error for an operation that has no rule."""
    where = f"in {layer}" if layer else "outside any named layer"
    return NotImplementedError(
        f"`logits_fn` has the operation {equation.primitive.name!r}{' ' * bool(which)}{which} {where}, "
        "for which there are no bounds (docs/certificates.md lists the operations that have some)."
    )
