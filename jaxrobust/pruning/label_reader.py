"""Evaluates a program, with its loops and branches, on labels instead of numbers."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import jax
import numpy as np

from jaxrobust import programs
from jaxrobust.pruning import label_rules
from jaxrobust.pruning.labels import Along, Labelled, Units, fixed_value, numbered


class Reader:
    """Evaluates a program on values of labels."""

    def __init__(self, units: Units, program: programs.Program) -> None:
        self.units = units
        self.arrays = [_of_array(array) for array in program.arrays]
        self.known = {id(a): v for a, v in zip(program.arrays, self.arrays, strict=True)}

    def run(
        self, steps: programs.StepList, arrays: Iterator[Labelled], arguments: Sequence[Labelled]
    ) -> list[Labelled]:
        """Returns the values of the results of steps."""

        def results(step: programs.Step, operands: list[Any]) -> Sequence[Labelled]:
            return self.results(step.what, arrays, list(map(_of_array, operands)))

        return list(map(_of_array, programs.walk(steps, arrays, arguments, results)))

    def results(
        self, what: Any, arrays: Iterator[Labelled], operands: list[Labelled]
    ) -> Sequence[Labelled]:
        """Returns the values of the results of one step."""
        if isinstance(what, programs.StepList):
            return self.run(what, arrays, operands)
        if isinstance(what, programs.Nested):
            return self.nested(what, what.divided(arrays), operands)
        if (inside := programs.inside(what)) is not None:
            list(islice(arrays, sum(getattr(what, "counts", ()))))
            steps, closed_over = inside
            own = [self.known.get(id(array), array) for array in closed_over]
            return self.run(steps, iter(list(map(_of_array, own))), operands)
        return label_rules.understood(self.units, what, operands)

    def nested(
        self, what: programs.Nested, parts: list[list[Labelled]], operands: list[Labelled]
    ) -> Sequence[Labelled]:
        """Returns the values of the results of a loop, a branch or a checkpoint."""
        params, name = what.equation.params, what.name

        def inside(index: int, given: Sequence[Labelled]) -> list[Labelled]:
            return self.run(what.parts[index], iter(parts[index]), given)

        # Each branch may be the one that is taken: its results are those of all.
        if name == "cond":
            label_rules.decides(self.units, operands[0])
            chosen = programs.for_the_cpu(params)
            branches = range(len(parts)) if chosen is None else (chosen,)
            results = [inside(branch, operands[1:]) for branch in branches]
            if chosen is not None:
                return results[0]
            return [label_rules.either(self.units, one) for one in zip(*results, strict=True)]
        if name == "while":
            condition, constants, begun, _ = what.rounds(operands)
            carried = self.loop(lambda carry: inside(1, [*constants, *carry]), begun)
            label_rules.decides(self.units, *inside(0, [*condition, *carried]))
            return carried
        # Of the rows that a scan goes through one stands for all.
        if name == "scan":
            _, constants, begun, whole = what.rounds(operands)
            rows = [self.row(one) for one in whole]
            found: list[Labelled] = []

            def body(carry: Sequence[Labelled]) -> list[Labelled]:
                found[:] = inside(0, [*constants, *carry, *rows])
                return found[: len(begun)]

            carried = self.loop(body, begun)
            return [*carried, *(_stacked(one, params["length"]) for one in found[len(begun) :])]
        return inside(0, operands)

    def loop(
        self, body: Callable[[Sequence[Labelled]], list[Labelled]], carry: Sequence[Labelled]
    ) -> list[Labelled]:
        """Returns the carry of a loop: the result of one round is the input of the next."""
        # In later rounds it is what the body has made.
        carry = [one._replace(maker=-1, silencers=frozenset()) for one in carry]
        while True:
            before = list(map(self.seen, carry))
            after = body(carry)
            carry = [
                label_rules.either(self.units, pair) for pair in zip(carry, after, strict=True)
            ]
            if list(map(self.seen, carry)) == before:
                return list(carry)

    def seen(self, value: Labelled) -> object:
        """Returns the part of a value that may change from round to round."""
        units = [self.units.of(one.array).tolist() for one in value.labels]
        about = [one.axes for one in (*value.labels, *value.fixed)]
        return units, about, value.vanishes, value.has_images, value.is_raw, value.sources

    def row(self, value: Labelled) -> Labelled:
        """Returns the value that one round of a loop sees: the same labels in every round."""
        for one in value.labels:
            if 0 in one.axes:
                self.units.refuse(one.array, "the rounds of a loop")

        def move(one: Along) -> Along | None:
            if 0 in one.axes:
                return None
            return Along(one.array[0], frozenset(axis - 1 for axis in one.axes), one.why)

        return value._replace(maker=-1).moved(value.shape[1:], move)


def _stacked(value: Labelled, length: int) -> Labelled:
    """Returns the stacked results of all rounds of a loop."""

    def move(one: Along) -> Along:
        return Along(one.array[None], frozenset(axis + 1 for axis in one.axes), one.why)

    found = value.moved((length, *value.shape), move)
    return found._replace(fixed=(*found.fixed, numbered(found.shape, 0, "the rounds of a loop")))


def _of_array(array: Any) -> Labelled:
    """Returns the value of a literal, or of an array in the closure of the program."""
    if isinstance(array, Labelled):
        return array
    if np.ndim(array) == 0:
        is_number = not jax.dtypes.issubdtype(getattr(array, "dtype", float), jax.dtypes.extended)
        return Labelled((), vanishes=is_number and not np.any(np.asarray(array)))
    return fixed_value(array.shape, "an array that the code holds")._replace(vanishes=False)
