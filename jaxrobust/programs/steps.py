"""Traced functions as lists of steps, which can be evaluated, bounded or examined."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from jaxrobust.programs import derivatives

# Equations that contain programs, and the parameters that hold these programs.
PARTS = {
    "checkpoint": ("jaxpr",),
    "cond": ("branches",),
    "remat2": ("jaxpr",),
    "scan": ("jaxpr",),
    "while": ("cond_jaxpr", "body_jaxpr"),
}


class Step(NamedTuple):
    """One step of a traced function.

    Attributes:
      what: An equation of jax; the steps of a call; an equation with programs inside; or the traced
        rule of a custom call.
      inputs: Variables and literals of jax.
      outputs: Variables.
      names: The modules and scopes that it belongs to, such as "layer/activation".
      context: jax's settings when it was traced.
    """

    what: "Any | StepList | Nested | derivatives.Rule"
    inputs: Sequence[Any]
    outputs: Sequence[Any]
    names: str
    context: Any


class StepList(NamedTuple):
    """A traced function, without the arrays that it closes over.

    Attributes:
      constants: The variables that stand for its own arrays.
      inputs: The variables that stand for its arguments.
      steps: The steps, in their order.
      outputs: The variables and literals that it returns.
      uses: How often each variable is used.
      num_arrays: The number of arrays that it takes, with those of calls and parts inside.
      name: The name of the function if it is a call, such as "relu".
    """

    constants: Sequence[Any]
    inputs: Sequence[Any]
    steps: Sequence[Step]
    outputs: Sequence[Any]
    uses: dict[Any, int]
    num_arrays: int
    name: str = ""


class Nested(NamedTuple):
    """A loop, a choice or a checkpoint.

    Attributes:
      equation: The equation of jax.
      parts: The programs inside, in the order of `PARTS`.
    """

    equation: Any
    parts: tuple[StepList, ...]

    @property
    def name(self) -> str:
        """The name of the equation's primitive, which is a key of `PARTS`."""
        return str(self.equation.primitive.name)

    def divided(self, arrays: Iterator[Any]) -> list[list[Any]]:
        """Takes the next arrays and returns, for each part, those that it closes over."""
        return [list(islice(arrays, part.num_arrays)) for part in self.parts]

    def rounds(self, operands: Sequence[Any]) -> "Rounds":
        """Divides the operands of a scan or a while loop by their role."""
        params, first = self.equation.params, 0
        if self.name == "while":
            first, num_constants = params["cond_nconsts"], params["body_nconsts"]
            num_carry = len(operands) - first - num_constants
        elif "num_carry" in params:
            num_constants, num_carry = params["num_consts"], params["num_carry"]
        else:  # releases of jax after 0.10 keep the three groups as one tree
            constants, carry, _ = params["ft_in"].update(operands).unpack()
            num_constants, num_carry = len(list(constants)), len(list(carry))
        ends = first, first + num_constants, first + num_constants + num_carry
        groups = (operands[begin:end] for begin, end in zip((0, *ends), (*ends, None), strict=True))
        return Rounds(*map(list, groups))


class Rounds(NamedTuple):
    """The operands of a loop.

    Attributes:
      condition: The constants of the condition of a while loop, the same in every round.
      constants: The constants of the body, the same in every round.
      carry: The values that go from one round to the next.
      rows: The arrays of a scan from which each round takes its own row.
    """

    condition: list[Any]
    constants: list[Any]
    carry: list[Any]
    rows: list[Any]
