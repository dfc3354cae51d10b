"""Names: of a program's weights the paths in the user's tree, of its operations the layers.

An operation has the name of the module that it stands in (flax.linen, haiku and `jax.named_scope` leave
that in what jax traces); where none does, as in nnx and equinox, the common path of the weights that it
consumes: "blocks/3/conv".
"""

import contextlib
import functools
import types as python_types
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrobust.programs import comparing, evaluating, tracing
from jaxrobust.programs.arguments import LIBRARIES
from jaxrobust.programs.steps import Nested, Step, Steps
from jaxrobust.programs.tracing import Program


class Operation(NamedTuple):
    """An operation that depends on the images.

    Attributes:
      name: Of its layer; "" if nothing tells.
      equation: As jax has it.
      weights: Which of the program's arrays it consumes, folded with others or as they are.
      times: How often it is made: in a loop of known length more than once.
    """

    name: str
    equation: Any
    weights: tuple[int, ...]
    times: int


def weight_paths(function: Callable[..., Any], program: Program) -> tuple[str, ...]:
    """Where each array of a program stands in the function that it was traced from.

    Args:
      function: A callable pytree (an nnx or equinox module, `jax.tree_util.Partial(apply, weights)`),
        or a function that closes over pytrees.
      program: What was traced of it.

    Returns:
      For each array "blocks/0/conv/kernel", say, without what all of them begin with; "constant_0" and
      so on for arrays that are found nowhere.
    """
    at: dict[Any, tuple[str, ...]] = {}
    for path, array in _arrays_of(function, (), set()):
        # Arrays of numpy are copied when they are traced.
        known_by = id(array) if isinstance(array, jax.Array) else comparing.content(array)
        at.setdefault(known_by, path)
    found = [at.get(id(one)) or at.get(comparing.content(one)) for one in program.arrays]
    start = len(_common([path[:-1] for path in found if path is not None]))
    numbers = iter(range(len(found)))
    return tuple(
        f"constant_{next(numbers)}" if path is None else "/".join(path[start:]) for path in found
    )


Path = tuple[str, ...]


def _arrays_of(value: Any, path: Path, seen: set[int]) -> Iterator[tuple[Path, Any]]:
    """All arrays that a function can see, with their paths."""
    if id(value) in seen:
        return
    seen.add(id(value))
    try:
        leaves = jax.tree_util.tree_leaves_with_path(value)
    except ValueError:  # a dictionary whose keys cannot be sorted
        return
    for keys, leaf in leaves:
        words = [jax.tree_util.keystr((key,), simple=True) for key in keys]
        # An nnx variable is a tree of its value.
        inside = (*path, *(word for word in words if word != "value"))
        if isinstance(leaf, jax.Array | np.ndarray):
            yield inside, leaf
        else:
            for word, part in _parts(leaf):
                yield from _arrays_of(part, (*inside, word), seen)
    if isinstance(value, jax.tree_util.Partial):
        yield from _arrays_of(value.func, path, seen)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What a function, a bound method or an object of the user's reads, by its names."""
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
            with contextlib.suppress(ValueError):  # of a name that has no value yet
                yield name, cell.cell_contents
        if not code.co_filename.startswith(LIBRARIES):
            yield from ((name, module[name]) for name in code.co_names if name in module)
    elif callable(value) and not isinstance(value, type):
        yield from getattr(value, "__dict__", {}).items()


def operations(program: Program, paths: Sequence[str]) -> list[Operation]:
    """The operations of a program that depend on what it is called with, in their order.

    Calls are opened, and so is what stands in loops; of branches the first for the CPU.

    Args:
      program: Of any function.
      paths: Of its arrays, as `weight_paths` gives them.
    """
    reader = _Reader(paths)
    arrays = [frozenset([index]) for index in range(len(paths))]
    steps = program.code.steps
    reader.run(steps, iter(arrays), [None] * len(steps.inputs), "", 1)
    return reader.found


# Of a value: which arrays it is computed from; None where it depends on the images.
_Source = frozenset[int] | None
_NONE: frozenset[int] = frozenset()


class _Reader:
    """Reads programs; values are what they depend on."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths, self.found = paths, list[Operation]()

    def run(
        self,
        steps: Steps,
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
        if isinstance(what, Steps):
            return self.run(what, arrays, sources, layer, times)
        if isinstance(what, Nested):
            return self.nested(what, arrays, sources, layer, times)
        if (inside := tracing.inside(what)) is not None:
            list(islice(arrays, sum(getattr(what, "counts", ()))))  # of the derivative
            steps, closed_over = inside
            return self.run(steps, iter([_NONE] * len(closed_over)), sources, layer, times)
        if None not in sources:
            return [_union(sources)] * len(step.outputs)
        weights = tuple(sorted(_union(sources)))
        name = layer or _layer([self.paths[index] for index in weights])
        self.found.append(Operation(name, what, weights, times))
        return [None] * len(step.outputs)

    def nested(
        self,
        what: Nested,
        arrays: Iterator[_Source],
        sources: list[_Source],
        layer: str,
        times: int,
    ) -> Sequence[_Source]:
        params, name = what.equation.params, what.equation.primitive.name
        parts = [list(islice(arrays, part.num_arrays)) for part in what.parts]
        carried = None if None in sources else _union(sources)
        chosen, given = 0, sources
        if name == "cond":
            chosen, given = _for_the_cpu(params), sources[1:]
        elif name == "while":
            first = params["cond_nconsts"]
            second = first + params["body_nconsts"]
            chosen, given = 1, [*sources[first:second], *[carried] * (len(sources) - second)]
        elif name == "scan":
            num_constants, num_carry = evaluating.sizes_of_scan(params, sources)
            constants, rows = sources[:num_constants], sources[num_constants + num_carry :]
            given, times = [*constants, *[carried] * num_carry, *rows], times * params["length"]
        self.run(what.parts[chosen], iter(parts[chosen]), given, layer, times)
        return [carried] * len(what.equation.outvars)


def _source(value: Any) -> _Source:
    """Of a literal no array."""
    return value if value is None or isinstance(value, frozenset) else _NONE


def _union(sources: Sequence[_Source]) -> frozenset[int]:
    return _NONE.union(*(source for source in sources if source is not None))


def _for_the_cpu(params: Mapping[str, Any]) -> int:
    """Which branch: of those for platforms the one for the CPU or all others, else the first."""
    platforms = params.get("branches_platforms") or ()
    for index, names in enumerate(platforms):
        if not names or "cpu" in names:
            return index
    return 0


def _layer(paths: Sequence[str]) -> str:
    """Of weights: the path that they have in common, without their own names."""
    split = [tuple(path.split("/")) for path in paths]
    return "/".join(_common([words[:-1] or words for words in split]))


def _common(paths: Sequence[Path]) -> Path:
    """What all of them begin with."""
    found = []
    for words in zip(*paths, strict=False):
        if len(set(words)) > 1:
            break
        found.append(words[0])
    return tuple(found)
