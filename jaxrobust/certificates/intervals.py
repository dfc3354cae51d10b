"""Interval bounds: every step's values lie between two numbers if those of its operands do.

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

from jaxrobust.certificates.steps import Operand, Program, Reference, Step
from jaxrobust.types import Array


class Interval(NamedTuple):
    """Elementwise lower <= value <= upper."""

    lower: Array
    upper: Array


def propagate(
    program: Program,
    box: Interval,
    tighten: Callable[[int, list[Interval]], Interval] | None = None,
) -> list[Interval]:
    """Intervals of all steps, from that of the input.

    Args:
      program: Of one image.
      box: Of the input, [1, H, W, C] each.
      tighten: Called with the position of a step whose interval will decide a relaxation, and the
        intervals up to its own; returns a better one.

    Returns:
      One for each step.
    """
    intervals = [box]
    decisive = _decisive(program) if tighten is not None else ()
    for index, step in enumerate(program[1:], start=1):
        of_operands = [interval_of(operand, intervals) for operand in step.operands]
        intervals.append(_RULES[step.kind](step, *of_operands))
        if tighten is not None and index in decisive:
            better = tighten(index, intervals)
            lower = jnp.maximum(intervals[index].lower, better.lower)
            intervals[index] = Interval(lower, jnp.minimum(intervals[index].upper, better.upper))
    return intervals


def interval_of(operand: Operand, intervals: list[Interval]) -> Interval:
    """Of a step, or of a constant, which is its own bounds."""
    if isinstance(operand, Reference):
        return intervals[operand.position]
    return Interval(operand, operand)


def _decisive(program: Program) -> set[int]:
    """The steps whose intervals are loose and decide relaxations.

    An operation on single elements loses nothing, so behind every relaxed step those are looked for
    that mix elements. One that mixes the pixels themselves loses nothing either: they are independent.
    """
    found: set[int] = set()
    pending = [o for step in program if not step.is_affine for o in step.operands]
    while pending:
        operand = pending.pop()
        if not isinstance(operand, Reference):
            continue
        step = program[operand.position]
        if step.is_affine and step.mixes:
            if len(step.operands) > 1 or not _is_pixels(program, step.operands[0]):
                found.add(operand.position)
        elif step.is_affine:
            pending += step.operands
    return found


def _is_pixels(program: Program, operand: Operand) -> bool:
    """Whether a value's elements are single, independent pixels."""
    assert isinstance(operand, Reference)
    step = program[operand.position]
    if step.kind == "input":
        return True
    if not step.is_affine or step.mixes or len(step.operands) > 1:
        return False
    # A broadcast or a gather that makes more of them repeats pixels; padding adds constants.
    source = step.operands[0]
    return _is_pixels(program, source) and not _repeats(program, step)


def _repeats(program: Program, step: Step) -> bool:
    (source,) = step.operands
    assert isinstance(source, Reference)
    return step.result.size > program[source.position].result.size


def _step_of(dtype: jnp.dtype) -> float:
    return float(jnp.finfo(dtype).eps)


def _outward(low: Array, high: Array, num_steps: int = 2) -> Interval:
    slack = num_steps * _step_of(low.dtype)
    return Interval(low - slack * jnp.abs(low), high + slack * jnp.abs(high))


def _ends(step: Step, *operands: Interval) -> Interval:
    return Interval(
        step.function(*(operand.lower for operand in operands)),
        step.function(*(operand.upper for operand in operands)),
    )


def _increasing(step: Step, *operands: Interval) -> Interval:
    ends = _ends(step, *operands)
    return ends if step.num_terms == 1 else _outward(*ends)


def _sum(step: Step, operand: Interval) -> Interval:
    slack = rounding(step) * step.function(magnitude(operand))
    return Interval(step.function(operand.lower) - slack, step.function(operand.upper) + slack)


def _scale(step: Step, operand: Interval) -> Interval:
    ends = step.function(operand.lower), step.function(operand.upper)
    return _outward(jnp.minimum(*ends), jnp.maximum(*ends))


def _difference(step: Step, first: Interval, second: Interval) -> Interval:
    return _outward(
        step.function(first.lower, second.upper), step.function(first.upper, second.lower)
    )


def _contraction(step: Step, operand: Interval) -> Interval:
    assert step.absolute is not None
    centre = operand.lower / 2 + operand.upper / 2
    radius = jnp.maximum(operand.upper - centre, centre - operand.lower)
    # One product serves for the radius and for the rounding.
    radius = radius + rounding(step) * (jnp.abs(centre) + radius)
    middle, reach = step.function(centre), step.absolute(radius)
    return Interval(middle - reach, middle + reach)


def _product(step: Step, first: Interval, second: Interval) -> Interval:
    corners = [one * other for one in first for other in second]
    low = jnp.minimum(jnp.minimum(*corners[:2]), jnp.minimum(*corners[2:]))
    return _outward(low, jnp.maximum(jnp.maximum(*corners[:2]), jnp.maximum(*corners[2:])))


def _square(step: Step, operand: Interval) -> Interval:
    ends = step.function(operand.lower), step.function(operand.upper)
    inside = (operand.lower <= 0) & (operand.upper >= 0)
    return _outward(jnp.where(inside, 0, jnp.minimum(*ends)), jnp.maximum(*ends))


def _curve(step: Step, operand: Interval) -> Interval:
    return _outward(*_ends(step, operand), num_steps=4)


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


def rounding(step: Step) -> float:
    """What rounding does to a sum, of the sum of the absolute values: by the network and here."""
    # n terms: n half steps for each of the two computations, and a few for what is done with the ends.
    return (step.num_terms + 4) * _step_of(step.result.dtype)


def magnitude(operand: Interval) -> Array:
    """Elementwise the largest absolute value."""
    return jnp.maximum(jnp.abs(operand.lower), jnp.abs(operand.upper))
