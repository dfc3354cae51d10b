"""Interval bounds: every operation's values lie between two numbers if those of its operands do.

Rounding: sums are widened by what their rounding can be at worst, in any order of their terms, here and
in the network. Single additions, multiplications and divisions are widened by two steps of float32: a
compiler fuses a product with a sum, which rounds once instead of twice, or divides by multiplying, here
or in the network. Exponentials and their like are widened by four. What copies or compares is exact.

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
    """Elementwise lower <= value <= upper."""

    lower: Array
    upper: Array


def propagate(
    operations: Operations,
    box: Interval,
    tighten: Callable[[int, list[Interval]], Interval] | None = None,
) -> list[Interval]:
    """Intervals of all operations, from that of the input.

    Args:
      operations: Of one image.
      box: Of the input, [1, H, W, C] each.
      tighten: Called with the position of an operation whose interval will decide a relaxation, and the
        intervals up to its own; returns a better one.

    Returns:
      One for each operation.
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
    """Of an operation, or of a constant, which is its own bounds."""
    if isinstance(operand, Reference):
        return intervals[operand.position]
    return Interval(operand, operand)


def _decisive(operations: Operations) -> set[int]:
    """The operations whose intervals are loose and decide relaxations.

    An operation on single elements loses nothing, so behind every relaxed one those are looked for that
    mix elements. One that mixes the pixels themselves loses nothing either: they are independent.
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
    """Whether a value's elements are single, independent pixels."""
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
    """What rounding does to a sum, of the sum of the absolute values: by the network and here."""
    # n terms: n half steps for each of the two computations, and a few for what is done with the ends.
    return (operation.num_terms + 4) * _step_of(operation.result.dtype)


def magnitude(operand: Interval) -> Array:
    """Elementwise the largest absolute value."""
    return jnp.maximum(jnp.abs(operand.lower), jnp.abs(operand.upper))
