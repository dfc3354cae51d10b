"""What each operation of a program says of labels: one rule for each kind of operation.

Each takes the units, the equation and the operands as values of labels, and returns the value of its
result; `RULES` has them by the operation's name. An operation without a rule is understood by none of
them: what it reads cannot be pruned.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrobust.programs.operations import ELEMENTWISE, REDUCTIONS
from jaxrobust.pruning import label_moves
from jaxrobust.pruning.label_moves import Rule, placed, stretched, with_length, without_axes
from jaxrobust.pruning.labels import (
    Along,
    Axes,
    Labelled,
    Units,
    all_fixed,
    along_axis,
    check_together,
    fixed_value,
    merged,
    numbered,
    simplified,
    tied_along,
    vector,
)


def understood(units: Units, equation: Any, operands: Sequence[Labelled]) -> list[Labelled]:
    """The values of an equation's results."""
    name = equation.primitive.name
    operands = [simplified(units, operand) for operand in operands]
    if name == "optimization_barrier":
        return operands
    has_images = any(operand.has_images for operand in operands)
    sources = frozenset[int]() if has_images else frozenset().union(*(o.sources for o in operands))
    before = len(units.uses)
    results = _results(units, equation, operands)
    through_kernel = any(use.sources for use in units.uses[before:])
    is_raw = any(operand.is_raw for operand in operands) and not through_kernel
    about: dict[str, Any] = {"has_images": has_images, "sources": sources, "is_raw": is_raw}
    about["maker"] = _maker(units, name, operands, before)
    about["silencers"] = _silencers(name, operands)
    return [one._replace(**about) for one in results]


def _maker(units: Units, name: str, operands: Sequence[Labelled], before: int) -> int:
    """Returns the maker of a result, and notes how weights are read."""
    images = [operand for operand in operands if operand.has_images]
    is_affine = name in _AFFINE and len(images) == 1
    if name == "div" and not operands[0].has_images:
        is_affine = False
    maker = images[0].maker if is_affine or (name in _MOVES and images) else -1
    for operand in operands if images else ():
        if operand.has_images:
            continue
        # A divisor of 0 makes NaN, and what is subtracted is a running mean, which is no weight.
        silencers = operand.silencers if is_affine and name not in ("div", "sub") else ()
        # Along the channels themselves, and no other axis.
        long = [one for one in operand.labels if one.array.size > 1]
        meets = [any(one.axes & of.axes for of in images[0].labels) for one in long]
        for weight in operand.sources:
            how = maker if weight in silencers and all(meets) else -1
            units.readings.setdefault(weight, set()).add(how)
    return before if len(units.uses) == before + 1 else maker


def _silencers(name: str, operands: Sequence[Labelled]) -> frozenset[int]:
    """Returns the silencers of a value that does not depend on the images."""
    if name in _MOVES:
        return operands[0].silencers
    if name not in ("div", "mul"):
        return frozenset()
    # Of v / sum(v), for example, every place depends on all of v.
    left, right = operands
    found = left.silencers - right.sources
    return found if name == "div" else found | right.silencers - left.sources


def _results(units: Units, equation: Any, operands: Sequence[Labelled]) -> list[Labelled]:
    name = equation.primitive.name
    if name in label_moves.PARTS:
        return label_moves.PARTS[name](units, equation, operands)
    if name in RULES:
        return [RULES[name](units, equation, operands)]
    shapes = [tuple(getattr(one.aval, "shape", ())) for one in equation.outvars]
    if name in ELEMENTWISE:
        found = element_by_element(units, operands)
        return [found._replace(vanishes=_vanishes(name, operands))] * len(shapes)
    for operand in operands:
        for one in operand.labels:
            units.refuse(one.array, f"`{name}` reads it, of which it is not known what it does")
    why = f"the result of `{name}` is as large as it is"
    return [fixed_value(shape, why) for shape in shapes]


def _vanishes(name: str, operands: Sequence[Labelled]) -> bool:
    """Whether a result is 0 where the weights of its labels are."""
    if name in _PRODUCTS:
        return any(operand.vanishes and operand.labels for operand in operands)
    if name in ("div", "rem", "atan2"):
        return operands[0].vanishes
    if name == "select_n":
        return all(operand.vanishes for operand in operands[1:])
    if name in _SUMS or name in _ODD:
        return all(operand.vanishes for operand in operands)
    return False


