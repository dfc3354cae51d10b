"""Bounds of the logits of a classifier in a linf ball, and certificates from them."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import checks, compilation, programs
from jaxrobust.certificates.linear import BOUNDS, lower_bounds
from jaxrobust.certificates.reader import operations_of
from jaxrobust.types import Array, LogitsFn, Progress, Stochastic


class Bounds(NamedTuple):
    """Bounds of the logits of every image within epsilon: lower <= logits <= upper.

    Attributes:
      lower: float32 [B, K].
      upper: float32 [B, K].
    """

    lower: Array
    upper: Array


@dataclasses.dataclass(frozen=True, eq=False)
class Certified:
    """The result of `certify` for N images, as host arrays.

    The margins are proved for the network in real arithmetic, with float32 constants. They are lowered
    by the worst rounding of the float32 bounds, and by the worst rounding of a network that is computed
    in float32 operation by operation, with sums in any order and functions to within four steps of
    float32. They do not cover a compiled network that rounds differently (TF32, bfloat16, convolutions
    by transforms); for such a network, only the prediction for the image itself is checked.

    Attributes:
      certified: bool [N], whether every image within epsilon has only positive margins and the
        compiled classifier predicts the label for the image itself.
      margins: float32 [N, K], lower bounds of the logit of the label minus that of each class; inf for
        the label itself.
      labels: int [N], the true classes.
      epsilon: float64 [N], the radius of the linf ball in pixel units.
      method: The method of the bounds, "ibp", "crown-ibp" or "crown".
    """

    certified: np.ndarray
    margins: np.ndarray
    labels: np.ndarray
    epsilon: np.ndarray
    method: str


def ibp_bounds(logits_fn: LogitsFn, images: Array, epsilon: Any) -> Bounds:
    """Bounds the logits by interval arithmetic, from layer to layer (IBP).

    Args:
      logits_fn: A function, images float32 [B, H, W, C] in [0, 1] -> logits [B, K], made of the
        operations that docs/certificates.md lists. Row i of the logits must depend on image i only.
      images: floating [B, H, W, C] in [0, 1].
      epsilon: The radius of the linf ball in pixel units, at least 0, a scalar or [B]. The bounds are
        over the images of the ball that lie in [0, 1].

    Returns:
      The lower and upper bounds.

    Raises:
      NotImplementedError: An operation of the network has no rule; the message names it and its layer.
      TypeError: The images are integers, or `logits_fn` is a `types.Stochastic`.
      ValueError: The images are outside [0, 1] or have the wrong shape, or epsilon is negative.

    Example:
      >>> brighter = lambda x: jnp.stack([x.sum((1, 2, 3)), -x.sum((1, 2, 3))], axis=1)
      >>> lower, upper = ibp_bounds(brighter, jnp.full((1, 2, 2, 1), 0.5), 0.25)
      >>> [f"{float(low):.2f} .. {float(high):.2f}" for low, high in zip(lower[0], upper[0])]
      ['1.00 .. 3.00', '-3.00 .. -1.00']

    References:
      Gowal et al., "Scalable Verified Training for Provably Robust Image Classification", ICCV 2019,
      https://arxiv.org/abs/1810.12715
    """
    return _logit_bounds(logits_fn, images, epsilon, "ibp", 1)


def crown_bounds(
    logits_fn: LogitsFn,
    images: Array,
    epsilon: Any,
    *,
    intermediate: str = "crown",
    num_rows: int = 256,
) -> Bounds:
    """Bounds the logits by linear functions of the pixels, with lines around each activation (CROWN).

    The bounds are never looser than those of `ibp_bounds`.

    Args:
      logits_fn: A function, images float32 [B, H, W, C] in [0, 1] -> logits [B, K]; see `ibp_bounds`.
      images: floating [B, H, W, C] in [0, 1].
      epsilon: The radius of the linf ball in pixel units, at least 0, a scalar or [B].
      intermediate: How the inputs of activations are bounded: "crown" in the same way, layer by layer,
        or "ibp" by intervals (CROWN-IBP), which is looser, and faster by about the number of hidden
        units.
      num_rows: With "crown", the number of units of a layer that are bounded at a time, at least 1. The
        memory is that of the activations of the images times this number.

    Returns:
      The lower and upper bounds.

    Raises:
      NotImplementedError: An operation of the network has no rule; the message names it and its layer.
      TypeError: The images are integers, or `logits_fn` is a `types.Stochastic`.
      ValueError: The images are outside [0, 1] or have the wrong shape, epsilon is negative, or
        `intermediate` is unknown.

    References:
      Zhang et al., "Efficient Neural Network Robustness Certification with General Activation
      Functions", NeurIPS 2018, https://arxiv.org/abs/1811.00866
    """
    checks.one_of("intermediate", intermediate, ("crown", "ibp"))
    method = "crown" if intermediate == "crown" else "crown-ibp"
    return _logit_bounds(logits_fn, images, epsilon, method, num_rows)


def margin_bounds(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    epsilon: Any,
    *,
    method: str = "crown",
    num_rows: int = 256,
) -> Array:
    """Bounds the margins, the logit of the label minus the other logits, from below.

    The bounds are tighter than the difference of the bounds of two logits.

    Args:
      logits_fn: A function, images float32 [B, H, W, C] in [0, 1] -> logits [B, K]; see `ibp_bounds`.
      images: floating [B, H, W, C] in [0, 1].
      labels: int [B], the true classes.
      epsilon: The radius of the linf ball in pixel units, at least 0, a scalar or [B].
      method: "ibp" as `ibp_bounds`; "crown-ibp" or "crown" as `crown_bounds` with `intermediate="ibp"`
        or "crown".
      num_rows: With "crown", the number of units of a layer that are bounded at a time, at least 1.

    Returns:
      float32 [B, K], inf for the label itself.

    Raises:
      NotImplementedError: An operation of the network has no rule; the message names it and its layer.
      TypeError: The images are integers, the labels are not, or `logits_fn` is a `types.Stochastic`.
      ValueError: The images are outside [0, 1] or have the wrong shape; epsilon is negative; the method
        is unknown; or the labels have another shape or are out of range.
    """
    checks.one_of("method", method, BOUNDS)
    function, images, radii = _prepare(logits_fn, images, epsilon, num_rows)
    checks.images_and_labels(images, labels)
    num_classes = programs.logits_shape(function, images[:1])[1]
    if not checks.is_traced(labels):
        checks.label_range("labels", labels, num_classes)
    return _margins(function, images, labels, radii, method=method, num_rows=num_rows)


def certify(
    logits_fn: LogitsFn,
    images: Any,
    labels: Any,
    *,
    epsilon: Any,
    method: str = "crown",
    batch_size: int = 16,
    num_rows: int = 256,
    progress: Progress | None = None,
) -> Certified:
    """Proves which images are classified correctly under every perturbation within epsilon.

    The proof is for the network in real arithmetic, with an allowance for float32 (see `Certified`). In
    addition the compiled classifier must predict the label of the image itself, in batches of
    `batch_size` images.

    An image that is not certified may or may not be robust; attack it to find out. For the rate with
    its confidence interval see `evaluation.certified_accuracy`. Another epsilon, or other weights of a
    Classifier, need no recompilation.

    Args:
      logits_fn: A function, images float32 [B, H, W, C] in [0, 1] -> logits [B, K]; see `ibp_bounds`.
      images: floating [N, H, W, C] in [0, 1].
      labels: int [N], the true classes.
      epsilon: The radius of the linf ball in pixel units, at least 0, a scalar or [N].
      method: "ibp", "crown-ibp" or "crown", from fast and loose to slow and tight; see `margin_bounds`.
      batch_size: The number of images that are processed at a time, at least 1.
      num_rows: With "crown", the number of units of a layer that are bounded at a time, at least 1.
      progress: A function that is called with ("images", images done, images in all), or None.

    Returns:
      Which images are certified, and their margins.

    Raises:
      NotImplementedError: An operation of the network has no rule; the message names it and its layer.
      TypeError: The images are integers, the labels are not, or `logits_fn` is a `types.Stochastic`.
      ValueError: There is no image; the images are outside [0, 1] or have the wrong shape; epsilon is
        negative; the method is unknown; or the labels have another shape or are out of range.

    Example:
      >>> brighter = lambda x: jnp.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3))], axis=1)
      >>> images = np.array([0.7, 0.9], np.float32).reshape(2, 1, 1, 1)
      >>> certify(brighter, images, np.array([0, 0]), epsilon=0.3).certified.tolist()
      [False, True]
    """
    checks.integer("batch_size", batch_size, minimum=1)
    images, labels = np.asarray(images), np.asarray(labels)
    checks.float_images(images)
    if not len(images):
        raise ValueError("`images` must have at least one image, got none.")
    checks.images_and_labels(images, labels)
    checks.value_range(images)
    _check_epsilon(epsilon, len(images))
    radii = np.broadcast_to(np.asarray(epsilon, np.float64), labels.shape)
    rows, answers = [], []
    for indices, count in _batches(len(images), batch_size):
        of_batch = margin_bounds(
            logits_fn,
            jnp.asarray(images[indices]),
            jnp.asarray(labels[indices]),
            radii[indices],
            method=method,
            num_rows=num_rows,
        )
        rows.append(np.asarray(of_batch)[:count])
        batch = jnp.asarray(images[indices])
        function = programs.as_argument(logits_fn, batch)
        answers.append(np.asarray(_answers(function, batch))[:count])
        if progress is not None:
            progress("images", int(indices[count - 1]) + 1, len(images))
    margins = np.concatenate(rows)
    # A NaN is not above 0, so it certifies nothing.
    certified = np.all(margins > 0, axis=1) & (np.concatenate(answers) == labels)
    return Certified(certified, margins, labels, radii.copy(), method)


@compilation.jit
def _answers(function: Any, images: Array) -> Array:
    return jnp.argmax(function(images), axis=1)


def _batches(num_images: int, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yields (indices of a batch, how many count); the last batch repeats its last index."""
    batch_size = min(batch_size, num_images)
    for start in range(0, num_images, batch_size):
        indices = np.minimum(np.arange(start, start + batch_size), num_images - 1)
        yield indices, min(batch_size, num_images - start)


