"""Random erasing: a square of each training image is hidden."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrobust import checks
from jaxrobust.types import Array, as_key, fold_keys


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Erasing:
    """An augmentation, and then a square of one colour at a random place of each image.

    The square's centre is drawn uniformly from the image's pixels, so near an edge less is hidden.
    Image i depends on the key and i alone, not on the other images.

    Attributes:
      augment: Applied first: (key, images) -> images, such as an `Augmentation`. Hashable.
      side: Of the square in pixels, at least 1.
      fill: Its value in every channel, in [0, 1].

    Raises:
      TypeError: An `augment` that cannot be called, a side that is no integer.
      ValueError: A side or fill out of range.

    Example:
      >>> erase = Erasing(lambda key, images: images, side=64)
      >>> erase(jax.random.key(0), jnp.ones((2, 8, 8, 3))).max().item()
      0.5

    References:
      DeVries, Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017,
      https://arxiv.org/abs/1708.04552
    """

    augment: Callable[[Array, Array], Array]
    side: int
    fill: float = 0.5

    def __post_init__(self) -> None:
        if not callable(self.augment):
            raise TypeError(f"`augment` must be callable, got {type(self.augment).__name__}.")
        checks.integer("side", self.side, minimum=1)
        checks.number("fill", self.fill, minimum=0, maximum=1)

    def __call__(self, key: Array, images: Array) -> Array:
        """Augments a batch; pure, and made to run inside jit.

        Args:
          key: A PRNG key.
          images: floating [B, H, W, C] in [0, 1].

        Returns:
          [B, H, W, C] in [0, 1].
        """
        checks.float_images(images)
        first, second = jax.random.split(as_key(key))
        keys = fold_keys(second, jnp.arange(len(images)))
        return jax.vmap(self._one)(keys, self.augment(first, images))

    def _one(self, key: Array, image: Array) -> Array:
        rows, columns = image.shape[:2]
        row_key, column_key = jax.random.split(key)
        row = jax.random.randint(row_key, (), 0, rows)
        column = jax.random.randint(column_key, (), 0, columns)

        def inside(positions: Array, centre: Array) -> Array:
            first = centre - self.side // 2
            return (positions >= first) & (positions < first + self.side)

        hidden = inside(jnp.arange(rows), row)[:, None] & inside(jnp.arange(columns), column)
        return jnp.where(hidden[..., None], jnp.asarray(self.fill, image.dtype), image)
