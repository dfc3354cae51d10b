"""Interval bounds: the values of each operation are bounded from those of its operands.

Rounding: the interval of a sum is widened by the largest rounding errors of the network and of the
bound itself, for any order of the terms. Single additions, multiplications and divisions are widened by
two steps of float32, because a compiler may fuse a product with a sum, or divide by multiplying.
Exponentials and similar functions are widened by four steps. Copies and comparisons are exact.

References:
  Gowal et al., "Scalable Verified Training for Provably Robust Image Classification", ICCV 2019,
  equations 6 to 8, https://arxiv.org/abs/1810.12715
  Higham, "Accuracy and Stability of Numerical Algorithms", 2nd edition, 2002, section 3.1 (the
  rounding of sums)
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from jaxrobust.certificates.operations import Operand, Operation, Operations, Reference
from jaxrobust.types import Array


class Interval(NamedTuple):
    """Elementwise bounds of a value: lower <= value <= upper."""

    lower: Array
    upper: Array


def propagate(
    operations: Operations,
    box: Interval,
    tighten: Callable[[int, list[Interval]], Interval] | None = None,
) -> list[Interval]:
    """Computes the intervals of all operations from that of the input.

    Args:
      operations: The operations of the classifier for one image.
      box: The interval of the input, [1, H, W, C] each.
      tighten: A function that is called with the position of an operation whose interval decides a
        relaxation, and the intervals up to its own; it returns a tighter interval.

    Returns:
      One interval for each operation.
    """
    intervals = [box]
    decisive = _decisive(operations) if tighten is not None else ()
    for index, operation in enumerate(operations[1:], start=1):
        of_operands = [interval_of(operand, intervals) for operand in operation.operands]
        intervals.append(_RULES[operation.kind](operation, *of_operands))
        if tighten is not None and index in decisive:
            better = tighten(index, intervals)
            lower = jnp.maximum(intervals[index].lower, better.lower)
            intervals[index] = Interval(lower, jnp.minimum(intervals[index].upper, better.upper))
    return intervals


def interval_of(operand: Operand, intervals: list[Interval]) -> Interval:
    """Returns the interval of an operation, or of a constant, whose bounds are its value."""
    if isinstance(operand, Reference):
        return intervals[operand.position]
    return Interval(operand, operand)


def _decisive(operations: Operations) -> set[int]:
    """Returns the operations whose intervals are loose and decide relaxations.

    An elementwise operation does not loosen intervals, so the operations that mix elements before each
    relaxed one are returned. One that mixes the pixels themselves does not loosen either, because the
    pixels are independent.
    """
    found: set[int] = set()
    pending = [o for operation in operations if not operation.is_affine for o in operation.operands]
    while pending:
        operand = pending.pop()
        if not isinstance(operand, Reference):
            continue
        operation = operations[operand.position]
        if operation.is_affine and operation.mixes:
            if len(operation.operands) > 1 or not _is_pixels(operations, operation.operands[0]):
                found.add(operand.position)
        elif operation.is_affine:
            pending += operation.operands
    return found


def _is_pixels(operations: Operations, operand: Operand) -> bool:
    """Whether the elements of a value are single, independent pixels."""
    assert isinstance(operand, Reference)
    operation = operations[operand.position]
    if operation.kind == "input":
        return True
    if not operation.is_affine or operation.mixes or len(operation.operands) > 1:
        return False
    # A broadcast or a gather that makes more of them repeats pixels; padding adds constants.
    source = operation.operands[0]
    return _is_pixels(operations, source) and not _repeats(operations, operation)


def _repeats(operations: Operations, operation: Operation) -> bool:
    (source,) = operation.operands
    assert isinstance(source, Reference)
    return operation.result.size > operations[source.position].result.size


def _step_of(dtype: jnp.dtype) -> float:
    return float(jnp.finfo(dtype).eps)


def _outward(low: Array, high: Array, num_steps: int = 2) -> Interval:
    slack = num_steps * _step_of(low.dtype)
    return Interval(low - slack * jnp.abs(low), high + slack * jnp.abs(high))


def _ends(operation: Operation, *operands: Interval) -> Interval:
    return Interval(
        operation.function(*(operand.lower for operand in operands)),
        operation.function(*(operand.upper for operand in operands)),
    )


def _increasing(operation: Operation, *operands: Interval) -> Interval:
    ends = _ends(operation, *operands)
    return ends if operation.num_terms == 1 else _outward(*ends)


def _sum(operation: Operation, operand: Interval) -> Interval:
    slack = rounding(operation) * operation.function(magnitude(operand))
    return Interval(
        operation.function(operand.lower) - slack, operation.function(operand.upper) + slack
    )


def _scale(operation: Operation, operand: Interval) -> Interval:
    ends = operation.function(operand.lower), operation.function(operand.upper)
    return _outward(jnp.minimum(*ends), jnp.maximum(*ends))


def _difference(operation: Operation, first: Interval, second: Interval) -> Interval:
    return _outward(
        operation.function(first.lower, second.upper), operation.function(first.upper, second.lower)
    )


def _contraction(operation: Operation, operand: Interval) -> Interval:
    assert operation.absolute is not None
    centre = operand.lower / 2 + operand.upper / 2
    radius = jnp.maximum(operand.upper - centre, centre - operand.lower)
    # One product serves for the radius and for the rounding.
    radius = radius + rounding(operation) * (jnp.abs(centre) + radius)
    middle, reach = operation.function(centre), operation.absolute(radius)
    return Interval(middle - reach, middle + reach)


def _product(operation: Operation, first: Interval, second: Interval) -> Interval:
    corners = [one * other for one in first for other in second]
    low = jnp.minimum(jnp.minimum(*corners[:2]), jnp.minimum(*corners[2:]))
    return _outward(low, jnp.maximum(jnp.maximum(*corners[:2]), jnp.maximum(*corners[2:])))


def _square(operation: Operation, operand: Interval) -> Interval:
    ends = operation.function(operand.lower), operation.function(operand.upper)
    inside = (operand.lower <= 0) & (operand.upper >= 0)
    return _outward(jnp.where(inside, 0, jnp.minimum(*ends)), jnp.maximum(*ends))


def _curve(operation: Operation, operand: Interval) -> Interval:
    return _outward(*_ends(operation, operand), num_steps=4)


_RULES: dict[str, Callable[..., Interval]] = {
    "increasing": _increasing,
    "sum": _sum,
    "scale": _scale,
    "difference": _difference,
    "contraction": _contraction,
    "max": _ends,
    "min": _ends,
    "product": _product,
    "square": _square,
    "convex": _curve,
    "concave": _curve,
    "sigmoid": _curve,
}


def rounding(operation: Operation) -> float:
    """Bounds the rounding of a sum, relative to the sum of absolute values: in the network and here."""
    # n terms: n half steps for each of the two computations, and a few for what is done with the ends.
    return (operation.num_terms + 4) * _step_of(operation.result.dtype)


def magnitude(operand: Interval) -> Array:
    """Returns the largest absolute value of each element."""
    return jnp.maximum(jnp.abs(operand.lower), jnp.abs(operand.upper))
