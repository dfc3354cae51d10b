"""Lines below and above an operation that is not affine, within the intervals of its operands.

Rounding: slopes and offsets are computed in float32, and the network rounds the operation itself. Both
errors are a few steps of float32 of the terms of the line. `Envelope.error` is larger than both, if
functions and their derivatives are computed to within four steps.

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
from jaxrobust.certificates.operations import Operation
from jaxrobust.types import Array

# Steps of float32, of which a slope takes 3 and an offset 4 more.
_NUM_STEPS = 8


class Affine(NamedTuple):
    """The sum over the operands of slope * operand, plus offset; all have the shape of the operation.

    Attributes:
      slopes: One slope for each operand.
      offset: The constant term.
    """

    slopes: tuple[Array, ...]
    offset: Array


class Envelope(NamedTuple):
    """A line below the operation and a line above it, up to rounding errors.

    Attributes:
      lower: The lower line; minus `error`, it is below the operation as the network computes it.
      upper: The upper line; plus `error`, it is above the operation as the network computes it.
      error: The largest rounding error, of the shape of the operation.
    """

    lower: Affine
    upper: Affine
    error: Array


def relax(operation: Operation, operands: list[Interval]) -> Envelope:
    """Returns the lines of an operation that is not affine.

    Args:
      operation: The operation.
      operands: The intervals of its operands.

    Returns:
      The envelope, which is valid within these intervals.

    Example:
      >>> relu = Operation("max", (), jnp.maximum, jax.ShapeDtypeStruct((), jnp.float32))
      >>> zero = jnp.float32(0)
      >>> lines = relax(relu, [Interval(jnp.float32(-1), jnp.float32(3)), Interval(zero, zero)])
      >>> float(lines.lower.slopes[0]), float(lines.upper.slopes[0]), float(lines.upper.offset)
      (1.0, 0.75, 0.75)
    """
    if operation.kind == "max":
        return _larger(*operands)
    if operation.kind == "min":
        return _smaller(*operands)
    if operation.kind == "product":
        return _product(*operands)
    # Elementwise: the derivative at each element.
    shape = operation.result.shape
    low, high = (jnp.broadcast_to(end, shape) for end in operands[0])
    if operation.kind in ("square", "convex"):
        return _curve(operation, low, high)
    if operation.kind == "concave":
        return _mirrored(_curve(operation, low, high, sign=-1))
    return _sigmoid(operation, low, high)


def _ramp(low: Array, high: Array) -> tuple[Array, Array, Array]:
    """Returns (slope, steeper, offset): slope d <= max(d, 0) <= steeper d + offset in [low, high]."""
    mixed = (low < 0) & (high > 0)
    steeper = jnp.where(mixed, high / jnp.where(mixed, high - low, 1), low >= 0)
    # The slope of the two, 0 and 1, that leaves the smaller area.
    slope = jnp.where(mixed, high > -low, low >= 0).astype(steeper.dtype)
    return slope, steeper, jnp.where(mixed, -steeper * low, 0)


def _larger(first: Interval, second: Interval) -> Envelope:
    """Relaxes max(x, y) = y + max(x - y, 0)."""
    low, high = first.lower - second.upper, first.upper - second.lower
    slope, steeper, offset = _ramp(low, high)
    return Envelope(
        Affine((slope, 1 - slope), jnp.zeros_like(offset)),
        Affine((steeper, 1 - steeper), offset),
        _ramp_error(offset, first, second),
    )


def _smaller(first: Interval, second: Interval) -> Envelope:
    """Relaxes min(x, y) = y - max(y - x, 0)."""
    slope, steeper, offset = _ramp(second.lower - first.upper, second.upper - first.lower)
    return Envelope(
        Affine((steeper, 1 - steeper), -offset),
        Affine((slope, 1 - slope), jnp.zeros_like(offset)),
        _ramp_error(offset, first, second),
    )


def _ramp_error(offset: Array, first: Interval, second: Interval) -> Array:
    """Bounds the error, which is 0 for the exact slopes 0 and 1 (as in the padding of a maximum)."""
    error = _NUM_STEPS * jnp.finfo(offset.dtype).eps * (magnitude(first) + magnitude(second))
    return jnp.where(offset > 0, error, 0)


def _product(first: Interval, second: Interval) -> Envelope:
    """Relaxes x y by (x - x_low) (y - y_low) >= 0 and (x - x_low) (y_high - y) >= 0."""
    below = Affine((second.lower, first.lower), -first.lower * second.lower)
    above = Affine((second.upper, first.lower), -first.lower * second.upper)
    # No term of a line, nor the product, is more than this.
    error = 3 * _NUM_STEPS * magnitude(first) * magnitude(second)
    return Envelope(below, above, jnp.finfo(error.dtype).eps * error)


def _curve(operation: Operation, low: Array, high: Array, sign: int = 1) -> Envelope:
    """Returns a tangent and the chord of a convex function, or with sign -1 of a concave function."""

    def function(value: Array) -> Array:
        return sign * operation.function(value)

    def derivative(value: Array) -> Array:
        return jax.grad(lambda x: jnp.sum(function(x)))(value)

    middle = low / 2 + high / 2
    tangent = derivative(middle)
    below = Affine((tangent,), function(middle) - tangent * middle)
    at_low, at_high = function(low), function(high)
    wide = high - low > 1e-6 * (jnp.abs(low) + jnp.abs(high)) + 1e-30
    slope = jnp.where(wide, (at_high - at_low) / jnp.where(wide, high - low, 1), tangent)
    # Above both ends is above the function, whatever the slope.
    offset = jnp.maximum(at_low - slope * low, at_high - slope * high)
    above = Affine((slope,), offset)
    return Envelope(below, above, _curve_error(operation, low, high, below, above))


def _curve_error(operation: Operation, low: Array, high: Array, *lines: Affine) -> Array:
    """Bounds the rounding of the terms of the lines and of the values of the function."""
    ends = Interval(low, high)
    # The derivatives of sigmoids are differences of numbers of about 1.
    least = float(operation.kind == "sigmoid")
    slopes = functools.reduce(jnp.maximum, [jnp.abs(line.slopes[0]) for line in lines])
    offsets = functools.reduce(jnp.maximum, [jnp.abs(line.offset) for line in lines])
    values = magnitude(Interval(operation.function(low), operation.function(high)))
    total = (slopes + least) * magnitude(ends) + offsets + values
    return 2 * _NUM_STEPS * jnp.finfo(low.dtype).eps * total


def _mirrored(lines: Envelope) -> Envelope:
    """Returns the envelope of minus the function."""
    lower, upper = (Affine((-line.slopes[0],), -line.offset) for line in (lines.lower, lines.upper))
    return Envelope(upper, lower, lines.error)


def _sigmoid(operation: Operation, low: Array, high: Array) -> Envelope:
    """Relaxes a function that is convex below 0, concave above 0, and steepest at 0.

    An interval on one side of 0 is relaxed like a convex or concave function. In an interval across 0
    no slope is below the smaller slope of the two ends, so lines through the ends with that slope are
    valid.
    """
    gradient = jax.grad(lambda x: jnp.sum(operation.function(x)))
    slope = jnp.minimum(gradient(low), gradient(high))
    below = Affine((slope,), operation.function(low) - slope * low)
    above = Affine((slope,), operation.function(high) - slope * high)
    across = Envelope(below, above, _curve_error(operation, low, high, below, above))
    convex, concave = _curve(operation, low, high), _mirrored(_curve(operation, low, high, sign=-1))

    def chosen(*of_lines: Array) -> Array:
        return jnp.where(high <= 0, of_lines[0], jnp.where(low >= 0, of_lines[1], of_lines[2]))

    lines: Envelope = jax.tree.map(chosen, convex, concave, across)
    return lines
