"""A classifier with preprocessing, whose gradient an adaptive attack can use."""

import dataclasses
from collections.abc import Callable

import jax

from jaxrobust import checks, compilation
from jaxrobust.types import Array, LogitsFn

BACKWARD = ("identity", "true")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Preprocessed:
    """A defended classifier, `logits_fn(preprocess(images))`, with a choice of its gradient.

    A preprocessing without a useful gradient stops gradient attacks but not an attacker, who replaces
    the gradient by an approximation (BPDA). So the gradient can be chosen:

    - "identity" treats the preprocessing as the identity, because its output is close to its input. The
      gradient is that of `logits_fn` at the preprocessed image.
    - "true" uses the derivative of the preprocessing. It is the stronger choice for a blur, which is
      far from the identity. For `JPEG` it is the derivative of the codec without rounding.

    Attributes:
      logits_fn: A function, images [B, H, W, C] -> logits [B, K].
      preprocess: A pure function or callable pytree, images [B, H, W, C] -> images of the same shape,
        such as a `JPEG` or a `GaussianBlur`.
      backward: The gradient of the preprocessing, "identity" or "true".

    Raises:
      TypeError: `logits_fn` or `preprocess` is not callable.
      ValueError: `backward` is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> defended = Preprocessed(lambda x: x.sum((1, 2)), jnp.round)
      >>> images = jnp.full((1, 1, 1, 2), 0.75)
      >>> defended(images).tolist(), jax.grad(lambda x: defended(x).sum())(images).ravel().tolist()
      ([[1.0, 1.0]], [1.0, 1.0])

    References:
      Athalye, Carlini, Wagner, "Obfuscated Gradients Give a False Sense of Security", ICML 2018,
      section 4.1 (BPDA), https://arxiv.org/abs/1802.00420
    """

    logits_fn: LogitsFn
    preprocess: Callable[[Array], Array]
    backward: str = dataclasses.field(default="identity", metadata={"static": True})

    def __post_init__(self) -> None:
        checks.one_of("backward", self.backward, BACKWARD)
        if not callable(self.preprocess):
            raise TypeError(f"`preprocess` must be callable, got {type(self.preprocess).__name__}.")
        # A plain function could not be a leaf of what goes into compiled code.
        object.__setattr__(self, "logits_fn", compilation.as_pytree(self.logits_fn))
        object.__setattr__(self, "preprocess", compilation.as_pytree(self.preprocess))

    def __call__(self, images: Array) -> Array:
        """Returns logits [B, K] for floating images [B, H, W, C] in [0, 1].

        Raises:
          TypeError: The images are not a floating array.
          ValueError: The images are not [B, H, W, C], or the preprocessing changes their shape with
            `backward="identity"`.
        """
        checks.float_images(images)
        if self.backward == "true":
            return self.logits_fn(self.preprocess(images))
        constant = jax.lax.stop_gradient(images)
        processed = self.preprocess(constant)
        if processed.shape != images.shape:
            raise ValueError(
                f"`preprocess` must keep the shape of the images, {images.shape}, for "
                f'`backward="identity"`, got {processed.shape}.'
            )
        # Adds an exact zero, whose derivative is one.
        return self.logits_fn(processed + (images - constant))
