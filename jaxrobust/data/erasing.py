"""Random erasing, which hides a square of each training image."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrobust import checks
from jaxrobust.types import Array, as_key, fold_keys


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Erasing:
    """An augmentation that hides a square at a random place of each image, after another one.

    The centre of the square is drawn uniformly from the pixels of the image, so that less is hidden
    near an edge. The result for image i depends only on the image, the key and i.

    Attributes:
      augment: The augmentation that is applied first, (key, images) -> images, such as an
        `Augmentation`. It must be hashable.
      side: The side of the square in pixels, at least 1.
      fill: The value of the square in every channel, in [0, 1].

    Raises:
      TypeError: `augment` is not callable, or `side` is not an integer.
      ValueError: `side` or `fill` is out of range.

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
        """Augments a batch. The function is pure and made to run inside jit.

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
