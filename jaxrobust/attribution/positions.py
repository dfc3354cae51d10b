"""Follows positions in the image through a program: where each entry of its values lies.

A pixel lies at row + column i. An operation that moves entries moves their positions; a sum over
entries lies at their mean; a window lies at its centre. The axes of a map are those along which
positions run in order, whatever was folded, transposed or rolled on the way. Nothing is guessed from
shapes.

The positions of a value are an array of complex numbers that broadcasts to its shape, with NaN for an
entry without a position, such as a class token. A value may have several such arrays, one for each
value that it was computed from: attention weights have the positions of queries and those of keys. It
has no array if it depends on all positions alike, and None after an operation that is not understood.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxrobust.programs import derivatives, operations
from jaxrobust.programs.lines import Line, Lines, Value

Positions = tuple[np.ndarray, ...] | None
_MOST = 3  # arrays of one value
NEAR = 1e-3  # of a pixel

# Entry by entry, a barrier and the copies of lines too.
ENTRYWISE = operations.ELEMENTWISE | {"copied", "optimization_barrier"}
_WINDOWS = ("reduce_window", "reduce_window_max", "reduce_window_min", "reduce_window_sum")


def carried(line: Line) -> list[tuple[Any, Value, Any]]:
    """The values that a loop carries: for each (its first value, what a round takes, what it makes)."""
    equation = getattr(line.what, "equation", None)
    if equation is None or equation.primitive.name not in ("scan", "while"):
        return []
    begun = {one.results[0]: one.operands[0] for one in line.within if one.what == "copied"}
    ends = [one.operands for one in line.within if one.what == "joined"]
    return [(begun[taken], taken, made) for taken, made in ends]


def flat(lines: Sequence[Line]) -> list[Line]:
    """The lines, with each operation that has lines inside it replaced by them."""
    return [one for line in lines for one in flat(line.within) or [line]]


class Follower:
    """Finds the positions of results from those of operands.

    Args:
      lines: The lines of a function of images [B, H, W, C].
      used: The values that depend on the images.
      weights: The other values that depend on the function's arrays.
    """

    def __init__(self, lines: Lines, used: set[Value], weights: set[Value]) -> None:
        self.lines, self.used, self.weights = lines, used, weights
        self.made_by = {one: line for line in flat(lines.lines) for one in line.results}
        self.found: dict[Value, Positions] = {}
        self.numbers: dict[Value, np.ndarray | None] = {}

    def run(self) -> dict[Value, Positions]:
        """Returns the positions of all values that depend on the images."""
        (images,) = self.lines.inputs
        height, width = self.shape(images)[1:3]
        grid = np.arange(height)[:, None] + 1j * np.arange(width)
        self.found[images] = _tidy([grid[None, :, :, None]])
        for line in self.lines.lines:
            self.follow(line)
        return self.found

    def shape(self, operand: Any) -> tuple[int, ...]:
        """Returns the shape of a value or a literal."""
        if isinstance(operand, Value):
            return tuple(self.lines.shapes[operand.number].shape)
        return np.shape(operand)

    def follow(self, line: Line) -> None:
        """Finds the positions of the results of a line, or of the lines inside it."""
        if line.within:
            self.follow_within(line)
            return
        if not any(self.is_used(one) for one in line.operands):
            # These values depend on the images only through a choice or through earlier rounds.
            for one in self.used.intersection(line.results):
                self.found.setdefault(one, () if math.prod(self.shape(one)) == 1 else None)
            return
        known = [self.found[one] if self.is_used(one) else () for one in line.operands]
        rule = _rule_of(line)
        for place, one in enumerate(line.results):
            result: Positions = None
            if rule is not None and None not in known:
                result = rule(self, line, place, known)
            self.found[one] = result

    def follow_within(self, line: Line) -> None:
        """Follows the lines inside an operation; those of a loop until nothing changes any more."""
        ends = [one for one in carried(line) if one[1] in self.used and not self.is_used(one[0])]
        begun = [(one, last) for _, one, last in ends if self.is_used(last)]
        self.found.update(dict.fromkeys((one for one, _ in begun), ()))
        for round_ in range(_MOST + 2):
            for inner in line.within:
                self.follow(inner)
            changed = [(one, last) for one, last in begun if not self.are_alike(one, last)]
            for one, last in changed:
                self.found[one] = self.found[last] if round_ < _MOST else None
            if not changed:
                break

    def are_alike(self, one: Value, other: Any) -> bool:
        """Says whether two values have the same positions."""
        first, second = (self.found[two] if self.is_used(two) else () for two in (one, other))
        if first is None or second is None:
            return first is None
        return len(first) == len(second) and all(map(_equal, first, second))

    def is_used(self, operand: Any) -> bool:
        """Says whether an operand depends on the images."""
        return isinstance(operand, Value) and operand in self.used

    def number(self, operand: Any) -> np.ndarray | None:
        """Returns the number of a value that depends on neither images nor weights; else None."""
        if not isinstance(operand, Value):
            return np.asarray(operand)
        if operand in self.used or operand in self.weights or operand not in self.made_by:
            return None
        if operand not in self.numbers:
            self.numbers[operand] = None
            line = self.made_by[operand]
            operands = [self.number(one) for one in line.operands]
            if isinstance(line.what, str) or line.within or any(one is None for one in operands):
                return None
            with jax.ensure_compile_time_eval():
                results = derivatives.bind(line.what, operands)
            self.numbers |= zip(line.results, map(np.asarray, results), strict=True)
        return self.numbers[operand]

    def chosen(self, line: Line) -> np.ndarray | None:
        """Returns the numbers, in the operand, of entries that are chosen by indices; else None."""
        operand, *indices = line.operands
        numbers = [self.number(index) for index in indices]
        if name_of(line) not in ("gather", "dynamic_slice") or any(one is None for one in numbers):
            return None
        shape = self.shape(operand)
        entries = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
        with jax.ensure_compile_time_eval():
            return np.asarray(derivatives.bind(line.what, [entries, *numbers])[0])


_Rule = Callable[[Follower, Line, int, list[Any]], Positions]


def name_of(line: Line) -> str:
    """Returns jax's name of the operation of a line."""
    if isinstance(line.what, str):
        return line.what
    return str(line.what.primitive.name) if hasattr(line.what, "primitive") else ""


