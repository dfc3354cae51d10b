"""A traced function as a list of steps: what there is to evaluate, bound, or look at."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from jaxrobust.programs import derivatives

# Equations in which programs stand, and the parameters in which they do.
PARTS = {
    "checkpoint": ("jaxpr",),
    "cond": ("branches",),
    "remat2": ("jaxpr",),
    "scan": ("jaxpr",),
    "while": ("cond_jaxpr", "body_jaxpr"),
}


class Step(NamedTuple):
    """One equation, or what stands in its place.

    Attributes:
      what: The equation; the steps of a call, in its place; an equation with programs inside; the
        traced rule of a custom call.
      inputs: Variables and literals of jax.
      outputs: Variables.
      names: Where it stands in the program, "layer/activation" for example.
      context: jax' settings when it was traced.
    """

    what: "Any | StepList | Nested | derivatives.Rule"
    inputs: Sequence[Any]
    outputs: Sequence[Any]
    names: str
    context: Any


class StepList(NamedTuple):
    """A traced function, without the arrays that it closes over.

    Attributes:
      constants: Variables that stand for its arrays.
      inputs: Variables.
      steps: In their order.
      outputs: Variables and literals.
      uses: How often each variable is used.
      num_arrays: How many arrays it takes, with those of what is inside.
      name: Of the function, where it is a call: "relu".
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
      equation: As jax has it.
      parts: The programs inside, in the order of `PARTS`.
    """

    equation: Any
    parts: tuple[StepList, ...]

    @property
    def name(self) -> str:
        """Of the equation's primitive: a key of `PARTS`."""
        return str(self.equation.primitive.name)

    def divided(self, arrays: Iterator[Any]) -> list[list[Any]]:
        """Of each part the arrays that it closes over, which are the next ones."""
        return [list(islice(arrays, part.num_arrays)) for part in self.parts]

    def rounds(self, operands: Sequence[Any]) -> "Rounds":
        """The operands of a scan or a while loop, by what becomes of them."""
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
      condition: Of the condition of a while loop alone, the same in every round.
      constants: Of the body, the same in every round.
      carry: What goes from one round to the next.
      rows: Of a scan, of which each round takes its own.
    """

    condition: list[Any]
    constants: list[Any]
    carry: list[Any]
    rows: list[Any]
