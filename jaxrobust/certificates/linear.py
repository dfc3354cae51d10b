"""Linear bounds: a linear function of the values of an operation is propagated back to the pixels.

An affine operation is passed with its transpose, which jax can derive. An operation that is not affine
is replaced by the line below it where its coefficient is positive, and by the line above it where the
coefficient is negative. At the pixels the bound is the minimum of a linear function over a box.

Rounding: large coefficients may cancel to small ones that keep the rounding errors of the large ones.
So at every operation the bound is lowered by the largest effect of the rounding of the coefficients,
and of the value of the operation in the network: (terms forwards + terms backwards + 4) steps of
float32 of |c| (|W| |x|), for any order of the terms. That equals (|W|^T |c|) |x|, the absolute
coefficient times its value, so that no absolute coefficient need be propagated. Sums of the terms of a
bound are lowered in the same way.

References:
  Zhang et al., "Efficient Neural Network Robustness Certification with General Activation Functions",
  NeurIPS 2018, theorem 3.2 and corollary 3.3, https://arxiv.org/abs/1811.00866
  Zhang et al., "Towards Stable and Efficient Training of Verifiably Robust Neural Networks", ICLR 2020,
  section 3.2 (intermediate bounds by intervals), https://arxiv.org/abs/1906.06316
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrobust.certificates.intervals import Interval, interval_of, magnitude, propagate
from jaxrobust.certificates.operations import Operand, Operation, Operations, Reference
from jaxrobust.certificates.relaxations import Affine, Envelope, relax
from jaxrobust.types import Array

BOUNDS = ("ibp", "crown-ibp", "crown")


def lower_bounds(
    operations: Operations,
    image: Array,
    epsilon: Array,
    functionals: Array,
    method: str,
    num_rows: int,
) -> Array:
    """Bounds linear functions of the logits from below, over all images within epsilon of one image.

    Args:
      operations: The operations of the classifier.
      image: [1, H, W, C] in [0, 1].
      epsilon: A scalar, the radius of the linf ball. The bounds are over its part in [0, 1].
      functionals: [S, K], the coefficients of S linear functions of the logits.
      method: One of BOUNDS.
      num_rows: The number of linear functions within the network that are propagated at a time.

    Returns:
      [S], the lower bounds.
    """
    # A pixel's own rounding, half a step of float32 below 1, and that of the radius.
    reach = epsilon + jnp.finfo(image.dtype).eps * (0.5 + epsilon)
    box = Interval(jnp.maximum(image - reach, 0), jnp.minimum(image + reach, 1))
    backwards = _Backwards(operations)

    def tighten(index: int, intervals: list[Interval]) -> Interval:
        result = operations[index].result
        backwards.prepare(index, intervals)

        def bound(row: Array) -> Array:
            sign = jnp.where(row < result.size, 1, -1).astype(result.dtype)
            one = jax.nn.one_hot(row % result.size, result.size, dtype=result.dtype)
            return backwards(index, (sign * one).reshape(result.shape), intervals)

        rows = jnp.arange(2 * result.size)
        bounds = lax.map(bound, rows, batch_size=min(num_rows, 2 * result.size))
        return Interval(
            bounds[: result.size].reshape(result.shape),
            -bounds[result.size :].reshape(result.shape),
        )

    intervals = propagate(operations, box, tighten if method == "crown" else None)
    last, logits = len(operations) - 1, intervals[-1]
    # By the logits' own intervals, and then by as much of the network as the method goes through.
    positive, negative = jnp.maximum(functionals, 0), jnp.minimum(functionals, 0)
    terms = jnp.concatenate([positive * logits.lower[0], negative * logits.upper[0]], axis=1)
    slack = _slack(terms.shape[1], terms.dtype)
    bounds = terms.sum(axis=1) - slack * jnp.abs(terms).sum(axis=1)
    backwards.prepare(last, intervals)
    for relaxed in (False, True)[: 1 if method == "ibp" else 2]:
        follow = jax.vmap(lambda row, r=relaxed: backwards(last, row[None], intervals, r))
        bounds = jnp.maximum(bounds, follow(functionals))
    return bounds


class _Transpose(NamedTuple):
    """The transpose of an affine operation.

    Attributes:
      constant: The value of the operation at 0.
      pull_back: A function from the coefficient of its result to those of its operands.
      error: The largest rounding error for a coefficient of 1, of its shape; None if there is none.
    """

    constant: Array
    pull_back: Callable[[Array], tuple[Array, ...]]
    error: Array | None


class _Backwards:
    """Propagates linear functions back; what does not depend on them is computed only once."""

    def __init__(self, operations: Operations) -> None:
        self.operations = operations
        self.known: dict[int, Any] = {}

    def of(self, index: int, intervals: list[Interval]) -> Any:
        """Returns the transpose of an affine operation, or the lines of another."""
        if index not in self.known:
            operation = self.operations[index]
            of_operands = [interval_of(operand, intervals) for operand in operation.operands]
            if operation.is_affine:
                shapes = [
                    self.operations[o.position].result for o in _references(operation.operands)
                ]
                zeros = [jnp.zeros(shape.shape, shape.dtype) for shape in shapes]
                constant, pull_back = jax.vjp(operation.function, *zeros)
                error = _error(operation, of_operands, constant)
                self.known[index] = _Transpose(constant, pull_back, error)
            else:
                self.known[index] = relax(operation, of_operands)
        return self.known[index]

    def prepare(self, index: int, intervals: list[Interval]) -> None:
        """Prepares the operations up to this one outside the loop over linear functions."""
        for position in range(1, index + 1):
            self.of(position, intervals)

    def __call__(
        self, index: int, coefficient: Array, intervals: list[Interval], relaxed: bool = True
    ) -> Array:
        """Returns a lower bound of sum(coefficient * operation), a scalar.

        Args:
          index: The position of the operation.
          coefficient: The coefficient, of the shape of the operation.
          intervals: The intervals of all operations before it.
          relaxed: Whether to pass operations that are not affine; otherwise their intervals are used.
        """
        coefficients: dict[int, Array] = {index: coefficient}
        total = _Total(coefficient.dtype)
        for position in range(index, -1, -1):
            if position not in coefficients:
                continue  # nothing that was passed depends on it
            here, operation = coefficients.pop(position), self.operations[position]
            if position == 0 or not (operation.is_affine or relaxed):
                # The end of the way: the pixels, or where intervals are to do.
                total.add_least(here, intervals[position])
                continue
            backwards = self.of(position, intervals)
            if operation.is_affine:
                total.add(here * backwards.constant)
                if backwards.error is not None:
                    total.widen(here, backwards.error)
                shares = backwards.pull_back(here)
            else:
                positive, negative = jnp.maximum(here, 0), jnp.minimum(here, 0)
                # By the line below where the coefficient is positive, by the one above elsewhere.
                lines: Envelope = backwards
                total.widen(here, lines.error)
                total.add(positive * lines.lower.offset + negative * lines.upper.offset)
                shares = _weighted(lines.lower, positive, lines.upper, negative)
            # Operands get their shares; two that meet at one operation are added up, and rounded.
            for operand, share in zip(operation.operands, shares, strict=True):
                if not isinstance(operand, Reference):
                    total.add(share * operand)
                elif operand.position in coefficients:
                    share = coefficients[operand.position] + share
                    coefficients[operand.position] = share
                    met = magnitude(intervals[operand.position])
                    total.widen(share, jnp.finfo(share.dtype).eps * met)
                else:
                    coefficients[operand.position] = share
        return total.least()


class _Total:
    """A sum, the sum of the absolute values of its terms, and its largest rounding error."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        self.count = 0
        self.value: Any = 0.0
        self.magnitude: Any = 0.0
        self.error: Any = 0.0

    def add(self, terms: Array) -> None:
        terms, num_terms = _shortened(terms)
        self._add(jnp.sum(terms), jnp.sum(jnp.abs(terms)), num_terms)

    def add_least(self, coefficient: Array, interval: Interval) -> None:
        """Adds the minimum of sum(coefficient * x) for x in the interval."""
        centre = interval.lower / 2 + interval.upper / 2
        radius = jnp.maximum(interval.upper - centre, centre - interval.lower)
        # The ends were rounded, each product is: its sum may have either sign.
        values, num_terms = _shortened(coefficient * centre - jnp.abs(coefficient) * radius)
        sizes, _ = _shortened(jnp.abs(coefficient) * (jnp.abs(centre) + radius))
        self._add(jnp.sum(values), jnp.sum(sizes), num_terms + 4)

    def widen(self, coefficient: Array, error: Array) -> None:
        """Adds an error of each element of an operation, times its coefficient."""
        self.error += jnp.sum(jnp.abs(coefficient) * error)

    def _add(self, value: Array, magnitude: Array, num_terms: int) -> None:
        self.count += 1
        self.value += value
        self.magnitude += magnitude
        self.error += _slack(num_terms, self.dtype) * magnitude

    def least(self) -> Array:
        least: Array = self.value - _slack(self.count, self.dtype) * self.magnitude - self.error
        return least


