"""The operations that a classifier's program is translated to."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax

from jaxrobust.types import Array


class Reference(NamedTuple):
    """A reference to the value of an operation, by its position."""

    position: int


Operand = Reference | Array


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation of the classifier.

    Attributes:
      kind: "input"; the affine kinds "increasing" (no negative coefficient), "sum" (the same, with many
        terms), "scale" (elementwise, of either sign), "difference" and "contraction" (sums of products
        with constants); "max", "min" and "product" of two operands, "square"; "convex", "concave" and
        "sigmoid", which are increasing elementwise functions.
      operands: The operands. Only "max", "min" and "product" may have constants among them.
      function: The function of the operands that the operation computes.
      result: The shape and type of the result.
      layer: The layer of the network, for error messages.
      absolute: For "contraction", the function with the absolute values of the constants.
      num_terms: For affine kinds, the number of terms whose sum an element is; 1 for copies.
      num_uses: For affine kinds, the largest number of elements of the result that use an element of an
        operand: the number of terms of a coefficient that is propagated back.
      mixes: Whether an element of the result depends on several elements of the operands.
    """

    kind: str
    operands: tuple[Operand, ...]
    function: Callable[..., Array]
    result: jax.ShapeDtypeStruct
    layer: str = ""
    absolute: Callable[..., Array] | None = None
    num_terms: int = 1
    num_uses: int = 1
    mixes: bool = False

    @property
    def is_affine(self) -> bool:
        """Whether the result is an affine function of the operands."""
        return self.kind in ("increasing", "sum", "scale", "difference", "contraction")

    @property
    def is_copy(self) -> bool:
        """Whether the operation only copies, so that nothing is rounded forwards or backwards."""
        return self.kind == "increasing" and self.num_terms == self.num_uses == 1


Operations = tuple[Operation, ...]
"""The first operation is the input, the last is the logits; operands come before their operations."""
