"""What randomised smoothing can promise: predictions with a bounded error, radii with a proof.

The smoothed classifier returns the class that the base classifier is most likely to return for
image + sigma * N(0, I). If that class has a probability of at least p > 1/2, it stays the answer
within an l2 distance of sigma * Phi^-1(p), for any base classifier whatever.

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
"""What a smoothed classifier predicts where its votes do not decide."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How many noisy copies of each image are looked at, and how often what they say may be wrong.

    Attributes:
      num_samples: Copies on which the statement rests.
      num_selection: Copies that select the class before; of `certify_smoothed` alone.
      alpha: The probability of a wrong statement about an image, in (0, 1].

    Raises:
      TypeError: A number of copies that is no integer.
      ValueError: Fewer than one copy, an alpha outside (0, 1].
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
    """What `certify_smoothed` can say of B images; host arrays.

    Attributes:
      predictions: int [B], -1 where it abstains.
      radii: float64 [B], in pixel units: the prediction is the same within this l2 distance. 0 where
        it abstains.
      lower_bounds: float64 [B], of the probability of the class that the selection chose.
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
    """The smoothed classifier's class for each image, or -1 where the copies do not decide.

    A returned class is another than the smoothed classifier's with probability alpha at most.

    Args:
      key: A PRNG key.
      logits_fn: Images [B, H, W, C] -> logits [B, K].
      images: floating [B, H, W, C] in [0, 1].
      sigma: Standard deviation of the noise in pixel units.
      sampling: Its alpha is that of the two-sided binomial test between the two most frequent classes.
      batch_size: Copies at a time.
      indices: As for `smoothed_counts`.

    Returns:
      int [B], on the host.

    Raises:
      TypeError: As `smoothed_counts`.
      ValueError: As `smoothed_counts`.

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
    """The smoothed classifier's class for each image and an l2 radius within which it stays.

    A first sample of noise selects the class, a second, independent one bounds its probability from
    below. The statement about an image is wrong with probability alpha at most. The radius is bounded
    by the number of copies too: sigma * Phi^-1(alpha^(1 / num_samples)), 2.46 sigma by default.

    `certificates.certify` is the other kind of certificate: of the network itself, in linf, by bounds.

    Args:
      key: A PRNG key.
      logits_fn: Images [B, H, W, C] -> logits [B, K].
      images: floating [B, H, W, C] in [0, 1].
      sigma: Standard deviation of the noise in pixel units.
      sampling: Copies to select the class and to bound its probability; its alpha below 1.
      batch_size: Copies at a time.
      indices: As for `smoothed_counts`.

    Returns:
      Certificate.

    Raises:
      TypeError: As `smoothed_counts`.
      ValueError: As `smoothed_counts`; an alpha of 1.

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
    """One-sided Clopper-Pearson bound: the proportion is at least this, but with probability alpha.

    Args:
      counts: int, any shape: successes, 0 .. num_samples.
      num_samples: Trials.
      alpha: In (0, 1).

    Returns:
      float64, the counts' shape.

    Raises:
      TypeError: Fractional counts.
      ValueError: Counts outside 0 .. num_samples, an alpha outside (0, 1).

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
    """How many images are certified to be classified correctly within each radius.

    Args:
      labels: int [B], true classes.
      certificate: Of the same images.
      radii: l2 distances in pixel units; at 0, correct without abstaining.

    Returns:
      [{"radius", "count", "n"}], one for each radius.

    Raises:
      ValueError: Labels and certificate of different lengths, a negative radius.

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
