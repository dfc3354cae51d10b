"""Labels in the place of numbers: which indices of which weights' axes stay or go together.

Every index of every axis of every weight is a label. A program is evaluated on labels: each operation
says which of them must stay or go together, a unit. Two kinds of facts go along with a value:

    labels  along some of its axes, which label each index stands for: of a convolution's result, along
            its channels, those of the kernel's output axis
    fixed   along some of its axes, by what it varies although no weight decides how long they are: the
            rows of an image, an array that the code holds

Both are integer arrays that broadcast to the value, with 1 along the axes that they are not about.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np

Axes = frozenset[int]


class Use(NamedTuple):
    """A product of a value that depends on the images with a kernel.

    Attributes:
      read: The labels of the axes along which the kernel reads.
      made: The labels of the axes that it makes.
      sources: The weights that the kernel is computed from, by their numbers.
      is_first: Whether the images reach it without another kernel on the way.
      is_strided: Whether it is a convolution that skips positions.
    """

    read: list[np.ndarray]
    made: list[np.ndarray]
    sources: frozenset[int]
    is_first: bool
    is_strided: bool


class Units:
    """Labels, the units that they have been tied to, and what was found out about them.

    Attributes:
      refused: (labels, why they cannot be pruned).
      coupled: (labels, what of them is computed together).
      uses: Each product with a kernel.
      readings: For each weight, how values that depend on the images are combined with it: the place in
        `uses` of the product whose result it scales or shifts, -1 for anything else.
    """

    def __init__(self) -> None:
        self._parents = np.zeros(1, np.int64)  # label 0 is none
        self.refused: list[tuple[np.ndarray, str]] = []
        self.coupled: list[tuple[np.ndarray, str]] = []
        self.uses: list[Use] = []
        self.readings: dict[int, set[int]] = {}

    def new(self, count: int) -> np.ndarray:
        """So many labels, each a unit of its own."""
        start = len(self._parents)
        labels = np.arange(start, start + count)
        self._parents = np.concatenate([self._parents, labels])
        return labels

    def of(self, labels: np.ndarray) -> np.ndarray:
        """The unit of each label, the smallest of its labels; 0 of none."""
        found = self._parents[labels]
        while True:
            above = self._parents[found]
            if (above == found).all():
                break
            found = above
        self._parents[labels] = found
        return found

    def tie(self, left: np.ndarray, right: np.ndarray) -> None:
        """Labels at the same places are of one unit; places where either has none count for nothing."""
        left, right = np.broadcast_arrays(left, right)
        both = (left != 0) & (right != 0)
        left, right = left[both], right[both]
        while True:
            ours, theirs = self.of(left), self.of(right)
            differ = ours != theirs
            if not differ.any():
                return
            left, right = ours[differ], theirs[differ]
            # Of several that one unit is tied to, one is taken now, the others in the next round.
            self._parents[np.maximum(left, right)] = np.minimum(left, right)

    def refuse(self, labels: np.ndarray, why: str) -> None:
        """They cannot be pruned."""
        self.refused.append((labels[labels != 0], why))

    def couple(self, labels: np.ndarray, why: str) -> None:
        """Something is computed of them together, which changes when some of them go."""
        self.coupled.append((labels[labels != 0], why))

    def used(
        self,
        kernel: "Labelled",
        inputs: Collection[int],
        outputs: Collection[int],
        on: "Labelled",
        *,
        is_strided: bool = False,
    ) -> None:
        """A value is used as a kernel on another: it reads along some of its axes and makes others."""
        read, made = (
            [one.array[one.array != 0] for one in kernel.labels if one.axes & set(axes)]
            for axes in (inputs, outputs)
        )
        self.uses.append(Use(read, made, kernel.sources, on.is_raw, is_strided))


class Along(NamedTuple):
    """Labels, or what is fixed, along some axes of a value.

    Attributes:
      array: int, of as many axes as the value; 0 is none.
      axes: That it is about; along all others it has the length 1.
      why: Of what is fixed: what it is.
    """

    array: np.ndarray
    axes: Axes
    why: str = ""


class Labelled(NamedTuple):
    """What stands in the place of an array.

    Attributes:
      shape: The array's.
      labels: Along its axes.
      fixed: Along its axes.
      has_images: Whether it depends on the images.
      vanishes: Whether it is 0 where the weights that its labels stand for are.
      sources: The weights that it is computed from, by their numbers, unless it depends on the images.
      is_raw: Whether it depends on the images in a way that leads through no kernel.
      maker: The place in `Units.uses` of the product of which it is the result, scaled and shifted at
        most; -1 for anything else.
      silencers: The weights, by their numbers, each of which makes it 0 at the places where the weight
        is 0.
    """

    shape: tuple[int, ...]
    labels: tuple[Along, ...] = ()
    fixed: tuple[Along, ...] = ()
    has_images: bool = False
    vanishes: bool = True
    sources: frozenset[int] = frozenset()
    is_raw: bool = False
    maker: int = -1
    silencers: frozenset[int] = frozenset()

    def moved(self, shape: Sequence[int], move: Callable[[Along], Along | None]) -> "Labelled":
        """The value after an operation that moves numbers and computes none."""
        labels = [move(one) for one in self.labels]
        fixed = [move(one) for one in self.fixed]
        return self._replace(
            shape=tuple(shape),
            labels=tuple(one for one in labels if one is not None),
            fixed=tuple(one for one in fixed if one is not None),
        )

    def apart_from(self, axes: Collection[int]) -> "Labelled":
        """The value without what is about any of these axes."""
        labels, fixed = (
            tuple(one for one in entries if not one.axes & frozenset(axes))
            for entries in (self.labels, self.fixed)
        )
        return self._replace(labels=labels, fixed=fixed)


def along_axis(array: np.ndarray, axis: int, rank: int, why: str = "") -> Along:
    """A vector as what is along one axis of a value of this rank."""
    shape = [1] * rank
    shape[axis] = len(array)
    return Along(array.reshape(shape), frozenset([axis]), why)


def numbered(shape: Sequence[int], axis: int, why: str) -> Along:
    """An axis that is as long as something besides the weights says: every index is another one."""
    return along_axis(np.arange(1, shape[axis] + 1), axis, len(shape), why)


def fixed_value(shape: Sequence[int], why: str, *, has_images: bool = False) -> Labelled:
    """A value of which every axis is as long as something besides the weights says."""
    axes = [numbered(shape, axis, why) for axis, length in enumerate(shape) if length > 1]
    return Labelled(tuple(shape), (), tuple(axes), has_images)


def tied_along(units: Units, one: Along, axes: Collection[int]) -> Along | None:
    """What is left when all labels along some axes are tied; None if it is about nothing else."""
    inside = one.axes & frozenset(axes)
    if not inside:
        return one
    first = one.array.max(tuple(inside), keepdims=True)
    units.tie(one.array, first)
    left = one.axes - inside
    return Along(first, left, one.why) if left else None


def vector(units: Units, one: Along, axis: int) -> np.ndarray:
    """The labels along one axis, those along all others tied to them."""
    rest = tied_along(units, one, one.axes - {axis})
    assert rest is not None
    return rest.array.reshape(-1)


def simplified(units: Units, value: Labelled) -> Labelled:
    """The same value, about no axis along which all labels are of one unit, or nothing varies."""

    def simple(one: Along, known: Callable[[np.ndarray], np.ndarray]) -> Along:
        array, axes = one.array, one.axes
        for axis in sorted(axes):
            first = array.take([0], axis)
            if len(axes) > 1 and (known(array) == known(first)).all():
                array, axes = first, axes - {axis}
        return Along(array, axes, one.why)

    if all(len(one.axes) == 1 for one in (*value.labels, *value.fixed)):
        return value
    return value._replace(
        labels=tuple(simple(one, units.of) for one in value.labels),
        fixed=tuple(simple(one, np.asarray) for one in value.fixed),
    )


def merged(units: Units, lists: Iterable[tuple[Along, ...]]) -> tuple[Along, ...]:
    """Labels of several values that are computed with element by element: those that meet are tied."""
    found: list[Along] = []
    for labels in lists:
        for one in labels:
            meets = [known for known in found if known.axes & one.axes]
            for known in meets:
                units.tie(known.array, one.array)
            if not meets:
                found.append(one)
                continue
            place = next(place for place, known in enumerate(found) if known is meets[0])
            known = found[place]
            if not known.array.all() or one.axes - known.axes:
                array = np.where(known.array != 0, known.array, one.array)
                found[place] = Along(array, known.axes | one.axes)
    return tuple(found)


def all_fixed(lists: Iterable[tuple[Along, ...]]) -> tuple[Along, ...]:
    """What is fixed of several values that are computed with element by element."""
    found: dict[Axes, Along] = {}
    for fixed in lists:
        for one in fixed:
            known = found.get(one.axes)
            if known is None:
                found[one.axes] = one
            elif not np.array_equal(known.array, one.array):
                pairs = known.array * (one.array.max() + 1) + one.array
                found[one.axes] = Along(
                    np.unique(pairs, return_inverse=True)[1].reshape(pairs.shape)
                    + (pairs.min() > 0),
                    one.axes,
                    known.why,
                )
    return tuple(found.values())


def check_together(units: Units, fixed: Along, labels: Along) -> bool:
    """Refuses labels that stand beside what is fixed, unless every part of that has the same ones.

    Returns whether all of them are refused.

    The statistics of GroupNorm, repeated for the channels of each group, vary by the group alone: if
    the same channels of every group go, they still fit. Numbers that vary by channel do not.
    """
    if not fixed.axes & labels.axes:
        return False
    parts, tags = np.broadcast_arrays(fixed.array, units.of(labels.array))
    both = (parts != 0) & (tags != 0)
    if not both.any():
        return False
    parts, tags = parts[both], tags[both]
    _, parts = np.unique(parts, return_inverse=True)
    known, tags = np.unique(tags, return_inverse=True)
    table = np.zeros((parts.max() + 1, len(known)), np.int64)
    np.add.at(table, (parts, tags), 1)
    wrong = known[(table != table[:1]).any(0)]
    if len(wrong):
        units.refuse(wrong, fixed.why)
    return len(wrong) == len(np.unique(units.of(labels.array[labels.array != 0])))


def whole_steps(units: Units, one: Along) -> Along:
    """Labels of an axis that the code has split, and that stay apart: the shares go by whole steps.

    One of the numbers that an axis is split into is the code's, most often the smaller one.
    """
    if len(one.axes) < 2:
        return one
    longest = max(one.axes, key=lambda axis: (one.array.shape[axis], axis))
    rest = tied_along(units, one, one.axes - {longest})
    assert rest is not None
    return rest