def decides(units: Units, value: Labelled) -> None:
    """Notes that a branch or the number of rounds depends on a value, so on all its weights."""
    for weight in value.sources:
        units.readings.setdefault(weight, set()).add(-1)


def either(units: Units, values: Sequence[Labelled]) -> Labelled:
    """A value that is one of several: after a branch, or after a round of a loop."""
    sources = frozenset[int]().union(*(value.sources for value in values))
    found = element_by_element(units, values)
    if found.has_images:
        for weight in sources:
            units.readings.setdefault(weight, set()).add(-1)
        sources = frozenset()
    return found._replace(sources=sources)


def element_by_element(units: Units, operands: Sequence[Labelled]) -> Labelled:
    """The result has the labels of all operands, those at the same places tied."""
    shape = np.broadcast_shapes(*(operand.shape for operand in operands))
    has_images = any(operand.has_images for operand in operands)
    vanishes = all(operand.vanishes for operand in operands)
    is_raw = any(operand.is_raw for operand in operands)
    operands = [stretched(operand, shape) for operand in operands if operand.shape]
    operands = _checked(units, operands)
    labels = merged(units, (operand.labels for operand in operands))
    fixed = all_fixed(operand.fixed for operand in operands)
    return Labelled(shape, labels, fixed, has_images, vanishes, is_raw=is_raw)


def _checked(units: Units, operands: Sequence[Labelled]) -> list[Labelled]:
    """The operands without the labels that what is fixed in another one refuses."""
    found = []
    for index, operand in enumerate(operands):
        others = [one for place, one in enumerate(operands) if place != index]
        fixed = [part for other in others for part in other.fixed]
        refused = [
            any([check_together(units, part, one) for part in fixed]) for one in operand.labels
        ]
        labels = [one for one, gone in zip(operand.labels, refused, strict=True) if not gone]
        found.append(operand._replace(labels=tuple(labels)))
    return found


def _contraction(units: Units, equation: Any, operands: Sequence[Labelled]) -> Labelled:
    """dot_general: what is added up is tied, or refused where images are multiplied with images."""
    contracted, batch = equation.params["dimension_numbers"]
    shape = equation.outvars[0].aval.shape
    left, right = operands
    _check_batch(units, left, right, batch)
    _check_batch(units, right, left, batch[::-1])
    if left.has_images and right.has_images:
        left, right = _of_images(units, (left, right), contracted, batch)
    else:
        for ours, theirs in zip(*contracted, strict=True):
            _read(units, (left, right), (ours, theirs))
        for kernel, other, axes, batched in zip(
            (left, right), (right, left), contracted, batch, strict=True
        ):
            if other.has_images:
                units.used(kernel, axes, _free(kernel, axes, batched), other)
    parts, start = [], len(batch[0])
    for operand, axes, batched in zip((left, right), contracted, batch, strict=True):
        free = _free(operand, axes, batched)
        places = {axis: place for place, axis in enumerate(batched)}
        places |= {axis: start + place for place, axis in enumerate(free)}
        parts.append(placed(operand, places, shape))
        start += len(free)
    labels = merged(units, (part.labels for part in parts))
    fixed = all_fixed(part.fixed for part in parts)
    return Labelled(shape, labels, fixed, vanishes=left.vanishes and right.vanishes)


def _check_batch(
    units: Units, one: Labelled, other: Labelled, axes: Sequence[Sequence[int]]
) -> None:
    """Refuses labels of a batch axis whose length something else in the other operand says."""
    for mine, theirs in zip(*axes, strict=True):
        labels = [part for part in one.labels if mine in part.axes]
        if any(part.axes == {theirs} for part in other.fixed):
            why = next(part.why for part in other.fixed if part.axes == {theirs})
            for part in labels:
                units.refuse(part.array, why)


def _free(operand: Labelled, contracted: Sequence[int], batch: Sequence[int]) -> list[int]:
    return [a for a in range(len(operand.shape)) if a not in contracted and a not in batch]


