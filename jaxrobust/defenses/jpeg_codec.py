"""JPEG compression and decompression, like that of libjpeg with its default settings.

There is no entropy coding, because it is lossless and changes no pixel.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import checks, compilation
from jaxrobust.types import Array

SUBSAMPLINGS = ("4:2:0", "4:4:4")
ROUNDINGS = ("exact", "straight_through", "none")


def jpeg(
    images: Array,
    quality: int = 75,
    subsampling: str = "4:2:0",
    rounding: str = "straight_through",
) -> Array:
    """Compresses images with JPEG and decompresses them; RGB images, or gray ones with one channel.

    The codec follows libjpeg (and so Pillow) step by step: 8 bits, YCbCr of 8 bits, chroma averaged
    over 2 x 2 pixels, 8 x 8 DCT, quantisation, and back, with chroma enlarged by the triangle filter
    ("fancy upsampling"). Only the DCT differs: it is computed in floating point, where libjpeg uses
    integers of 13 bits, so that a coefficient close to a tie may be rounded to the other level. On
    photographs at quality 75, 2 to 7 % of the values differ from Pillow's, by 0.02 to 0.1 of 255 on
    average; on images of 32 x 32 pixels by 0.04 to 0.7.

    Args:
      images: floating [B, H, W, C] in [0, 1] (values outside are clipped), C = 1 or 3, any H and W.
      quality: The quality, 1 to 100, by which libjpeg scales the tables of the standard's Annex K.
      subsampling: "4:2:0" halves the resolution of chroma in both directions, "4:4:4" keeps it.
      rounding: "straight_through" has the gradient of the codec without rounding. "exact" has the same
        values and the true gradient, which is zero almost everywhere. "none" does not round.

    Returns:
      [B, H, W, C] in [0, 1], of the type of the images; multiples of 1/255 unless rounding is "none".

    Raises:
      TypeError: The images are not a floating array, or the quality is not an integer.
      ValueError: The images are not [B, H, W, C] with C = 1 or 3, or the quality, subsampling or
        rounding is unknown.

    Example:
      >>> gray = jnp.full((1, 10, 7, 3), 100 / 255)
      >>> bool(jnp.allclose(jpeg(gray, quality=90), gray))
      True

    References:
      ITU-T Recommendation T.81, 1992: the DCT in A.3.3, quantisation in A.3.4, tables in K.1.
      Rounding passed straight through: Shin, Song, "JPEG-resistant Adversarial Images", NIPS 2017
      workshop on machine learning and computer security (with a smooth function in its place).
    """
    checks.float_images(images)
    if images.shape[-1] not in (1, 3):
        raise ValueError(f"`images` must have 1 or 3 channels, got shape {tuple(images.shape)}.")
    _check(quality, subsampling, rounding)
    return _jpeg(images, quantisation_tables(quality), subsampling, rounding)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class JPEG:
    """JPEG compression with given settings, for `Preprocessed`.

    Attributes:
      quality: The quality, 1 to 100.
      subsampling: "4:2:0" or "4:4:4"; see `jpeg`.
      rounding: "straight_through", "exact" or "none"; see `jpeg`. The default has a gradient that an
        attack can use.

    Raises:
      TypeError: The quality is not an integer.
      ValueError: A setting is unknown or out of range.

    Example:
      >>> JPEG(75)(jnp.zeros((1, 8, 8, 3))).shape
      (1, 8, 8, 3)
    """

    quality: int = dataclasses.field(default=75, metadata={"static": True})
    subsampling: str = dataclasses.field(default="4:2:0", metadata={"static": True})
    rounding: str = dataclasses.field(default="straight_through", metadata={"static": True})

    def __post_init__(self) -> None:
        _check(self.quality, self.subsampling, self.rounding)

    def __call__(self, images: Array) -> Array:
        """Compresses floating images [B, H, W, C] in [0, 1], C = 1 or 3, and decompresses them."""
        return jpeg(images, self.quality, self.subsampling, self.rounding)


def _check(quality: int, subsampling: str, rounding: str) -> None:
    checks.integer("quality", quality, minimum=1)
    checks.number("quality", quality, maximum=100)
    checks.one_of("subsampling", subsampling, SUBSAMPLINGS)
    checks.one_of("rounding", rounding, ROUNDINGS)


# Annex K, tables K.1 and K.2.
_LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
_CHROMINANCE = np.full((8, 8), 99)
_CHROMINANCE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]

_FREQUENCY, _POSITION = np.mgrid[:8, :8]
# Orthonormal, which for 8 points is the standard's own scaling.
_DCT = np.where(_FREQUENCY == 0, np.sqrt(1 / 8), 0.5) * np.cos(
    (2 * _POSITION + 1) * _FREQUENCY * np.pi / 16
)


def quantisation_tables(quality: int) -> tuple[Array, Array]:
    """Returns libjpeg's tables for luminance and chrominance: int [8, 8], rows by vertical frequency.

    Args:
      quality: The quality, 1 to 100; 50 gives the tables of Annex K.
    """
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    luminance, chrominance = (
        jnp.asarray(np.clip((table * percent + 50) // 100, 1, 255), jnp.int32)
        for table in (_LUMINANCE, _CHROMINANCE)
    )
    return luminance, chrominance


@functools.partial(compilation.jit, static_argnames=("subsampling", "rounding"))
def _jpeg(images: Array, tables: tuple[Array, Array], subsampling: str, rounding: str) -> Array:
    luminance, chrominance = tables
    # Half precision has too few bits for the coefficients.
    values = images.astype(jnp.promote_types(images.dtype, jnp.float32)) * 255.0
    values = _floor(_clip(values), rounding)
    if images.shape[-1] == 1:
        return (_coded(values[..., 0], luminance, rounding)[..., None] / 255.0).astype(images.dtype)

    red, green, blue = values[..., 0], values[..., 1], values[..., 2]
    y = _floor(0.299 * red + 0.587 * green + 0.114 * blue, rounding)
    # libjpeg rounds halves of chroma down, which two equal channels are enough to make.
    below_half = 0.4999
    cb = -0.168735892 * red - 0.331264108 * green + 0.5 * blue + 128
    cr = 0.5 * red - 0.418687589 * green - 0.081312411 * blue + 128
    cb, cr = _floor(cb, rounding, below_half), _floor(cr, rounding, below_half)
    y = _coded(y, luminance, rounding)
    if subsampling == "4:4:4":
        cb, cr = (_coded(plane, chrominance, rounding) for plane in (cb, cr))
    else:
        cb, cr = (_subsampled(plane, chrominance, rounding) for plane in (cb, cr))
    cb, cr = cb - 128, cr - 128
    rgb = [y + 1.402 * cr, y - 0.344136286 * cb - 0.714136286 * cr, y + 1.772 * cb]
    return (_clip(_floor(jnp.stack(rgb, axis=-1), rounding)) / 255.0).astype(images.dtype)


def _coded(plane: Array, table: Array, rounding: str) -> Array:
    """Transforms and quantises one plane [B, H, W] in 0 to 255, and transforms it back."""
    size, height, width = plane.shape
    padding = ((0, 0), (0, -height % 8), (0, -width % 8))
    padded = jnp.pad(plane - 128, padding, mode="edge")
    rows, columns = padded.shape[1] // 8, padded.shape[2] // 8
    blocks = padded.reshape(size, rows, 8, columns, 8)
    dct = jnp.asarray(_DCT, plane.dtype)
    steps = jnp.asarray(table, plane.dtype)[:, None, :]
    # "highest": with the 10 bits that GPUs use by default, coefficients round to other levels.
    product = functools.partial(jnp.einsum, precision="highest")
    # libjpeg's transform has whole eighths.
    eighths = _floor(8 * product("uy,brycx,vx->brucv", dct, blocks, dct), rounding)
    levels = _round_half_away(eighths / (8 * steps), rounding)
    blocks = product("uy,brucv,vx->brycx", dct, levels * steps, dct)
    decoded = blocks.reshape(padded.shape)[:, :height, :width]
    return _clip(_floor(decoded + 128, rounding))


def _subsampled(plane: Array, table: Array, rounding: str) -> Array:
    """Does the same as `_coded` at half the resolution in both directions."""
    _, height, width = plane.shape
    # libjpeg continues a row before it averages, and a column (but for one row) afterwards.
    plane = jnp.pad(plane, ((0, 0), (0, height % 2), (0, -width % 16)), mode="edge")
    upper, lower = plane[:, ::2], plane[:, 1::2]
    mean = (upper[:, :, ::2] + upper[:, :, 1::2] + lower[:, :, ::2] + lower[:, :, 1::2]) / 4
    # It rounds halves down and up by turns, so that the mean stays what it is.
    half = _floor(mean, rounding, jnp.where(jnp.arange(mean.shape[2]) % 2, 0.5, 0.25))
    decoded = _coded(half, table, rounding)[:, :, : (width + 1) // 2]
    return _enlarged(decoded, rounding)[:, :height, :width]


def _enlarged(plane: Array, rounding: str) -> Array:
    """Doubles the size with the triangle filter: 3/4 of the nearest sample, 1/4 of the next nearest."""
    _, height, width = plane.shape
    if width <= 2:  # libjpeg repeats samples where there are so few
        return jnp.repeat(jnp.repeat(plane, 2, axis=1), 2, axis=2)
    tall = jnp.pad(plane, ((0, 0), (1, 1), (0, 0)), mode="edge")
    near, above, below = 3 * tall[:, 1:-1], tall[:, :-2], tall[:, 2:]
    plane = jnp.stack([near + above, near + below], axis=2).reshape(-1, 2 * height, width)
    wide = jnp.pad(plane, ((0, 0), (0, 0), (1, 1)), mode="edge")
    near, left, right = 3 * wide[:, :, 1:-1], wide[:, :, :-2], wide[:, :, 2:]
    even = _floor((near + left) / 16, rounding, 8 / 16)
    odd = _floor((near + right) / 16, rounding, 7 / 16)
    return jnp.stack([even, odd], axis=3).reshape(-1, 2 * height, 2 * width)


def _floor(values: Array, rounding: str, offset: Array | float = 0.5) -> Array:
    """Computes floor(values + offset), by default the nearest integer, with `rounding`'s gradient."""
    return _replaced(values, jnp.floor(values + offset), rounding)


def _round_half_away(values: Array, rounding: str) -> Array:
    rounded = jnp.sign(values) * jnp.floor(jnp.abs(values) + 0.5)
    return _replaced(values, rounded, rounding)


def _replaced(values: Array, rounded: Array, rounding: str) -> Array:
    if rounding == "none":
        return values
    rounded = jax.lax.stop_gradient(rounded)
    if rounding == "exact":
        return rounded
    # Adds an exact zero, whose derivative is one.
    return rounded + (values - jax.lax.stop_gradient(values))


def _clip(values: Array) -> Array:
    """Clips to 0 .. 255. The derivative at both ends is 1, so that black pixels have a gradient."""
    inside = (values >= 0) & (values <= 255)
    return jnp.where(inside, values, jax.lax.stop_gradient(jnp.clip(values, 0, 255)))
