"""A program as lines: one operation after the other, calls and checkpoints put in their place.

Each line names the values that it takes and makes, so that a program can be stopped behind any of
them, looked at, and gone on with.
"""

import collections
import contextlib
import dataclasses
import weakref
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import jax

from jaxrobust import compilation
from jaxrobust.programs import evaluating, forms, tracing
from jaxrobust.programs.steps import Nested, Step, StepList
from jaxrobust.programs.tracing import Code, Program


@dataclasses.dataclass(frozen=True)
class Value:
    """What a line takes or makes, by its number."""

    number: int


class Line(NamedTuple):
    """One operation.

    Attributes:
      what: As `Step` has it. In `within` also a word for what no equation says: "copied"; "joined", of
        branches or rounds, of which the result is any; "row" of an operand with one axis more, and
        "stacked" rows.
      operands: Values, and literals as they are.
      results: What it makes.
      arrays: What it closes over.
      names: The modules and scopes that it stands in, "block_0/conv" for example.
      calls: The calls that it stands in, the outermost first, by their places in `Lines.calls`.
      context: jax' settings when it was traced.
      within: Of an operation with programs inside their lines, each of them once.
    """

    what: Any
    operands: tuple[Any, ...]
    results: tuple[Value, ...]
    arrays: tuple[Value, ...]
    names: str
    calls: tuple[int, ...]
    context: Any
    within: "tuple[Line, ...]" = ()


class Call(NamedTuple):
    """The name of a function that was compiled by itself, and what it returned."""

    name: str
    results: tuple[Any, ...]


class Lines(NamedTuple):
    """A program as lines.

    Attributes:
      arrays: Values that stand for the program's arrays.
      inputs: For what it is called with.
      lines: In their order.
      outputs: Values, or literals.
      shapes: Of each value shape and type.
      calls: Of functions that were compiled by themselves.
    """

    arrays: tuple[Value, ...]
    inputs: tuple[Value, ...]
    lines: tuple[Line, ...]
    outputs: tuple[Any, ...]
    shapes: Sequence[Any]
    calls: Sequence[Call]


_known: "weakref.WeakKeyDictionary[Code, Lines]" = weakref.WeakKeyDictionary()


def lines_of(program: Program) -> Lines:
    """The lines of a program, the same ones for all programs of one code.

    Args:
      program: Of any function.
    """
    found = _known.get(program.code)
    if found is None:
        steps = program.code.steps
        writer = _Writer()
        arrays = [writer.new(jax.typeof(array)) for array in program.arrays]
        inputs = [writer.new(variable.aval) for variable in steps.inputs]
        outputs = writer.run(steps, iter(arrays), inputs, "", ())
        found = _known[program.code] = Lines(
            tuple(arrays),
            tuple(inputs),
            tuple(writer.lines),
            tuple(outputs),
            writer.shapes,
            writer.calls,
        )
    return found


def stop_behind(
    program: Program, value: Value, *arguments: Any
) -> tuple[Any, Callable[[Any], list[Any]]]:
    """Runs a program until a value is made.

    Args:
      program: Of any function.
      value: The result of one of its lines.
      *arguments: What it is called with, one array each.

    Returns:
      (the value, a function that goes on with another one in its place and returns the outputs).
    """
    lines = lines_of(program)
    (behind,) = (place for place, line in enumerate(lines.lines, 1) if value in line.results)
    arrays = dict(zip((*lines.arrays, *lines.inputs), (*program.arrays, *arguments), strict=True))
    values = _run(program, arrays, lines.lines[:behind])
    later = [one for line in lines.lines[behind:] for one in (*line.operands, *line.arrays)]
    needed = {value, *(one for one in (*later, *lines.outputs) if isinstance(one, Value))}
    # Computed here: what the rest is differentiated by has no part in them.
    values = {one: forms.value(values[one]) for one in needed & values.keys()}

    def rest(instead: Any) -> list[Any]:
        found = _run(program, {**values, value: instead}, lines.lines[behind:])
        return [forms.value(found[one]) if isinstance(one, Value) else one for one in lines.outputs]

    return values[value], rest


