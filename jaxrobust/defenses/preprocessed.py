"""A classifier behind a preprocessing, with a gradient that an adaptive attack can use."""

import dataclasses
from collections.abc import Callable

import jax

from jaxrobust import checks, compilation
from jaxrobust.types import Array, LogitsFn

BACKWARD = ("identity", "true")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Preprocessed:
    """`logits_fn(preprocess(images))`: exact forwards, differentiable backwards.

    A preprocessing without a useful gradient stops gradient attacks and no attacker: he replaces the
    gradient by one that points the same way (BPDA). So the gradient here is the attacker's choice:

    - "identity": the preprocessing counts as the identity, because its output is close to its input.
      The gradient is that of `logits_fn` at the preprocessed point.
    - "true": its own derivative. The stronger choice for a blur, which is far from the identity. For
      `JPEG` that is the derivative of the codec with rounding passed straight through.

    Attributes:
      logits_fn: Images [B, H, W, C] -> logits [B, K].
      preprocess: Images [B, H, W, C] -> images of the same shape: a `JPEG`, a `GaussianBlur`, any
        pure function, or a callable pytree.
      backward: "identity" or "true".

    Raises:
      TypeError: A logits_fn or preprocess that cannot be called.
      ValueError: Another `backward`.

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
        """Images floating [B, H, W, C] in [0, 1] -> logits [B, K].

        Raises:
          TypeError: Images that are no floating array.
          ValueError: Images that are not [B, H, W, C]; a preprocessing that changes their shape
            under `backward="identity"`.
        """
        checks.float_images(images)
        if self.backward == "true":
            return self.logits_fn(self.preprocess(images))
        constant = jax.lax.stop_gradient(images)
        processed = self.preprocess(constant)
        if processed.shape != images.shape:
            raise ValueError(
                f"`preprocess` must keep the images' shape {images.shape} for "
                f'`backward="identity"`, got {processed.shape}.'
            )
        # Adds an exact zero, whose derivative is one.
        return self.logits_fn(processed + (images - constant))
