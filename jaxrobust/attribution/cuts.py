"""Which of a network's operations, and which entries of its values, the logits depend on."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxrobust.attribution.positions import ENTRYWISE, carried, name_of
from jaxrobust.programs.lines import Line, Lines, Value
from jaxrobust.programs.operations import REDUCTIONS

Masks = list[np.ndarray]  # for each axis of a value which of its entries are read


def alive(lines: Sequence[Line], outputs: Sequence[Any]) -> list[int]:
    """Returns the places of the lines whose results reach the outputs.

    Args:
      lines: The lines of a program in their order.
      outputs: The outputs, values or literals.
    """
    needed = {one for one in outputs if isinstance(one, Value)}
    found = []
    for place in range(len(lines) - 1, -1, -1):
        if needed & {*lines[place].results}:
            found.append(place)
            needed |= {one for one in lines[place].operands if isinstance(one, Value)}
    return found[::-1]


def cuts(lines: Lines, used: set[Value], places: Sequence[int]) -> set[Value]:
    """Returns the values through each of which alone the logits depend on the images.

    Args:
      lines: The lines of a function of images.
      used: The values that depend on the images.
      places: The places of the lines that reach the logits.
    """
    last: dict[Value, float] = {}
    for place in places:
        last |= {one: place for one in lines.lines[place].operands if isinstance(one, Value)}
    last |= {one: math.inf for one in lines.outputs if isinstance(one, Value)}
    waiting, found = {*lines.inputs}, set[Value]()
    for place in places:
        line = lines.lines[place]
        waiting |= {one for one in line.results if one in used and one in last}
        waiting = {one for one in waiting if last.get(one, -1) > place}
        if len(waiting) == 1:
            found |= waiting
    return found


def read_entries(
    lines: Lines, used: set[Value], chosen: Callable[[Line], np.ndarray | None]
) -> dict[Value, Masks]:
    """Returns which entries of each value the logits depend on, axis by axis.

    For example, only the class token is read after the last block of a vision transformer. If it cannot
    be found out, all entries count.

    Args:
      lines: The lines of a function of images.
      used: The values that depend on the images.
      chosen: A function from a line that chooses by indices to the numbers of the chosen entries, or
        None, such as `Follower.chosen`.
    """
    found: dict[Value, Masks] = {}

    def shape(value: Value) -> tuple[int, ...]:
        return tuple(lines.shapes[value.number].shape)

    def add(value: Any, masks: Masks) -> None:
        if isinstance(value, Value) and value in used:
            before = found.get(value, masks)
            found[value] = [one | other for one, other in zip(before, masks, strict=True)]

    for output in lines.outputs:
        if isinstance(output, Value):
            add(output, [np.ones(size, bool) for size in shape(output)])
    for line in reversed(_with_ends(lines.lines)):
        if not any(one in found for one in line.results):
            continue
        if line.within:
            # A choice or a condition is read, and what goes from round to round may be read in any.
            made = [one for ends in carried(line) for one in ends[1:]]
            controls = line.operands if made else line.operands[:1]
            for operand in (*controls, *made):
                if isinstance(operand, Value):
                    add(operand, [np.ones(size, bool) for size in shape(operand)])
            continue
        for place, operand in enumerate(line.operands):
            if isinstance(operand, Value) and operand in used:
                everything = [np.ones(size, bool) for size in shape(operand)]
                masks = found.get(line.results[0]) if len(line.results) == 1 else None
                taken = None if masks is None else _taken(line, place, everything, masks, shape)
                if name_of(line) == "split":
                    taken = _of_split(line, everything, found)
                elif masks is not None and place == 0 and (indices := chosen(line)) is not None:
                    taken = _of_indices(indices[np.ix_(*masks)], everything)
                add(operand, everything if taken is None else taken)
    return found


def _with_ends(lines: Sequence[Line]) -> list[Line]:
    """All lines, each operation with lines inside it behind them."""
    return [one for line in lines for one in (*_with_ends(line.within), line)]


def _taken(line: Line, place: int, every: Masks, masks: Masks, shape: Any) -> Masks | None:
    """Which entries of an operand those of the result are computed from; None: all."""
    name, params = name_of(line), getattr(line.what, "params", {})
    if name in ENTRYWISE or name == "joined":
        if len(every) != len(masks):
            return None
        pairs = zip(every, masks, strict=True)  # an axis of length 1 is repeated
        return [one if len(one) < len(taken) else taken for one, taken in pairs]
    if name in REDUCTIONS or name in ("squeeze", "expand_dims"):
        away = params["axes" if name in REDUCTIONS else "dimensions"]
        if name == "expand_dims":
            return [one for axis, one in enumerate(masks) if axis not in away]
        left = iter(masks)
        return [one if axis in away else next(left) for axis, one in enumerate(every)]
    if name == "slice":
        return _of_slice(params, every, masks)
    if name == "transpose":
        return [masks[params["permutation"].index(axis)] for axis in range(len(every))]
    if name == "broadcast_in_dim":
        pairs = zip(every, params["broadcast_dimensions"], strict=True)
        return [masks[to] if len(one) == len(masks[to]) else one for one, to in pairs]
    if name == "concatenate":
        axis = params["dimension"]
        begin = sum(shape(one)[axis] for one in line.operands[:place])
        own = masks[axis][begin : begin + len(every[axis])]
        return [own if at == axis else one for at, one in enumerate(masks)]
    if name == "reshape":
        return _of_reshape(every, masks)
    return _of_product(params, place, every, masks, line, shape) if name == "dot_general" else None


def _of_slice(params: Any, every: Masks, masks: Masks) -> Masks:
    strides = params["strides"] or (1,) * len(every)
    found = []
    for one, taken, begin, end, stride in zip(
        every, masks, params["start_indices"], params["limit_indices"], strides, strict=True
    ):
        mask = np.zeros(len(one), bool)
        mask[begin:end:stride] = taken
        found.append(mask)
    return found


def _of_split(line: Line, every: Masks, found: dict[Value, Masks]) -> Masks:
    params, begin = line.what.params, 0
    taken = [np.zeros(len(one), bool) for one in every]
    for result, size in zip(line.results, params["sizes"], strict=True):
        for axis, mask in enumerate(found.get(result, ())):
            place = slice(begin, begin + size) if axis == params["axis"] else slice(None)
            taken[axis][place] |= mask
        begin += size
    return taken


def _of_indices(indices: np.ndarray, every: Masks) -> Masks:
    shape = [len(one) for one in every]
    inside = indices[(indices >= 0) & (indices < math.prod(shape))]
    found = [np.zeros(size, bool) for size in shape]
    for mask, places in zip(found, np.unravel_index(inside, shape), strict=True):
        mask[places] = True
    return found


def _of_reshape(every: Masks, masks: Masks) -> Masks:
    """Axes that stay what they are keep their entries; of the others all are taken."""
    before, after = [len(one) for one in every], [len(one) for one in masks]
    sizes = {math.prod(after[:axis]): axis for axis in range(len(after), -1, -1)}
    found = []
    for axis, one in enumerate(every):
        to = sizes.get(math.prod(before[:axis]))
        while to is not None and to < len(after) and after[to] == 1 and before[axis] > 1:
            to += 1
        same = to is not None and to < len(after) and after[to] == before[axis]
        found.append(masks[to] if same and to is not None else one)
    return found


def _of_product(
    params: Any, place: int, every: Masks, masks: Masks, line: Line, shape: Any
) -> Masks:
    contracted, batch = params["dimension_numbers"]
    other = shape(line.operands[0]) if isinstance(line.operands[0], Value) else ()
    frees_before = len(other) - len(contracted[0]) - len(batch[0]) if place else 0
    kept, left = list(batch[place]), iter(masks[len(batch[0]) + frees_before :])
    return [
        one
        if axis in contracted[place]
        else masks[kept.index(axis)]
        if axis in kept
        else next(left)
        for axis, one in enumerate(every)
    ]
