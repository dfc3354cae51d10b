"""Three of the sanity checks: whether a classifier's gradients describe how its answers change.

They use the margin between the label and the best other class, because its gradient, unlike that of the
cross-entropy, does not vanish when the logits are large.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import compilation, losses, norms, programs
from jaxrobust.evaluation.answers import answers, padded_batches
from jaxrobust.evaluation.search import Prepared
from jaxrobust.types import Array, LogitsFn, Progress, Stochastic, fold_keys

_SHARE = 0.02  # of the images: what chance may do to an attack that starts at random
# Gradients below this are lost in float32.
_LEAST = 1e-30
# Finite differences: the directions for each image, the step in epsilons, the cosine that a gradient
# must reach, and the share of images whose gradient may miss it.
_DIRECTIONS, _STEP, _COSINE, _DISAGREEING = 16, 0.5, 0.5, 0.25

QUESTIONS = 4 + 2 * _DIRECTIONS
"""Questions for each image. A gradient counts as one, and two are computed at each of two points."""


def check(name: str, passed: bool | None, detail: str) -> dict[str, Any]:
    """Returns one check as it goes into the result; `passed` is None if it does not apply."""
    return {"name": name, "passed": None if passed is None else bool(passed), "detail": detail}


def many(count: Any, n: int) -> bool:
    """Says whether a count of n images is more than chance: at least 2, and more than 2 %."""
    return bool(count >= 2 and count > _SHARE * n)


class Slopes(NamedTuple):
    """The logits and the gradients at a point near each of n images.

    Attributes:
      points: float32 [n, H, W, C], the points.
      margin: [n, H, W, C], the gradients of the margin.
      entropy: [n, H, W, C], the gradients of the cross-entropy.
      logits: [n, K], the logits.
    """

    points: np.ndarray
    margin: np.ndarray
    entropy: np.ndarray
    logits: np.ndarray


def gradient_checks(
    prepared: Prepared,
    epsilon: float,
    norm: str,
    key: jax.Array,
    num_lanes: int,
    is_random: bool,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Runs the checks "gradients", "saturation" and "finite differences", which `sanity` describes.

    Args:
      prepared: n images that are classified correctly.
      epsilon: In pixel units, above 0.
      norm: "linf", "l2" or "l1".
      key: A PRNG key.
      num_lanes: How many images to evaluate at a time.
      is_random: Whether the classifier's answers are random without its being `Stochastic`.
      progress: Called with (name of the check, questions done, questions in all).

    Returns:
      A list with the result of each check, as `check` returns it.
    """
    noise_key, key = jax.random.split(key)
    n, shape = len(prepared.labels), prepared.images.shape[1:]
    noise = np.asarray(_noise(noise_key, (n, *shape), norm))
    points = np.clip(prepared.images + epsilon * noise, 0, 1)
    at_image = _slopes(prepared, prepared.images, num_lanes)
    progress("gradients", 2, QUESTIONS)
    at_point = _slopes(prepared, points, num_lanes)
    progress("gradients", 4, QUESTIONS)
    places = (at_image, at_point)
    # The larger number counts, at the images or at the points.
    zero, infinite, useless = (
        max(int(kind(slopes.margin).sum()) for slopes in places)
        for kind in (_is_zero, _not_finite, _useless)
    )
    saturated = max(
        int((_useless(slopes.entropy) & ~_useless(slopes.margin)).sum()) for slopes in places
    )
    found = [
        check(
            "gradients",
            not many(useless, n),
            f"The margin's gradient is zero for {zero} and not finite for {infinite} of {n} images.",
        ),
        check(
            "saturation",
            not many(saturated, n),
            f"The cross-entropy has no gradient in float32 for {saturated} of {n} images whose margin "
            f"has one (median gap of the logits {_median_gap(prepared):.3g})"
            + ("; attacks on the cross-entropy alone prove nothing." if saturated else "."),
        ),
    ]
    name = "finite differences"
    if is_random:
        return [*found, check(name, None, "Not for a classifier that answers at random.")]
    # How well a gradient foretells is asked only of those that are numbers.
    usable = ~_not_finite(at_point.margin)
    cosines = _cosines(prepared, at_point, epsilon, norm, key, num_lanes, progress)
    cosines = cosines[usable & ~np.isnan(cosines)]
    if not len(cosines):
        return [*found, check(name, None, f"None of {n} images has differences to compare with.")]
    low = int((cosines < _COSINE).sum())
    sentence = (
        f"Gradient and central differences over {2 * _STEP:g} epsilon disagree for {low} of "
        f"{len(cosines)} images (median cosine {np.median(cosines):.2f})."
    )
    disagree = many(low, n) and low > _DISAGREEING * len(cosines)
    return [*found, check(name, not disagree, sentence)]


