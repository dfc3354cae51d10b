"""Reads a map of one image from a value, whatever the order of its axes."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust.attribution.positions import NEAR, Positions
from jaxrobust.types import Array


class View(NamedTuple):
    """How to read a map from a value of one image.

    Attributes:
      axes: The axes of rows, columns and channels, or of tokens and channels. All other axes have
        length 1.
      first: How many tokens come before the grid.
      size: The numbers of rows and columns of the map.
      rows: The rows of the image at which the map's rows lie; None if they cover it evenly.
      columns: The columns of the image at which the map's columns lie; None if they cover it evenly.
    """

    axes: tuple[int, ...]
    first: int
    size: tuple[int, int]
    rows: tuple[float, ...] | None = None
    columns: tuple[float, ...] | None = None

    def __str__(self) -> str:
        return f"{self.size[0]} x {self.size[1]}"

    def laid(self, value: Array) -> Array:
        """Returns a value with its axes in order: [H, W, C] or [T, C]."""
        others = [axis for axis in range(value.ndim) if axis not in self.axes]
        sizes = [value.shape[axis] for axis in self.axes]
        return jnp.transpose(value, (*others, *self.axes)).reshape(sizes)

    def read(self, value: Array) -> Array:
        """Returns the map [H, W, C] of a value."""
        laid = self.laid(value)
        if len(self.axes) == 3:
            return laid
        height, width = self.size
        return laid[self.first : self.first + height * width].reshape(height, width, -1)

    def enlarged(self, heat: Array, size: tuple[int, ...]) -> Array:
        """Enlarges a map [H', W'] bilinearly to an image [H, W], with each entry in its place.

        The map of a layer that covers the image evenly is resized with half-pixel centres; strided
        convolutions shift it by at most half a step. For a layer that covers less or more than the
        image, as after a crop, values are interpolated between the positions of the entries.
        """
        given = zip((self.rows, self.columns), size, strict=True)
        places = [None if one is None or _is_even(one, pixels) else one for one, pixels in given]
        if places == [None, None]:
            return jax.image.resize(heat, size, "bilinear")
        for axis, (one, pixels) in enumerate(zip(places, size, strict=True)):
            if one is None:
                wanted = (pixels, heat.shape[1]) if axis == 0 else (heat.shape[0], pixels)
                heat = jax.image.resize(heat, wanted, "bilinear")
                continue
            between = np.interp(np.arange(pixels), one, np.arange(len(one)))
            before = np.minimum(between.astype(int), len(one) - 2)
            share = jnp.asarray(np.expand_dims(between - before, 1 - axis), heat.dtype)
            low, high = (jnp.take(heat, before + more, axis) for more in range(2))
            heat = low * (1 - share) + high * share
        return heat

    def num_read(self, entries: Sequence[np.ndarray]) -> int:
        """Counts the positions that are read, given the entries that are read on each axis."""
        rows, columns = entries[self.axes[0]], entries[self.axes[1]]
        if len(self.axes) == 3:
            return int(rows.sum() * columns.sum())
        height, width = self.size
        return int(rows[self.first : self.first + height * width].sum())


def view_of(shape: Sequence[int], found: Positions) -> View | str:
    """Returns how to read a map from a value, or a text that says why it is not a map.

    Args:
      shape: The shape of the value, beginning with a batch of one image.
      found: The positions of its entries.
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
    # Axes along which positions change are rows and columns; what is left must be channels.
    rows, columns = (_changing(part) for part in (one.real, one.imag))
    others = [axis for axis in range(1, len(shape)) if axis not in rows | columns]
    channels = [axis for axis in others if shape[axis] > 1] or others[-1:]
    if not channels:
        return "it has no axis of channels"
    if len(channels) > 1:
        return "it has other axes besides positions and channels, as attention heads are"
    # One axis for both are tokens, two are a map if both run in order.
    if len(rows | columns) == 1:
        (axis,) = rows | columns
        return _of_tokens(one.ravel(), (axis, channels[0]))
    if len(rows) > 1 or len(columns) > 1:
        return "its positions do not run along one axis of rows and one of columns, as in windows"
    (row,), (column,) = rows, columns
    if np.isnan(one).any():
        return "some of its entries stand nowhere, as padding does"
    if not (_in_order(one.real) and _in_order(one.imag)):
        return "its positions do not run in order"
    places = [np.moveaxis(one, axis, 0).reshape(shape[axis], -1)[:, 0] for axis in (row, column)]
    size = (shape[row], shape[column])
    return View((row, column, channels[0]), 0, size, *_numbers(places[0].real, places[1].imag))


def _numbers(*parts: np.ndarray) -> list[tuple[float, ...]]:
    """Converts positions to tuples of numbers, which are static and can be compared."""
    return [tuple(float(one) for one in np.round(part, 4)) for part in parts]


def _is_even(places: Sequence[float], pixels: int) -> bool:
    """Says whether entries lie where those of an evenly divided image would, up to half a step."""
    step = pixels / len(places)
    centres = (np.arange(len(places)) + 0.5) * step - 0.5
    return len(places) == 1 or bool(np.abs(centres - places).max() <= step / 2 + NEAR)


def _changing(part: np.ndarray) -> set[int]:
    """The axes along which numbers change."""
    return {
        axis
        for axis, size in enumerate(part.shape)
        if size > 1 and not np.allclose(part, np.take(part, [0], axis), atol=NEAR, equal_nan=True)
    }


def _of_tokens(places: np.ndarray, axes: tuple[int, int]) -> View | str:
    """The view of tokens that form a grid, row by row, perhaps with others before and after it."""
    present = np.flatnonzero(~np.isnan(places))
    grid = places[present[0] : present[-1] + 1]
    width = int(np.argmax([*(np.abs(grid.real - grid.real[0]) > NEAR), True]))
    if not np.isnan(grid).any() and len(grid) % width == 0 and len(grid) > 1:
        grid = grid.reshape(-1, width)
        apart = np.abs([grid.real - grid.real[:, :1], grid.imag - grid.imag[:1]])
        if apart.max() < NEAR and _in_order(grid.real) and _in_order(grid.imag):
            numbers = _numbers(grid.real[:, 0], grid.imag[0])
            return View(axes, int(present[0]), (len(grid), width), *numbers)
    return "its tokens do not stand in a grid, row by row"


def _in_order(part: np.ndarray) -> bool:
    return all(bool((np.diff(part, axis=axis) > 0).all()) for axis in _changing(part))
