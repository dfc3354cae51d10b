"""Writes a program as lines: one operation after the other, with calls and checkpoints inlined.

Each line names the values that it takes and makes, so that a program can be stopped after any value and
continued with another one.
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
    """A value that a line takes or makes, identified by its number."""

    number: int


class Line(NamedTuple):
    """One operation.

    Attributes:
      what: The operation, as in `Step`. Lines in `within` can also have a word here. "copied": the
        result is the operand. "joined": the result is one of the operands, from branches or rounds of a
        loop. "row": the result is a row of the operand. "stacked": the result is a stack of rows.
      operands: Values, and literals as they are.
      results: The values that it makes.
      arrays: The values of the arrays that it closes over.
      names: The modules and scopes that it belongs to, such as "block_0/conv".
      calls: The calls that it belongs to, the outermost first, as indices into `Lines.calls`.
      context: jax's settings when it was traced.
      within: The lines of the programs inside the operation, such as the body of a loop; each body
        appears once.
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
    """The name of an inner function that was compiled by itself, and the values that it returned."""

    name: str
    results: tuple[Any, ...]


class Lines(NamedTuple):
    """A program as lines.

    Attributes:
      arrays: The values that stand for the program's arrays.
      inputs: The values that stand for its arguments.
      lines: The lines, in their order.
      outputs: The values or literals that it returns.
      shapes: The shape and type of each value, by its number.
      calls: The calls of inner functions that were compiled by themselves.
    """

    arrays: tuple[Value, ...]
    inputs: tuple[Value, ...]
    lines: tuple[Line, ...]
    outputs: tuple[Any, ...]
    shapes: Sequence[Any]
    calls: Sequence[Call]


_known: "weakref.WeakKeyDictionary[Code, Lines]" = weakref.WeakKeyDictionary()


def lines_of(program: Program) -> Lines:
    """Returns the lines of a program, which are the same for all programs with the same code.

    Args:
      program: The program of any function.
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
    """Runs a program until it has made a value.

    Args:
      program: The program of any function.
      value: The result of one of its lines.
      *arguments: The arguments of the program, each an array.

    Returns:
      (the value, a function that takes a replacement for it, runs the rest and returns the outputs).
    """
    lines = lines_of(program)
    (behind,) = (place for place, line in enumerate(lines.lines, 1) if value in line.results)
    arrays = dict(zip((*lines.arrays, *lines.inputs), (*program.arrays, *arguments), strict=True))
    values = _run(program, arrays, lines.lines[:behind])
    later = [one for line in lines.lines[behind:] for one in (*line.operands, *line.arrays)]
    needed = {value, *(one for one in (*later, *lines.outputs) if isinstance(one, Value))}
    # Other values are computed here, because they do not depend on the replacement.
    values = {one: forms.value(values[one]) for one in needed & values.keys()}

    def rest(instead: Any) -> list[Any]:
        found = _run(program, {**values, value: instead}, lines.lines[behind:])
        return [forms.value(found[one]) if isinstance(one, Value) else one for one in lines.outputs]

    return values[value], rest


def _run(program: Program, values: dict[Value, Any], chosen: Sequence[Line]) -> dict[Value, Any]:
    """Runs some lines, with fast forms if there are any, and returns all values."""
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
    """Writes lines, and numbers the values."""

    def __init__(self) -> None:
        self.lines, self.shapes, self.calls = list[Line](), list[Any](), list[Call]()

    def new(self, shape: Any) -> Value:
        """Makes a new value of a shape and type."""
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
        """Writes the lines of steps and returns the values of their outputs."""

        def results(step: Step, operands: list[Any]) -> Sequence[Any]:
            inside = "/".join(name for name in (names, step.names) if name)
            what = step.what
            if isinstance(what, StepList):
                # The call gets its place in the list before the lines inside refer to it.
                place = len(self.calls)
                self.calls.append(Call(what.name, ()))
                found = self.run(what, arrays, operands, inside, (*calls, place))
                self.calls[place] = Call(what.name, tuple(found))
                return found
            # A checkpoint does not change what is computed, so its lines are written without it.
            if isinstance(what, Nested) and what.name in ("checkpoint", "remat2"):
                return self.run(what.parts[0], arrays, operands, inside, calls)
            # Anything else is one line that can be run; the lines in `within` only explain it.
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
        """Writes the lines inside an operation; returns for each result its word and operands."""
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
        # Carried values are new values, because only the first round takes what the loop begins with.
        rounds_take = [self.new(one.aval) for one in what.parts[body].inputs[first:last]]
        for one, begun in zip(rounds_take, carry, strict=True):
            self.lines.append(Line("copied", (begun,), (one,), (), names, calls, None))
        arguments = [*constants, *rounds_take, *rows]
        results = self.run(what.parts[body], iter(parts[body]), arguments, names, calls)
        rounds = [("joined", list(pair)) for pair in zip(rounds_take, results, strict=False)]
        return [*rounds, *(("stacked", [one]) for one in results[len(carry) :])]


def _num_arrays(what: Any) -> int:
    """Counts the arrays that an operation closes over."""
    if isinstance(what, Nested):
        return sum(part.num_arrays for part in what.parts)
    return sum(getattr(what, "counts", ()))