def _check_epsilon(epsilon: Any, num_images: int) -> None:
    checks.number("epsilon", epsilon, minimum=0)
    if jnp.shape(epsilon) not in ((), (num_images,)):
        raise ValueError(
            f"`epsilon` must be a scalar or have shape {(num_images,)}, got shape {jnp.shape(epsilon)}."
        )


def _prepare(
    logits_fn: LogitsFn, images: Any, epsilon: Any, num_rows: int
) -> tuple[Any, Array, Array]:
    """Returns the classifier as an argument of compiled code, the images, and a radius for each."""
    nodes = jax.tree.leaves(logits_fn, is_leaf=lambda node: isinstance(node, Stochastic))
    if any(isinstance(node, Stochastic) for node in nodes):
        raise TypeError(
            "`logits_fn` must be deterministic, got a Stochastic; for a classifier that is smoothed "
            "with noise, use `defenses.certify_smoothed`."
        )
    checks.float_images(images)
    checks.integer("num_rows", num_rows, minimum=1)
    if not checks.is_traced(images):
        checks.value_range(images)
    _check_epsilon(epsilon, len(images))
    # What is narrower than float32 is no type for bounds.
    images = jnp.asarray(images, jnp.promote_types(images.dtype, jnp.float32))
    radii = jnp.broadcast_to(jnp.asarray(epsilon, images.dtype), images.shape[:1])
    one = jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)
    return programs.as_argument(logits_fn, one), images, radii


