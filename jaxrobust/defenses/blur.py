"""Gaussian blur of a batch, computed as a product with one matrix for each axis."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import checks, compilation
from jaxrobust.types import Array


def gaussian_blur(
    images: Array, sigma: Array | float, truncate: float = 3.0, radius: int | None = None
) -> Array:
    """Blurs images with a Gaussian. Beyond the edges of an image its edge pixels are repeated.

    Args:
      images: floating [B, H, W, C].
      sigma: The standard deviation in pixels, a scalar of at least 0, traced or not; 0 changes nothing.
      truncate: The number of standard deviations, at least 0, at which the Gaussian is cut off (after
        rounding to whole pixels). It is scaled to sum to 1.
      radius: The largest value of `truncate * sigma`, rounded, in pixels. It is needed if sigma is
        traced, because it determines the shape of the computation.

    Returns:
      [B, H, W, C], of the type of the images. If a traced sigma is negative or too large for `radius`,
      the result is NaN, because compiled code cannot raise an error.

    Raises:
      TypeError: The images are not a floating array.
      ValueError: The images are not [B, H, W, C]; sigma is negative or not a scalar; the radius is too
        small; or sigma is traced and there is no radius.

    Example:
      >>> image = jnp.zeros((1, 1, 5, 1)).at[0, 0, 2, 0].set(1)
      >>> print(np.asarray(gaussian_blur(image, 0.5)).ravel().round(2))
      [0.   0.11 0.79 0.11 0.  ]
    """
    checks.float_images(images)
    checks.number("sigma", sigma, minimum=0)
    if np.ndim(sigma):
        raise ValueError(f"`sigma` must be a scalar, got shape {np.shape(sigma)}.")
    checks.number("truncate", truncate, minimum=0)
    radius = _radius(sigma, truncate, radius)
    if radius is None:
        raise ValueError("`radius`, in pixels, must not be None if `sigma` is traced.")
    return _blur(images, sigma, truncate, radius)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GaussianBlur:
    """A Gaussian blur with a given sigma, for `Preprocessed`.

    Attributes:
      sigma: The standard deviation in pixels, at least 0; a leaf of the pytree.
      radius: The radius of the compiled blur in pixels. None: 3 times `sigma`. A smaller sigma can then
        replace this one without recompilation; a larger one, if it is traced, gives NaN.

    Raises:
      ValueError: Sigma is negative, or needs a larger radius.

    Example:
      >>> GaussianBlur(1.5)
      GaussianBlur(sigma=1.5, radius=5)
    """

    sigma: Array | float
    radius: int | None = dataclasses.field(default=None, metadata={"static": True})

    def __post_init__(self) -> None:
        checks.number("sigma", self.sigma, minimum=0)
        object.__setattr__(self, "radius", _radius(self.sigma, _TRUNCATE, self.radius))

    def __call__(self, images: Array) -> Array:
        """Blurs floating images [B, H, W, C]."""
        return gaussian_blur(images, self.sigma, _TRUNCATE, self.radius)


_TRUNCATE = 3.0


def _radius(sigma: Array | float, truncate: float, radius: int | None) -> int | None:
    """Returns the given radius, or that of a sigma whose value is known."""
    if radius is not None:
        checks.integer("radius", radius, minimum=0)
    numbers = int | float | np.number | np.ndarray | jax.Array
    if not isinstance(sigma, numbers) or isinstance(sigma, jax.core.Tracer) or np.ndim(sigma):
        return radius  # traced, a placeholder or one of many: nothing is known of it
    # In float32, as the compiled code rounds.
    needed = int(np.float32(truncate) * np.float32(sigma) + np.float32(0.5))
    if radius is not None and needed > radius:
        raise ValueError(
            f"`radius` must be at least {needed} for a `sigma` of {float(sigma):g}, got {radius}."
        )
    return needed if radius is None else radius


@functools.partial(compilation.jit, static_argnames="radius")
def _blur(images: Array, sigma: Array | float, truncate: Array | float, radius: int) -> Array:
    dtype = jnp.promote_types(images.dtype, jnp.float32)
    sigma = jnp.asarray(sigma, dtype)
    offsets = jnp.arange(-radius, radius + 1)
    # A sigma of 0 must not divide by zero: all weight is then on the pixel itself.
    weights = jnp.exp(-0.5 * (offsets / jnp.maximum(sigma, 1e-6)) ** 2)
    weights = jnp.where(jnp.abs(offsets) <= jnp.floor(truncate * sigma + 0.5), weights, 0.0)
    weights /= weights.sum()
    reach = (radius, radius)
    padded = jnp.pad(images.astype(dtype), ((0, 0), reach, reach, (0, 0)), mode="edge")
    rows, columns = (_banded(weights, size) for size in images.shape[1:3])
    # GPUs would otherwise multiply with 10 bits of mantissa.
    blurred = jnp.einsum("hy,byxc,wx->bhwc", rows, padded, columns, precision="highest")
    # With some room, because compiled code may round the product otherwise than the host did.
    fits = (sigma >= 0) & (truncate * sigma < radius + 0.501)
    return jnp.where(fits, blurred, jnp.nan).astype(images.dtype)


def _banded(weights: Array, size: int) -> Array:
    """Returns [size, size + 2 radius]: the weights in every row, each shifted by one to the right."""
    tap = jnp.arange(size + len(weights) - 1) - jnp.arange(size)[:, None]
    inside = (tap >= 0) & (tap < len(weights))
    return jnp.where(inside, weights[jnp.clip(tap, 0, len(weights) - 1)], 0.0)
