"""Names the weights of a program by their paths in the user's tree, and its operations by layers.

An operation has the name of its module, if jax knows it while tracing (from flax.linen, haiku or
`jax.named_scope`). Otherwise, as in nnx and equinox, its name is the common path of the weights that it
uses, such as "blocks/3/conv".
"""

import contextlib
import functools
import itertools
import sys
import types as python_types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust.programs import comparing, evaluating, tracing
from jaxrobust.programs.arguments import LIBRARIES, is_of_library, names_of
from jaxrobust.programs.steps import Nested, Step, StepList
from jaxrobust.programs.tracing import Program


class NamedOperation(NamedTuple):
    """An operation whose result depends on the program's arguments.

    Attributes:
      name: The name of its layer; "" if it is not known.
      equation: jax's equation; None for a choice or a loop, whose inner operations are listed apart.
      result: The shape and type of its first result.
      weights: The indices of the program's arrays that it uses, directly or through other values.
      times: How often it runs, which can be more than once in a loop of known length.
    """

    name: str
    equation: Any
    result: Any
    weights: tuple[int, ...]
    times: int


def weight_paths(
    function: Callable[..., Any], program: Program
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Finds the path of each array of a program in the function that it was traced from.

    Args:
      function: A callable pytree (an nnx or equinox module, `jax.tree_util.Partial(apply, weights)`), a
        bound method, or a function that closes over pytrees or over objects that hold pytrees.
      program: The program that was traced from the function.

    Returns:
      (the path of each array of the program, such as "blocks/0/conv/kernel"; the paths of a callable
      pytree's floating-point arrays that the program does not use). The common beginning of all paths
      is left out. Arrays that are not found are called "constant_0", "constant_1" and so on.
    """
    at: dict[Any, list[Path]] = {}
    for path, array in _arrays_of(function, (), set(), _MOST_LEVELS):
        # Tracing copies arrays of numpy, so they are found by their content.
        known_by = id(array) if isinstance(array, jax.Array) else comparing.content(array)
        at.setdefault(known_by, []).append(path)
    found: list[Path | None] = []
    for array in program.arrays:
        paths = at.get(id(array), [])[:1] or at.get(comparing.content(array), [])
        # Several equal arrays get their paths in order.
        found.append(None if not paths else paths.pop(0) if len(paths) > 1 else paths[0])
    traced = {id(array) for array in program.arrays}
    idle = [
        at[id(leaf)][0]
        for _, leaf in _leaves_of(function)
        if isinstance(leaf, jax.Array) and id(leaf) in at and id(leaf) not in traced
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    # The common beginning of all paths is left out, but a single layer keeps its own name.
    # The mean and deviation of a Classifier are not part of the network, so they are ignored here.
    beside = (None, ("mean",), ("std",))
    start = len(_common([path[:-2] for path in [*found, *idle] if path not in beside]))
    numbers = itertools.count()
    names = [
        f"constant_{next(numbers)}" if path is None else "/".join(path[start:] or path[-1:])
        for path in found
    ]
    return tuple(names), tuple("/".join(path[start:] or path[-1:]) for path in idle)


Path = tuple[str, ...]
_MOST_LEVELS = 30  # the largest depth of objects within objects
_KEY_OF_VARIABLE = "GetAttrKey"


def words(keys: Sequence[Any]) -> Path:
    """Converts a path of jax to words, without the last key of an nnx variable, which is "value"."""
    found = [jax.tree_util.keystr((key,), simple=True) for key in keys]
    if len(found) > 1 and found[-1] == "value" and type(keys[-1]).__name__ == _KEY_OF_VARIABLE:
        found.pop()
    return tuple(found)


def _leaves_of(value: Any) -> list[tuple[Any, Any]]:
    try:
        return list(jax.tree_util.tree_leaves_with_path(value))
    except (
        Exception
    ):  # keys that cannot be sorted, or trees that contain themselves: only names are lost
        return []


def _arrays_of(value: Any, path: Path, seen: set[int], levels: int) -> Iterator[tuple[Path, Any]]:
    """Yields all arrays that a function can see, with their paths."""
    if id(value) in seen or not levels:
        return
    seen.add(id(value))
    if isinstance(value, jax.tree_util.Partial):  # the index of a single argument is left out
        parts = [
            *((str(place), one) for place, one in enumerate(value.args)),
            *value.keywords.items(),
        ]
        for word, part in parts:
            inside = path if len(parts) == 1 else (*path, word)
            yield from _arrays_of(part, inside, seen, levels - 1)
        yield from _arrays_of(value.func, path, seen, levels - 1)
        return
    for keys, leaf in _leaves_of(value):
        inside = (*path, *words(keys))
        if isinstance(leaf, jax.Array | np.ndarray):
            yield inside, leaf
        else:
            for word, part in _parts(leaf):
                yield from _arrays_of(part, (*inside, word), seen, levels - 1)
    inner = getattr(value, "__wrapped__", None)  # the user's function inside a library's wrapper
    if inner is not None and not jax.tree_util.all_leaves([value]):
        yield from _arrays_of(inner, path, seen, levels - 1)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yields the values that a function, a bound method or a user's object reads, with their names."""
    if isinstance(value, python_types.MethodType):
        yield "self", value.__self__
        yield "function", value.__func__
    elif isinstance(value, functools.partial):
        yield "function", value.func
        yield from ((str(index), one) for index, one in enumerate(value.args))
        yield from value.keywords.items()
    elif isinstance(value, python_types.FunctionType):
        code, module = value.__code__, value.__globals__
        for name, cell in zip(code.co_freevars, value.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # the variable has no value yet
                yield name, cell.cell_contents
        yield from ((f"default_{index}", one) for index, one in enumerate(value.__defaults__ or ()))
        yield from (value.__kwdefaults__ or {}).items()
        if not code.co_filename.startswith(LIBRARIES):
            yield from ((name, module[name]) for name in sorted(names_of(code)) if name in module)
    elif not isinstance(value, type) and (callable(value) or _is_of_user(value)):
        yield from getattr(value, "__dict__", {}).items()


def _is_of_user(value: Any) -> bool:
    module = sys.modules.get(type(value).__module__)
    return not isinstance(value, python_types.ModuleType) and not is_of_library(module)


def operations(program: Program, paths: Sequence[str]) -> list[NamedOperation]:
    """Lists the operations of a program whose results depend on its arguments, in their order.

    Calls and the bodies of loops are inlined. From branches for platforms, the one for the CPU is
    taken; from other branches, the one that uses the most weights.

    Args:
      program: The program of any function.
      paths: The paths of its arrays, as `weight_paths` returns them.
    """
    reader = _Reader(paths, {id(array): index for index, array in enumerate(program.arrays)})
    arrays = [frozenset([index]) for index in range(len(paths))]
    steps = program.code.steps
    reader.run(steps, iter(arrays), [None] * len(steps.inputs), "", 1)
    return reader.found


# The indices of the arrays that a value is computed from; None if it depends on the images.
_Source = frozenset[int] | None
_NONE: frozenset[int] = frozenset()


class _Reader:
    """Walks through programs; the value of a variable is the set of arrays that it depends on."""

    def __init__(self, paths: Sequence[str], indices: Mapping[int, int]) -> None:
        self.paths, self.indices, self.found = paths, indices, list[NamedOperation]()

    def run(
        self,
        steps: StepList,
        arrays: Iterator[_Source],
        arguments: Sequence[_Source],
        layer: str,
        times: int,
    ) -> list[_Source]:
        def results(step: Step, operands: list[Any]) -> Sequence[_Source]:
            inside = "/".join(name for name in (layer, step.names) if name)
            sources = [_source(operand) for operand in operands]
            return self.results(step, arrays, sources, inside, times)

        return [_source(value) for value in evaluating.walk(steps, arrays, arguments, results)]

    def results(
        self, step: Step, arrays: Iterator[_Source], sources: list[_Source], layer: str, times: int
    ) -> Sequence[_Source]:
        what = step.what
        if isinstance(what, StepList):
            return self.run(what, arrays, sources, layer, times)
        if isinstance(what, Nested):
            return self.nested(step, arrays, sources, layer, times)
        if (inside := tracing.inside(what)) is not None:
            # The program's arrays include those that a rule closes over, but not those of its function.
            of_rule = list(islice(arrays, sum(getattr(what, "counts", ()))))
            steps, closed_over = inside
            own = [self.indices.get(id(array)) for array in closed_over]
            known = [_NONE if index is None else frozenset([index]) for index in own]
            before = len(self.found)
            found = self.run(steps, iter(known), sources, layer, times)
            if None in sources:
                self.add_rest(step, before, _union([*sources, *of_rule]), layer, times)
            return found
        if None not in sources:
            return [_union(sources)] * len(step.outputs)
        self.add(step, what, _union(sources), layer, times)
        return [None] * len(step.outputs)

    def add(
        self, step: Step, equation: Any, weights: frozenset[int], layer: str, times: int
    ) -> None:
        """Adds an operation, which is named by its layer or its weights."""
        indices = tuple(sorted(weights))
        name = layer or layer_of([self.paths[index] for index in indices])
        result = step.outputs[0].aval
        self.found.append(NamedOperation(name, equation, result, indices, times))

    def add_rest(
        self, step: Step, before: int, weights: frozenset[int], layer: str, times: int
    ) -> None:
        """Adds the step itself if it uses weights that no operation inside uses, as a choice does."""
        inside = (frozenset(operation.weights) for operation in self.found[before:])
        rest = weights - _NONE.union(*inside)
        if rest:
            self.add(step, None, rest, layer, times)

    def nested(
        self, step: Step, arrays: Iterator[_Source], sources: list[_Source], layer: str, times: int
    ) -> Sequence[_Source]:
        what: Any = step.what
        params, name, parts = what.equation.params, what.name, what.divided(arrays)

        def inside(index: int, given: Sequence[_Source], times: int) -> list[_Source]:
            return self.run(what.parts[index], iter(parts[index]), given, layer, times)

        before, used = len(self.found), _union([*sources, *(one for part in parts for one in part)])
        if name == "cond":
            # Only one branch will run. The one with the most weights is counted, but the results can
            # depend on anything that some branch reads.
            index, *given = sources
            chosen = for_the_cpu(params)
            tried = []
            for branch in range(len(parts)) if chosen is None else (chosen,):
                results = inside(branch, given, times)
                tried.append((self.found[before:], results))
                del self.found[before:]
            self.found += max((one for one, _ in tried), key=_num_weights)
            joined = [_joined(one) for one in zip(*(results for _, results in tried), strict=True)]
            found = [None] * len(joined) if index is None else joined
        elif name in ("scan", "while"):
            # A body is counted as often as it runs if this is known, as for `scan`, otherwise once.
            body = 0 if name == "scan" else 1
            times *= params.get("length", 1)
            _, constants, carry, rows = what.rounds(sources)
            while True:  # a carried value may depend on more arrays after each round
                results = inside(body, [*constants, *carry, *rows], times)
                after = [_joined(one) for one in zip(carry, results, strict=False)]
                if after == carry:
                    break
                # The body is walked through again with the larger sets; the first result is dropped.
                carry = after
                del self.found[before:]
            found = [*carry, *results[len(carry) :]]
        else:
            found = inside(0, sources, times)
        if None in found:
            self.add_rest(step, before, used, layer, times)
        return found


def _source(value: Any) -> _Source:
    """Returns what an operand depends on; a literal depends on no array."""
    return value if value is None or isinstance(value, frozenset) else _NONE


def _union(sources: Sequence[_Source]) -> frozenset[int]:
    return _NONE.union(*(source for source in sources if source is not None))


def _num_weights(operations: Iterable[NamedOperation]) -> int:
    return len({index for operation in operations for index in operation.weights})


def _joined(sources: Sequence[_Source]) -> _Source:
    return None if None in sources else _union(sources)


def for_the_cpu(params: Mapping[str, Any]) -> int | None:
    """Returns the index of the branch that runs on the CPU; None if branches are not by platform."""
    for index, names in enumerate(params.get("branches_platforms") or ()):
        if not names or "cpu" in names:
            return index
    return None


def layer_of(paths: Sequence[str]) -> str:
    """Returns the common path of weights, without the weights' own names."""
    split = [tuple(path.split("/")) for path in paths]
    return "/".join(_common([words[:-1] or words for words in split]))


def _common(paths: Sequence[Path]) -> Path:
    """Returns the common beginning of all paths."""
    found = []
    for words in zip(*paths, strict=False):
        if len(set(words)) > 1:
            break
        found.append(words[0])
    return tuple(found)
