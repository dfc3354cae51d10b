"""Randomised smoothing: the predictions of a classifier for an image with Gaussian noise.

The noisy images are not clipped to [0, 1], because the certificate assumes Gaussian noise. The base
classifier may clip its input as its first step; the certificate then holds for that classifier.

References:
  Cohen, Rosenfeld, Kolter, "Certified Adversarial Robustness via Randomized Smoothing", ICML 2019,
  https://arxiv.org/abs/1902.02918
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import checks, compilation, programs
from jaxrobust.defenses.averaging import Expectation
from jaxrobust.programs import company
from jaxrobust.types import Array, LogitsFn, as_key


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Smoothed:
    """The soft smoothed classifier: the log of the mean probabilities over noisy copies of an image.

    The key fixes the noise, so that this is a deterministic, differentiable function. Use it to attack
    a smoothed classifier (expectation over transformation, SmoothAdv), or to predict without a
    certificate.

    Image i of a batch has its own noise, from the key folded with i. Code that splits a batch, as
    attacks do on a CPU, changes the index of an image and thus its noise. With `common_noise=True` all
    images share the noise, and the logits of an image depend only on the image.

    Attributes:
      logits_fn: A function, images [B, H, W, C] -> logits [B, K]. It sees values outside [0, 1].
      sigma: The standard deviation of the noise in pixel units, at least 0; a leaf of the pytree.
      num_samples: The number of noisy copies of each image, at least 1.
      key: A PRNG key; a leaf of the pytree.
      common_noise: Whether all images of a batch share the noise.
      chunk_size: The number of copies that are evaluated at a time, at least 1; see `Expectation`.

    Raises:
      TypeError: `logits_fn` is not callable, or a number of copies is not an integer.
      ValueError: Sigma is negative, or a number of copies is below 1.

    Example:
      >>> smooth = Smoothed(lambda x: x.sum((1, 2)), 0.5, 8, jax.random.key(0))
      >>> smooth(jnp.ones((2, 4, 4, 3))).shape
      (2, 3)

    References:
      Salman et al., "Provably Robust Deep Learning via Adversarially Trained Smoothed Classifiers",
      NeurIPS 2019, https://arxiv.org/abs/1906.04584
    """

    logits_fn: LogitsFn
    sigma: Array | float
    num_samples: int = dataclasses.field(metadata={"static": True})
    key: Array
    common_noise: bool = dataclasses.field(default=False, metadata={"static": True})
    chunk_size: int = dataclasses.field(default=1, metadata={"static": True})

    def __post_init__(self) -> None:
        checks.number("sigma", self.sigma, minimum=0)
        checks.integer("num_samples", self.num_samples, minimum=1)
        checks.integer("chunk_size", self.chunk_size, minimum=1)
        object.__setattr__(self, "logits_fn", compilation.as_pytree(self.logits_fn))

    def __call__(self, images: Array) -> Array:
        """Returns log mean probabilities [B, K] for floating images [B, H, W, C] in [0, 1]."""
        noisy = jax.tree_util.Partial(
            _common_noise if self.common_noise else _own_noise, self.logits_fn, self.sigma
        )
        return Expectation(noisy, self.key, self.num_samples, chunk_size=self.chunk_size)(images)


def _own_noise(logits_fn: LogitsFn, sigma: Array, key: Array, images: Array) -> Array:
    keys = _fold(key, jnp.arange(len(images)))
    return logits_fn(images + sigma * _normal(keys, images))


def _common_noise(logits_fn: LogitsFn, sigma: Array, key: Array, images: Array) -> Array:
    return logits_fn(images + sigma * jax.random.normal(key, images.shape[1:], images.dtype))


def _fold(key: Array, indices: Array) -> Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, indices)


def _normal(keys: Array, images: Array) -> Array:
    return jax.vmap(lambda key: jax.random.normal(key, images.shape[1:], images.dtype))(keys)


def smoothed_counts(
    key: Array,
    logits_fn: LogitsFn,
    images: Array,
    sigma: float,
    num_samples: int,
    *,
    batch_size: int = 256,
    indices: Any = None,
) -> Array:
    """Counts how often the classifier predicts each class for noisy copies of each image.

    Copy s of image i has the noise of the key folded with i and then with s, which does not depend on
    the batch size or the other images. One compiled program serves every sigma and number of copies.

    Args:
      key: A PRNG key.
      logits_fn: A function, images [B, H, W, C] -> logits [B, K]. It sees values outside [0, 1],
        because the noisy images are not clipped.
      images: floating [B, H, W, C] in [0, 1].
      sigma: The standard deviation of the noise in pixel units, at least 0.
      num_samples: The number of noisy copies of each image, at least 1.
      batch_size: The number of noisy copies, of any images, that are evaluated at a time, at least 1.
      indices: int [B], the indices of the images in their data set, which determine their noise. None:
        0 .. B - 1.

    Returns:
      int32 [B, K]. A copy with NaN among its logits counts for no class.

    Raises:
      TypeError: The images are integers, or a number of copies or an index is not an integer.
      ValueError: Shapes do not match, a value is out of range, or there are more than 2^31 copies.
    """
    checks.integer("num_samples", num_samples, minimum=1)
    checks.integer("batch_size", batch_size, minimum=1)
    checks.number("sigma", sigma, minimum=0)
    images = jnp.asarray(images)
    checks.float_images(images)
    images = images.astype(jnp.float32)
    places = jnp.arange(len(images)) if indices is None else jnp.asarray(indices)
    checks.integers("indices", places)
    if places.shape != images.shape[:1]:
        raise ValueError(
            f"`indices` must be integers of shape {images.shape[:1]}, got shape {places.shape}."
        )
    # Copies are counted in 32 bits.
    if len(images) * num_samples + batch_size >= 2**31:
        raise ValueError(
            f"`num_samples` must be less than 2^31 / {len(images)}, the number of images, got "
            f"{num_samples}."
        )
    if not checks.is_traced(images):
        checks.value_range(images)
    # The number of copies is traced, so that one program serves them all.
    copies = jax.ShapeDtypeStruct((batch_size, *images.shape[1:]), images.dtype)
    function = programs.as_argument(logits_fn, copies)
    if len(images) and not checks.is_traced(images, function):
        company.check_once(logits_fn, function, np.asarray(images[:8]))
    num_classes = programs.logits_shape(function, copies)[1]
    counts = jnp.zeros((len(images), num_classes), jnp.int32)
    return _counts(
        counts, as_key(key), function, images, places, jnp.float32(sigma), num_samples, batch_size
    )


@functools.partial(compilation.jit, static_argnames="batch_size")
def _counts(
    counts: Array,
    key: Array,
    logits_fn: LogitsFn,
    images: Array,
    places: Array,
    sigma: Array,
    num_samples: int | Array,
    batch_size: int,
) -> Array:
    total = len(images) * num_samples

    def add(step: Array, counts: Array) -> Array:
        copies = step * batch_size + jnp.arange(batch_size)
        # The last step is filled up with copies that are not counted.
        counted = copies < total
        rows = jnp.minimum(copies // num_samples, len(images) - 1)
        keys = jax.vmap(jax.random.fold_in)(_fold(key, places[rows]), copies % num_samples)
        originals = images[rows]
        logits = logits_fn(originals + sigma * _normal(keys, originals))
        counted &= ~jnp.any(jnp.isnan(logits), axis=-1)
        return counts.at[rows, jnp.argmax(logits, axis=-1)].add(counted.astype(counts.dtype))

    return jax.lax.fori_loop(0, -(-total // batch_size), add, counts)
