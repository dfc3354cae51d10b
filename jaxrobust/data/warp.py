"""Flip, crop, rotation, zoom and translation of an image, in one bilinear warp.

Points are measured in pixels from the centre of the image, x to the right and y down. A warp is a
matrix that maps each pixel of the result to a point of the image, so that any number of geometric
changes costs one matrix, one gather and one interpolation, and the image is blurred only once.
"""

import jax
import jax.numpy as jnp

from jaxrobust.types import Array


def matrix(
    *,
    crop_size: tuple[Array | float, Array | float] = (1.0, 1.0),
    crop_centre: tuple[Array | float, Array | float] = (0.0, 0.0),
    flip: Array | bool = False,
    rotation: Array | float = 0.0,
    zoom: Array | float = 1.0,
    translation: tuple[Array | float, Array | float] = (0.0, 0.0),
) -> Array:
    """Returns the warp that crops, flips, rotates and zooms about the centre, and then translates.

    Args:
      crop_size: The width and height of the crop, relative to the image, in (0, 1].
      crop_centre: The centre of the crop, (x, y) in pixels from the centre of the image.
      flip: Whether left and right are swapped.
      rotation: The counter-clockwise rotation in degrees.
      zoom: The factor by which the image is enlarged, above 0.
      translation: The translation to the right and down, in pixels.

    Returns:
      float32 [2, 3], which maps a point (x, y, 1) of the result to a point of the image.

    Example:
      >>> matrix(zoom=2.0, translation=(4.0, 2.0)).tolist()
      [[0.5, -0.0, -2.0], [0.0, 0.5, -1.0]]
    """
    # Written out: a product of matrices would run at reduced precision on some accelerators, and
    # here a thousandth is a visible part of a pixel.
    angle = jnp.deg2rad(jnp.asarray(rotation, jnp.float32))
    cos, sin = jnp.cos(angle) / zoom, jnp.sin(angle) / zoom
    x, y = translation
    across, down = jnp.where(flip, -1.0, 1.0) * crop_size[0], crop_size[1]
    rows = (
        (across * cos, -across * sin, across * (y * sin - x * cos) + crop_centre[0]),
        (down * sin, down * cos, crop_centre[1] - down * (x * sin + y * cos)),
    )
    return jnp.stack([jnp.stack([jnp.asarray(v, jnp.float32) for v in row]) for row in rows])


def warp(image: Array, matrix: Array) -> Array:
    """Warps an image with bilinear interpolation; points outside the image are black.

    It does the same as Pillow's `Image.transform(..., AFFINE, resample=BILINEAR)`: a point up to half a
    pixel beyond the outermost pixel centres takes the outermost value, and a point further out is 0,
    like the fill of torchvision's rotations.

    Args:
      image: floating [H, W, C].
      matrix: floating [2, 3], made by `matrix`.

    Returns:
      [H, W, C], of the type of the image.

    Example:
      >>> image = jnp.arange(4.0).reshape(2, 2, 1)
      >>> image[..., 0].tolist(), warp(image, matrix(flip=True))[..., 0].tolist()
      ([[0.0, 1.0], [2.0, 3.0]], [[1.0, 0.0], [3.0, 2.0]])
    """
    height, width, channels = image.shape
    x = jnp.arange(width) - (width - 1) / 2
    y = jnp.arange(height)[:, None] - (height - 1) / 2
    source_x = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] + (width - 1) / 2
    source_y = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] + (height - 1) / 2
    inside = (source_x >= -0.5) & (source_x < width - 0.5)
    inside &= (source_y >= -0.5) & (source_y < height - 0.5)

    # Both neighbours of a point exist even on the last row and column, where the second has all the
    # weight; one row or column alone is doubled.
    image = jnp.pad(image, ((0, int(height == 1)), (0, int(width == 1)), (0, 0)), mode="edge")
    source_x = jnp.clip(source_x, 0, width - 1)
    source_y = jnp.clip(source_y, 0, height - 1)
    left = jnp.clip(jnp.floor(source_x), 0, image.shape[1] - 2)
    top = jnp.clip(jnp.floor(source_y), 0, image.shape[0] - 2)

    def neighbours(row: Array, column: Array) -> Array:
        return jax.lax.dynamic_slice(image, (row, column, 0), (2, 2, channels))

    # One gather of 2x2 pixels: on CPU up to twice as fast as four gathers of one.
    patches = jax.vmap(jax.vmap(neighbours))(top.astype(jnp.int32), left.astype(jnp.int32))
    down, right = (source_y - top)[..., None, None], (source_x - left)[..., None]
    rows = patches[..., 0, :, :] + down * (patches[..., 1, :, :] - patches[..., 0, :, :])
    values = rows[..., 0, :] + right * (rows[..., 1, :] - rows[..., 0, :])
    return jnp.where(inside[..., None], values, 0).astype(image.dtype)