def _read(units: Units, operands: Sequence[Labelled], axes: Sequence[int]) -> None:
    """Ties the labels of two axes that are multiplied and added up."""
    left, right = (
        [vector(units, one, axis) for one in operand.labels if axis in one.axes]
        for operand, axis in zip(operands, axes, strict=True)
    )
    whys = [
        next((one.why for one in operand.fixed if axis in one.axes), "nothing that can be pruned")
        for operand, axis in zip(operands, axes, strict=True)
    ]
    if left and right:
        if not any(operand.vanishes for operand in operands):
            why = "neither what is read nor the kernel is 0 where the weights are"
            for one in (*left, *right):
                units.refuse(one, why)
        for ours in left:
            for theirs in right:
                units.tie(ours, theirs)
        for mine, others, why in ((left, right, whys[1]), (right, left, whys[0])):
            there = np.max(others, axis=0) != 0
            for one in mine:
                units.refuse(one[~there], why)
    for mine, others, why in ((left, right, whys[1]), (right, left, whys[0])):
        if mine and not others:
            for one in mine:
                units.refuse(one, why)


def _of_images(
    units: Units, operands: Sequence[Labelled], contracted: Any, batch: Any
) -> list[Labelled]:
    """Attention, for example: one unit is all of one head, which is an index of the batch axes."""
    by_head = []
    for operand, axes, batched in zip(operands, contracted, batch, strict=True):
        labels = []
        for one in operand.labels:
            if one.axes & set(batched):
                rest = tied_along(units, one, one.axes - set(batched))
                assert rest is not None
                labels.append(rest)
            elif one.axes & set(axes):
                units.refuse(one.array, "a product of two activations adds it up")
        by_head.append(tuple(labels))
    found = []
    for operand, heads, axes in zip(operands, by_head, contracted, strict=True):
        others = [one for one in operand.labels if not any(one.axes & head.axes for head in heads)]
        others = [one for one in others if not one.axes & set(axes)]
        if any(by_head):
            for one in others:
                units.refuse(one.array, "it is the width of heads, which are pruned as a whole")
        found.append(operand._replace(labels=heads if any(by_head) else tuple(others)))
    return found


def _convolution(units: Units, equation: Any, operands: Sequence[Labelled]) -> Labelled:
    images, kernel = operands
    params = equation.params
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    shape = equation.outvars[0].aval.shape
    (batch, features), rank = numbers.lhs_spec[:2], len(shape)
    outputs_axis, inputs_axis = numbers.rhs_spec[:2]
    for one in kernel.labels:
        if one.axes & set(numbers.rhs_spec[2:]):
            units.refuse(one.array, "taps of a convolution")
    if params["batch_group_count"] > 1:
        for one in (*images.labels, *kernel.labels):
            units.refuse(one.array, "a convolution with groups in the batch reads it")
    units.used(
        kernel,
        [inputs_axis] if groups != images.shape[features] else [],
        [outputs_axis],
        images,
        is_strided=max(params["window_strides"], default=1) > 1,
    )
    outputs = [
        vector(units, one, outputs_axis) for one in kernel.labels if outputs_axis in one.axes
    ]
    if not kernel.labels and groups == images.shape[features]:  # a blur: the code holds its taps
        outputs = _of_constant(units, images, kernel, features, outputs_axis)
    if groups == 1:
        _read(units, (images, kernel), (features, inputs_axis))
    else:
        _read_in_groups(units, images, kernel, (features, inputs_axis), outputs, groups)
    labels = merged(units, ((along_axis(one, numbers.out_spec[1], rank),) for one in outputs))
    for one in images.labels:
        if one.axes & set(numbers.lhs_spec[2:]):
            # Of PixelShuffle: a unit is at all places of its block.
            tied_along(units, one, one.axes - {features})
        elif batch in one.axes and features not in one.axes:
            labels = (*labels, along_axis(vector(units, one, batch), numbers.out_spec[0], rank))
    spatial = [
        numbered(shape, axis, "positions of the image")
        for axis in (numbers.out_spec[0], *numbers.out_spec[2:])
        if shape[axis] > 1
    ]
    if not outputs:
        why = "channels of a kernel that is no weight"
        spatial.append(numbered(shape, numbers.out_spec[1], why))
    return Labelled(shape, labels, tuple(spatial), vanishes=kernel.vanishes or not kernel.labels)


