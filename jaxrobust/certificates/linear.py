"""Linear bounds: a linear function of a step's values is followed back to the pixels.

An affine step is passed by its transpose, which jax has of any operation; a step that is not affine by
the line below it where its coefficient is positive and by the one above where it is negative. At the
pixels the bound is the least that a linear function has in a box.

References:
  Zhang et al., "Efficient Neural Network Robustness Certification with General Activation Functions",
  NeurIPS 2018, theorem 3.2 and corollary 3.3, https://arxiv.org/abs/1811.00866
  Zhang et al., "Towards Stable and Efficient Training of Verifiably Robust Neural Networks", ICLR 2020,
  section 3.2 (intermediate bounds by intervals), https://arxiv.org/abs/1906.06316
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrobust.certificates.intervals import Interval, interval_of, propagate
from jaxrobust.certificates.relaxations import Line, Lines, relax
from jaxrobust.certificates.steps import Operand, Program, Reference
from jaxrobust.types import Array

METHODS = ("ibp", "crown-ibp", "crown")
# Of the sum of the absolute values of everything that a bound adds up: what it is moved outwards. 170
# half steps of float32.
ROUNDING = 1e-5


def lower_bounds(
    program: Program, image: Array, epsilon: Array, functionals: Array, method: str, num_rows: int
) -> Array:
    """What linear functions of the logits of one image are at least, anywhere in its box.

    Args:
      program: Of the classifier.
      image: [1, H, W, C] in [0, 1].
      epsilon: [], radius of the linf ball, of which the box is what lies in [0, 1].
      functionals: [S, K], coefficients of the logits.
      method: One of METHODS.
      num_rows: How many linear functions are followed back at a time within the network.

    Returns:
      [S].
    """
    # A pixel's own rounding: half a step of float32 below 1.
    reach = epsilon + jnp.finfo(image.dtype).eps / 2
    box = Interval(jnp.maximum(image - reach, 0), jnp.minimum(image + reach, 1))
    backwards = _Backwards(program)

    def tighten(index: int, intervals: list[Interval]) -> Interval:
        result = program[index].result
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

    intervals = propagate(program, box, tighten if method == "crown" else None)
    last, logits = len(program) - 1, intervals[-1]
    # By the logits' own intervals, and then by as much of the network as the method goes through.
    positive, negative = jnp.maximum(functionals, 0), jnp.minimum(functionals, 0)
    terms = jnp.concatenate([positive * logits.lower[0], negative * logits.upper[0]], axis=1)
    bounds = terms.sum(axis=1) - ROUNDING * jnp.abs(terms).sum(axis=1)
    backwards.prepare(last, intervals)
    for relaxed in (False, True)[: 1 if method == "ibp" else 2]:
        follow = jax.vmap(lambda row, r=relaxed: backwards(last, row[None], intervals, r))
        bounds = jnp.maximum(bounds, follow(functionals))
    return bounds


class _Transpose(NamedTuple):
    """An affine step backwards.

    Attributes:
      constant: What it is at 0.
      pull_back: A coefficient of its result to those of its operands.
    """

    constant: Array
    pull_back: Callable[[Array], tuple[Array, ...]]


class _Backwards:
    """Follows linear functions back; what does not depend on them is computed once."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.steps: dict[int, Any] = {}

    def step(self, index: int, intervals: list[Interval]) -> Any:
        """The transpose of an affine step, the lines of another."""
        if index not in self.steps:
            step = self.program[index]
            if step.is_affine:
                shapes = [self.program[o.position].result for o in _references(step.operands)]
                zeros = [jnp.zeros(shape.shape, shape.dtype) for shape in shapes]
                self.steps[index] = _Transpose(*jax.vjp(step.function, *zeros))
            else:
                of_operands = [interval_of(operand, intervals) for operand in step.operands]
                self.steps[index] = relax(step, of_operands)
        return self.steps[index]

    def prepare(self, index: int, intervals: list[Interval]) -> None:
        """Computes the steps up to this one outside of the loop over functions."""
        for position in range(1, index + 1):
            self.step(position, intervals)

    def __call__(
        self, index: int, coefficient: Array, intervals: list[Interval], relaxed: bool = True
    ) -> Array:
        """The least that sum(coefficient * step) can be: [].

        Args:
          index: The step's position.
          coefficient: Of its shape.
          intervals: Of all steps before it.
          relaxed: Go through steps that are not affine; otherwise end at their intervals.
        """
        coefficients: dict[int, Array] = {index: coefficient}
        total = _Total()
        for position in range(index, -1, -1):
            if position not in coefficients:
                continue
            here, step = coefficients.pop(position), self.program[position]
            if position == 0 or not (step.is_affine or relaxed):
                total.add_least(here, intervals[position])
                continue
            backwards = self.step(position, intervals)
            if step.is_affine:
                total.add(here * backwards.constant)
                shares = backwards.pull_back(here)
            else:
                positive, negative = jnp.maximum(here, 0), jnp.minimum(here, 0)
                lines: Lines = backwards
                total.add(positive * lines.lower.offset + negative * lines.upper.offset)
                shares = _weighted(lines.lower, positive, lines.upper, negative)
            for operand, share in zip(step.operands, shares, strict=True):
                if not isinstance(operand, Reference):
                    total.add(share * operand)
                elif operand.position in coefficients:
                    coefficients[operand.position] = coefficients[operand.position] + share
                else:
                    coefficients[operand.position] = share
        return total.value - ROUNDING * total.magnitude


class _Total:
    """A sum, and the sum of the absolute values of its terms."""

    def __init__(self) -> None:
        self.value: Any = 0.0
        self.magnitude: Any = 0.0

    def add(self, terms: Array) -> None:
        self.value += jnp.sum(terms)
        self.magnitude += jnp.sum(jnp.abs(terms))

    def add_least(self, coefficient: Array, interval: Interval) -> None:
        """The least of sum(coefficient * x) for x in the interval."""
        centre = interval.lower / 2 + interval.upper / 2
        radius = jnp.maximum(interval.upper - centre, centre - interval.lower)
        self.value += jnp.sum(coefficient * centre) - jnp.sum(jnp.abs(coefficient) * radius)
        self.magnitude += jnp.sum(jnp.abs(coefficient) * (jnp.abs(centre) + radius))


def _references(operands: tuple[Operand, ...]) -> list[Reference]:
    return [operand for operand in operands if isinstance(operand, Reference)]


def _weighted(lower: Line, positive: Array, upper: Line, negative: Array) -> list[Array]:
    pairs = zip(lower.slopes, upper.slopes, strict=True)
    return [positive * below + negative * above for below, above in pairs]