def _rule_of(line: Line) -> _Rule | None:
    name = name_of(line)
    if name in ENTRYWISE:
        return _elementwise
    if name in operations.REDUCTIONS:
        return _reduced
    return _windowed if name in _WINDOWS else _RULES.get(name)


def _elementwise(follower: Follower, line: Line, place: int, known: list[Any]) -> Positions:
    if len(line.results) > 1:  # a barrier of several
        return known[place]
    return _joined(known)


def _same(follower: Follower, line: Line, place: int, known: list[Any]) -> Positions:
    """The positions of several branches or rounds, if they are the same in all."""
    pairs = zip(known, line.operands, strict=True)
    first, *others = (one for one, value in pairs if follower.is_used(value))
    for one in others:
        if len(one) != len(first) or not all(map(_equal, one, first)):
            return None
    return first


def _reduced(follower: Follower, line: Line, place: int, known: list[Any]) -> Positions:
    axes = line.what.params["axes"]
    return _tidy([np.squeeze(_mean(one, axes), tuple(axes)) for one in known[0]])


def _moved(follower: Follower, line: Line, place: int, known: list[Any]) -> Positions:
    """Applies an operation that moves entries to the positions with numpy."""
    name, params, before = name_of(line), line.what.params, follower.shape(line.operands[0])
    after = follower.shape(line.results[place])
    if name == "split":
        axis, sizes = params["axis"], params["sizes"]
        begin = sum(sizes[:place])
        rows = slice(begin, begin + sizes[place])
        return _tidy([_cut(one, axis, rows) for one in known[0]])
    return _tidy([_MOVES[name](one, params, before, after) for one in known[0]])


