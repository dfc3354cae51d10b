"""How a map of one image is read from a value, whatever the order of its axes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxrobust.attribution.positions import Positions
from jaxrobust.types import Array

_NEAR = 1e-3  # of a pixel


class View(NamedTuple):
    """How a map is read from a value of one image.

    Attributes:
      axes: Those of the value without the batch: rows, columns and channels, or tokens and channels.
      first: How many tokens stand before the grid.
      size: Rows and columns.
    """

    axes: tuple[int, ...]
    first: int
    size: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.size[0]} x {self.size[1]}"

    def tokens(self, value: Array) -> Array:
        """[1, ...] with the batch taken away and its axes in order: [H, W, C] or [T, C]."""
        return jnp.transpose(value[0], self.axes)

    def read(self, value: Array) -> Array:
        """The map [H, W, C] of a value [1, ...]."""
        laid = self.tokens(value)
        if len(self.axes) == 3:
            return laid
        height, width = self.size
        return laid[self.first : self.first + height * width].reshape(height, width, -1)

    def num_read(self, entries: Sequence[np.ndarray]) -> int:
        """Of how many positions something is read, if these entries are, axis by axis."""
        rows, *others = (entries[1 + axis] for axis in self.axes)
        if len(self.axes) == 3:
            return int(rows.sum() * others[0].sum())
        height, width = self.size
        return int(rows[self.first : self.first + height * width].sum())


def view_of(shape: Sequence[int], found: Positions) -> View | str:
    """How a map is read from a value, or why it is none.

    Args:
      shape: Of the value, with the batch of one image in front.
      found: Its positions.
    """
    if found is None:
        return "where its entries stand in the image is not known"
    if not found:
        return "its entries have no positions of their own"
    if shape[0] != 1:
        return (
            "its leading axis is not the batch alone, as where windows or heads are folded into it"
        )
    if len(found) > 1:
        return "it sets positions against positions, as attention weights do"
    (one,) = found
    rows, columns = (_changing(part) for part in (one.real, one.imag))
    if len(shape) < 3 or len(rows | columns) + 1 >= len(shape):
        return "it has no axis of channels"
    if len(rows | columns) + 2 < len(shape) and not _is_single(shape, rows | columns):
        return "it has other axes besides positions and channels, as attention heads are"
    if len(rows) > 1 or len(columns) > 1 or len(shape) > 4:
        return "its positions do not run along one axis of rows and one of columns, as in windows"
    return _of_map(shape, one, rows, columns) if len(shape) == 4 else _of_tokens(one)


def _changing(part: np.ndarray) -> set[int]:
    """The axes along which numbers change."""
    return {
        axis
        for axis, size in enumerate(part.shape)
        if size > 1 and not np.allclose(part, np.take(part, [0], axis), atol=_NEAR, equal_nan=True)
    }


def _is_single(shape: Sequence[int], changing: set[int]) -> bool:
    """Whether a map of one row or one column."""
    return (
        len(shape) == 4
        and len(changing) == 1
        and 1 in [size for axis, size in enumerate(shape) if axis and axis not in changing]
    )


def _of_map(shape: Sequence[int], one: np.ndarray, rows: set[int], columns: set[int]) -> View | str:
    if rows & columns:
        return "it has other axes besides positions and channels, as attention heads are"
    single = [axis for axis in (1, 2, 3) if shape[axis] == 1 and axis not in rows | columns]
    row, column = (next(iter(axes)) if axes else single[0] for axes in (rows, columns))
    if np.isnan(one).any():
        return "some of its entries stand nowhere, as padding does"
    if not all(_in_order(part) for part in (one.real, one.imag)):
        return "its positions do not run in order"
    (channel,) = {1, 2, 3} - {row, column}
    return View((row - 1, column - 1, channel - 1), 0, (shape[row], shape[column]))


def _of_tokens(one: np.ndarray) -> View | str:
    (axis,) = [axis for axis, size in enumerate(one.shape) if size > 1] if one.size > 1 else [1]
    places = one.ravel()
    present = np.flatnonzero(~np.isnan(places))
    first, last = present[0], present[-1] + 1
    grid = places[first:last]
    width = int(np.count_nonzero(np.cumsum(np.abs(grid.real - grid.real[0]) > _NEAR) == 0))
    message = "its tokens do not stand in a grid, row by row"
    if np.isnan(grid).any() or len(grid) % width or len(grid) == 1:
        return message
    grid = grid.reshape(-1, width)
    parts = (grid.real - grid.real[:, :1], grid.imag - grid.imag[:1])
    if any(np.abs(part).max() > _NEAR for part in parts):
        return message
    if not (_in_order(grid.real) and _in_order(grid.imag)):
        return message
    other = 3 - axis
    return View((axis - 1, other - 1), int(first), (len(grid), width))


def _in_order(part: np.ndarray) -> bool:
    steps: list[Any] = [np.diff(part, axis=axis) for axis in _changing(part)]
    return all(bool((step > 0).all()) for step in steps)
