"""What a program consists of once it has been read: operations."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax

from jaxrobust.types import Array


class Reference(NamedTuple):
    """The value of an operation, by the operation's position."""

    position: int


Operand = Reference | Array


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation.

    Attributes:
      kind: "input"; of the affine ones "increasing" (no negative coefficient), "sum" (the same, of many
        terms), "scale" (each element by itself, of either sign), "difference" and "contraction" (sums
        of products with constants); "max", "min" and "product" of two operands, "square"; "convex",
        "concave" and "sigmoid", which are increasing functions of each element by itself.
      operands: What it takes. Only "max", "min" and "product" have constants among them.
      function: Of the operands, which is what the operation computes.
      result: Shape and type.
      layer: Where it is in the network, for messages.
      absolute: Of "contraction": the same with the absolute values of its constants.
      num_terms: Of affine ones: how many terms an element is the sum of; 1 of what is only copied.
      num_uses: Of affine ones: in how many elements of the result an element of an operand is, at
        most, which is what a coefficient is the sum of on the way back.
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
        """Whether nothing is computed, neither forwards nor backwards, that could be rounded."""
        return self.kind == "increasing" and self.num_terms == self.num_uses == 1


Operations = tuple[Operation, ...]
"""The first is the input, the last the logits; operands come before the operations that take them."""
