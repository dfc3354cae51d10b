"""Straight lines below and above a step that is not affine, within its operands' intervals.

Rounding: slopes and offsets are computed in float32, and the network rounds the step itself. Both move
a line past the step by a few steps of float32 of what the line adds up; `Lines.error` is more than
that, where functions and their derivatives are computed to within four steps.

References:
  Zhang et al., "Efficient Neural Network Robustness Certification with General Activation Functions",
  NeurIPS 2018, section 3.2 and table 3, https://arxiv.org/abs/1811.00866
  Singh et al., "An Abstract Domain for Certifying Neural Networks", POPL 2019, section 4.4 (sigmoid and
  tanh), https://doi.org/10.1145/3290354
  McCormick, "Computability of Global Solutions to Factorable Nonconvex Programs: Part I", Mathematical
  Programming 1976 (products)
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrobust.certificates.intervals import Interval, magnitude
from jaxrobust.certificates.steps import Step
from jaxrobust.types import Array

# Steps of float32, of which a slope takes 3 and an offset 4 more.
_NUM_STEPS = 8


class Line(NamedTuple):
    """sum over the operands of slope * operand, plus offset; all of the step's shape.

    Attributes:
      slopes: One for each operand.
      offset: The constant.
    """

    slopes: tuple[Array, ...]
    offset: Array


class Lines(NamedTuple):
    """A line that is nowhere above the step, and one that is nowhere below it, but for rounding.

    Attributes:
      lower: Less `error` it is below the step, as computed by the network too.
      upper: Likewise above.
      error: Of the step's shape.
    """

    lower: Line
    upper: Line
    error: Array


def relax(step: Step, operands: list[Interval]) -> Lines:
    """Lines for a step of one of the kinds that are not affine.

    Args:
      step: It.
      operands: Their intervals.

    Returns:
      Lines, which hold between the ends of these intervals.

    Example:
      >>> relu = Step("max", (), jnp.maximum, jax.ShapeDtypeStruct((), jnp.float32))
      >>> zero = jnp.float32(0)
      >>> lines = relax(relu, [Interval(jnp.float32(-1), jnp.float32(3)), Interval(zero, zero)])
      >>> float(lines.lower.slopes[0]), float(lines.upper.slopes[0]), float(lines.upper.offset)
      (1.0, 0.75, 0.75)
    """
    if step.kind == "max":
        return _larger(*operands)
    if step.kind == "min":
        return _smaller(*operands)
    if step.kind == "product":
        return _product(*operands)
    # Elementwise: the derivative at each element.
    shape = step.result.shape
    low, high = (jnp.broadcast_to(end, shape) for end in operands[0])
    if step.kind in ("square", "convex"):
        return _curve(step, low, high)
    if step.kind == "concave":
        return _mirrored(_curve(step, low, high, sign=-1))
    return _sigmoid(step, low, high)


def _ramp(low: Array, high: Array) -> tuple[Array, Array, Array]:
    """For max(d, 0) and d in [low, high]: slope d <= max(d, 0) <= steeper d + offset."""
    mixed = (low < 0) & (high > 0)
    steeper = jnp.where(mixed, high / jnp.where(mixed, high - low, 1), low >= 0)
    # The slope of the two, 0 and 1, that leaves the smaller area.
    slope = jnp.where(mixed, high > -low, low >= 0).astype(steeper.dtype)
    return slope, steeper, jnp.where(mixed, -steeper * low, 0)


def _larger(first: Interval, second: Interval) -> Lines:
    """max(x, y) = y + max(x - y, 0)."""
    low, high = first.lower - second.upper, first.upper - second.lower
    slope, steeper, offset = _ramp(low, high)
    return Lines(
        Line((slope, 1 - slope), jnp.zeros_like(offset)),
        Line((steeper, 1 - steeper), offset),
        _ramp_error(offset, first, second),
    )


def _smaller(first: Interval, second: Interval) -> Lines:
    """min(x, y) = y - max(y - x, 0)."""
    slope, steeper, offset = _ramp(second.lower - first.upper, second.upper - first.lower)
    return Lines(
        Line((steeper, 1 - steeper), -offset),
        Line((slope, 1 - slope), jnp.zeros_like(offset)),
        _ramp_error(offset, first, second),
    )


def _ramp_error(offset: Array, first: Interval, second: Interval) -> Array:
    """Slopes of 0 and 1 are exact, as is the comparison; what pads a maximum has these."""
    error = _NUM_STEPS * jnp.finfo(offset.dtype).eps * (magnitude(first) + magnitude(second))
    return jnp.where(offset > 0, error, 0)


def _product(first: Interval, second: Interval) -> Lines:
    """(x - x_low) (y - y_low) >= 0 and (x - x_low) (y_high - y) >= 0."""
    below = Line((second.lower, first.lower), -first.lower * second.lower)
    above = Line((second.upper, first.lower), -first.lower * second.upper)
    # No term of a line, nor the product, is more than this.
    error = 3 * _NUM_STEPS * magnitude(first) * magnitude(second)
    return Lines(below, above, jnp.finfo(error.dtype).eps * error)


def _curve(step: Step, low: Array, high: Array, sign: int = 1) -> Lines:
    """Of a convex function a tangent and the chord; sign -1 makes one of a concave function."""

    def function(value: Array) -> Array:
        return sign * step.function(value)

    def derivative(value: Array) -> Array:
        return jax.grad(lambda x: jnp.sum(function(x)))(value)

    middle = low / 2 + high / 2
    tangent = derivative(middle)
    below = Line((tangent,), function(middle) - tangent * middle)
    at_low, at_high = function(low), function(high)
    wide = high - low > 1e-6 * (jnp.abs(low) + jnp.abs(high)) + 1e-30
    slope = jnp.where(wide, (at_high - at_low) / jnp.where(wide, high - low, 1), tangent)
    # Above both ends is above the function, whatever the slope.
    offset = jnp.maximum(at_low - slope * low, at_high - slope * high)
    above = Line((slope,), offset)
    return Lines(below, above, _curve_error(step, low, high, below, above))


def _curve_error(step: Step, low: Array, high: Array, *lines: Line) -> Array:
    """Of what a line adds up and of the function's values."""
    ends = Interval(low, high)
    # The derivatives of sigmoids are differences of numbers of about 1.
    least = float(step.kind == "sigmoid")
    slopes = functools.reduce(jnp.maximum, [jnp.abs(line.slopes[0]) for line in lines])
    offsets = functools.reduce(jnp.maximum, [jnp.abs(line.offset) for line in lines])
    values = magnitude(Interval(step.function(low), step.function(high)))
    total = (slopes + least) * magnitude(ends) + offsets + values
    return 2 * _NUM_STEPS * jnp.finfo(low.dtype).eps * total


def _mirrored(lines: Lines) -> Lines:
    """Of minus the function."""
    lower, upper = (Line((-line.slopes[0],), -line.offset) for line in (lines.lower, lines.upper))
    return Lines(upper, lower, lines.error)


def _sigmoid(step: Step, low: Array, high: Array) -> Lines:
    """Convex below 0, concave above, steepest at 0.

    On one side of 0 as convex and concave functions are. Across 0 no slope is less than the smaller one
    of both ends, so the lines through the ends with that slope hold.
    """
    gradient = jax.grad(lambda x: jnp.sum(step.function(x)))
    slope = jnp.minimum(gradient(low), gradient(high))
    below = Line((slope,), step.function(low) - slope * low)
    above = Line((slope,), step.function(high) - slope * high)
    across = Lines(below, above, _curve_error(step, low, high, below, above))
    convex, concave = _curve(step, low, high), _mirrored(_curve(step, low, high, sign=-1))

    def chosen(*of_lines: Array) -> Array:
        return jnp.where(high <= 0, of_lines[0], jnp.where(low >= 0, of_lines[1], of_lines[2]))

    lines: Lines = jax.tree.map(chosen, convex, concave, across)
    return lines
