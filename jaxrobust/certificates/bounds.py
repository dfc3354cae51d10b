"""Bounds of a classifier's logits in a linf ball, and what they certify."""

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

"""Called with (images done, images in all)."""


class Bounds(NamedTuple):
    """lower <= logits <= upper for every image of a box; float32 [B, K] each."""

    lower: Array
    upper: Array


@dataclasses.dataclass(frozen=True, eq=False)
class Certified:
    """What `certify` proves of N images; host arrays.

    Proved are the margins, in real arithmetic, of the network whose constants are the weights and what
    float32 makes of weights alone. They are moved outwards by the worst of two roundings: that of the
    bounds' own float32, and that of a network computed in float32 operation by operation, its sums in
    any order, its functions to within four steps of float32. A compiled network that rounds otherwise
    (TF32, bfloat16, convolutions by transforms) is not covered; of it is known that it answered right.

    Attributes:
      certified: bool [N]: no image within epsilon has a margin of 0 or less, and the compiled
        classifier gives the image itself the label.
      margins: float32 [N, K]: what the label's logit exceeds that of each class by, at least; inf for
        the label itself.
      labels: int [N].
      epsilon: float64 [N], radius of the linf ball in pixel units.
      method: "ibp", "crown-ibp" or "crown".
    """

    certified: np.ndarray
    margins: np.ndarray
    labels: np.ndarray
    epsilon: np.ndarray
    method: str


def ibp_bounds(logits_fn: LogitsFn, images: Array, epsilon: Any) -> Bounds:
    """Bounds of the logits by interval arithmetic, from layer to layer.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K], made of the operations that
        docs/certificates.md lists. Row i of its logits must depend on image i alone.
      images: floating [B, H, W, C] in [0, 1].
      epsilon: Radius of the linf ball in pixel units, one or [B]; of the ball counts what is in [0, 1].

    Returns:
      Bounds.

    Raises:
      NotImplementedError: An operation that has no bounds here; the message names it and its layer.
      TypeError: Integer images; a `types.Stochastic`.
      ValueError: Images outside [0, 1] or of the wrong shape, a negative epsilon.

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
    """Bounds of the logits by straight lines below and above each activation, from the logits back.

    Nowhere looser than `ibp_bounds`.

    Args:
      logits_fn: As for `ibp_bounds`.
      images: floating [B, H, W, C] in [0, 1].
      epsilon: As for `ibp_bounds`.
      intermediate: Where the activations' own bounds are from: "crown", the same way, layer by layer,
        or "ibp" (CROWN-IBP), looser and as many times faster as there are hidden units.
      num_rows: With "crown" how many units of a layer are bounded at a time: memory for that many
        times the activations of the images.

    Returns:
      Bounds.

    Raises:
      NotImplementedError: As `ibp_bounds`.
      TypeError: As `ibp_bounds`.
      ValueError: As `ibp_bounds`; another `intermediate`.

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
    """What the label's logit exceeds the others by, at least: tighter than bounds of both logits.

    Args:
      logits_fn: As for `ibp_bounds`.
      images: floating [B, H, W, C] in [0, 1].
      labels: int [B].
      epsilon: As for `ibp_bounds`.
      method: "ibp"; "crown-ibp" or "crown", which are `crown_bounds` with `intermediate="ibp"` and
        "crown".
      num_rows: As for `crown_bounds`.

    Returns:
      float32 [B, K], inf for the label itself.

    Raises:
      NotImplementedError: As `ibp_bounds`.
      TypeError: As `ibp_bounds`; labels that are no integers.
      ValueError: As `ibp_bounds`; an unknown method, labels of another shape or out of range.
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
    """Which images keep their label whatever is done to them within epsilon, proved by bounds.

    The proof is of the network in real arithmetic, with an allowance for float32 (`Certified` says
    which); besides, an image counts only if the compiled classifier, asked for `batch_size` images at
    a time, answers it right.

    An image that is not certified may be robust or not: attacks tell. The rate with its interval is
    `evaluation.certified_accuracy`. Other epsilons, and other weights of a Classifier, compile nothing.

    Args:
      logits_fn: As for `ibp_bounds`.
      images: floating [N, H, W, C] in [0, 1].
      labels: int [N], true classes.
      epsilon: Radius of the linf ball in pixel units, one or [N].
      method: As for `margin_bounds`.
      batch_size: Images at a time.
      num_rows: As for `crown_bounds`.
      progress: Called with ("images", done, in all).

    Returns:
      Certified.

    Raises:
      NotImplementedError: As `ibp_bounds`.
      TypeError: As `margin_bounds`.
      ValueError: As `margin_bounds`; no image.

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
        raise ValueError("`images` must hold at least one image, got none.")
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
    """Indices of batches of one size, the last filled up with its last index, and how many count."""
    batch_size = min(batch_size, num_images)
    for start in range(0, num_images, batch_size):
        indices = np.minimum(np.arange(start, start + batch_size), num_images - 1)
        yield indices, min(batch_size, num_images - start)


def _check_epsilon(epsilon: Any, num_images: int) -> None:
    checks.number("epsilon", epsilon, minimum=0)
    if jnp.shape(epsilon) not in ((), (num_images,)):
        raise ValueError(
            f"`epsilon` must be one number or of shape {(num_images,)}, got shape {jnp.shape(epsilon)}."
        )


def _prepare(
    logits_fn: LogitsFn, images: Any, epsilon: Any, num_rows: int
) -> tuple[Any, Array, Array]:
    """The classifier as an argument of compiled code, the images and every one's radius."""
    nodes = jax.tree.leaves(logits_fn, is_leaf=lambda node: isinstance(node, Stochastic))
    if any(isinstance(node, Stochastic) for node in nodes):
        raise TypeError(
            "`logits_fn` must give an image the same logits every time, got a Stochastic, whose "
            "answers are random; `defenses.certify_smoothed` is for a classifier smoothed with noise."
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