def _cut(one: np.ndarray, axis: int, rows: slice) -> np.ndarray:
    return one[(slice(None),) * axis + (rows,)] if one.shape[axis] > 1 else one


def _sliced(one: np.ndarray, params: Mapping[str, Any], before: Any, after: Any) -> np.ndarray:
    strides = params["strides"] or (1,) * len(before)
    for axis, (begin, end, stride) in enumerate(
        zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    ):
        one = _cut(one, axis, slice(begin, end, stride))
    return one


def _repeated(one: np.ndarray, params: Mapping[str, Any], before: Any, after: Any) -> np.ndarray:
    shape = [1] * len(after)
    for axis, to in enumerate(params["broadcast_dimensions"]):
        shape[to] = one.shape[axis]
    return one.reshape(shape)


def _reshaped(one: np.ndarray, params: Mapping[str, Any], before: Any, after: Any) -> np.ndarray:
    # The last axes stay small where they stay what they are: channels, as a rule.
    kept = 0
    while (
        kept < min(len(before), len(after))
        and before[-1 - kept] == after[-1 - kept]
        and one.shape[-1 - kept] == 1
    ):
        kept += 1
    first, last = len(before) - kept, len(after) - kept
    wide = np.broadcast_to(one, (*before[:first], *(1,) * kept))
    return _even(wide.reshape((*after[:last], *(1,) * kept)))


_MOVES: Mapping[str, Callable[[np.ndarray, Mapping[str, Any], Any, Any], np.ndarray]] = {
    "broadcast_in_dim": _repeated,
    "expand_dims": _reshaped,
    "reshape": _reshaped,
    "rev": lambda one, params, before, after: np.flip(one, params["dimensions"]),
    "slice": _sliced,
    "squeeze": lambda one, params, before, after: np.squeeze(one, params["dimensions"]),
    "transpose": lambda one, params, before, after: np.transpose(one, params["permutation"]),
}


def _concatenated(follower: Follower, line: Line, place: int, known: list[Any]) -> Positions:
    axis = line.what.params["dimension"]
    shapes = [follower.shape(value) for value in line.operands]
    nowhere_changes = all(one.shape[axis] == 1 for arrays in known for one in arrays)
    if nowhere_changes and max(shape[axis] for shape in shapes) > 1:
        return _joined(known)  # channels beside channels
    return _beside(known, shapes, axis)


def _on_top(follower: Follower, line: Line, place: int, known: list[Any]) -> Positions:
    axis = line.what.params["axis"] % len(follower.shape(line.results[0]))
    shapes = [follower.shape(value) for value in line.operands]
    wide = [tuple(np.expand_dims(one, axis) for one in arrays) for arrays in known]
    return _beside(wide, [(*shape[:axis], 1, *shape[axis:]) for shape in shapes], axis)


def _beside(known: Sequence[Any], shapes: Sequence[tuple[int, ...]], axis: int) -> Positions:
    if any(len(one) > 1 for one in known):
        return None
    arrays = [
        one[0] if one else np.full((1,) * len(shape), np.nan + 0j)
        for one, shape in zip(known, shapes, strict=True)
    ]
    wide = np.broadcast_shapes(*(tuple(np.delete(one.shape, axis)) for one in arrays))
    laid = [
        np.broadcast_to(one, (*wide[:axis], shape[axis], *wide[axis:]))
        for one, shape in zip(arrays, shapes, strict=True)
    ]
    return _tidy([np.concatenate(laid, axis)])


def _padded(follower: Follower, line: Line, place: int, known: list[Any]) -> Positions:
    def one_padded(one: np.ndarray) -> np.ndarray:
        shape = follower.shape(line.operands[0])
        for axis, (low, high, inner) in enumerate(line.what.params["padding_config"]):
            if one.shape[axis] == 1:
                continue  # channels, of which some are nothing
            indices = np.full(low + high + shape[axis] + inner * (shape[axis] - 1), -1)
            places = low + (inner + 1) * np.arange(shape[axis])
            inside = (places >= 0) & (places < len(indices))
            indices[places[inside]] = np.flatnonzero(inside)
            taken = np.take(one, np.maximum(indices, 0), axis)
            outside = np.expand_dims(indices < 0, [at for at in range(one.ndim) if at != axis])
            one = np.where(outside, np.nan, taken)
        return one

    return _tidy([one_padded(one) for one in known[0]])