def _median_gap(prepared: Prepared) -> float:
    """The median difference between the largest logit, which is the label's, and the second."""
    ordered = np.sort(prepared.clean_logits, axis=1)
    return float(np.median(ordered[:, -1] - ordered[:, -2]))


def _not_finite(gradients: np.ndarray) -> np.ndarray:
    return ~np.isfinite(gradients).all(axis=(1, 2, 3))


def _is_zero(gradients: np.ndarray) -> np.ndarray:
    return np.abs(gradients).max(axis=(1, 2, 3)) < _LEAST


def _useless(gradients: np.ndarray) -> np.ndarray:
    return _not_finite(gradients) | _is_zero(gradients)


def _slopes(prepared: Prepared, points: np.ndarray, num_lanes: int) -> Slopes:
    # The samples of a stochastic classifier are all kept for the way back.
    function = prepared.function
    samples = function.num_samples if isinstance(function, Stochastic) else 1
    parts, size = [], min(max(num_lanes // samples, 1), len(points))
    batch = jax.ShapeDtypeStruct((size, *points.shape[1:]), np.float32)
    function = programs.as_argument(function, batch)
    for indices, count in padded_batches(len(points), max(num_lanes // samples, 1)):
        at, labels = jnp.asarray(points[indices]), jnp.asarray(prepared.labels[indices])
        found = _gradients(function, at, labels, jnp.asarray(indices))
        parts.append([np.asarray(leaf)[:count] for leaf in found])
    return Slopes(points, *(np.concatenate(part) for part in zip(*parts, strict=True)))


@compilation.jit
def _gradients(
    function: LogitsFn, points: Array, labels: Array, indices: Array
) -> tuple[Array, Array, Array]:
    def objectives(points: Array) -> tuple[tuple[Array, Array], Array]:
        if isinstance(function, Stochastic):
            # The keys that `logits` answers with, for the finite differences.
            values = function(points, fold_keys(jax.random.key(0), indices))
        else:
            values = function(points).astype(jnp.float32)
        both = (jax.vmap(losses.margin), jax.vmap(losses.cross_entropy))
        return (both[0](values, labels), both[1](values, labels)), values

    (margins, _), pull_back, values = jax.vjp(objectives, points, has_aux=True)
    one, zero = jnp.ones_like(margins), jnp.zeros_like(margins)
    return pull_back((one, zero))[0], pull_back((zero, one))[0], values


@functools.partial(compilation.jit, static_argnums=(1, 2))
def _noise(key: Array, shape: tuple[int, ...], norm: str) -> Array:
    """Draws one point of the unit ball for each image."""

    def draw(key: Array) -> Array:
        return norms.uniform_in_ball(key, shape[1:], 1.0, norm)

    return jax.vmap(draw)(fold_keys(key, jnp.arange(shape[0])))


@functools.partial(compilation.jit, static_argnums=(1, 2))
def _directions(key: Array, shape: tuple[int, ...], norm: str) -> Array:
    """Draws one random step of unit length for each image."""
    return jax.vmap(lambda row: norms.steepest(row, norm))(jax.random.normal(key, shape))


def _cosines(
    prepared: Prepared,
    slopes: Slopes,
    epsilon: float,
    norm: str,
    key: jax.Array,
    num_lanes: int,
    progress: Progress,
) -> np.ndarray:
    """The cosine between predicted and true changes of the margin, for each image.

    The gradient predicts them. The cosine is zero if the gradient is zero but the changes are not, and
    NaN if nothing changes.
    """
    points, gradients = slopes.points, slopes.margin.astype(np.float64)
    rows, others = np.arange(len(points)), slopes.logits.copy()
    others[rows, prepared.labels] = -np.inf
    rivals = others.argmax(axis=1)  # at the point: a margin between two classes has no kinks

    def margins(at: np.ndarray) -> np.ndarray:
        found = answers(prepared.function, at, num_lanes).astype(np.float64)
        return found[rows, rivals] - found[rows, prepared.labels]

    foretold, true = [], []
    for number in range(_DIRECTIONS):
        direction = np.asarray(_directions(jax.random.fold_in(key, number), points.shape, norm))
        # Inside [0, 1], where alone the classifier is defined.
        up, down = (np.clip(points + s * _STEP * epsilon * direction, 0, 1) for s in (1, -1))
        foretold.append((gradients * (up - down)).sum(axis=(1, 2, 3)))
        true.append(margins(up) - margins(down))
        progress("finite differences", 4 + 2 * (number + 1), QUESTIONS)
    a, b = np.stack(foretold), np.stack(true)
    lengths = np.sqrt((a**2).sum(axis=0)), np.sqrt((b**2).sum(axis=0))
    product = lengths[0] * lengths[1]
    cosine = (a * b).sum(axis=0) / np.where(product > 0, product, 1.0)
    return np.where((lengths[0] == 0) & (lengths[1] == 0), np.nan, cosine)
