"""Gaussian blur of a batch, as a product with one matrix for each axis."""

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
    """Convolves every channel with a Gaussian; beyond its edges an image goes on as its edge pixels.

    Args:
      images: floating [B, H, W, C].
      sigma: Standard deviation in pixels, a scalar of at least 0; 0 changes nothing. Traced or not.
      truncate: The Gaussian is cut off beyond so many standard deviations (rounded to whole
        pixels) and scaled to sum to one.
      radius: The most that `truncate * sigma`, rounded, may be, in pixels. Needed for a traced sigma
        only, which says too late how much there is to compute.

    Returns:
      [B, H, W, C], of the images' type. NaN for a traced sigma below 0 or too large for `radius`:
      that cannot be an error, and must not be a weaker blur.

    Raises:
      TypeError: Images that are no floating array.
      ValueError: A shape other than [B, H, W, C], a sigma that is negative or no scalar, a radius that
        is too small, a traced sigma without a radius.

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
        raise ValueError("`radius` must be given, in pixels, where `sigma` is traced, got None.")
    return _blur(images, sigma, truncate, radius)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GaussianBlur:
    """`gaussian_blur` with a given sigma, to go into `Preprocessed`.

    Attributes:
      sigma: Standard deviation in pixels, at least 0; a leaf.
      radius: The reach of the compiled code in pixels, by default that of `sigma`, 3 standard
        deviations. A smaller sigma put in its place blurs exactly and compiles nothing anew; a
        traced one that is too large gives NaN.

    Raises:
      ValueError: A negative sigma, or one that needs a larger radius than is given.

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
        """Images floating [B, H, W, C] -> blurred images."""
        return gaussian_blur(images, self.sigma, _TRUNCATE, self.radius)


_TRUNCATE = 3.0


def _radius(sigma: Array | float, truncate: float, radius: int | None) -> int | None:
    """The radius given, or that of a sigma whose value is known."""
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
    """[size, size + 2 radius]: the weights in every row, one further to the right in each."""
    tap = jnp.arange(size + len(weights) - 1) - jnp.arange(size)[:, None]
    inside = (tap >= 0) & (tap < len(weights))
    return jnp.where(inside, weights[jnp.clip(tap, 0, len(weights) - 1)], 0.0)