def _chosen(follower: Follower, line: Line, place: int, known: list[Any]) -> Positions:
    chosen, shape = follower.chosen(line), follower.shape(line.operands[0])
    if chosen is None:
        return None
    size = math.prod(shape)

    def taken(one: np.ndarray) -> np.ndarray:
        every = np.broadcast_to(one, shape).ravel()[np.clip(chosen, 0, size - 1)]
        return _even(np.where((chosen >= 0) & (chosen < size), every, np.nan))

    return _tidy([taken(one) for one in known[0]])


def _updated(follower: Follower, line: Line, place: int, known: list[Any]) -> Positions:
    """The positions of a value in which constants replace some entries."""
    return None if any(known[1:]) else known[0]


def _product(follower: Follower, line: Line, place: int, known: list[Any]) -> Positions:
    (contracted, batch) = line.what.params["dimension_numbers"]
    shapes = [follower.shape(value) for value in line.operands[:2]]
    frees = [
        [axis for axis in range(len(shape)) if axis not in (*summed, *kept)]
        for shape, summed, kept in zip(shapes, contracted, batch, strict=True)
    ]
    rank = len(batch[0]) + len(frees[0]) + len(frees[1])
    found = []
    for side in range(2):
        start = len(batch[0]) + (len(frees[0]) if side else 0)
        order = (*batch[side], *frees[side], *contracted[side])
        places = [*range(len(batch[0])), *range(start, start + len(frees[side]))]
        laid = []
        for one in known[side]:
            if (resized := _resized(follower, line, side, one, frees)) is not None:
                laid.append(resized)
                continue
            one = np.transpose(_mean(one, contracted[side]), order)
            shape = [1] * rank
            for axis, to in enumerate(places):
                shape[to] = one.shape[axis]
            laid.append(one.reshape(shape))
        found.append(_tidy(laid))
    return _joined(found)


def _resized(
    follower: Follower, line: Line, side: int, one: np.ndarray, frees: Sequence[Sequence[int]]
) -> np.ndarray | None:
    """The positions after a product with a known matrix that mixes rows, as in `jax.image.resize`."""
    (contracted, batch), other = line.what.params["dimension_numbers"], line.operands[1 - side]
    if (
        not isinstance(other, Value)
        or batch[0]
        or len(contracted[0]) != 1
        or len(frees[1 - side]) != 1
    ):
        return None
    (axis,) = contracted[side]
    if one.shape[axis] == 1:
        return None
    if other not in follower.made_by or {other} & (follower.weights | follower.used):
        return None
    indices = _centroids(follower.number(other), contracted[1 - side][0])
    if indices is None:
        return None
    moved = _at_indices(one, axis, indices)
    return None if moved is None else np.moveaxis(moved, axis, 0 if side else -1)


def _centroids(matrix: np.ndarray | None, axis: int) -> np.ndarray | None:
    """The mean index from which each row of a matrix takes; None unless it takes a few neighbours.

    A flip takes entries from the other end. A transform of all entries, such as a DCT, gives None.
    """
    if matrix is None:
        return None
    weights = np.moveaxis(matrix, axis, -1).astype(np.float64)
    total, size = weights.sum(-1), np.abs(weights).sum(-1)
    if (size > 3 * np.abs(total)).any() or not size.all():
        return None
    entries = np.arange(weights.shape[-1])
    centroids = (weights * entries).sum(-1) / total
    apart = np.abs(entries - centroids[:, None])
    step = max(1.0, len(entries) / len(centroids))
    if ((np.abs(weights) * apart).sum(-1) > 2 * step * size).any():
        return None
    # At an edge a resize takes the last entry for those that would come behind it.
    resized = (np.arange(len(centroids)) + 0.5) * len(entries) / len(centroids) - 0.5
    return resized if np.abs(resized - centroids).max() <= step / 2 + NEAR else centroids


