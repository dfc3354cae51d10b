"""Training on smaller images than the network answers."""

import dataclasses
from collections.abc import Callable

import jax

from jaxrobust import checks
from jaxrobust.types import Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Resized:
    """An augmentation, and then another size: for networks that take images of any.

    Random crops are enlarged to the image's size, so objects look larger in training than in the
    images to answer. Training on smaller images takes that back, and costs less: a step on images of
    3/4 of the side has 9/16 of the arithmetic.

    Attributes:
      augment: Applied first: (key, images) -> images, such as an `Augmentation`. Hashable.
      side: Of the images that come out, in pixels, at least 1. Bilinear, with a wider filter where
        it shrinks, so that nothing aliases.

    Raises:
      TypeError: An `augment` that cannot be called, a side that is no integer.
      ValueError: A side below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> smaller = Resized(lambda key, images: images, side=6)
      >>> smaller(jax.random.key(0), jnp.ones((2, 8, 8, 3))).shape
      (2, 6, 6, 3)

    References:
      Touvron, Vedaldi, Douze, Jégou, "Fixing the train-test resolution discrepancy", NeurIPS 2019,
      section 3, https://arxiv.org/abs/1906.06423
    """

    augment: Callable[[Array, Array], Array]
    side: int

    def __post_init__(self) -> None:
        if not callable(self.augment):
            raise TypeError(f"`augment` must be callable, got {type(self.augment).__name__}.")
        checks.integer("side", self.side, minimum=1)

    def __call__(self, key: Array, images: Array) -> Array:
        """Augments a batch; pure, and made to run inside jit.

        Args:
          key: A PRNG key.
          images: floating [B, H, W, C] in [0, 1].

        Returns:
          [B, side, side, C] in [0, 1].
        """
        checks.float_images(images)
        augmented = self.augment(key, images)
        batch, _, _, channels = augmented.shape
        return jax.image.resize(augmented, (batch, self.side, self.side, channels), "bilinear")
