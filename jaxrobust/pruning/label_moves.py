"""What operations say of labels that compute no number, but put numbers elsewhere, such as reshape."""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from jaxrobust.pruning.labels import (
    Along,
    Axes,
    Labelled,
    Units,
    along_axis,
    fixed_value,
    numbered,
    simplified,
    tied_along,
    whole_steps,
)

Rule = Callable[[Units, Any, Sequence[Labelled]], Labelled]


def placed(value: Labelled, places: dict[int, int], shape: Sequence[int]) -> Labelled:
    """A value with its axes elsewhere; what is about axes that have no place is left out."""

    def move(one: Along) -> Along | None:
        if not one.axes <= places.keys():
            return None
        lengths = [1] * len(shape)
        order = sorted(places, key=lambda axis: places[axis])
        for axis in order:
            lengths[places[axis]] = one.array.shape[axis]
        rest = [axis for axis in range(one.array.ndim) if axis not in places]
        array = one.array.transpose([*order, *rest]).reshape(lengths)
        return Along(array, frozenset(places[axis] for axis in one.axes), one.why)

    lengths = [1] * len(shape)
    for axis, place in places.items():
        lengths[place] = value.shape[axis]
    return stretched(value.moved(lengths, move), shape)


def stretched(value: Labelled, shape: Sequence[int]) -> Labelled:
    """A value repeated along axes of length 1: its one label there is none of those of the result."""
    longer = {axis for axis, length in enumerate(value.shape) if length != shape[axis]}

    def move(one: Along) -> Along | None:
        left = one.axes - longer
        return one._replace(axes=left) if left else None

    return value.moved(shape, move) if longer else value


def without_axes(value: Labelled, gone: Collection[int], shape: Sequence[int]) -> Labelled:
    """A value whose other axes close up."""
    kept = [axis for axis in range(len(value.shape)) if axis not in gone]
    return placed(value, {axis: place for place, axis in enumerate(kept)}, shape)


def with_length(shape: Sequence[int], axis: int, length: int) -> tuple[int, ...]:
    """A shape with another length of one axis."""
    return tuple(length if place == axis else size for place, size in enumerate(shape))


def _reshape(units: Units, equation: Any, operands: Sequence[Labelled]) -> Labelled:
    value, shape = operands[0], equation.outvars[0].aval.shape
    blocks = _blocks(value.shape, shape)

    def move(one: Along) -> Along | None:
        before, after, about = [], [], set[int]()
        for ours, theirs in blocks:
            touched = one.axes & set(ours)
            before += [value.shape[axis] if touched else 1 for axis in ours]
            after += [shape[axis] if touched else 1 for axis in theirs]
            if touched:
                about |= {axis for axis in theirs if shape[axis] > 1} or set(theirs[:1])
        if not about:
            return None
        array = np.broadcast_to(one.array, before).reshape(after)
        return Along(array, frozenset(about), one.why)

    def wide(one: Along) -> Along | None:
        """Without axes of one index that are joined with longer ones: a label of them is none there."""
        lost = {
            axis
            for ours, _ in blocks
            for axis in ours
            if value.shape[axis] == 1 and math.prod(value.shape[other] for other in ours) > 1
        }
        return one._replace(axes=one.axes - lost) if one.axes - lost else None

    value = value.moved(value.shape, wide)
    # An axis that is split stays or goes in whole steps, unless this puts together what was split.
    labels = tuple(
        one if _is_undone(one.axes, value.shape, blocks) else whole_steps(units, one)
        for one in value.labels
    )
    return simplified(units, value._replace(labels=labels).moved(shape, move))


def _is_undone(axes: Axes, shape: Sequence[int], blocks: Any) -> bool:
    """Whether a reshape leaves split axes apart, or joins them as they were before they were split."""
    if len(axes) < 2:
        return True
    touched = [ours for ours, _ in blocks if axes & set(ours)]
    if all(len([axis for axis in ours if shape[axis] > 1]) < 2 for ours in touched):
        return True
    (first, *others) = touched
    return not others and {axis for axis in first if shape[axis] > 1} == axes