def _convolved(follower: Follower, line: Line, place: int, known: list[Any]) -> Positions:
    params = line.what.params
    numbers = params["dimension_numbers"]
    (batch, features, *spatial), taps = numbers.lhs_spec, numbers.rhs_spec[2:]
    if not isinstance(known[0], tuple) or known[1]:
        return None
    kernel = follower.shape(line.operands[1])
    after = follower.shape(line.results[0])
    found = []
    for one in known[0]:
        one = _mean(one, (features,))
        for index, axis in enumerate(spatial):
            size, to = follower.shape(line.operands[0])[axis], after[numbers.out_spec[2 + index]]
            low = params["padding"][index][0]
            dilation = params["rhs_dilation"][index]
            reach = dilation * (kernel[taps[index]] - 1) / 2 - low
            centres = (np.arange(to) * params["window_strides"][index] + reach) / (
                params["lhs_dilation"][index]
            )
            changed = _at_centres(one, axis, size, centres)
            if changed is None:
                return None
            one = changed
        order = np.argsort(numbers.out_spec)
        found.append(np.transpose(one, np.array([batch, features, *spatial])[order]))
    return _tidy(found)


def _windowed(follower: Follower, line: Line, place: int, known: list[Any]) -> Positions:
    params = line.what.params
    windows = params["window_dimensions"]
    ones = (1,) * len(windows)
    shape, after = follower.shape(line.operands[0]), follower.shape(line.results[0])
    found = []
    for one in known[0]:
        for axis, size in enumerate(shape):
            dilation = (params.get("window_dilation") or ones)[axis]
            reach = dilation * (windows[axis] - 1) / 2 - params["padding"][axis][0]
            centres = (np.arange(after[axis]) * params["window_strides"][axis] + reach) / (
                (params.get("base_dilation") or ones)[axis]
            )
            changed = _at_centres(one, axis, size, centres)
            if changed is None:
                return None
            one = changed
        found.append(one)
    return _tidy(found)


def _row(follower: Follower, line: Line, place: int, known: list[Any]) -> Positions:
    return _tidy([_mean(one, (0,))[0] for one in known[0]])


def _stacked(follower: Follower, line: Line, place: int, known: list[Any]) -> Positions:
    return _tidy([one[None] for one in known[0]])


_RULES: Mapping[str, _Rule] = {
    **dict.fromkeys((*_MOVES, "split"), _moved),
    "concatenate": _concatenated,
    "conv_general_dilated": _convolved,
    "dot_general": _product,
    "dynamic_slice": _chosen,
    "dynamic_update_slice": _updated,
    "gather": _chosen,
    "joined": _same,
    "pad": _padded,
    "row": _row,
    "scatter": _updated,
    "stack": _on_top,
    "stacked": _stacked,
}


def _at_centres(one: np.ndarray, axis: int, size: int, centres: np.ndarray) -> np.ndarray | None:
    """The positions of windows along an axis; None if the entries there are not equally spaced."""
    if one.shape[axis] == 1:
        return one
    moved = _at_indices(one, axis, centres)
    stay = len(centres) == size and np.allclose(centres, np.arange(size))
    return one if moved is None and stay else moved


