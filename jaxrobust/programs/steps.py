"""A traced function as a list of steps: what there is to evaluate, bound, or look at."""

from collections.abc import Sequence
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