def _run(program: Program, values: dict[Value, Any], chosen: Sequence[Line]) -> dict[Value, Any]:
    """These values and those that some lines make, by the fast forms where there are any."""
    lines = lines_of(program)
    fast = compilation.has_fast_forms() and not program.code.is_plain
    taken = [one for line in lines.lines for one in line.operands if isinstance(one, Value)]
    uses = collections.Counter([*taken, *(one for one in lines.outputs if isinstance(one, Value))])
    values = dict(values)
    for line in chosen:
        operands = [values[one] if isinstance(one, Value) else one for one in line.operands]
        scope = jax.named_scope(line.names) if line.names else contextlib.nullcontext()
        with scope, line.context.manager:
            arrays = iter([values[one] for one in line.arrays])
            results = evaluating.apply(line.what, arrays, operands, fast=fast)
        for one, result in zip(line.results, results, strict=True):
            if isinstance(result, forms.Image) and uses[one] > 1:
                result.is_shared = True
            values[one] = result
    return values


class _Writer:
    """Writes lines; values are numbers."""

    def __init__(self) -> None:
        self.lines, self.shapes, self.calls = list[Line](), list[Any](), list[Call]()

    def new(self, shape: Any) -> Value:
        """A value of this shape and type."""
        self.shapes.append(shape)
        return Value(len(self.shapes) - 1)

    def run(
        self,
        steps: StepList,
        arrays: Iterator[Any],
        arguments: Sequence[Any],
        names: str,
        calls: tuple[int, ...],
    ) -> list[Any]:
        """The values that steps return."""

        def results(step: Step, operands: list[Any]) -> Sequence[Any]:
            inside = "/".join(name for name in (names, step.names) if name)
            what = step.what
            if isinstance(what, StepList):
                # A call is put in its place among the calls before the lines inside refer to it.
                place = len(self.calls)
                self.calls.append(Call(what.name, ()))
                found = self.run(what, arrays, operands, inside, (*calls, place))
                self.calls[place] = Call(what.name, tuple(found))
                return found
            # A checkpoint computes what its part does: its lines stand as if it were not there.
            if isinstance(what, Nested) and what.name in ("checkpoint", "remat2"):
                return self.run(what.parts[0], arrays, operands, inside, calls)
            # Anything else is one line, which can be run, with the lines inside it, which explain it.
            own = list(islice(arrays, _num_arrays(what)))
            before, self.lines = self.lines, []
            ends = self.within(what, own, operands, inside, calls)
            found = [self.new(variable.aval) for variable in step.outputs]
            for one, (word, sources) in zip(found, ends, strict=False):
                self.lines.append(
                    Line(word, tuple(sources), (one,), (), inside, calls, step.context)
                )
            within, self.lines = self.lines, before
            self.lines.append(
                Line(
                    what,
                    tuple(operands),
                    tuple(found),
                    tuple(own),
                    inside,
                    calls,
                    step.context,
                    tuple(within),
                )
            )
            return found

        return evaluating.walk(steps, arrays, arguments, results)

    def within(
        self, what: Any, own: list[Any], operands: list[Any], names: str, calls: tuple[int, ...]
    ) -> list[tuple[str, list[Any]]]:
        """Writes the lines inside an operation; of each result, how it comes from what."""
        if (found := tracing.inside(what)) is not None:
            steps, closed_over = found
            constants = [self.new(jax.typeof(array)) for array in closed_over]
            results = self.run(steps, iter(constants), operands, names, calls)
            return [("copied", [one]) for one in results]
        if not isinstance(what, Nested):
            return []
        parts = what.divided(iter(own))
        if what.name == "cond":
            tried = [
                self.run(part, iter(arrays), operands[1:], names, calls)
                for part, arrays in zip(what.parts, parts, strict=True)
            ]
            return [("joined", list(ends)) for ends in zip(*tried, strict=True)]
        body = 1 if what.name == "while" else 0
        _, constants, carry, whole_rows = what.rounds(operands)
        first, last = len(constants), len(constants) + len(carry)
        rows = [self.new(variable.aval) for variable in what.parts[body].inputs[last:]]
        for one, whole in zip(rows, whole_rows, strict=True):
            self.lines.append(Line("row", (whole,), (one,), (), names, calls, None))
        # Values of their own: what a loop begins with is not what later rounds take.
        rounds_take = [self.new(one.aval) for one in what.parts[body].inputs[first:last]]
        for one, begun in zip(rounds_take, carry, strict=True):
            self.lines.append(Line("copied", (begun,), (one,), (), names, calls, None))
        arguments = [*constants, *rounds_take, *rows]
        results = self.run(what.parts[body], iter(parts[body]), arguments, names, calls)
        rounds = [("joined", list(pair)) for pair in zip(rounds_take, results, strict=False)]
        return [*rounds, *(("stacked", [one]) for one in results[len(carry) :])]


def _num_arrays(what: Any) -> int:
    """How many arrays an operation closes over."""
    if isinstance(what, Nested):
        return sum(part.num_arrays for part in what.parts)
    return sum(getattr(what, "counts", ()))