def _slack(num_terms: int, dtype: Any) -> float:
    """Bounds the rounding of a sum, relative to the sum of absolute values, with a margin."""
    return (num_terms + 4) * float(jnp.finfo(dtype).eps)


_ROWS = 16


def _shortened(terms: Array) -> tuple[Array, int]:
    """Adds terms in pairs, and returns fewer terms and the number of roundings when they are added.

    The largest rounding error of a sum grows with its number of terms, because the order in which a
    compiler adds them is unknown. The order of sums that are written out is known.
    """
    flat = terms.reshape(-1)
    if flat.size <= _ROWS**2:
        return flat, flat.size
    flat = jnp.pad(flat, (0, -flat.size % _ROWS)).reshape(_ROWS, -1)
    return functools.reduce(jnp.add, list(flat)), flat.shape[1] + _ROWS


def _error(operation: Operation, operands: list[Interval], constant: Array) -> Array | None:
    """Bounds the rounding of an affine operation and its transpose, for a coefficient of 1."""
    if operation.is_copy:
        return None
    sizes = [magnitude(operand) for operand in operands]
    if operation.absolute is not None:
        total = operation.absolute(*sizes)
    elif operation.kind == "difference":
        total = sizes[0] + sizes[1]
    elif operation.kind == "scale":
        total = jnp.maximum(*(jnp.abs(operation.function(end) - constant) for end in operands[0]))
    else:
        total = operation.function(*sizes) - constant
    # An exact constant meets no other rounding than that of the value that it is part of.
    return _slack(operation.num_terms + operation.num_uses, total.dtype) * (
        total + jnp.abs(constant)
    )


def _references(operands: tuple[Operand, ...]) -> list[Reference]:
    return [operand for operand in operands if isinstance(operand, Reference)]


def _weighted(lower: Affine, positive: Array, upper: Affine, negative: Array) -> list[Array]:
    pairs = zip(lower.slopes, upper.slopes, strict=True)
    return [positive * below + negative * above for below, above in pairs]