def _at_indices(one: np.ndarray, axis: int, indices: np.ndarray) -> np.ndarray | None:
    """The positions between entries, or beyond them; None unless the entries are equally spaced.

    Deviations of up to half a step are allowed, for filters that differ between odd and even rows.

    A border that copies entries of the middle, such as mirrored or repeated padding, gets the positions
    that it would have if the middle went on.
    """
    rows = np.moveaxis(one, axis, 0)
    others = tuple(range(1, rows.ndim))
    present = np.flatnonzero(~np.isnan(rows).all(others))
    if len(present) < 2:
        return None
    count = np.arange(len(rows)).reshape(-1, *(1,) * (rows.ndim - 1))
    places = indices.reshape(-1, *(1,) * (rows.ndim - 1))
    middle = len(present) // 2
    for first, last in ((present[0], present[-1]), (present[middle - 1], present[middle])):
        step = (rows[last] - rows[first]) / (last - first)
        expected = rows[first] + step * (count - first)
        apart = np.abs(rows - expected)
        nowhere = np.isnan(rows) & np.isnan(expected)
        fits = (nowhere | (apart < np.abs(step) / 2 + NEAR)).all(others)[present]
        if fits.all() or _is_border(rows, present[fits], present[~fits], present, step):
            return np.moveaxis(rows[first] + step * (places - first), 0, axis)
    return None


def _is_border(
    rows: np.ndarray, inside: np.ndarray, outside: np.ndarray, present: np.ndarray, step: np.ndarray
) -> bool:
    """Says whether entries outside an evenly spaced middle are copies of entries inside it."""
    if not (np.abs(step) > NEAR).any() or len(inside) < 2:
        return False
    between = (present >= inside[0]) & (present <= inside[-1])
    copies = (any(_equal(rows[place], rows[other]) for other in inside) for place in outside)
    return between.sum() == len(inside) and all(copies)


def _even(one: np.ndarray) -> np.ndarray:
    """Spreads entries that are all repeated equally often along an axis evenly over that axis."""
    if not one.size:
        return one
    for axis, size in enumerate(one.shape):
        rows = np.moveaxis(one, axis, 0)
        if size < 3 or not _equal(rows[0], rows[1]) or np.isnan(rows).any():
            continue
        changes = np.flatnonzero(np.abs(np.diff(rows, axis=0)).reshape(size - 1, -1).max(1) > NEAR)
        times = changes[0] + 1 if len(changes) else size
        if times < size and size % times == 0 and (np.diff(changes) == times).all():
            indices = (np.arange(size) + 0.5) / times - 0.5
            moved = _at_indices(rows[::times], 0, indices)
            one = one if moved is None else np.moveaxis(moved, 0, axis)
    return one


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and np.allclose(one, other, atol=NEAR, equal_nan=True)


def _mean(one: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """The mean position over axes, which are kept, of the entries that have one."""
    axes = tuple(axis for axis in axes if one.shape[axis] != 1)
    if not axes:
        return one
    present = ~np.isnan(one)
    count = present.sum(axes, keepdims=True)
    total = np.where(present, one, 0).sum(axes, keepdims=True)
    return np.where(count, total / np.maximum(count, 1), np.nan)


def _tidy(arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Shrinks arrays along axes on which they are constant, and drops those with one position."""
    found: list[np.ndarray] = []
    for one in arrays:
        for axis, size in enumerate(one.shape):
            if size > 1:
                first = one[(slice(None),) * axis + (slice(1),)]
                if np.allclose(one, first, atol=NEAR, equal_nan=True):
                    one = first
        if one.size > 1:
            found.append(one)
    return tuple(found)


def _joined(known: Sequence[Any]) -> Positions:
    """The positions of a value that is computed from several values entry by entry."""
    found: list[np.ndarray] = []
    for one in [array for arrays in known for array in arrays]:
        axes = _axes(one)
        alike = [at for at, other in enumerate(found) if _axes(other) == axes]
        if any(_axes(other) > axes for other in found):
            continue
        if alike:
            found[alike[0]] = _between(found[alike[0]], one)
        else:
            found = [other for other in found if not _axes(other) < axes]
            found.append(one)
    return _tidy(found) if len(found) <= _MOST else None


def _axes(one: np.ndarray) -> frozenset[int]:
    return frozenset(axis for axis, size in enumerate(one.shape) if size > 1)


def _between(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The midpoint of two positions; where one of them is NaN, the other."""
    if one is other or _equal(one, other):
        return one
    return np.where(np.isnan(one), other, np.where(np.isnan(other), one, (one + other) / 2))
