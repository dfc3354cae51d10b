"""Certificates of randomised smoothing: predictions and l2 radii with a bounded error probability.

The smoothed classifier returns the class that the base classifier is most likely to return for
image + sigma * N(0, I). If that class has a probability of at least p > 1/2, the prediction is the same
within an l2 distance of sigma * Phi^-1(p), whatever the base classifier is.

References:
  Cohen, Rosenfeld, Kolter, "Certified Adversarial Robustness via Randomized Smoothing", ICML 2019,
  theorem 1 and the pseudocode of section 3.2, https://arxiv.org/abs/1902.02918
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrobust import checks
from jaxrobust.defenses.smoothing import smoothed_counts
from jaxrobust.types import Array, LogitsFn, as_key

ABSTAIN = -1
"""The prediction of a smoothed classifier that abstains, because its votes do not decide."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The numbers of noisy copies of each image, and the probability of an error.

    Attributes:
      num_samples: The number of copies for the prediction or the certificate, at least 1.
      num_selection: The number of copies that select the class in `certify_smoothed`, at least 1;
        `predict` does not use it.
      alpha: The largest probability of a wrong result for an image, in (0, 1].

    Raises:
      TypeError: A number of copies is not an integer.
      ValueError: A number of copies is below 1, or alpha is outside (0, 1].
    """

    num_samples: int = 1000
    num_selection: int = 100
    alpha: float = 0.001

    def __post_init__(self) -> None:
        checks.integer("num_samples", self.num_samples, minimum=1)
        checks.integer("num_selection", self.num_selection, minimum=1)
        checks.number("alpha", self.alpha, above=0, maximum=1)


_DEFAULT = Sampling()


class Certificate(NamedTuple):
    """The result of `certify_smoothed` for B images, as host arrays.

    Attributes:
      predictions: int [B], the predicted classes, or -1 if it abstains.
      radii: float64 [B], the l2 radii in pixel units within which the prediction is the same; 0 if it
        abstains.
      lower_bounds: float64 [B], lower bounds of the probability of the selected class.
    """

    predictions: np.ndarray
    radii: np.ndarray
    lower_bounds: np.ndarray


def predict(
    key: Array,
    logits_fn: LogitsFn,
    images: Array,
    sigma: float,
    sampling: Sampling = _DEFAULT,
    *,
    batch_size: int = 256,
    indices: Any = None,
) -> np.ndarray:
    """Predicts the class of each image with the smoothed classifier, or -1 if the votes do not decide.

    A returned class differs from the class of the smoothed classifier with probability at most alpha.

    Args:
      key: A PRNG key.
      logits_fn: A function, images [B, H, W, C] -> logits [B, K]. It sees values outside [0, 1].
      images: floating [B, H, W, C] in [0, 1].
      sigma: The standard deviation of the noise in pixel units, at least 0.
      sampling: The number of copies, and the alpha of the two-sided binomial test between the two most
        frequent classes.
      batch_size: The number of noisy copies that are evaluated at a time, at least 1.
      indices: int [B], the indices of the images in their data set, which determine their noise. None:
        0 .. B - 1.

    Returns:
      int [B], on the host.

    Raises:
      TypeError: The images are integers, or a number of copies or an index is not an integer.
      ValueError: Shapes do not match, or a value is out of range.

    References:
      Cohen, Rosenfeld, Kolter, 2019, PREDICT in section 3.2, proposition 1.
    """
    checks.instance("sampling", sampling, Sampling, "a defenses.Sampling, such as Sampling(1000)")
    given = (key, logits_fn, images, sigma, sampling.num_samples)
    counts = np.asarray(smoothed_counts(*given, batch_size=batch_size, indices=indices))
    from scipy import special

    second, first = np.sort(counts, axis=1)[:, -2:].T
    # P(X >= first) for X binomial with as many trials as both have, each of probability 1/2.
    tail = special.betainc(np.maximum(first, 1), second + 1, 0.5)
    decided = (first > second) & (2 * tail <= sampling.alpha)
    return np.where(decided, counts.argmax(axis=1), ABSTAIN)


def certify_smoothed(
    key: Array,
    logits_fn: LogitsFn,
    images: Array,
    sigma: float,
    sampling: Sampling = _DEFAULT,
    *,
    batch_size: int = 256,
    indices: Any = None,
) -> Certificate:
    """Predicts the class of each image, with an l2 radius within which the prediction is certified.

    A first sample of noise selects the class, and a second, independent one bounds its probability from
    below. The result for an image is wrong with probability at most alpha. The number of copies limits
    the radius to sigma * Phi^-1(alpha^(1 / num_samples)), which is 2.46 sigma by default.

    For certificates of the network itself in linf, by bounds of its logits, see `certificates.certify`.

    Args:
      key: A PRNG key.
      logits_fn: A function, images [B, H, W, C] -> logits [B, K]. It sees values outside [0, 1].
      images: floating [B, H, W, C] in [0, 1].
      sigma: The standard deviation of the noise in pixel units, at least 0.
      sampling: The numbers of copies that select the class and that bound its probability, and alpha,
        which must be below 1.
      batch_size: The number of noisy copies that are evaluated at a time, at least 1.
      indices: int [B], the indices of the images in their data set, which determine their noise. None:
        0 .. B - 1.

    Returns:
      The predictions, radii and lower bounds.

    Raises:
      TypeError: The images are integers, or a number of copies or an index is not an integer.
      ValueError: Shapes do not match, or a value is out of range, such as an alpha of 1.

    Example:
      >>> import jax.numpy as jnp
      >>> brighter = lambda x: jnp.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3))], axis=1)
      >>> images = jnp.ones((1, 2, 2, 1))
      >>> certificate = certify_smoothed(jax.random.key(0), brighter, images, sigma=0.25)
      >>> certificate.predictions.tolist(), bool(0 < certificate.radii[0] <= 1)
      ([0], True)

    References:
      Cohen, Rosenfeld, Kolter, 2019, CERTIFY in section 3.2, proposition 2.
    """
    checks.instance("sampling", sampling, Sampling, "a defenses.Sampling, such as Sampling(1000)")
    _check_alpha(sampling.alpha)
    # Two independent samples: the one that chose the class would speak well of it.
    for_selection, for_estimation = jax.random.split(as_key(key))
    selection, estimation = (
        np.asarray(
            smoothed_counts(
                part, logits_fn, images, sigma, count, batch_size=batch_size, indices=indices
            )
        )
        for part, count in (
            (for_selection, sampling.num_selection),
            (for_estimation, sampling.num_samples),
        )
    )
    classes = selection.argmax(axis=1)
    chosen = np.take_along_axis(estimation, classes[:, None], axis=1)[:, 0]
    lower = lower_confidence_bound(chosen, sampling.num_samples, sampling.alpha)
    from scipy import special

    certified = lower > 0.5
    radii = float(sigma) * special.ndtri(np.where(certified, lower, 0.5))
    return Certificate(np.where(certified, classes, ABSTAIN), radii, lower)


def lower_confidence_bound(counts: Any, num_samples: int, alpha: float) -> np.ndarray:
    """Computes the one-sided Clopper-Pearson lower bound of a proportion.

    The true proportion is below the bound with probability at most alpha.

    Args:
      counts: int of any shape, the numbers of successes, 0 .. num_samples.
      num_samples: The number of trials, at least 1.
      alpha: The probability of an error, in (0, 1).

    Returns:
      float64, of the shape of the counts.

    Raises:
      TypeError: The counts are not integers.
      ValueError: A count is outside 0 .. num_samples, or alpha is outside (0, 1).

    Example:
      >>> lower_confidence_bound([0, 50, 100], 100, 0.001).round(4).tolist()
      [0.0, 0.3448, 0.9333]

    References:
      Clopper, Pearson, "The Use of Confidence or Fiducial Limits Illustrated in the Case of the
      Binomial", Biometrika 1934.
    """
    _check_alpha(alpha)
    checks.integer("num_samples", num_samples, minimum=1)
    counts = np.asarray(counts)
    if counts.size:
        checks.integers("counts", counts)
        if counts.min() < 0 or counts.max() > num_samples:
            raise ValueError(
                f"`counts` must be in 0 .. {num_samples}, got {counts.min()} .. {counts.max()}."
            )
    from scipy import special

    # With no success the bound is 0, where the beta distribution is not defined.
    bound = special.betaincinv(np.maximum(counts, 1), num_samples - counts + 1, alpha)
    return np.where(counts == 0, 0.0, bound)


def certified_within(
    labels: Any, certificate: Certificate, radii: Sequence[float]
) -> list[dict[str, float | int]]:
    """Counts the images that are certified to be classified correctly within each radius.

    Args:
      labels: int [B], the true classes.
      certificate: The certificate of the same images.
      radii: l2 radii in pixel units, at least 0. Radius 0 counts correct predictions.

    Returns:
      A list of {"radius": the radius, "count": the certified images, "n": B}, one for each radius.

    Raises:
      ValueError: Labels and certificate have different lengths, or a radius is negative.

    Example:
      >>> certificate = Certificate(np.array([3, -1]), np.array([0.5, 0.0]), np.array([0.9, 0.4]))
      >>> certified_within([3, 1], certificate, [0.0, 1.0])
      [{'radius': 0.0, 'count': 1, 'n': 2}, {'radius': 1.0, 'count': 0, 'n': 2}]
    """
    labels = np.asarray(labels)
    if labels.shape != certificate.predictions.shape:
        raise ValueError(
            f"`labels` must have shape {certificate.predictions.shape}, got {labels.shape}."
        )
    rows: list[dict[str, float | int]] = []
    for radius in radii:
        checks.number("radii", radius, minimum=0)
        # Abstaining is never right, whatever the labels.
        right = (certificate.predictions == labels) & (certificate.predictions != ABSTAIN)
        count = int((right & (certificate.radii >= radius)).sum())
        rows.append({"radius": float(radius), "count": count, "n": len(labels)})
    return rows


def _check_alpha(alpha: float) -> None:
    checks.number("alpha", alpha, above=0, maximum=1)
    if alpha == 1:
        raise ValueError("`alpha` must be below 1, got 1.")
