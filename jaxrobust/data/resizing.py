"""Training on smaller images than the network is used on."""

import dataclasses
from collections.abc import Callable

import jax

from jaxrobust import checks
from jaxrobust.types import Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Resized:
    """An augmentation that resizes the images after another one, for networks that take any size.

    Random crops are enlarged to the size of the image, so that objects look larger in training than in
    testing. Training on smaller images corrects that, and costs less: a step on images of 3/4 of the
    side has 9/16 of the arithmetic.

    Attributes:
      augment: The augmentation that is applied first, (key, images) -> images, such as an
        `Augmentation`. It must be hashable.
      side: The side of the resulting images in pixels, at least 1. The filter is bilinear, and
        antialiased for smaller images.

    Raises:
      TypeError: `augment` is not callable, or `side` is not an integer.
      ValueError: `side` is below 1.

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
        """Augments a batch. The function is pure and made to run inside jit.

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
