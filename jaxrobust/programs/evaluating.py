"""Evaluates traced functions, on the CPU with the fast forms of their operations."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import jax
from jax import lax
from jax.extend import core

from jaxrobust import compilation
from jaxrobust.programs import derivatives, forms
from jaxrobust.programs.steps import Nested, Step, StepList

Results = Callable[[Step, list[Any]], Sequence[Any]]


def evaluate(
    steps: StepList, arrays: Iterator[Any], arguments: Sequence[Any], *, plain: bool = False
) -> list[Any]:
    """Computes the results of steps.

    Args:
      steps: The steps of a `Program`.
      arrays: The arrays that they close over, one after the other.
      arguments: The arguments, which are arrays.
      plain: Whether to use no fast forms.
    """
    return _evaluate(steps, arrays, arguments, compilation.has_fast_forms() and not plain)


def walk(
    steps: StepList, arrays: Iterator[Any], arguments: Sequence[Any], results: Results
) -> list[Any]:
    """Walks through steps in their order, with values of any kind.

    Args:
      steps: The steps of a `Program`, or of a part of one.
      arrays: Values for the arrays that they close over, one after the other.
      arguments: Values for the arguments.
      results: A function (step, operands) -> values of the step's outputs. It must take the arrays of
        the step's parts from `arrays`.

    Returns:
      The values of the outputs.
    """
    values: dict[Any, Any] = {}

    def write(variables: Sequence[Any], results: Sequence[Any]) -> None:
        for variable, result in zip(variables, results, strict=True):
            if isinstance(result, forms.Image) and steps.uses.get(variable, 0) > 1:
                result.is_shared = True
            values[variable] = result

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    write(steps.constants, list(islice(arrays, len(steps.constants))))
    write(steps.inputs, arguments)
    for step in steps.steps:
        scope = jax.named_scope(step.names) if step.names else contextlib.nullcontext()
        with scope, step.context.manager:
            write(step.outputs, results(step, [read(atom) for atom in step.inputs]))
    return [read(atom) for atom in steps.outputs]


def _evaluate(
    steps: StepList, arrays: Iterator[Any], arguments: Sequence[Any], fast: bool
) -> list[Any]:
    def results(step: Step, operands: Sequence[Any]) -> Sequence[Any]:
        if isinstance(step.what, StepList):
            return walk(step.what, arrays, operands, results)
        return apply(step.what, arrays, operands, fast=fast)

    return [forms.value(result) for result in walk(steps, arrays, arguments, results)]


def apply(
    what: Any, arrays: Iterator[Any], operands: Sequence[Any], *, fast: bool
) -> Sequence[Any]:
    """Computes the results of one step.

    Args:
      what: The step's `what`, which must not be a call.
      arrays: The arrays; the next ones are those that the step closes over.
      operands: Arrays, or values that the fast forms have made.
      fast: Whether to use the fast forms.
    """
    if fast and hasattr(what, "primitive"):
        form = forms.FORMS.get(what.primitive.name)
        found = None if form is None else form(what, operands)
        if found is not None:
            return found
    operands = [forms.value(operand) for operand in operands]
    if isinstance(what, derivatives.Rule):
        return derivatives.call(what, list(islice(arrays, sum(what.counts))), operands)
    if isinstance(what, Nested):
        return nested(what, what.divided(arrays), operands, fast=fast)
    return derivatives.bind(what, operands)


def nested(
    what: Nested, arrays: Sequence[list[Any]], operands: Sequence[Any], *, fast: bool = False
) -> Sequence[Any]:
    """Computes the results of a loop, a choice or a checkpoint, and evaluates its parts.

    Args:
      what: The loop, choice or checkpoint.
      arrays: For each part, the arrays that it closes over.
      operands: The operands, which are arrays.
      fast: Whether to use the fast forms.
    """
    params, name = what.equation.params, what.name
    pairs = zip(what.parts, arrays, strict=True)
    parts = [_function(part, closed_over, fast) for part, closed_over in pairs]
    if name == "scan":
        _, constants, carry, rows = what.rounds(operands)
        num_carry = len(carry)

        # The part has its arrays already, and uses fast forms if `fast` says so.
        def body(carry: Sequence[Any], row: Sequence[Any]) -> tuple[Any, Any]:
            results = parts[0](*constants, *carry, *row)
            return results[:num_carry], results[num_carry:]

        carry, rows = lax.scan(
            body,
            carry,
            rows,
            length=params["length"],
            reverse=params["reverse"],
            unroll=params["unroll"],
        )
        return [*carry, *rows]
    if name == "while":
        of_condition, of_body, start, _ = what.rounds(operands)
        return lax.while_loop(
            lambda values: parts[0](*of_condition, *values)[0],
            lambda values: parts[1](*of_body, *values),
            start,
        )
    if name == "cond":
        index, *others = operands
        platforms = params.get("branches_platforms")
        # The choice depends on a value, or on the platform that the program is compiled for.
        if platforms is None:
            return lax.switch(index, parts, *others)
        by_name = {
            platform: part
            for part, names in zip(parts, platforms, strict=True)
            for platform in names or ("default",)
        }
        if fast:  # fast forms run only on the CPU
            return by_name["cpu" if "cpu" in by_name else "default"](*others)
        return lax.platform_dependent(*others, **by_name)
    # The only other kind is a checkpoint, which is kept because it saves memory.
    checkpoint = jax.checkpoint(
        parts[0], prevent_cse=params["prevent_cse"], policy=params["policy"]
    )
    return checkpoint(*operands)


def _function(steps: StepList, arrays: list[Any], fast: bool) -> Callable[..., list[Any]]:
    return lambda *arguments: _evaluate(steps, iter(arrays), arguments, fast)