def _of_constant(
    units: Units, images: Labelled, kernel: Labelled, features: int, outputs_axis: int
) -> list[np.ndarray]:
    """The labels of the images, if a depthwise kernel without weights is the same for all channels."""
    read = [vector(units, one, features) for one in images.labels if features in one.axes]
    if any(outputs_axis in one.axes for one in kernel.fixed):
        for one in read:
            units.refuse(one, "a kernel that the code holds has a tap for each of its channels")
        return []
    return [np.repeat(one, kernel.shape[outputs_axis] // len(one)) for one in read]


def _read_in_groups(
    units: Units,
    images: Labelled,
    kernel: Labelled,
    axes: tuple[int, int],
    outputs: Sequence[np.ndarray],
    groups: int,
) -> None:
    """A depthwise convolution ties each channel to what it makes of it; of others one unit is one step.

    The number of groups is the code's: the same channel of every group stays or goes.
    """
    features, inputs = axes
    read = [vector(units, one, features) for one in images.labels if features in one.axes]
    # Where no channel comes in, none that is made of it can go.
    if not read:
        why = next(
            (one.why for one in images.fixed if features in one.axes), "channels of an image"
        )
        for one in (*outputs, *(one.array for one in kernel.labels if inputs in one.axes)):
            units.refuse(one, why)
        return
    # What is made, and of others than depthwise ones what is read, goes in steps of all groups.
    is_depthwise = groups == images.shape[features]
    for one in outputs:
        blocks = one.reshape(groups, -1)
        if is_depthwise:
            for channels in read:
                units.tie(blocks, channels[:, None])
        else:
            units.tie(blocks, blocks[:1])
    if not is_depthwise:
        for channels in read:
            blocks = channels.reshape(groups, -1)
            units.tie(blocks, blocks[:1])
            for part in kernel.labels:
                if inputs in part.axes:
                    units.tie(blocks, vector(units, part, inputs)[None])


def _reduction(units: Units, equation: Any, operands: Sequence[Labelled]) -> Labelled:
    """A sum over positions keeps the channels; one over channels couples them, group by group."""
    value, axes = operands[0], frozenset(equation.params["axes"])
    positions: Axes = frozenset().union(*(one.axes for one in value.fixed))
    labels = []
    for one in value.labels:
        channels = one.axes & axes - positions
        rest = tied_along(units, one, one.axes & axes & positions)
        if channels and rest is not None:
            tied_along(units, rest, rest.axes - channels)
            why = "a mean, a variance or another reduction over its channels changes"
            units.couple(rest.array, why)
        elif rest is not None:
            labels.append(rest)
    value = value._replace(labels=tuple(labels))
    return without_axes(value, axes, equation.outvars[0].aval.shape)


def _window(units: Units, equation: Any, operands: Sequence[Labelled]) -> Labelled:
    """Pooling: along the axes of its windows there are new positions."""
    value, shape = operands[0], equation.outvars[0].aval.shape
    params = equation.params
    if "window_dimensions" in params:
        moved = {axis for axis, size in enumerate(params["window_dimensions"]) if size > 1}
        moved |= {axis for axis, size in enumerate(params["window_strides"]) if size > 1}
    else:
        moved = {params["axis"]}
    moved |= {axis for axis in range(len(shape)) if shape[axis] != value.shape[axis]}
    positions: Axes = frozenset().union(*(one.axes for one in value.fixed))
    labels = []
    for one in value.labels:
        if one.axes & moved - positions:
            units.refuse(one.array, f"`{equation.primitive.name}` reads neighbouring channels")
        elif (rest := tied_along(units, one, one.axes & moved)) is not None:
            labels.append(rest)
    fixed = [one for one in value.fixed if not one.axes & moved]
    positions_of = (axis for axis in sorted(moved) if shape[axis] > 1)
    fixed += [numbered(shape, axis, "positions of the image") for axis in positions_of]
    return Labelled(shape, tuple(labels), tuple(fixed), vanishes=value.vanishes)


def _concatenation(units: Units, equation: Any, operands: Sequence[Labelled]) -> Labelled:
    return _joined_along(
        units, operands, equation.params["dimension"], equation.outvars[0].aval.shape
    )


def _stack(units: Units, equation: Any, operands: Sequence[Labelled]) -> Labelled:
    """Values one beside the other, along an axis of the code's."""
    axis, shape = equation.params["axis"], equation.outvars[0].aval.shape
    places = {place: place + (place >= axis) for place in range(len(shape) - 1)}
    rows = [placed(one, places, with_length(shape, axis, 1)) for one in operands]
    found = _joined_along(units, rows, axis, shape)
    fixed = [one for one in found.fixed if axis not in one.axes]
    return found._replace(fixed=(*fixed, numbered(shape, axis, "the code stacks them")))


def _joined_along(
    units: Units, operands: Sequence[Labelled], axis: int, shape: Sequence[int]
) -> Labelled:
    lengths = [operand.shape[axis] for operand in operands]
    put_there = [numbered(one.shape, axis, "the code puts it there") for one in operands]
    operands = [
        operand
        if any(axis in one.axes for one in (*operand.labels, *operand.fixed))
        else operand._replace(fixed=(*operand.fixed, here))
        for operand, here in zip(operands, put_there, strict=True)
    ]
    others = [operand.apart_from([axis]) for operand in operands]
    across = element_by_element(
        units, [other._replace(shape=with_length(shape, axis, 1)) for other in others]
    )
    labels = _one_after_the_other([operand.labels for operand in operands], axis, lengths)
    fixed = _one_after_the_other([operand.fixed for operand in operands], axis, lengths)
    vanishes = all(operand.vanishes for operand in operands)
    whole = (*across.labels, *labels), (*across.fixed, *fixed)
    return Labelled(tuple(shape), *whole, vanishes=vanishes)


def _one_after_the_other(
    lists: Sequence[Sequence[Along]], axis: int, lengths: Sequence[int]
) -> list[Along]:
    """What is along an axis of each operand, as it is along the axis of the whole."""
    mine = [[one for one in entries if axis in one.axes] for entries in lists]
    found = []
    for slot in range(max(map(len, mine))):
        chosen = [entries[slot] if slot < len(entries) else None for entries in mine]
        known = [one for one in chosen if one is not None]
        common = np.broadcast_shapes(*(with_length(one.array.shape, axis, 1) for one in known))
        arrays = [
            np.zeros(with_length(common, axis, length), np.int64)
            if one is None
            else np.broadcast_to(one.array, with_length(common, axis, length))
            for one, length in zip(chosen, lengths, strict=True)
        ]
        axes = frozenset[int]().union(*(one.axes for one in known))
        found.append(Along(np.concatenate(arrays, axis), axes, known[0].why))
    return found


def _update(units: Units, equation: Any, operands: Sequence[Labelled]) -> Labelled:
    """Numbers written into an array: along whole axes they have its labels."""
    whole, part = operands[0], operands[1]
    axes = {a for a in range(len(whole.shape)) if whole.shape[a] != part.shape[a]}
    for one in (*whole.labels, *part.labels):
        if one.axes & axes:
            units.refuse(one.array, "the code writes into some of it")
    return element_by_element(units, [whole, part.apart_from(axes)._replace(shape=whole.shape)])


RULES: dict[str, Rule] = {
    **label_moves.RULES,
    "concatenate": _concatenation,
    "conv_general_dilated": _convolution,
    "dot_general": _contraction,
    "dynamic_update_slice": _update,
    "stack": _stack,
    **dict.fromkeys(("cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum"), _window),
    **dict.fromkeys(("reduce_window_max", "reduce_window_min", "reduce_window_sum"), _window),
    **dict.fromkeys(REDUCTIONS, _reduction),
}
"""By the operation's name."""

# Operations that scale or shift.
_AFFINE = frozenset(("add", "add_any", "div", "mul", "sub"))
# Operations of one operand that compute no number. The labels say where the numbers go.
_MOVES = frozenset(
    (
        *("broadcast_in_dim", "convert_element_type", "copy", "expand_dims", "reshape", "squeeze"),
        "transpose",
    )
)
# 0 where one factor is; where all operands are; where their operand is.
_PRODUCTS = frozenset(("and", "mul"))
_SUMS = frozenset(("add", "add_any", "clamp", "max", "min", "or", "sub", "xor"))
_ODD = frozenset(
    (
        *("abs", "asin", "asinh", "atan", "atanh", "cbrt", "ceil", "convert_element_type", "copy"),
        *("copy_p", "erf", "erf_inv", "expm1", "floor", "imag", "integer_pow", "log1p", "neg"),
        *("real", "reduce_precision", "round", "sharding_constraint", "sign", "sin", "sinh"),
        *("sqrt", "square", "stop_gradient", "tan", "tanh"),
    )
)
