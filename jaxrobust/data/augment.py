"""Random augmentation of a batch inside jit: one warp and four changes of colour.

`SPORTS10_A` and `SPORTS10_B` are the ranges of the two studies of Sports-10.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxrobust import checks
from jaxrobust.data import colour, warp
from jaxrobust.types import Array, fold_keys

# A crop of the drawn area and shape may not fit into the image; torchvision tries this often too.
_CROP_ATTEMPTS = 10


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Augmentation:
    """A random augmentation of a batch: `augmentation(key, images) -> images`.

    The fields are the ranges of random draws. A field at its default switches its operation off, at no
    cost. The operations are those of torchvision, with these differences, for speed and for 32x32
    images:

    - Crop, flip, rotations, zoom and translation are combined in one bilinear warp; torchvision
      resamples at each step. Points outside the image are black; in torchvision, points outside the
      crop are black too.
    - Colours change before the warp, so that the fill stays black, and in the order of the fields
      instead of a random order.
    - The size of a crop need not be a whole number of pixels.

    The result for image i depends only on the image, the key and i, not on the rest of the batch. An
    Augmentation is hashable and static under jit: other ranges are compiled anew.

    Attributes:
      crop_scale: (low, high) of the area of the random resized crop relative to the image, in (0, 1].
        (1, 1): no crop.
      crop_ratio: (low, high) of the width of the crop over its height, drawn log-uniformly; without a
        crop it has no effect.
      flip: The probability of a horizontal flip, in [0, 1].
      rotation: The largest rotation in degrees, in either direction, in [0, 180].
      affine_rotation: The largest angle of a second, independent rotation in degrees, in [0, 180], as
        in torchvision's RandomAffine.
      translate: The largest translation in either direction, relative to width and height, in [0, 1];
        it is rounded to whole pixels.
      zoom: (low, high) of the factor by which the image is enlarged, above 0.
      brightness: For a value b, the brightness factor is drawn from [max(0, 1 - b), 1 + b]. At least 0.
      contrast: The same for the contrast factor.
      saturation: The same for the saturation factor. Images of one channel are not changed.
      hue: The largest shift of the hue in turns, in either direction, in [0, 0.5]. Images of one
        channel are not changed.

    Raises:
      TypeError: A range is not a number or a pair.
      ValueError: A range is out of bounds.

    Example:
      >>> augmentation = Augmentation(flip=0.5, rotation=15.0, brightness=0.2)
      >>> images = jnp.ones((4, 32, 32, 3))
      >>> jax.jit(augmentation)(jax.random.key(0), images).shape
      (4, 32, 32, 3)
      >>> bool((Augmentation()(jax.random.key(0), images) == images).all())
      True

    References:
      Szegedy et al., "Going deeper with convolutions", 2014 (random resized crop).
    """

    crop_scale: tuple[float, float] = (1.0, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    rotation: float = 0.0
    affine_rotation: float = 0.0
    translate: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        for name, maximum in (("crop_scale", 1.0), ("crop_ratio", None), ("zoom", None)):
            object.__setattr__(self, name, _interval(name, getattr(self, name), maximum))
        for name in ("brightness", "contrast", "saturation"):
            checks.number(name, getattr(self, name), minimum=0)
        for name, bound in (("flip", 1), ("translate", 1), ("hue", 0.5)):
            checks.number(name, getattr(self, name), minimum=0, maximum=bound)
        for name in ("rotation", "affine_rotation"):
            checks.number(name, getattr(self, name), minimum=0, maximum=180)

    def __call__(self, key: Array, images: Array) -> Array:
        """Augments a batch. The function is pure and made to run inside jit.

        Args:
          key: A PRNG key.
          images: floating [B, H, W, C] in [0, 1].

        Returns:
          [B, H, W, C] in [0, 1], of the type of the images.

        Raises:
          TypeError: The images are not floating point.
          ValueError: The images are not [B, H, W, C], or saturation or hue change and there are neither
            1 nor 3 channels.
        """
        checks.float_images(images)
        return jax.vmap(self._one)(fold_keys(key, jnp.arange(len(images))), images)

    def _one(self, key: Array, image: Array) -> Array:
        # All are drawn, whatever is on, so that switching one off leaves the others as they were.
        draws = jax.random.uniform(key, (4 + 6 + 2 + 2 * _CROP_ATTEMPTS,))
        return self._move(draws[4:10], draws[10:], self._colour(draws[:4], image))

    def _colour(self, draws: Array, image: Array) -> Array:
        brightness, contrast, saturation, hue = draws
        for adjust, strength, draw in (
            (colour.adjust_brightness, self.brightness, brightness),
            (colour.adjust_contrast, self.contrast, contrast),
            (colour.adjust_saturation, self.saturation, saturation),
        ):
            if strength:
                factor = _between(max(0.0, 1 - strength), 1 + strength, draw)
                image = adjust(image, factor).astype(image.dtype)
        return colour.adjust_hue(image, _between(-self.hue, self.hue, hue)) if self.hue else image

    def _move(self, draws: Array, crop_draws: Array, image: Array) -> Array:
        crops, zooms = self.crop_scale != (1.0, 1.0), self.zoom != (1.0, 1.0)
        rotates = self.rotation or self.affine_rotation
        if not (crops or zooms or rotates or self.flip or self.translate):
            return image
        height, width, _ = image.shape
        flip, rotation, affine_rotation, zoom, right, down = draws
        size, centre = self._crop(crop_draws, height, width) if crops else ((1.0, 1.0), (0.0, 0.0))
        move = warp.matrix(
            crop_size=size,
            crop_centre=centre,
            flip=flip < self.flip,
            rotation=_between(-self.rotation, self.rotation, rotation)
            + _between(-self.affine_rotation, self.affine_rotation, affine_rotation),
            zoom=_between(*self.zoom, zoom) if zooms else 1.0,
            translation=(
                jnp.round(_between(-self.translate, self.translate, right) * width),
                jnp.round(_between(-self.translate, self.translate, down) * height),
            ),
        )
        # Interpolating may overshoot by a rounding error.
        return jnp.clip(warp.warp(image, move), 0, 1)

    def _crop(
        self, draws: Array, height: int, width: int
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        """Draws the size and the centre of a random crop, for `warp.matrix`."""
        right, down = draws[:2]
        scale_draws, ratio_draws = jnp.split(draws[2:], 2)
        areas = height * width * _between(*self.crop_scale, scale_draws)
        low, high = self.crop_ratio
        ratios = jnp.exp(_between(math.log(low), math.log(high), ratio_draws))
        widths, heights = jnp.sqrt(areas * ratios), jnp.sqrt(areas / ratios)
        fits = (widths <= width) & (heights <= height)
        first = jnp.argmax(fits)
        # If none fits, as in torchvision: the largest crop of a shape that is allowed.
        ratio = min(max(width / height, low), high)
        crop_width = jnp.where(fits[first], widths[first], min(width, height * ratio))
        crop_height = jnp.where(fits[first], heights[first], min(height, width / ratio))
        room = (width - crop_width, height - crop_height)
        centre = (room[0] * (right - 0.5), room[1] * (down - 0.5))
        return (crop_width / width, crop_height / height), centre


def _between(low: Array | float, high: Array | float, draw: Array) -> Array:
    """Maps a number in [0, 1) to [low, high)."""
    return low + (high - low) * draw


def _interval(name: str, value: tuple[float, float], maximum: float | None) -> tuple[float, float]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TypeError(f"`{name}` must be a pair of numbers, got {value!r}.")
    low, high = value
    for end in value:
        checks.number(name, end, above=0)
    if low > high or (maximum is not None and high > maximum):
        limit = "" if maximum is None else f" <= {maximum:g}"
        raise ValueError(f"`{name}` must be a pair 0 < low <= high{limit}, got {value!r}.")
    return (low, high)


SPORTS10_A = Augmentation(
    crop_scale=(0.6, 1.0),
    flip=0.5,
    rotation=15.0,
    affine_rotation=10.0,
    translate=0.1,
    zoom=(0.9, 1.1),
    brightness=0.2,
    contrast=0.2,
    saturation=0.2,
)
"""The augmentation of the study of MLP and CNN: crops, flips, two rotations, shifts, zoom, colours."""

SPORTS10_B = Augmentation(
    flip=0.5,
    rotation=15.0,
    brightness=0.2,
    contrast=0.2,
    saturation=0.2,
    hue=0.1,
)
"""The augmentation of the study of SimpleCNN and ResNetSmall: flips, one rotation, colours and hue."""