def _logit_bounds(
    logits_fn: LogitsFn, images: Array, epsilon: Any, method: str, num_rows: int
) -> Bounds:
    function, images, radii = _prepare(logits_fn, images, epsilon, num_rows)
    return _both_sides(function, images, radii, method=method, num_rows=num_rows)


@functools.partial(compilation.jit, static_argnames=("method", "num_rows"))
def _both_sides(
    function: Any, images: Array, radii: Array, *, method: str, num_rows: int
) -> Bounds:
    operations = operations_of(function, jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype))
    identity = jnp.eye(operations[-1].result.shape[1], dtype=images.dtype)
    functionals = jnp.concatenate([identity, -identity])

    def bound(image: Array, radius: Array) -> Array:
        return lower_bounds(operations, image[None], radius, functionals, method, num_rows)

    lower, negative = jnp.split(jax.vmap(bound)(images, radii), 2, axis=1)
    return Bounds(lower, -negative)


@functools.partial(compilation.jit, static_argnames=("method", "num_rows"))
def _margins(
    function: Any, images: Array, labels: Array, radii: Array, *, method: str, num_rows: int
) -> Array:
    operations = operations_of(function, jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype))
    identity = jnp.eye(operations[-1].result.shape[1], dtype=images.dtype)

    def bound(image: Array, label: Array, radius: Array) -> Array:
        functionals = identity[label] - identity
        margins = lower_bounds(operations, image[None], radius, functionals, method, num_rows)
        return jnp.where(jnp.arange(len(identity)) == label, jnp.inf, margins)

    return jax.vmap(bound)(images, labels, radii)
