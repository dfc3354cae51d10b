"""Detection of adversarial images: squeezers, scores, and the threshold of a score.

A detector scores every image and refuses those above a threshold, which is chosen on clean images that
the network was not trained on. Feature squeezing compares the answers to an image and to coarser
versions of it: where they differ much, the answer rests on details that an attack may have put there.

An attacker who knows the detector attacks the mean answer to an image and its squeezed versions
(`Ensemble` of `Preprocessed`), so that all of them agree on the wrong class.

References:
  Xu, Evans, Qi, "Feature Squeezing: Detecting Adversarial Examples in Deep Neural Networks", NDSS 2018,
  https://arxiv.org/abs/1704.01155
  He, Wei, Chen, Carlini, Song, "Adversarial Example Defenses: Ensembles of Weak Defenses are not
  Strong", WOOT 2017, https://arxiv.org/abs/1706.04701 (the attacker who knows it)
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import checks
from jaxrobust.types import Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class BitDepth:
    """Rounds pixels to fewer levels, for `Preprocessed` with `backward="identity"`, its default.

    Attributes:
      bits: The number of bits of a value, 1 to 16: pixels keep 2 ** bits levels. Images of 8 bits are
        not changed by 8 bits.

    Raises:
      TypeError: `bits` is not an integer.
      ValueError: `bits` is not in 1 .. 16.

    Example:
      >>> BitDepth(1)(jnp.array([[[[0.2], [0.7]]]])).ravel().tolist()
      [0.0, 1.0]
    """

    bits: int

    def __post_init__(self) -> None:
        checks.integer("bits", self.bits, minimum=1)
        checks.number("bits", self.bits, maximum=16)

    def __call__(self, images: Array) -> Array:
        """Rounds floating images [B, H, W, C] in [0, 1]."""
        checks.float_images(images)
        highest = 2**self.bits - 1
        return jnp.round(images * highest) / highest


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class MedianSmoothing:
    """Replaces every pixel by the median of a square of pixels around it, channel by channel.

    It is scipy's `median_filter`: of an even number of pixels it takes the larger of the two in the
    middle, a square of even size reaches further up and left, and images are mirrored at their edges.

    Attributes:
      size: The side of the square in pixels, at least 1.

    Raises:
      TypeError: `size` is not an integer.
      ValueError: `size` is below 1.

    Example:
      >>> image = jnp.zeros((1, 3, 3, 1)).at[0, 1, 1, 0].set(1)
      >>> float(MedianSmoothing(2)(image).max())
      0.0
    """

    size: int = 2

    def __post_init__(self) -> None:
        checks.integer("size", self.size, minimum=1)

    def __call__(self, images: Array) -> Array:
        """Smooths floating images [B, H, W, C]."""
        checks.float_images(images)
        (height, width), size = images.shape[1:3], self.size
        reach = (size // 2, (size - 1) // 2)
        padded = jnp.pad(images, ((0, 0), reach, reach, (0, 0)), mode="symmetric")
        shifted = [
            padded[:, row : row + height, column : column + width]
            for row in range(size)
            for column in range(size)
        ]
        return jnp.sort(jnp.stack(shifted), axis=0)[size**2 // 2]


def squeezing_score(logits: Array, *squeezed: Array) -> Array:
    """Computes the score of feature squeezing: how far the answers to squeezed images are away.

    Args:
      logits: [B, K], for the images.
      *squeezed: [B, K] each, one or more: for the images after a squeezer, such as `BitDepth(5)` or
        `MedianSmoothing(2)`.

    Returns:
      [B] in [0, 2]: the largest l1 distance between the probabilities.

    Raises:
      ValueError: There are no squeezed images, or shapes differ.

    Example:
      >>> squeezing_score(jnp.log(jnp.array([[0.9, 0.1]])), jnp.log(jnp.array([[0.4, 0.6]]))).round(3)
      Array([1.], dtype=float32)
    """
    shapes = [jnp.shape(each) for each in (logits, *squeezed)]
    if len(shapes) < 2 or len(set(shapes)) > 1 or len(shapes[0]) != 2:
        raise ValueError(
            "`logits` and one or more `squeezed` must have the same shape [B, K], got "
            f"{', '.join(map(str, shapes))}."
        )
    original, *others = (jax.nn.softmax(each, axis=-1) for each in (logits, *squeezed))
    return jnp.stack([jnp.abs(original - other).sum(axis=-1) for other in others]).max(axis=0)


def confidence_score(logits: Array) -> Array:
    """Computes how unsure a classifier is: 1 minus the largest probability.

    It finds images that barely cross the boundary of a class, but not those of an attack that goes on
    until the network is sure of the wrong class.

    Args:
      logits: [B, K].

    Returns:
      [B] in [0, 1 - 1 / K].

    Raises:
      ValueError: The logits are not [B, K].

    References:
      Hendrycks, Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in
      Neural Networks", ICLR 2017, https://arxiv.org/abs/1610.02136

    Example:
      >>> confidence_score(jnp.log(jnp.array([[0.9, 0.1]]))).round(3)
      Array([0.1], dtype=float32)
    """
    if jnp.ndim(logits) != 2:
        raise ValueError(f"`logits` must be [B, K], got shape {jnp.shape(logits)}.")
    return 1 - jax.nn.softmax(logits, axis=-1).max(axis=-1)


def detection_threshold(clean_scores: Any, false_positive_rate: float = 0.05) -> float:
    """Chooses the threshold of a score: images with a score above it count as adversarial.

    Args:
      clean_scores: [N], the scores of clean images that the network was not trained on.
      false_positive_rate: The share of them that may be above the threshold, in [0, 1).

    Returns:
      The lowest of the scores that no more than this share exceed.

    Raises:
      TypeError: The rate is not a number.
      ValueError: The scores are not [N] with N of at least 1 and finite, or the rate is out of range.

    Example:
      >>> scores = np.arange(100) / 100
      >>> threshold = detection_threshold(scores, 0.05)
      >>> threshold, int((scores > threshold).sum())
      (0.94, 5)
    """
    checks.fraction("false_positive_rate", false_positive_rate)
    scores = np.asarray(clean_scores, dtype=np.float64)
    wanted = "`clean_scores` must be one or more finite numbers [N]"
    if scores.ndim != 1 or not scores.size:
        raise ValueError(f"{wanted}, got shape {scores.shape}.")
    finite = np.isfinite(scores)
    if not finite.all():
        raise ValueError(f"{wanted}, got {scores[~finite][0]} at {np.argmin(finite)}.")
    scores = np.sort(scores)
    # The small number allows for rounding: 0.05 * 100 must be 5.
    return float(scores[len(scores) - 1 - int(false_positive_rate * len(scores) + 1e-9)])