def _blocks(
    before: Sequence[int], after: Sequence[int]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Axes of the two shapes that hold the same numbers: the smallest such pieces, in their order."""
    pieces, ours, theirs = [], 0, 0
    while ours < len(before) or theirs < len(after):
        first, second = ours, theirs
        ours, theirs = min(ours + 1, len(before)), min(theirs + 1, len(after))
        while True:
            left, right = math.prod(before[first:ours]), math.prod(after[second:theirs])
            if left == right:
                break
            if left < right:
                ours += 1
            else:
                theirs += 1
        pieces.append((tuple(range(first, ours)), tuple(range(second, theirs))))
    return pieces


def _broadcast(units: Units, equation: Any, operands: Sequence[Labelled]) -> Labelled:
    places = equation.params["broadcast_dimensions"]
    return placed(operands[0], dict(enumerate(places)), equation.outvars[0].aval.shape)


def _transpose(units: Units, equation: Any, operands: Sequence[Labelled]) -> Labelled:
    order, value = equation.params["permutation"], operands[0]
    places = {axis: place for place, axis in enumerate(order)}
    labels = tuple(
        one
        if sorted(one.axes) == sorted(one.axes, key=places.__getitem__)
        else whole_steps(units, one)
        for one in value.labels
    )
    return placed(value._replace(labels=labels), places, equation.outvars[0].aval.shape)


def _squeeze(units: Units, equation: Any, operands: Sequence[Labelled]) -> Labelled:
    gone, shape = equation.params["dimensions"], equation.outvars[0].aval.shape
    return without_axes(operands[0], gone, shape)


def _reversed(units: Units, equation: Any, operands: Sequence[Labelled]) -> Labelled:
    axes, value = set(equation.params["dimensions"]), operands[0]

    def move(one: Along) -> Along:
        return one._replace(array=np.flip(one.array, tuple(one.axes & axes)))

    labels = tuple(whole_steps(units, one) if one.axes & axes else one for one in value.labels)
    return value._replace(labels=labels).moved(value.shape, move)


def _slice(units: Units, equation: Any, operands: Sequence[Labelled]) -> Labelled:
    """Of channels a share that divides them, at the same place of every share."""
    value, params = operands[0], equation.params
    shape = equation.outvars[0].aval.shape
    if equation.primitive.name == "slice":
        starts, strides = params["start_indices"], params["strides"] or (1,) * len(shape)
    else:
        starts, strides = (None,) * len(shape), (1,) * len(shape)

    def cut(one: Along, *, is_label: bool) -> Along:
        array = one.array
        for axis in sorted(one.axes):
            size, whole = shape[axis], value.shape[axis]
            if size == whole:
                continue
            start, stride = starts[axis], strides[axis]
            if is_label:
                if start is None or (stride == 1 and start % size == 0):
                    array = _shares(units, array, axis, size)
                else:
                    units.refuse(array, "the code cuts it at a place of its own")
            begin = 0 if start is None else start
            index = begin + stride * np.arange(size)
            array = array.take(index, axis)
        return one._replace(array=array)

    labels = tuple(cut(one, is_label=True) for one in value.labels)
    fixed = tuple(cut(one, is_label=False) for one in value.fixed)
    return Labelled(shape, labels, fixed, vanishes=value.vanishes)


def _shares(units: Units, array: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Ties each index of a share to the same one of every other; refuses what is no whole share."""
    if array.shape[axis] % size:
        units.refuse(array, "the code cuts it at a place of its own")
        return array
    moved = np.moveaxis(array, axis, 0)
    shares = moved.reshape(-1, size, *moved.shape[1:])
    units.tie(shares, shares[:1])
    return array


def _split(units: Units, equation: Any, operands: Sequence[Labelled]) -> list[Labelled]:
    value, axis = operands[0], equation.params["axis"]
    sizes = equation.params["sizes"]
    for one in value.labels:
        if axis in one.axes:
            if len(set(sizes)) == 1:
                _shares(units, one.array, axis, sizes[0])
            else:
                units.refuse(one.array, "the code splits it into unequal parts")
    ends = np.cumsum(sizes)
    parts = []
    for size, end in zip(sizes, ends, strict=True):

        def part(one: Along, size: int = size, end: int = end) -> Along:
            if axis not in one.axes:
                return one
            return one._replace(array=one.array.take(np.arange(end - size, end), axis))

        parts.append(value.moved(with_length(value.shape, axis, size), part))
    return parts


def _tile(units: Units, equation: Any, operands: Sequence[Labelled]) -> Labelled:
    """The same numbers again, with the same labels."""
    value, shape = operands[0], equation.outvars[0].aval.shape
    times = [whole // max(size, 1) for whole, size in zip(shape, value.shape, strict=True)]

    def move(one: Along) -> Along:
        reps = [many if axis in one.axes else 1 for axis, many in enumerate(times)]
        return one._replace(array=np.tile(one.array, reps))

    longer = stretched(value, [a if b == 1 else b for a, b in zip(shape, value.shape, strict=True)])
    return longer.moved(shape, move)


def _unstack(units: Units, equation: Any, operands: Sequence[Labelled]) -> list[Labelled]:
    """The rows along an axis of the code's, one by one."""
    value, axis = operands[0], equation.params["axis"]
    labels = [tied_along(units, one, {axis}) for one in value.labels]
    fixed = tuple(one for one in value.fixed if axis not in one.axes)
    value = value._replace(labels=tuple(one for one in labels if one is not None), fixed=fixed)
    return [without_axes(value, [axis], one.aval.shape) for one in equation.outvars]


def _padding(units: Units, equation: Any, operands: Sequence[Labelled]) -> Labelled:
    """Channels that are added are the code's; positions are positions."""
    value, shape = operands[0], equation.outvars[0].aval.shape
    config = equation.params["padding_config"]
    places = []
    for (low, _, interior), size, whole in zip(config, value.shape, shape, strict=True):
        place = low + (interior + 1) * np.arange(size)
        places.append((place, (place >= 0) & (place < whole)))

    def padded(one: Along) -> Along:
        array = one.array
        for axis in sorted(one.axes):
            place, inside = places[axis]
            wider = np.zeros(with_length(array.shape, axis, shape[axis]), np.int64)
            kept = np.moveaxis(wider, axis, 0)
            kept[place[inside]] = np.moveaxis(array, axis, 0)[inside]
            array = wider
        return one._replace(array=array)

    added = []
    for axis, (place, inside) in enumerate(places):
        if shape[axis] != value.shape[axis] or not inside.all():
            numbers = np.arange(1, shape[axis] + 1)
            numbers[place[inside]] = 0
            added.append(along_axis(numbers, axis, len(shape), "the code pads its axis"))
    labels = tuple(padded(one) for one in value.labels)
    fixed = tuple(padded(one) for one in value.fixed)
    return Labelled(shape, labels, (*fixed, *added), vanishes=value.vanishes)


def _gather(units: Units, equation: Any, operands: Sequence[Labelled]) -> Labelled:
    """Rows of a table: their entries keep their labels, the number of rows is the code's."""
    table, numbers = operands[0], equation.params["dimension_numbers"]
    sizes, shape = equation.params["slice_sizes"], equation.outvars[0].aval.shape
    gone = (*numbers.collapsed_slice_dims, *getattr(numbers, "operand_batching_dims", ()))
    kept = [axis for axis in range(len(table.shape)) if axis not in gone]
    places = {
        axis: place
        for axis, place in zip(kept, numbers.offset_dims, strict=True)
        if sizes[axis] == table.shape[axis]
    }
    for one in table.labels:
        if not one.axes <= places.keys():
            units.refuse(one.array, "the code takes some of it by number")
    for one in operands[1].labels:
        units.refuse(one.array, "numbers of rows are made of it")
    rest = fixed_value(shape, "positions of the image", has_images=True)
    fixed = tuple(one for one in rest.fixed if not one.axes <= set(places.values()))
    found = placed(table, places, shape)
    return found._replace(fixed=(*found.fixed, *fixed))


def _numbered(units: Units, equation: Any, operands: Sequence[Labelled]) -> Labelled:
    axis, shape = equation.params["dimension"], equation.outvars[0].aval.shape
    return Labelled(shape, (), (numbered(shape, axis, "the code numbers it"),))


RULES: dict[str, Rule] = {
    "broadcast_in_dim": _broadcast,
    "dynamic_slice": _slice,
    "gather": _gather,
    "iota": _numbered,
    "pad": _padding,
    "reshape": _reshape,
    "rev": _reversed,
    "slice": _slice,
    "squeeze": _squeeze,
    "tile": _tile,
    "transpose": _transpose,
}
"""By the operation's name."""

PARTS: dict[str, Callable[[Units, Any, Sequence[Labelled]], list[Labelled]]] = {
    "split": _split,
    "unstack": _unstack,
}
"""Of operations with several results."""
