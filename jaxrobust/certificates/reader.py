"""Translates the program of a classifier to a list of operations that can be bounded.

The classifier is traced at one image. Calls are inlined, the plain form of platform-dependent
operations is taken, and everything that does not depend on the image is computed: BatchNorm, for
instance, is folded into the weights. What remains are affine operations and a few others (`rules`).
"""

import functools
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp

from jaxrobust import programs
from jaxrobust.certificates.operations import Operation, Operations, Reference
from jaxrobust.certificates.rules import RULES, Reading, appended, evaluate, unsupported
from jaxrobust.types import Array, LogitsFn


def operations_of(logits_fn: LogitsFn, image: jax.ShapeDtypeStruct) -> Operations:
    """Returns the operations of a classifier for one image.

    Args:
      logits_fn: A function, images [1, H, W, C] -> logits [1, K]. Its arrays may be traced.
      image: float32 [1, H, W, C]; only its shape and type are used.

    Raises:
      NotImplementedError: An operation has no rule; the message names it and its layer.
    """
    program = programs.as_argument(logits_fn, image)
    found: list[Operation] = []
    start = appended(found, Operation("input", (), _same, image))
    (logits,) = _run(found, program.code.steps, iter(program.arrays), [start], "")
    result = program.results
    # The logits are to be the last operation, also where they are none of their own.
    if not isinstance(logits, Reference):
        function = functools.partial(_constant, constant=jnp.asarray(logits))
        appended(found, Operation("increasing", (start,), function, result, mixes=True))
    elif logits.position != len(found) - 1:
        appended(found, Operation("increasing", (logits,), _same, result))
    return tuple(found)


def _same(value: Array) -> Array:
    return value


def _constant(value: Array, constant: Array) -> Array:
    return constant + 0 * jnp.sum(value)


def _run(
    found: list[Operation],
    steps: programs.StepList,
    arrays: Iterator[Any],
    arguments: Sequence[Any],
    layer: str,
) -> list:
    """Adds the operations of a traced function, and returns its results."""

    def results(step: Any, operands: list[Any]) -> Sequence[Any]:
        inside = "/".join(name for name in (layer, step.names) if name)
        return _results(found, step.what, arrays, operands, inside)

    return programs.walk(steps, arrays, arguments, results)


def _results(
    found: list[Operation], what: Any, arrays: Iterator[Any], operands: list[Any], layer: str
) -> Sequence[Any]:
    """Returns the results of a step of a program, with nested programs inlined."""
    if isinstance(what, programs.StepList):
        return _run(found, what, arrays, operands, layer)
    is_known = not any(isinstance(operand, Reference) for operand in operands)
    if isinstance(what, programs.Nested):
        chosen = _chosen(what)
        if chosen is None and not is_known:
            raise unsupported(what.equation, layer)
        parts = what.divided(arrays)
        if chosen is None:
            return programs.nested(what, parts, operands)
        operands = operands[1:] if what.name == "cond" else operands
        return _run(found, what.parts[chosen], iter(parts[chosen]), operands, layer)
    if (inside := programs.inside(what)) is not None:
        # Of a derivative no bound is needed, nor what it closes over.
        list(islice(arrays, sum(getattr(what, "counts", ()))))
        steps, closed_over = inside
        return _run(found, steps, iter(closed_over), operands, layer)
    if is_known:
        return evaluate(what, operands)
    rule = RULES.get(what.primitive.name)
    results = None if rule is None else rule(Reading(found, what, operands, layer).stretched())
    if results is None:
        raise unsupported(what, layer)
    return results


def _chosen(nested: programs.Nested) -> int | None:
    """Returns which nested program replaces a checkpoint, or a choice by the platform."""
    name, params = nested.equation.primitive.name, nested.equation.params
    if name == "cond" and params.get("branches_platforms") is not None:
        plain = [platforms is None for platforms in params["branches_platforms"]]
        return plain.index(True) if any(plain) else len(plain) - 1
    return None if name in ("cond", "scan", "while") else 0
